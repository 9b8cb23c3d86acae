"""HLFormer on several processes: the losses and gradients of the joint batch, as one process has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.data import HLFormerData, open_data, pack
from trainers.hlformer.method import HLFormer, build
from trainers.loop.gradients import MeanGradients

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = 2
SMALL = {
    "hidden_size": 16, "heads": 2, "lorentz_dim": 11, "blocks": 2, "map_size": 4, "max_ctx_l": 8,
    "max_desc_l": 6, "dropout": 0.0, "input_dropout": 0.0, "hard_from_epoch": 0, "hard_pool_size": 1,
}  # fmt: skip


def rows(name: str, width: int) -> np.ndarray:
    draw = np.random.default_rng(sum(map(ord, name)))
    return draw.normal(size=(3 + len(name) % 4, width)).astype(np.float32)


def start(folder: Path, batch_size: int) -> tuple[HLFormer, HLFormerData]:
    """A method without dropout whose negatives are the hardest ones, and five videos to learn from."""
    config = HLFormerConfig(**SMALL, batch_size=batch_size)
    names = {"train": ["a", "bb", "ccc", "dddd", "eeeee"], "val": ["f", "gg"]}
    splits = {
        split: (items, [(f"{i}#{n}", f"caption {n} of {i}", i) for i in items for n in range(CAPTIONS)])
        for split, items in names.items()
    }
    read = {"video": lambda name: rows(name, 10), "text": lambda name: rows(name, 7)}
    (folder / "packed").mkdir()
    pack(folder / "packed", config, splits, read)
    data = open_data(folder / "packed", config)
    torch.manual_seed(0)
    return build(config, data).train(), data


def step(
    method: HLFormer, data: HLFormerData, batch: int, rank: int = 0, world: int = 1
) -> dict[str, Tensor]:
    """The terms and gradients of one batch of an epoch."""
    torch.manual_seed(7 + rank)  # as the engine: another stream in every process
    method.zero_grad()
    terms = method.losses(list(data.train_batches(0, 0, rank, world))[batch], 0)
    torch.stack(list(terms.values())).sum().backward()
    MeanGradients(method.parameters()).finish()
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return found | {f"term.{name}": value.detach() for name, value in terms.items()}


@pytest.mark.parametrize(("processes", "batch"), [(2, 0), (2, 1), (3, 0)])
def test_processes_have_the_losses_and_gradients_of_one(
    tmp_path: Path, processes: int, batch: int, from_processes: Callable[..., list[Any]]
) -> None:
    """The second batch has a single video, which all processes see and which counts once."""
    method, data = start(tmp_path, batch_size=4)
    assert data.train_steps() == 2

    expected = step(method, data, batch)
    for found in from_processes(processes, lambda rank: step(method, data, batch, rank, processes)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=5e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}"
            )


def test_drawn_negatives_are_those_of_one_process(
    tmp_path: Path, from_processes: Callable[..., list[Any]]
) -> None:
    method, data = start(tmp_path, batch_size=5)
    method.config = method.config.model_copy(update={"hard_from_epoch": 9})
    expected = step(method, data, 0)
    for found in from_processes(2, lambda rank: step(method, data, 0, rank, 2)):
        for name in ("term.clip_triplet", "term.frame_triplet"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
