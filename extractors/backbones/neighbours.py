"""Neighbours in a cloud: the k nearest ones of each point, and all within a radius.

No form holds the distances of all pairs. Three channels are searched in a tree, by distances in float64; more
are compared row by row in float32, a few rows at a time. Both forms give the same sets again for the same
cloud. Where several points are equally far from one, within rounding, any of them may be the k-th: full
matrices of products disagree with either form in about 0.05 % of the rows of a cloud of 10,000 points. The
form is therefore part of what the stage `dgcnn` is known by.

Axes: N points, S centres, C channels, k neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

ON_CPU, ON_GPU = (
    1 << 21,
    1 << 27,
)  # numbers in memory at a time: 8 MB fit into a CPU's cache, a GPU needs larger pieces of work
PAIRS = 1 << 22  # pairs of centres and points that are compared at a time


def nearest(features: Tensor, k: int) -> Tensor:
    """The k nearest points of each point, itself among them, in no particular order: (N, k) int64.

    Features are (N, C) float32 on any device, k at most N.
    """
    if features.shape[1] <= 3:
        return torch.from_numpy(by_tree(features.cpu().numpy(), k)).to(features.device)
    # Centred first: far from the origin |a|^2 + |b|^2 - 2ab would lose the digits that distinguish neighbours.
    centred = features - features.mean(0)
    half_squares = centred.square().sum(1) / 2
    out = torch.empty(len(features), k, dtype=torch.int64, device=features.device)
    for rows in slices(len(features), len(features), features.device):
        # ab - |b|^2 / 2 orders the points of a row in the same way as their distances.
        closeness = torch.addmm(-half_squares, centred[rows], centred.T)
        out[rows] = closeness.topk(k, dim=1, sorted=False).indices
    return out


def slices(rows: int, row_size: int, device: torch.device) -> Iterator[slice]:
    """Slices of rows, each small enough for the cache."""
    step = max(1, (ON_GPU if device.type == "cuda" else ON_CPU) // row_size)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def ball(
    points: NDArray[np.float32], centres: NDArray[np.float32], radius: float, count: int
) -> NDArray[np.int64]:
    """The first `count` points by index within a radius of each centre, (S, count); the first one fills up.

    Points (N, 3), centres (S, 3), each of them one of the points, so that none is without any. A point counts
    if its squared distance is at most radius^2 rounded to float32, the number that the authors' comparison
    in float32 uses; the distance itself is exact here.
    """
    limit = float(np.float32(radius * radius))
    tree, reach = (
        cKDTree(points),
        limit**0.5 * (1 + 1e-6),
    )  # slightly too large; the comparison with the limit decides
    sizes = tree.query_ball_point(centres, reach, return_length=True)
    out = np.empty((len(centres), count), np.int64)
    for rows in _shares(sizes, PAIRS):
        found = tree.query_ball_point(centres[rows], reach, return_sorted=True)
        index = np.concatenate([np.asarray(one, np.int64) for one in found])
        row = np.repeat(np.arange(len(found)), sizes[rows])
        apart = points[index].astype(np.float64) - centres[rows].astype(np.float64)[row]
        inside = np.square(apart).sum(1) <= limit
        out[rows] = _first(index[inside], row[inside], len(found), count)
    return out


def by_tree(points: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k nearest points of each point (N, C) by a tree on the processor, C at most 3: (N, k)."""
    _, index = cKDTree(points).query(points, k=np.arange(1, k + 1))
    return np.asarray(index, np.int64)


def _shares(sizes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Slices of rows whose sizes sum to at most `most`, or single rows."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def _first(index: NDArray[np.int64], row: NDArray[np.int64], rows: int, count: int) -> NDArray[np.int64]:
    """The first `count` indices of each row (rows, count), from indices sorted by row; every row must have one."""
    starts = np.searchsorted(row, np.arange(rows))
    place = np.arange(len(row)) - starts[row]
    out = np.repeat(index[starts], count).reshape(rows, count)
    kept = place < count
    out[row[kept], place[kept]] = index[kept]
    return out
