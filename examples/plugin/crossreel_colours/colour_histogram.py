"""Colour histograms of the frames of a video."""

from __future__ import annotations

import numpy as np
from pydantic import Field as Setting

from extractors.base import Array, FrameExtractor
from pipeline.settings import Params
from pipeline.store.fields import Field


class ColourHistogramParams(Params):
    """The number of bins of the histogram."""

    bins: int = Setting(8, ge=2, le=256)  # bins of each of the three channels


class ColourHistogram(FrameExtractor[ColourHistogramParams]):
    """Frames to the shares (T, 3 * bins) of their pixels in each bin of a channel, and times (T,) in seconds."""

    name, version = "colour_histogram", 1
    worker_kind = "cpu"  # no network: its workers need no accelerator
    settings = ColourHistogramParams
    fields = {"frame": Field("float32", (None, None)), "time": Field("float32", (None,))}

    def prepare(self, frames: Array) -> Array:
        """The histogram (n, 3 * bins) of each frame; videos of all sizes share batches of these."""
        bins = self.params.bins
        channel = np.arange(3) * bins  # the bins of green stand behind those of red
        places = frames.astype(np.int64) * bins // 256 + channel
        counts = [np.bincount(one.ravel(), minlength=3 * bins) for one in places]
        return np.stack(counts) / (frames.shape[1] * frames.shape[2])

    def encode(self, prepared: Array) -> dict[str, Array]:
        """One row for each frame."""
        return {"frame": prepared.astype(np.float32)}
