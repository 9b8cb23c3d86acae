"""One process and two train the same weights: every method, over epochs whose last batch is not full."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.contract import RetrievalMethod
from trainers.loop import distributed
from trainers.loop.engine import fit
from trainers.method import Method, MethodData
from trainers.registry import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, ITEMS, CAPTIONS = 16, 13, 2
PAIRS: dict[str, Any] = {
    "mode": "frozen", "max_words": 6, "max_frames": 4, "batch_size": 8, "lr": 1e-3, "coef_lr": 1.0,
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "clip4clip": {**PAIRS, "sim_header": "seqTransf", "cross_num_hidden_layers": 1, "mask_same_video": True},
    "gare": {**PAIRS, "num_hidden_layers": 1, "psi_dropout": 0.1},
    "neighborretr": {**PAIRS, "temporal_layers": 1, "num_neighbors": 3, "bank_size": 11, "cluster_heads": 2},
    "hlformer": {
        "hidden_size": 16, "heads": 2, "lorentz_dim": 11, "blocks": 2, "map_size": 4, "max_ctx_l": 8,
        "max_desc_l": 6, "dropout": 0.0, "input_dropout": 0.0, "hard_from_epoch": 1, "hard_pool_size": 2,
        "batch_size": 4, "lr": 1e-3,
    },
    "lean": {
        "frames": 4, "max_triples": 3, "hidden": 16, "latent": 8, "attention_hidden": 8, "batch_size": 8,
        "nodes": "sentence", "keyframes": "", "lr": 1e-3,
    },
    "h2arn": {
        "d_model": 16, "nhead": 2, "num_layers": 1, "batch_size": 8, "dropout": 0.0, "mask_padding": True,
        "warmup_ratio": 0.2,
    },
}  # fmt: skip
ROWS = {"cloud": "items", "video": "items", "frame": "items", "text": "captions", "token": "captions"}


def rows(name: str, kind: str) -> NDArray[np.float32]:
    """Features of an item or caption: three to six rows of a cloud of its own; every cloud has as many."""
    draw = np.random.default_rng(list(f"{kind} {name}".encode()))
    count = 5 if kind == "cloud" else draw.integers(3, 7)
    return draw.normal(size=(count, WIDTH)).astype(np.float32)


def opened(folder: Path, name: str, **options: Any) -> tuple[RetrievalMethod[Any], Any, MethodData]:
    """A method with small settings and data packed for them."""
    declared = METHODS.find(name)
    config = declared.config(**{**SMALL[name], "epochs": 3, "seed": 3, **options})
    items = {split: [f"{split}{number}" for number in range(ITEMS)] for split in ("train", "val")}
    splits = {
        split: (names, [(f"{item}#{n}", f"caption {n}", item) for item in names for n in range(CAPTIONS)])
        for split, names in items.items()
    }
    pooled = name in ("clip4clip", "gare")
    read = {
        kind: (lambda key, kind=kind: rows(key, kind)[: 1 if pooled and kind == "text" else None])
        for kind in config.inputs()
        if kind in ROWS
    }
    declared.pack(folder, config, splits, read)
    return declared, config, declared.open_data(folder, config)


def trained(declared: RetrievalMethod[Any], config: Any, data: MethodData, folder: Path) -> dict[str, Any]:
    """Weights before and after a training of all its epochs, and the losses of each."""
    torch.manual_seed(0)
    method = declared.build(config, data)
    before = weights(method)
    optimizer = declared.optimizer(config, method, config.epochs * data.train_steps(distributed.world()))
    count = itertools.count()
    result = fit(
        method, data, config, optimizer, validate=lambda _: {"SumR": float(next(count))}, figure="SumR",
        folder=folder, device=torch.device("cpu"),
    )  # fmt: skip
    return {"before": before, "after": weights(method), "losses": [row["terms"] for row in result.history]}


def weights(method: Method) -> dict[str, Tensor]:
    """The parameters, but for the bias of keys: a softmax ignores it, and Adam makes whole steps of its rounding."""
    found = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for name, value in found.items():
        if name.endswith("in_proj_bias"):
            value.view(3, -1)[1] = 0  # of queries, keys, values
    return found


def distance(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """Euclidean distance between two sets of weights."""
    return float(sum((some[name] - others[name]).square().sum() for name in some)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_two_processes_train_the_weights_of_one(
    tmp_path: Path, name: str, from_processes: Callable[..., list[Any]]
) -> None:
    (tmp_path / "data").mkdir()
    made = opened(tmp_path / "data", name)
    alone = trained(*made, tmp_path / "one")
    for shared in from_processes(2, lambda rank: trained(*made, tmp_path / "several")):
        moved, apart = distance(alone["before"], alone["after"]), distance(alone["after"], shared["after"])
        print(f"{name}: moved {moved:.3g}, apart {apart / moved:.2g} of it")  # shown by pytest -s
        assert apart < 1e-3 * moved
        for found, expected in zip(shared["losses"], alone["losses"], strict=True):
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
