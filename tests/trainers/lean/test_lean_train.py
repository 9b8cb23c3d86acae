"""LEAN trained and evaluated on a made-up corpus whose captions name what is in their videos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers import workers as run
from trainers.data import SplitIndex
from trainers.lean.config import LeanConfig
from trainers.lean.data import LeanData, open_data, pack
from trainers.lean.method import Lean, build, optimizer
from trainers.loop import checkpoint
from trainers.loop.gradients import MeanGradients
from trainers.measure.evaluate import evaluate
from trainers.measure.evaluated import EvaluatedFolder
from trainers.method import Method
from trainers.trained import open_trained

pytestmark = pytest.mark.usefixtures("one_thread")

THINGS = 12
SETTINGS: dict[str, Any] = {
    "frames": 4, "max_triples": 3, "hidden": 32, "latent": 16, "attention_hidden": 8, "batch_size": 16,
    "lr": 5e-3, "epochs": 12, "seed": 1,
}  # fmt: skip


class Made:
    """Videos that show two things; captions name both, a few only one. A thing looks alike and reads alike."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.look, self.word = draw.normal(size=(THINGS, 10)), draw.normal(size=(THINGS, 7))
        pairs = [(a, b) for a in range(THINGS) for b in range(a)]
        order = [pairs[i] for i in draw.permutation(len(pairs))]
        self.videos = {f"v{a}-{b}": (a, b) for a, b in order}

    def splits(self) -> dict[str, Any]:
        names = list(self.videos)
        parts = {"train": names[:40], "val": names[40:53], "test": names[53:]}
        return {
            split: (
                items,
                [(f"{item}#{k}", f"caption {k} of {item}", item) for item in items for k in range(2)],
            )
            for split, items in parts.items()
        }

    def read(self) -> dict[str, Callable[[str], np.ndarray]]:
        offsets = np.array([(0, 0), (0, 3), (4, 7), (0, 0)], np.int32)
        spans = np.array([(0, 0, 0, 3), (1, 0, 4, 7)], np.int32)
        return {
            "frame": self.frames,
            "top": lambda item: np.array([0, 2, 3]),
            "token": self.tokens,
            "offset": lambda caption: offsets,
            "span": lambda caption: (
                spans[:1] if caption.startswith("v1") and caption.endswith("#1") else spans
            ),
        }

    def frames(self, item: str) -> np.ndarray:
        a, b = self.videos[item]
        noise = np.random.default_rng([a, b]).normal(size=(4, 10))
        return self.look[[a, a, b, b]] + 0.1 * noise

    def tokens(self, caption: str) -> np.ndarray:
        a, b = self.videos[caption[:-2]]
        return np.stack([np.zeros(7), self.word[a], self.word[b], np.zeros(7)])


def packed(folder: Path, config: LeanConfig, split: tuple[str, ...] = ("train", "val", "test")) -> LeanData:
    folder.mkdir()
    corpus = Made()
    pack(folder, config, {name: corpus.splits()[name] for name in split}, corpus.read())
    return open_data(folder, config)


