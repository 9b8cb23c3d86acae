"""Which frames of a video are taken: candidate positions at a rate, and a selection of so many of them.

The candidate rules are those of the methods' public loaders, on the frames of the compressed video; they
differ only where the frame rate is no multiple of the wanted rate, and in moments.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
FPS_DECIMALS = 3  # of a rate taken from presentation times: 2.9999 is 3, and its floor must not be 2


def average_fps(times: NDArray[np.float64]) -> float:
    """Frames a second of a video with these presentation times (T,); 1 where a single frame says nothing."""
    span = float(times[-1] - times[0]) if len(times) else 0.0
    return round((len(times) - 1) / span, FPS_DECIMALS) if span > 0 else 1.0


def gare_candidates(total: int, fps: float, rate: float = 1.0) -> Positions:
    """Every round(fps / rate)-th of `total` frames, from the first (GARE page, section 1.2).

    A stride under one, at which the public loader crashes, is one here.
    """
    _require_frames(total)
    return np.arange(0, total, max(1, round(fps / rate)), dtype=np.int64)


def neighborretr_candidates(total: int, fps: float, rate: int = 1) -> Positions:
    """Up to `rate` frames of each second, at steps of floor(fps) // rate (NeighborRetr page, section 2.3)."""
    _require_frames(total)
    each = math.floor(fps) or 30  # as the public loader: a rate under 1 counts as 30
    step = max(1, each // rate)
    seconds = max(1, math.ceil(total / each))
    offsets = np.arange(0, each, step)[:rate]
    positions = (np.arange(seconds)[:, None] * each + offsets).reshape(-1)
    return positions[positions < total].astype(np.int64)


def select(candidates: Positions, count: int, how: str) -> Positions:
    """At most `count` of the candidates.

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


def uniform_positions(total: int, wanted: int) -> Positions:
    """Positions (wanted,) of frames in the middles of equal parts of `total`; fewer repeat."""
    _require_frames(total)
    return np.minimum(((np.arange(wanted) + 0.5) * total / wanted).astype(np.int64), total - 1)


def _require_frames(total: int) -> None:
    if total < 1:
        raise ValueError("a video without frames has no positions")
