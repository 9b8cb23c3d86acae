"""Inputs of CLIP4Clip: pairs of a caption and a video; mode frozen reads the caption's pooled vector."""

from __future__ import annotations

from pathlib import Path

from trainers.clip4clip.config import Clip4ClipConfig
from trainers.layers.pair_data import PairData, pack

__all__ = ["open_data", "pack"]


def open_data(folder: Path, config: Clip4ClipConfig) -> PairData:
    """The data that `pack` wrote into a folder; batches as long as their longest caption and video, which is exact.

    Padded frames take part in nothing here, so `max_frames` may be larger than any video.
    """
    return PairData(folder, config, all_frame_slots=False)
