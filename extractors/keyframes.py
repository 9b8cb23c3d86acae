"""The most salient frames of each video: those where its colours change most (LEAN, "frames with notable disparities").

The paper gives no measure. Ours: the saliency of a frame is the L1 distance between its colour histogram (32 bins for
each channel) and that of the frame before it; the first frame is always kept.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import Field as Setting

from extractors.backbones.pictures import squares
from extractors.base import Array, FrameParams, FrameReader, Output, Result, Unit
from pipeline.store.fields import Field

BINS = 32  # bins of the histogram of each channel


class KeyframesParams(FrameParams):
    """The number of key frames and their size."""

    count: int = Setting(10, ge=1)  # LEAN's m; its figure 4 is flat beyond 10
    top: int = Setting(3, ge=1)  # number of most salient frames, which form LEAN's visual hyperedge
    size: int = Setting(224, ge=16)  # pixels of the square pictures


class Keyframes(FrameReader[KeyframesParams]):
    """Exactly `count` frames in temporal order: pictures (m, size, size, 3) uint8 RGB, times, saliency.

    `top` holds the positions of the most salient among them. A video with fewer frames repeats its last one, with a
    saliency of 0, the distance of a frame to itself. Of equally salient frames the earlier one is taken.
    """

    name, version = "keyframes", 1
    settings = KeyframesParams
    fields = {
        "rgb": Field("uint8", (None, None, None, 3)),
        "index": Field("int64", (None,)),
        "time": Field("float32", (None,)),
        "saliency": Field("float32", (None,)),
        "top": Field("int64", (None,)),
    }

    def begin(self, unit: Unit, decoder: str) -> None:
        """Start a unit; only the best frames so far and the last frame's histogram are kept in memory."""
        self._unit, self._decoder, self._seen = unit, decoder, 0
        self._before: NDArray[np.float64] | None = None
        self._first: _Candidate | None = None
        self._best: list[_Candidate] = []  # a heap, the least salient first

    def take(self, frames: Array, times: Array) -> Iterator[Result | None]:
        """Compare each frame with the one before it."""
        for frame, time in zip(frames, times, strict=True):
            colours = histogram(frame)
            if self._before is None:
                self._first = _Candidate(0.0, self._seen, float(time), frame).apart()
            else:
                saliency = float(np.abs(colours - self._before).sum())
                self._consider(_Candidate(saliency, self._seen, float(time), frame))
            self._before, self._seen = colours, self._seen + 1
        yield from ()

    def _consider(self, candidate: _Candidate) -> None:
        if len(self._best) < self.params.count - 1:
            heapq.heappush(self._best, candidate.apart())
        elif self._best and self._best[0] < candidate:
            heapq.heapreplace(self._best, candidate.apart())

    def end(self) -> Iterator[Result | None]:
        """The key frames of the unit."""
        kept = ([self._first] if self._first else []) + sorted(self._best, key=lambda c: c.index)
        last = kept[-1]
        kept += [_Candidate(0.0, last.index, last.time, last.frame)] * (self.params.count - len(kept))
        saliency = np.array([c.saliency for c in kept])
        top = np.argsort(-saliency, kind="stable")[: self.params.top]
        arrays = {
            "rgb": squares(np.stack([c.frame for c in kept]), self.params.size),
            "index": np.array([c.index for c in kept]),
            "time": np.array([c.time for c in kept]),
            "saliency": saliency,
            "top": np.sort(top),
        }
        yield self._unit, Output(arrays, {"decoder": self._decoder})


class _Candidate:
    """A frame that may become a key frame; the greater one is more salient, or as salient and earlier."""

    __slots__ = ("frame", "index", "saliency", "time")

    def __init__(self, saliency: float, index: int, time: float, frame: Array) -> None:
        self.saliency, self.index, self.time, self.frame = saliency, index, time, frame

    def __lt__(self, other: _Candidate) -> bool:
        return (self.saliency, -self.index) < (other.saliency, -other.index)

    def apart(self) -> _Candidate:
        """The same candidate with a copy of its frame: a view would keep the whole chunk in memory."""
        return _Candidate(self.saliency, self.index, self.time, self.frame.copy())


def histogram(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the pixels of a frame (H, W, 3) in each bin, for each channel: (3, 32), rows sum to 1."""
    bins = (frame.reshape(-1, 3) >> 3).astype(np.int64) + np.arange(3) * BINS
    return np.bincount(bins.reshape(-1), minlength=3 * BINS).reshape(3, BINS) / len(bins)
