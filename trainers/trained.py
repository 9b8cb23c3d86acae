"""A trained method as its folder holds it: weights, settings, and the code that belongs to its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from trainers.config import MethodConfig
from trainers.loop.trained import TrainedFolder
from trainers.method import Method


class Declared:
    """A method by name: its folder's config and functions."""

    def __init__(self, method: str) -> None:
        config = importlib.import_module(f"trainers.{method}.config")
        self.config_class: type[MethodConfig] = config.CONFIG
        self.data = importlib.import_module(f"trainers.{method}.data")
        self.model = importlib.import_module(f"trainers.{method}.method")

    def config(self, text: str) -> MethodConfig:
        """Its settings from JSON."""
        return self.config_class.model_validate_json(text)


def read_settings(trained: Path) -> tuple[Declared, MethodConfig]:
    """The method of a training's folder, with the settings it was trained with."""
    folder = TrainedFolder(trained)
    declared = Declared(folder.settings.method)
    return declared, folder.config(declared.config_class)


def open_trained(trained: Path, packed: Path, device: torch.device) -> tuple[Method, Any]:
    """A trained method from its folder, in evaluation mode, with the packed data it is to encode."""
    declared, config = read_settings(trained)
    data = declared.data.open_data(packed, config)
    method: Method = declared.model.build(config.to_be_filled(), data)
    TrainedFolder(trained).fill(method, whole=True)
    return method.to(device).eval(), data
