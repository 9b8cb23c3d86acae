"""CLIP4Clip, GARE and NeighborRetr in several processes: fine-tuned on a small CLIP, evaluated, they agree."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extractors.backbones.weights import import_open_clip
from trainers.layers.pair_config import ClipPairConfig
from trainers.layers.pair_data import PairData
from trainers.loop import distributed
from trainers.loop.engine import fit
from trainers.measure.evaluate import evaluate, validation_figure
from trainers.method import Method
from trainers.registry import METHODS

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "pink", "grey")
OPTIONS: dict[str, dict[str, Any]] = {
    "clip4clip": {"sim_header": "seqTransf", "cross_num_hidden_layers": 1, "epochs": 12, "patience": 12},
    "gare": {"num_hidden_layers": 1, "psi_dropout": 0.1},
    "neighborretr": {
        "temporal_layers": 1,
        "num_neighbors": 2,
        "bank_size": 16,
        "lr": 1e-3,
        "uniform_weight": 0.1,
    },
}
COMMON: dict[str, Any] = {
    "max_frames": 3, "max_words": 6, "batch_size": 8, "batch_size_val": 3, "augment": False, "lr": 2e-3,
    "coef_lr": 1.0, "epochs": 10, "patience": 3, "backbone_weights": "seed:1",
}  # fmt: skip
VIDEOS = {split: [f"{colour}-{split}" for colour in COLOURS] for split in ("train", "val")}
SPLITS = {
    split: (videos, [(f"{v}#{n}", f"{v.split('-')[0]} {'seen' * n}", v) for v in videos for n in range(2)])
    for split, videos in VIDEOS.items()
}

Trained = tuple[dict[str, torch.Tensor], dict[str, Any]]


def pictures(item: str) -> NDArray[np.uint8]:
    """Two to four noisy frames of the item's colour; those of val are others than those of train."""
    random = np.random.default_rng(list(item.encode()))
    colour = np.random.default_rng(list(item.partition("-")[0].encode())).integers(0, 256, 3)
    noise = random.integers(-30, 31, (random.integers(2, 5), 16, 16, 3))
    return np.clip(colour + noise, 0, 255).astype(np.uint8)


def packed(folder: Path, name: str, **options: Any) -> tuple[ClipPairConfig, PairData]:
    """Settings over a CLIP network of one block in each tower, and data for them."""
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    network = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (folder / "tiny.json").write_text(json.dumps(network))
    declared = METHODS.find(name).config
    config = declared(**{**COMMON, **OPTIONS[name], "base_encoder": str(folder / "tiny.json"), **options})
    methods_data = importlib.import_module(f"trainers.{name}.data")
    (folder / "data").mkdir()
    methods_data.pack(folder / "data", config, SPLITS, {"video": pictures})
    return config, methods_data.open_data(folder / "data", config)


def train(from_processes: Callable[..., list[Any]], folder: Path, name: str, world: int) -> list[Trained]:
    """Every process's weights after a training, and what it says of its course."""
    import_open_clip()  # once, before any process starts
    config, data = packed(folder, name)
    module = importlib.import_module(f"trainers.{name}.method")
    index = data.splits["val"]

    def body(rank: int) -> Trained:
        torch.manual_seed(rank)  # the initial weights are those of the first process
        method = module.build(config, data)
        seen: list[float] = []

        def validate(current: Method) -> dict[str, float]:
            seen.append(validation_figure(current, data, "val", index))
            return {"SumR": seen[-1]}

        distributed.share_module(method)
        start = validation_figure(method, data, "val", index)
        adam = module.optimizer(config, method, config.epochs * data.train_steps(world))
        result = fit(
            method, data, config, adam, validate=validate, figure="SumR", folder=folder / "run",
            device=torch.device("cpu"),
        )  # fmt: skip
        end = validation_figure(method, data, "val", index)
        said = {"start": start, "seen": seen, "end": end, "epochs": result.epochs, "best": result.best_epoch}
        return method.state_dict(), said

    found: list[Trained] = from_processes(world, body)
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_two_processes_learn_to_find_unseen_videos_and_end_alike(
    tmp_path: Path, name: str, from_processes: Callable[..., list[Any]]
) -> None:
    (first, said), (second, other) = train(from_processes, tmp_path, name, 2)
    assert said == other
    assert list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)
    assert len(said["seen"]) == said["epochs"] and said["end"] == said["seen"][said["best"] - 1]
    assert said["start"] < 290 and said["end"] > 335  # chance is 275, all found is 400


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPTIONS))
@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_the_encoding_have_the_scores_of_one_alone(
    tmp_path: Path, name: str, world: int, on_processes: Callable[..., list[int]]
) -> None:
    config, data = packed(tmp_path, name)
    method = importlib.import_module(f"trainers.{name}.method").build(config, data)
    index = data.splits["val"]
    alone = evaluate(method, data, "val", index, ("t2v", "v2t"))

    def body(rank: int) -> None:
        shared = evaluate(method, data, "val", index, ("t2v", "v2t"))
        np.testing.assert_allclose(shared.ranking.top_scores, alone.ranking.top_scores, rtol=1e-6, atol=1e-6)
        assert shared.metrics == alone.metrics and shared.hubness == alone.hubness

    assert on_processes(world, body) == [0] * world