def trained(folder: Path, **settings: Any) -> tuple[Path, dict[str, Any]]:
    """A folder with a packed corpus and a run of the entry that trains; what it told."""
    config = LeanConfig(**{**SETTINGS, **settings})
    packed(folder / "packed", config)
    told: list[dict[str, Any]] = []
    request = {
        "method": "lean", "params": config.model_dump_json(), "device": "cpu",
        "folder": str(folder / "run"), "needs": {"pack-lean": str(folder / "packed")},
    }  # fmt: skip
    (folder / "run").mkdir()
    run.train(request, lambda record, arrays: told.append(record))
    return folder / "run", told[-1]["record"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lean")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _, record = trained(folder)
    torch.set_num_threads(threads)
    (folder / "record.json").write_text(json.dumps(record))
    return folder


@pytest.mark.slow
def test_training_learns_what_captions_say_and_evaluation_finds_it(learnt: Path) -> None:
    out = learnt / "evaluated"
    request = {
        "method": "lean", "params": json.dumps({"split": "test"}), "device": "cpu", "folder": str(out),
        "needs": {"train-lean": str(learnt / "run"), "pack-lean-test": str(learnt / "packed")},
    }  # fmt: skip
    run.evaluate(request, lambda record, arrays: None)
    found = EvaluatedFolder(out)
    metrics, said, ranking = found.metrics, found.explanation, found.ranking
    for direction in ("t2v", "v2t"):
        assert metrics.metrics[direction]["R@5"].value > 75  # chance: 38
    assert metrics.metrics["t2v"]["R@1"].value > 40  # chance: 8
    assert metrics.protocol.rerank == ""
    index = SplitIndex.read(learnt / "packed" / "splits" / "test.json")
    assert said["query"].tolist() == list(range(26))
    assert (said["item"][:, :3] == ranking.top_items[:, :3]).all()
    assert said["item"][:, 3].tolist() == index.caption_item
    assert said["edge_weights"].shape == (26, 4, 6) and said["node_weights"].shape == (26, 4, 8)
    np.testing.assert_allclose(said["node_weights"].sum(-1), 1, rtol=1e-5)
    assert said["words"].shape == (26, 4, 3, 6, 2) and said["words"][0, 0, 1, 0].tolist() == [4, 7]
    assert said["top"][5, 1].tolist() == [0, 2, 3]


@pytest.mark.slow
def test_trained_weights_are_those_of_the_best_epoch_and_reload(learnt: Path) -> None:
    record = json.loads((learnt / "record.json").read_text())
    assert 1 <= record["best_epoch"] <= record["epochs"] == 12
    method, data = open_trained(learnt / "run", learnt / "packed", torch.device("cpu"))
    assert isinstance(method, Lean) and isinstance(data, LeanData)
    assert record["parameters"] == sum(p.numel() for p in method.parameters())


def start(folder: Path, **settings: Any) -> tuple[Lean, LeanData]:
    config = LeanConfig(**{**SETTINGS, **settings})
    data = packed(folder / "packed", config)
    torch.manual_seed(3)
    return build(config, data), data


def test_two_stages_score_truly_only_the_best_by_the_cheap_scores_and_say_so(tmp_path: Path) -> None:
    method, data = start(tmp_path)
    index = data.splits["test"]
    exact = evaluate(method, data, "test", index, ("t2v", "v2t"))
    one = evaluate(method, data, "test", index, ("t2v",), rerank=4, memory_mb=16)
    every = evaluate(method, data, "test", index, ("t2v",), rerank=len(index.items))
    assert np.array_equal(every.ranking.top_items, exact.ranking.top_items) and "rerank" not in every.protocol
    assert one.protocol["rerank"].startswith("two stages: of each caption's items, the 4 with")
    with torch.inference_mode():
        texts = method.encode_texts(next(data.text_batches("test")))
        items = method.encode_items(next(data.item_batches("test")))
        cheap, true = (form(texts, items).numpy() for form in (method.cheap_scores, method.scores))
    for query, (row, scores) in enumerate(zip(one.ranking.top_items, one.ranking.top_scores, strict=True)):
        order = np.argsort(-cheap[query], kind="stable")
        chosen = order[:4]
        assert row[:4].tolist() == chosen[np.argsort(-true[query, chosen])].tolist()
        np.testing.assert_allclose(scores[:4], np.sort(true[query, chosen])[::-1], rtol=1e-4)
        assert row[4:].tolist() == order[4:10].tolist()
        assert scores[4] < scores[3] - 1000


def test_two_stages_of_a_method_without_cheap_scores_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, data = start(tmp_path)
    monkeypatch.setattr(Lean, "cheap_scores", Method.cheap_scores)
    with pytest.raises(UserError, match="rerank = 3 is not possible: the method has no cheap scores"):
        evaluate(method, data, "test", data.splits["test"], rerank=3)


def test_evaluation_bounds_what_a_block_of_pairs_may_take(tmp_path: Path) -> None:
    method, data = start(tmp_path)
    results = []
    for memory_mb in (1, 1024):
        results.append(
            evaluate(method, data, "test", data.splits["test"], memory_mb=memory_mb).ranking.top_scores
        )
        assert method.work_bytes == memory_mb * 2**20 * 3 // 8
    np.testing.assert_allclose(*results, rtol=1e-5)


def test_a_method_that_explains_nothing_leaves_no_explanation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, data = start(tmp_path)
    monkeypatch.setattr(Lean, "explain", Method.explain)
    evaluate(method, data, "test", data.splits["test"]).write(tmp_path)
    assert (tmp_path / "metrics.json").is_file() and not (tmp_path / "explanation.safetensors").exists()


def start_values(method: Lean, data: LeanData) -> tuple[Tensor, Tensor]:
    """Of the test split's captions and videos."""
    with torch.inference_mode():
        texts = method.encode_texts(next(data.text_batches("test")))
        return texts["triples"], method.encode_items(next(data.item_batches("test")))["nodes"]


def test_standardised_rows_of_the_training_split_have_no_mean_and_unit_deviation(tmp_path: Path) -> None:
    """Those of other splits do not count, and a caption in which fewer triples are found counts fewer rows."""
    method, data = start(tmp_path, standardise=True)
    made = Made()
    videos = made.splits()["train"][0]
    frames = np.concatenate([made.frames(name) for name in videos])
    triples = np.concatenate([data.triples[row] for row in data.splits["train"].caption_rows])
    for name, rows in (("frames", frames), ("triples", triples)):
        found = method.standard[name](torch.from_numpy(rows).float()).detach().numpy()
        np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(found.std(0), 1, rtol=1e-5)


@pytest.mark.parametrize("standardise", [True, False])
def test_only_standardised_inputs_forget_where_and_how_large_a_dimension_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standardise: bool
) -> None:
    (tmp_path / "moved").mkdir()
    plain = start_values(*start(tmp_path, standardise=standardise))
    frames, tokens = Made.frames, Made.tokens
    size, away = np.linspace(0.5, 4, 10), np.linspace(-2, 3, 10)
    monkeypatch.setattr(Made, "frames", lambda self, item: frames(self, item) * size + away)
    monkeypatch.setattr(Made, "tokens", lambda self, text: tokens(self, text) * size[:7] + away[:7])
    moved = start_values(*start(tmp_path / "moved", standardise=standardise))
    for before, after in zip(plain, moved, strict=True):
        assert torch.allclose(before, after, rtol=0, atol=1e-4) is standardise


