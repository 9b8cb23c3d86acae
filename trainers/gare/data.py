"""Inputs of GARE: pairs of a caption and a video; mode frozen reads the caption's pooled vector."""

from __future__ import annotations

from pathlib import Path

from trainers.gare.config import GareConfig
from trainers.layers.pair_data import PairData, pack

__all__ = ["open_data", "pack"]


def open_data(folder: Path, config: GareConfig) -> PairData:
    """The data that `pack` wrote into a folder; captions as long as the longest of a batch, which is exact."""
    return PairData(folder, config)
