"""Which items a method takes for alike, and a map of them. No torch.

A method need not give one vector for an item, and has no score for two items. What every method has are scores of
captions: two items are alike where the same captions score high for both. Axes: A captions, V items.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
NEIGHBOURS = 15  # of UMAP, its own default
SEED = 0


def profiles(scores: Floats) -> Floats:
    """Unit vectors (V, A) from scores (A, V) of captions with items.

    The mean of a caption over all items is subtracted, since one caption scores higher than another with everything;
    then that of an item over all captions, since a hub scores high with every caption and would be like all items.
    """
    centred = scores - scores.mean(1, keepdims=True)
    centred /= np.maximum(centred.std(1, keepdims=True), 1e-9)
    centred -= centred.mean(0, keepdims=True)
    lengths = np.linalg.norm(centred, axis=0, keepdims=True)
    return np.ascontiguousarray((centred / np.maximum(lengths, 1e-9)).T.astype(np.float32))


def alike(vectors: Floats, position: int, count: int) -> list[tuple[int, float]]:
    """The `count` items that are most like the one at a position, with their correlations in [-1, 1], best first."""
    found = vectors @ vectors[position]
    found[position] = -np.inf
    order = np.argsort(-found, kind="stable")[: min(count, len(found) - 1)]
    return [(int(other), float(found[other])) for other in order]


def principal(vectors: Floats) -> tuple[Floats, tuple[float, float]]:
    """The first two principal components (V, 2) of unit vectors, and the share of the variance that each explains.

    From the covariance (A, A), which is small whatever the number of items. Signs are fixed by the entry of the largest
    magnitude, so that the same data give the same map everywhere.
    """
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    chosen = directions[:, ::-1][:, :2]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(0), np.arange(chosen.shape[1])])
    points = centred @ chosen
    if points.shape[1] < 2:  # one caption gives one direction
        points = np.hstack([points, np.zeros((len(points), 2 - points.shape[1]))])
    total = max(float(values.sum()), 1e-12)
    first, second = (*(float(value) / total for value in values[::-1][:2]), 0.0, 0.0)[:2]
    return points.astype(np.float32), (first, second)


def has_umap() -> bool:
    """Whether the package umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def umap_points(vectors: Floats) -> Floats:
    """UMAP's two-dimensional layout (V, 2) of unit vectors, from a fixed seed. Needs the package umap-learn."""
    umap: Any = importlib.import_module("umap")
    neighbours = max(2, min(NEIGHBOURS, len(vectors) - 1))
    layout = umap.UMAP(n_neighbors=neighbours, metric="cosine", random_state=SEED).fit_transform(vectors)
    return np.asarray(layout, np.float32)
