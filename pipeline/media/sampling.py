"""The choice of frames from a video: candidate positions at a rate, and a selection of a given number of them.

The candidate rules are those of the methods' public loaders, applied to the frames of the compressed video; they
differ only if the frame rate is no multiple of the sampling rate, and in the exact times of the frames.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
FPS_DECIMALS = (
    3  # a rate computed from presentation times is rounded: the floor of 2.9999 would be 2 instead of 3
)


def average_fps(times: NDArray[np.float64]) -> float:
    """Return the frames per second of a video with presentation times (T,); 1 for a single frame, which has no rate."""
    span = float(times[-1] - times[0]) if len(times) else 0.0
    return round((len(times) - 1) / span, FPS_DECIMALS) if span > 0 else 1.0


def gare_candidates(total: int, fps: float, rate: float = 1.0) -> Positions:
    """Return the positions of every round(fps / rate)-th of `total` frames, from the first (GARE page, section 1.2).

    The stride is at least 1; the public loader crashes at a smaller one.
    """
    _require_frames(total)
    return np.arange(0, total, max(1, round(fps / rate)), dtype=np.int64)


def neighborretr_candidates(total: int, fps: float, rate: int = 1) -> Positions:
    """Return up to `rate` positions per second, at steps of floor(fps) // rate (NeighborRetr page, section 2.3)."""
    _require_frames(total)
    each = math.floor(fps) or 30  # the public loader takes a rate under 1 for 30
    step = max(1, each // rate)
    seconds = max(1, math.ceil(total / each))
    offsets = np.arange(0, each, step)[:rate]
    positions = (np.arange(seconds)[:, None] * each + offsets).reshape(-1)
    return positions[positions < total].astype(np.int64)


def select(candidates: Positions, count: int, how: str) -> Positions:
    """Return at most `count` of the candidates.

    `head` keeps the first ones; `uniform` those at the integer-truncated positions of
    linspace(0, n - 1, count), the first and last included; `slice` the middle of each of `count` equal parts.
    """
    total = len(candidates)
    if total <= count or how == "head":
        return candidates[:count]
    if how == "uniform":
        return candidates[np.linspace(0, total - 1, count, dtype=np.int64)]
    if how == "slice":
        return candidates[uniform_positions(total, count)]
    raise ValueError(f"no way of selecting frames is called {how!r}")


def uniform_positions(total: int, count: int) -> Positions:
    """Return positions (count,) of frames in the middles of equal parts of `total`; they repeat if `total` is less."""
    _require_frames(total)
    return np.minimum(((np.arange(count) + 0.5) * total / count).astype(np.int64), total - 1)


def _require_frames(total: int) -> None:
    if total < 1:
        raise ValueError("a video without frames has no positions")
