"""A trained method as its folder holds it: weights, settings, and the code that belongs to its name."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainers.config import MethodConfig
from trainers.loop import checkpoint
from trainers.method import Method, MethodData
from trainers.registry import METHODS, Declared
from trainers.stages import WEIGHTS

CONFIG = "config.json"


def read_settings(trained: Path) -> tuple[Declared, MethodConfig]:
    """The method of a training's folder, with the settings it was trained with."""
    saved = json.loads((trained / CONFIG).read_text(encoding="utf-8"))
    declared = METHODS.find(saved["method"])
    return declared, declared.config(**saved["config"])


def open_trained(trained: Path, packed: Path, device: torch.device) -> tuple[Method, MethodData]:
    """A trained method from its folder, in evaluation mode, with the packed data it is to encode."""
    declared, config = read_settings(trained)
    data = declared.open_data(packed, config)
    method = declared.build(config.to_be_filled(), data)
    checkpoint.load_weights(trained / WEIGHTS, method, whole=True)
    return method.to(device).eval(), data
