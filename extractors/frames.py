"""A few frames of each video at the size a network reads, so that fine-tuning never decodes video again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field as Setting

from extractors.backbones.pictures import squares
from extractors.base import Array, FrameParams, FrameReader, Output, Result, Unit
from pipeline.media import sampling
from pipeline.store.fields import Field


class FramesParams(FrameParams):
    """The rule by which frames are selected, their number and size."""

    candidates: Literal["gare", "neighborretr", "all"] = "gare"  # the method's rule; all: every frame
    rate: int = Setting(1, ge=1, le=60)  # candidates per second
    select: Literal["uniform", "head", "slice"] = "uniform"  # NeighborRetr's release takes the head
    count: int = Setting(12, ge=1)  # largest number of frames; a short video has fewer
    size: int = Setting(224, ge=16)  # pixels of the network's square input


class Frames(FrameReader[FramesParams]):
    """Up to `count` frames as pictures (F, size, size, 3) uint8 RGB, their positions (F,) and times (F,) in seconds.

    Of an item with a window, only the frames in it exist: positions count them from 0.
    The short side is resized (bicubic) and the centre kept, as CLIP's own transform does.
    """

    name, version = "frames", 1
    settings = FramesParams
    fields = {
        "rgb": Field("uint8", (None, None, None, 3)),
        "index": Field("int64", (None,)),
        "time": Field("float32", (None,)),
    }

    def positions(self, times: Array) -> sampling.Positions:
        """Positions (F,) of the selected frames of a video with these presentation times (T,) in seconds."""
        p, total, fps = self.params, len(times), sampling.average_fps(times)
        if p.candidates == "gare":
            candidates = sampling.gare_candidates(total, fps, p.rate)
        elif p.candidates == "neighborretr":
            candidates = sampling.neighborretr_candidates(total, fps, p.rate)
        else:
            candidates = np.arange(total)
        return sampling.select(candidates, p.count, p.select)

    def begin(self, unit: Unit, decoder: str) -> None:
        """Select frames by the times that `compress` wrote, so that no other frame is kept in memory."""
        self._unit, self._decoder, self._seen = unit, decoder, 0
        times = unit.inputs("compress")["time"]
        self._selected = self.positions(times[unit.inside(times)])
        self._kept: list[tuple[Array, Array]] = []

    def take(self, frames: Array, times: Array) -> Iterator[Result | None]:
        """Keep the selected frames of the chunk."""
        here = self._selected - self._seen
        here = here[(here >= 0) & (here < len(frames))]
        if len(here):
            self._kept.append((squares(frames[here], self.params.size), times[here]))
        self._seen += len(frames)
        yield from ()

    def end(self) -> Iterator[Result | None]:
        """The pictures of the unit."""
        rgb, times = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        arrays = {"rgb": rgb, "index": self._selected, "time": times}
        yield self._unit, Output(arrays, {"decoder": self._decoder})