def test_a_dimension_that_never_changes_is_only_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, constant = Made.frames, np.arange(10) < 2
    monkeypatch.setattr(
        Made, "frames", lambda self, item: np.where(constant, [0, 0.1, *[9] * 8], frames(self, item))
    )
    method, data = start(tmp_path, standardise=True)
    found = method.standard["frames"](torch.from_numpy(data.frames[0] + 1.0).float())
    np.testing.assert_allclose(found[:, :2], 1, atol=1e-5)


def test_what_standardises_comes_with_the_weights_where_there_is_no_training_split(tmp_path: Path) -> None:
    method, data = start(tmp_path, standardise=True)
    checkpoint.save_weights(tmp_path / "weights.safetensors", method, {})
    alone = packed(tmp_path / "test", method.config, ("test",))
    other = build(method.config, alone)
    checkpoint.load_weights(tmp_path / "weights.safetensors", other)
    for found, wanted in zip(start_values(other, alone), start_values(method, data), strict=True):
        assert torch.equal(found, wanted)


def test_optimizer_is_adamw_at_a_constant_rate(tmp_path: Path) -> None:
    method, _ = start(tmp_path)
    made = optimizer(LeanConfig(), method, 100)
    assert type(made) is torch.optim.AdamW
    assert made.param_groups[0]["lr"] == 3e-5 and made.param_groups[0]["weight_decay"] == 0.01


def step(method: Lean, data: LeanData, batch: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """The terms and gradients of one batch of an epoch."""
    torch.manual_seed(7 + rank)  # as the engine: another stream in every process
    method.zero_grad()
    terms = method.losses(list(data.train_batches(0, 0, rank, world))[batch], 0)
    torch.stack(list(terms.values())).sum().backward()
    MeanGradients(method.parameters()).finish()
    found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return found | {f"term.{name}": value.detach() for name, value in terms.items()}


@pytest.mark.parametrize("batch", [0, 1])
def test_two_processes_have_the_losses_and_gradients_of_one(
    tmp_path: Path, batch: int, from_processes: Callable[..., list[Any]]
) -> None:
    """The second batch has a single pair, which both processes see and which counts once."""
    method, data = start(tmp_path, batch_size=79)
    assert data.train_steps() == 2

    expected = step(method, data, batch)
    for found in from_processes(2, lambda rank: step(method, data, batch, rank, 2)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=2e-4, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}"
            )
