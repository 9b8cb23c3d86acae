"""What packing reads of a method's settings is marked PACKS, or packed inputs would stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.settings import PACKS
from trainers.registry import BUILT_IN, METHODS

TEXT = "a man rides a bike"


def rows(count: int, size: int) -> Callable[[str], NDArray[Any]]:
    return lambda key: np.random.default_rng(list(key.encode())).normal(size=(count, size)).astype(np.float32)


def pictures(key: str) -> NDArray[np.uint8]:
    return np.random.default_rng(list(key.encode())).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


INPUTS: dict[str, Any] = {
    "hlformer": {"video": rows(9, 7), "text": rows(4, 5)},
    "gare": {"video": rows(3, 8), "text": rows(4, 8), "time": lambda key: np.arange(3.0)},
    "lean": {
        "frame": rows(4, 6), "token": rows(7, 5), "top": lambda key: np.array([0, 1]),
        "offset": lambda key: np.array([(0, 0), (0, 1), (2, 5), (6, 11), (12, 13), (14, 18), (0, 0)]),
        "span": lambda key: np.array([(0, 0, 2, 5), (0, 1, 6, 11), (0, 2, 14, 18)]),
    },
    "h2arn": {"cloud": rows(5, 6), "text": rows(7, 4)},
}  # fmt: skip
PAIRS = ("clip4clip", "gare", "neighborretr")
INPUTS |= dict.fromkeys(PAIRS, INPUTS["gare"])


@pytest.mark.parametrize("method", BUILT_IN)
def test_packing_reads_no_setting_that_is_not_marked_as_packing(method: str, tmp_path: Path) -> None:
    declared = METHODS.find(method)
    read: set[str] = set()

    class Watched(declared.config):  # type: ignore[misc, name-defined]
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    splits = {"train": (["a", "b"], [("a0", TEXT, "a"), ("b0", TEXT, "b")])}
    options: list[dict[str, Any]] = [{}]
    if method in PAIRS:
        options = [{"mode": "frozen"}, {"mode": "finetune"}]
    for number, own in enumerate(options):
        config = Watched(**own)
        inputs = (
            {"video": pictures} if own.get("mode") == "finetune" else INPUTS.get(method, INPUTS["hlformer"])
        )
        read.clear()
        folder = tmp_path / str(number)
        folder.mkdir()
        declared.pack(folder, config, splits, inputs)
        unmarked = (read & set(declared.config.model_fields)) - declared.config.marked(PACKS)
        assert not unmarked, f"packing reads {unmarked}, which do not make it pack again"
