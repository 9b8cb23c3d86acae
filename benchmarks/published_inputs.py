"""Features and pictures of published sizes, drawn from a seed: the inputs of each method without any corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.contract import RetrievalMethod
from trainers.method import MethodData
from trainers.registry import METHODS

WORDS = 10  # of a caption, and what is behind the first of them in `text_of`
SECONDS = 30  # of a video, at one stored frame a second
SIZES = {"clip": 512, "clip_text": 512, "vgg16": 4096, "bert": 768, "dgcnn": 1024}
"""Features of a row of each stage."""
TOKENS = 77  # of a caption of the release of H2ARN, padding included
CLOUD_TOKENS = 100


def text_of(number: int) -> str:
    """A caption of ten words."""
    return f"a person number {number} throws the small ball to a dog"


class Drawn:
    """Inputs by the name of an item or caption; equal names give equal arrays."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def readers(self) -> Mapping[str, Any]:
        """A function of the name for each input of the method."""
        return {
            kind: (lambda name, kind=kind, stage=stage, output=output: self.rows(name, kind, stage, output))
            for kind, (stage, output) in self.config.inputs().items()
        }

    def rows(self, name: str, kind: str, stage: str, output: str) -> NDArray[Any]:
        """The rows of one input."""
        draw = np.random.default_rng(list(f"{kind} {name}".encode()))
        if (stage, output) == ("frames", "rgb"):
            side = self.config.wishes()["frames"]["size"]
            return draw.integers(0, 256, (self.config.max_frames, side, side, 3), np.uint8)
        if output == "time":
            return np.arange(SECONDS, dtype=np.float64)
        if output == "top":
            return np.arange(self.config.top)[:, None]
        if output == "offset":
            return np.array([(2 * word, 2 * word + 1) for word in range(WORDS)], np.int32)
        if output == "span" or stage == "triples":
            parts = [(triple, part, 2 * (2 * triple + part), 2 * (2 * triple + part) + 1)
                     for triple in range(3) for part in range(3)]  # fmt: skip
            return np.array(parts, np.int32)
        return draw.standard_normal((self._count(stage, output), SIZES[stage]), np.float32)

    def _count(self, stage: str, output: str) -> int:
        if stage == "vgg16":
            return int(self.config.frames)
        if stage == "dgcnn":
            return CLOUD_TOKENS
        if stage == "clip_text":
            return 1 if output == "pooled" else TOKENS if self.config.kind == "pointcloud" else WORDS
        return WORDS if stage == "bert" else SECONDS


def opened(
    folder: Path, name: str, items: int, captions: int, **settings: Any
) -> tuple[RetrievalMethod[Any], Any, MethodData]:
    """A method with its published settings but for `settings`, and data of `items` items packed for it."""
    declared = METHODS.find(name)
    config = declared.config.model_validate(settings)
    names = [f"item{number}" for number in range(items)]
    queries = [
        (f"{item}#{number}", text_of(number), item)
        for number, item in enumerate(item for item in names for _ in range(captions))
    ]
    declared.pack(folder, config, {"train": (names, queries)}, Drawn(config).readers())
    return declared, config, declared.open_data(folder, config)
