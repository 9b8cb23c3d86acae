"""A trained method as its folder holds it: weights, settings, and the code that belongs to its name."""

from __future__ import annotations

from pathlib import Path

import torch

from trainers.config import MethodConfig
from trainers.loop.trained import TrainedFolder
from trainers.method import Method, MethodData
from trainers.registry import METHODS, Declared


def read_settings(trained: Path) -> tuple[Declared, MethodConfig]:
    """The method of a training's folder, with the settings it was trained with."""
    folder = TrainedFolder(trained)
    declared = METHODS.find(folder.settings.method)
    return declared, folder.config(declared.config)


def open_trained(trained: Path, packed: Path, device: torch.device) -> tuple[Method, MethodData]:
    """A trained method from its folder, in evaluation mode, with the packed data it is to encode."""
    declared, config = read_settings(trained)
    data = declared.open_data(packed, config)
    method = declared.build(config.to_be_filled(), data)
    TrainedFolder(trained).fill(method, whole=True)
    return method.to(device).eval(), data
