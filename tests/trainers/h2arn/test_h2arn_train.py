"""H2ARN trained and evaluated on made-up token features whose captions name what is in their clouds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import TrainingError
from trainers import workers as run
from trainers.data import SplitIndex, write_also
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.data import H2arnData, open_data, pack
from trainers.h2arn.method import H2arn, build, optimizer
from trainers.loop.gradients import MeanGradients
from trainers.loop.optim import WarmupAdamW
from trainers.loop.trained import TrainedFolder
from trainers.measure.evaluate import evaluate
from trainers.measure.evaluated import EvaluatedFolder

pytestmark = pytest.mark.usefixtures("one_thread")

THINGS = 12
TEXT_TOKENS, CLOUD_TOKENS = 6, 8
SETTINGS: dict[str, Any] = {
    "d_model": 32, "nhead": 4, "num_layers": 1, "batch_size": 20, "epochs": 8, "seed": 1, "eval_batch": 16,
}  # fmt: skip


class Made:
    """Clouds of two things; two captions name both. A thing looks alike and reads alike, its tokens in any order."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.look, self.word = draw.normal(size=(THINGS, 10)), draw.normal(size=(THINGS, 7))
        pairs = [(a, b) for a in range(THINGS) for b in range(a)]
        order = [pairs[i] for i in draw.permutation(len(pairs))]
        self.clouds = {f"v{a}-{b}": (a, b) for a, b in order}

    def splits(self) -> dict[str, Any]:
        names = list(self.clouds)
        parts = {"train": names[:40], "val": names[40:53], "test": names[53:]}
        return {
            split: (
                items,
                [(f"{item}#{k}", f"caption {k} of {item}", item) for item in items for k in range(2)],
            )
            for split, items in parts.items()
        }

    def read(self) -> dict[str, Callable[[str], np.ndarray]]:
        return {"cloud": self.cloud, "text": self.text}

    def cloud(self, item: str) -> np.ndarray:
        a, b = self.clouds[item]
        draw = np.random.default_rng([a, b])
        rows = self.look[draw.permutation([a, b] * (CLOUD_TOKENS // 2))]
        return rows + 0.1 * draw.normal(size=rows.shape)

    def text(self, caption: str) -> np.ndarray:
        a, b = self.clouds[caption[:-2]]
        words = self.word[[a, b] if caption.endswith("0") else [b, a]]
        return np.concatenate([words, np.zeros((TEXT_TOKENS - 2, 7))])


def packed(folder: Path, config: H2arnConfig) -> H2arnData:
    folder.mkdir()
    corpus = Made()
    pack(folder, config, corpus.splits(), corpus.read())
    return open_data(folder, config)


def trained(folder: Path, **settings: Any) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with a packed corpus and a run of the entry that trains; what it told."""
    config = H2arnConfig(**{**SETTINGS, **settings})
    packed(folder / "packed", config)
    told: list[dict[str, Any]] = []
    request = {
        "method": "h2arn", "params": config.model_dump_json(), "device": "cpu",
        "folder": str(folder / "run"), "needs": {"pack-h2arn": str(folder / "packed")},
    }  # fmt: skip
    (folder / "run").mkdir()
    run.train(request, lambda record, arrays: told.append(dict(record)))
    return folder / "run", told


def evaluated(folder: Path) -> EvaluatedFolder:
    """What the entry that evaluates leaves of the test split."""
    request = {
        "method": "h2arn", "params": json.dumps({"split": "test"}), "device": "cpu",
        "folder": str(folder / "evaluated"),
        "needs": {"train-h2arn": str(folder / "run"), "pack-h2arn-test": str(folder / "packed")},
    }  # fmt: skip
    run.evaluate(request, lambda record, arrays: None)
    return EvaluatedFolder(folder / "evaluated")


@pytest.mark.slow
def test_training_learns_what_captions_say_and_evaluation_finds_it(tmp_path: Path) -> None:
    folder, _ = trained(tmp_path, epochs=20, lr=4e-3)
    rows = TrainedFolder(folder).history
    assert len(rows) == 20 and rows[-1].loss < 0.6 * rows[0].loss
    assert rows[0].terms.keys() == {"t2c", "c2t", "entailment"}
    assert rows[-1].terms["entailment"] < rows[0].terms["entailment"]
    found = evaluated(tmp_path)
    metrics, said = found.metrics.metrics, found.explanation
    for direction in ("t2v", "v2t"):
        assert metrics[direction]["R@5"].value > 75  # chance: 38
    assert metrics["t2v"]["R@1"].value > 40  # chance: 8
    index = SplitIndex.read(tmp_path / "packed" / "splits" / "test.json")
    assert said["item"][:, 3].tolist() == index.caption_item
    assert said["angle"].shape == said["aperture"].shape == (26, 4)
    assert said["text_weights"].shape == (26, 4, 6) and said["cloud_weights"].shape == (26, 4, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"similarity": "distance", "lift": "exponential", "temperature": "none"},
        {"geometry": "euclidean", "loss_lambda": 0.0, "lr": 1e-3},
        {"aggregation": "mean", "loss_lambda": 0.0, "mask_padding": True},
    ],
)
def test_variants_of_the_paper_learn_too(tmp_path: Path, settings: dict[str, Any]) -> None:
    trained(tmp_path, **settings)
    assert evaluated(tmp_path).metrics.metrics["t2v"]["R@5"].value > 60  # chance: 38


def start(folder: Path, **settings: Any) -> tuple[H2arn, H2arnData]:
    config = H2arnConfig(**{**SETTINGS, **settings})
    data = packed(folder / "packed", config)
    torch.manual_seed(0)
    return build(config, data), data


def test_optimizer_decays_everything_and_its_rate_rises_from_zero_then_falls_to_it(tmp_path: Path) -> None:
    method, _ = start(tmp_path)
    adam = optimizer(H2arnConfig(), method, 25)
    (group,) = adam.param_groups
    assert group["betas"] == (0.91, 0.9993) and group["weight_decay"] == 0.01 and group["eps"] == 1e-8
    assert len(group["params"]) == len(list(method.parameters()))
    rates = []
    for _ in range(27):
        rates += adam.learning_rates()
        adam.step()
    expected = [0.0, 1e-3, *(2e-3 * (25 - t) / 23 for t in range(2, 25)), 0.0, 0.0]
    assert rates == pytest.approx(expected)


def test_rate_goes_on_where_a_saved_optimizer_stood() -> None:
    def made() -> tuple[torch.nn.Parameter, WarmupAdamW]:
        p = torch.nn.Parameter(torch.ones(3))
        return p, WarmupAdamW([p], lr=0.1, total_steps=10, warmup_steps=2)

    def step(p: torch.nn.Parameter, adam: WarmupAdamW) -> None:
        p.grad = p.detach() ** 2
        adam.step()

    whole, first = made()
    part, before = made()
    for _ in range(8):
        step(whole, first)
    for _ in range(3):
        step(part, before)
    resumed, after = made()
    with torch.no_grad():
        resumed.copy_(part)
    after.load_state_dict(before.state_dict())
    for _ in range(5):
        step(resumed, after)
    assert torch.equal(resumed, whole) and after.learning_rates() == first.learning_rates()
    with pytest.raises(ValueError, match="warmup_steps = 10 of 10 updates: some must follow"):
        WarmupAdamW([whole], lr=0.1, total_steps=10, warmup_steps=10)


def test_losses_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+: the (loss term|gradient)|has become nan"):
        trained(tmp_path, lr=1e30, clip_norm=None, epochs=2)


def gradients(method: H2arn) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_encoding_a_cloud_once_has_the_gradient_of_encoding_it_for_every_caption(tmp_path: Path) -> None:
    method, data = start(tmp_path, dropout=0.0)
    method.double()
    batch = {n: v.double() if v.is_floating_point() else v for n, v in next(data.train_batches(0, 0)).items()}
    assert len(batch["cloud"]) < len(batch["owner"])
    again = {
        **batch, "cloud": batch["cloud"][batch["owner"]], "cloud_place": torch.arange(len(batch["owner"])),
        "owner": torch.arange(len(batch["owner"])),
    }  # fmt: skip
    found = []
    for one in (batch, again):
        method.zero_grad()
        terms = method.losses(one, 0)
        torch.stack(list(terms.values())).sum().backward()
        found.append(gradients(method) | {f"term.{name}": value.detach() for name, value in terms.items()})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-8, atol=1e-12)


def test_a_further_right_item_changes_the_loss(tmp_path: Path) -> None:
    method, data = start(tmp_path, dropout=0.0, batch_size=80)
    before = method.losses(next(data.train_batches(0, 0)), 0)
    index = data.splits["train"]
    also = [[index.items[1]] if item == 0 else [] for item in index.caption_item]
    write_also(tmp_path / "packed", {"train": also})
    after = method.losses(next(open_data(tmp_path / "packed", method.config).train_batches(0, 0)), 0)
    assert after["t2c"] < before["t2c"] and after["c2t"] < before["c2t"]


@pytest.mark.parametrize("memory_mb", [1, 1024])
def test_scores_do_not_depend_on_blocks(tmp_path: Path, memory_mb: int) -> None:
    method, data = start(tmp_path)
    found = evaluate(method, data, "test", data.splits["test"], memory_mb=memory_mb).ranking
    with torch.inference_mode():
        texts = [method.eval().encode_texts(batch) for batch in data.text_batches("test")]
        items = [method.encode_items(batch) for batch in data.item_batches("test")]
        scores = torch.cat(
            [torch.cat([method.scores(text, item) for item in items], 1) for text in texts]
        ).numpy()
    np.testing.assert_allclose(found.top_scores[:, 0], scores.max(1), rtol=1e-5)


def step(method: H2arn, data: H2arnData, batch: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """The terms and gradients of one batch of an epoch."""
    method.zero_grad()
    terms = method.losses(list(data.train_batches(0, 0, rank, world))[batch], 0)
    torch.stack(list(terms.values())).sum().backward()
    MeanGradients(method.parameters()).finish()
    return gradients(method) | {f"term.{name}": value.detach() for name, value in terms.items()}


@pytest.mark.parametrize("batch", [0, 1])
def test_two_processes_have_the_losses_and_gradients_of_one(
    tmp_path: Path, batch: int, from_processes: Callable[..., list[Any]]
) -> None:
    """The second batch has a single pair, which both processes see and which counts once."""
    method, data = start(tmp_path, batch_size=79, dropout=0.0)
    assert data.train_steps() == 2

    alone = step(method, data, batch)
    for found in from_processes(2, lambda rank: step(method, data, batch, rank, 2)):
        assert found.keys() == alone.keys()
        largest = max(float(value.abs().max()) for value in alone.values())
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6 * max(1.0, largest))
    assert math.isfinite(largest)
