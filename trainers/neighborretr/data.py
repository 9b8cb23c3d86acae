"""Inputs of NeighborRetr: pairs of a caption and a video, padded to a fixed number of slots."""

from __future__ import annotations

from pathlib import Path

from trainers.layers.pair_data import PairData, pack
from trainers.neighborretr.config import NeighborRetrConfig

__all__ = ["open_data", "pack"]


def open_data(folder: Path, config: NeighborRetrConfig) -> PairData:
    """The data that `pack` wrote into a folder; all captions have one length, because the bank needs that."""
    return PairData(folder, config, word_slots=config.max_words)
