"""Bad input of CLIP4Clip, GARE and NeighborRetr ends in an error that names what is wrong, never in a silent NaN."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ItemError, TrainingError, UserError
from trainers import registry
from trainers.gare.model import Head
from trainers.layers.pair_config import ClipPairConfig
from trainers.layers.pair_data import PairData
from trainers.loop.engine import fit
from trainers.measure.evaluate import evaluate
from trainers.method import Batch, Method
from trainers.neighborretr import losses

METHODS = ("clip4clip", "gare", "neighborretr")
SUCCESSORS = METHODS[1:]  # to CLIP4Clip a video without a frame and a batch of one pair are no fault
OPTIONS: dict[str, dict[str, Any]] = {
    "clip4clip": {"sim_header": "seqTransf", "cross_num_hidden_layers": 1},
    "gare": {"num_hidden_layers": 1, "psi_dropout": 0.0},
    "neighborretr": {"temporal_layers": 1, "num_neighbors": 2, "bank_size": 8},
}
COMMON: dict[str, Any] = {
    "max_frames": 3,
    "max_words": 6,
    "batch_size": 6,
    "augment": False,
    "epochs": 1,
    "lr": 1e-3,
}
VIDEOS = list("abcdef")
CAPTIONS = [(f"{video}0", f"video {video}", video) for video in VIDEOS]
SPLITS = {"train": (VIDEOS, CAPTIONS), "val": (VIDEOS, CAPTIONS)}


def of(name: str, part: str) -> Any:
    return importlib.import_module(f"trainers.{name}.{part}")


def config_of(name: str, **options: Any) -> ClipPairConfig:
    found: ClipPairConfig = registry.METHODS.find(name).config(**{**COMMON, **OPTIONS[name], **options})
    return found


def pictures(item: str) -> NDArray[np.uint8]:
    return np.random.default_rng(ord(item)).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def rows(name: str) -> NDArray[np.float32]:
    return np.random.default_rng(list(name.encode())).normal(size=(4, 64)).astype(np.float32)


def frozen(folder: Path, name: str, splits: Any = SPLITS, **options: Any) -> tuple[Method, PairData]:
    """A method on made features, with its packed data."""
    config = config_of(name, mode="frozen", **options)
    of(name, "data").pack(folder, config, splits, {"video": rows, "text": rows})
    data: PairData = of(name, "data").open_data(folder, config)
    torch.manual_seed(0)
    method: Method = of(name, "method").build(config, data)
    return method, data


def train(folder: Path, name: str, method: Method, data: Any) -> None:
    config = data.config
    fit(
        method, data, config, of(name, "method").optimizer(config, method, 10), validate=lambda _: {"SumR": 1.0},
        figure="SumR", folder=folder / "run", device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_pairs_depends_on_the_epoch_and_on_the_seed(tmp_path: Path, name: str) -> None:
    _, data = frozen(tmp_path, name)

    def order(epoch: int, seed: int) -> list[Any]:
        return [batch["words"][:, 0, 0].tolist() for batch in data.train_batches(epoch, seed)]

    assert order(3, 1) == order(3, 1)
    assert len({str(order(epoch, 0)) for epoch in range(4)}) > 1
    assert len({str(order(0, seed)) for seed in range(4)}) > 1


class Changed:
    """Data whose training batches and items another function has had in hand."""

    def __init__(self, data: PairData, change: Any) -> None:
        self.data, self.config, self.change = data, data.config, change

    def train_steps(self, world: int = 1) -> int:
        return self.data.train_steps(world)

    def train_batches(self, *arguments: Any) -> Any:
        return (self.change(batch) for batch in self.data.train_batches(*arguments))

    def item_batches(self, split: str) -> Any:
        return (self.change(batch) for batch in self.data.item_batches(split))

    def text_batches(self, split: str) -> Any:
        return self.data.text_batches(split)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("mode", "bad", "reason"),
    [
        ("finetune", np.zeros((0, 16, 16, 3), np.uint8), r"the shape \(0, 16, 16, 3\), pictures are needed"),
        ("finetune", np.zeros((3, 64), np.float32), r"the shape \(3, 64\), pictures are needed"),
        ("frozen", np.zeros((0, 64), np.float32), r"the shape \(0, 64\), rows of numbers are needed"),
        ("frozen", np.full((2, 64), np.inf, np.float32), "its features are not all finite"),
    ],
)
def test_video_without_frames_or_with_bad_ones_is_named(
    tmp_path: Path, name: str, mode: str, bad: NDArray, reason: str
) -> None:
    good = pictures if mode == "finetune" else rows
    read = {"video": lambda item: bad if item == "c" else good(item), "text": rows}
    with pytest.raises(ItemError, match=f"c: its features .*{reason}|c: {reason}"):
        of(name, "data").pack(tmp_path, config_of(name, mode=mode), SPLITS, read)


@pytest.mark.parametrize("name", METHODS)
def test_caption_without_states_is_named_and_an_empty_text_still_has_its_end_token(
    tmp_path: Path, name: str
) -> None:
    read = {"video": rows, "text": lambda c: rows(c)[:0] if c == "d0" else rows(c)}
    with pytest.raises(ItemError, match=r"d0: its features have the shape \(0, 64\)"):
        of(name, "data").pack(tmp_path, config_of(name, mode="frozen"), SPLITS, read)
    (tmp_path / "empty").mkdir()
    captions = [(key, "" if key == "d0" else text, video) for key, text, video in CAPTIONS]
    method, data = frozen(tmp_path / "empty", name, {"train": (VIDEOS, captions), "val": (VIDEOS, captions)})
    assert all(batch["word_mask"].any(1).all() for batch in data.text_batches("val"))
    result = evaluate(method, data, "val", data.splits["val"])
    assert np.isfinite(result.ranking.top_scores).all()


@pytest.mark.parametrize("name", METHODS)
def test_features_that_are_not_numbers_stop_training_with_term_and_step(tmp_path: Path, name: str) -> None:
    method, data = frozen(tmp_path, name)

    def change(batch: Batch) -> Batch:
        return {**batch, "frames": batch["frames"] * math.nan}

    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss term '\w+' is nan"):
        train(tmp_path, name, method, Changed(data, change))
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("name", METHODS)
def test_weight_that_is_not_a_number_stops_training_and_evaluation(tmp_path: Path, name: str) -> None:
    method, data = frozen(tmp_path, name)
    next(p for p in method.parameters() if p.ndim > 1).data[:] = math.nan
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss term '\w+' is nan"):
        train(tmp_path, name, method, data)
    with pytest.raises(TrainingError, match="scores cannot be ranked"):
        evaluate(method, data, "val", data.splits["val"])


@pytest.mark.parametrize("name", SUCCESSORS)
def test_batch_with_a_video_that_is_all_padding_ends_in_a_named_error(tmp_path: Path, name: str) -> None:
    """Packing refuses such a video; should a batch have one all the same, nothing learns from it."""

    def change(batch: Batch) -> Batch:
        mask = batch["frame_mask"].clone()
        mask[2] = False
        return {**batch, "frame_mask": mask}

    method, data = frozen(tmp_path, name)
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the loss term '\w+' is nan"):
        train(tmp_path, name, method, Changed(data, change))
    if name == "gare":  # NeighborRetr scores it 0 with every caption, as it does all padding
        with pytest.raises(TrainingError, match="scores cannot be ranked: of 36 in this block 6 are NaN"):
            evaluate(method, Changed(data, change), "val", data.splits["val"])


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_batch_of_one_pair_is_refused_by_the_settings_and_named_at_run_time(tmp_path: Path) -> None:
    for name in SUCCESSORS:
        with pytest.raises(ValueError, match="batch_size"):
            config_of(name, batch_size=1)
        (tmp_path / name).mkdir()
        method, data = frozen(tmp_path / name, name)
        one = Changed(data, lambda batch: {key: values[:1] for key, values in batch.items()})
        error, words = {
            "gare": (TrainingError, "epoch 1, step 1: the loss term 'divergence' is nan"),
            "neighborretr": (UserError, "a batch of 1 pairs is too small for 2 neighbours"),
        }[name]
        with pytest.raises(error, match=words):
            train(tmp_path / name, name, method, one)


def test_corpus_too_small_for_the_neighbours_is_the_users_to_mend(tmp_path: Path) -> None:
    few = {"train": (VIDEOS, CAPTIONS[:4]), "val": (VIDEOS, CAPTIONS)}
    method, data = frozen(tmp_path, "neighborretr", few)
    assert data.train_steps() == 1
    with pytest.raises(
        UserError, match="batch of 4 pairs is too small for 2 neighbours, which take 5; lower num_neig"
    ):
        train(tmp_path, "neighborretr", method, data)


@pytest.mark.parametrize("name", METHODS)
def test_split_of_a_single_pair_is_the_users_to_mend(tmp_path: Path, name: str) -> None:
    method, data = frozen(tmp_path, name, {"train": (VIDEOS[:1], CAPTIONS[:1]), "val": (VIDEOS, CAPTIONS)})
    with pytest.raises(UserError, match="the split 'train' needs two at least"):
        train(tmp_path, name, method, data)


@pytest.mark.parametrize("name", METHODS)
def test_frames_of_another_size_than_the_network_are_refused_before_training(
    tmp_path: Path, name: str
) -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    config = config_of(name, base_encoder=str(tmp_path / "tiny.json"), backbone_weights="seed:0")
    of(name, "data").pack(tmp_path, config, SPLITS, {"video": pictures})
    with pytest.raises(
        UserError, match=r"reads pictures of 32 pixels, and the frames have 16: set extractors\.frames"
    ):
        of(name, "method").build(config, of(name, "data").open_data(tmp_path, config))


@pytest.mark.parametrize("name", METHODS)
def test_captions_longer_than_the_network_s_positions_are_refused(tmp_path: Path, name: str) -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    config = config_of(
        name, base_encoder=str(tmp_path / "tiny.json"), backbone_weights="seed:0", max_words=12
    )
    long = [(key, "one two three four five six seven eight nine", video) for key, _, video in CAPTIONS]
    of(name, "data").pack(tmp_path, config, {"train": (VIDEOS, long)}, {"video": pictures})
    data = of(name, "data").open_data(tmp_path, config)
    with pytest.raises(UserError, match=r"captions of 1[12] tokens are longer than the 8 positions"):
        train(tmp_path, name, of(name, "method").build(config, data), data)


@pytest.mark.parametrize("name", METHODS)
def test_more_frames_than_a_stored_network_would_have_positions_are_possible(
    tmp_path: Path, name: str
) -> None:
    method, data = frozen(tmp_path, name, max_frames=80)
    train(tmp_path, name, method, data)
    assert np.isfinite(evaluate(method, data, "val", data.splits["val"]).ranking.top_scores).all()


def test_padding_that_takes_all_weight_from_the_frames_leaves_gare_a_finite_cosine_and_gradient() -> None:
    """The squares of weights under 1e-23 are 0 in float32; the direction that they span is none the less there."""
    torch.manual_seed(0)
    head = Head(16).eval()
    text, frames = torch.randn(3, 16), torch.randn(2, 4, 16)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)
    moved = frames.clone()
    moved[~mask] += 40 * torch.nn.functional.normalize(text.sum(0), dim=0)
    wanted = head.double().plain(text.double(), moved.double(), mask).sim.float()
    head.float()
    found = head(text.requires_grad_(), moved, mask).similarity
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.score(text, head.prepare(moved, mask)), wanted, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert text.grad is not None and text.grad.isfinite().all()
    moved[~mask] *= 100
    assert head(text, moved, mask).similarity.isfinite().all()


def test_neighbours_of_a_caption_that_scores_all_others_alike_still_have_weights() -> None:
    """With padding that counts 0 in the maxima, a row may be 0 but for its pair and its neighbours."""
    scores = torch.zeros(7, 7).requires_grad_()
    shown: Tensor = scores + torch.eye(7) + torch.diag(torch.full((6,), 0.5), 1)
    found = losses.neighbors(shown, torch.linspace(0, 1, 7), 2, 3.0)
    found.loss.backward()
    assert found.loss.isfinite() and found.weights.isfinite().all()
    assert scores.grad is not None and scores.grad.isfinite().all()
    assert torch.allclose((found.weights * found.mask).sum(1), torch.ones(7))


def states(caption: str) -> NDArray[np.float32]:
    """Word states of a caption, 3 to 8 of them, numbered by their first value; its text is always shorter."""
    found = np.ones((3 + VIDEOS.index(caption[0]), 64), np.float32)
    found[:, 0] = np.arange(len(found))
    return found


def texts_of(folder: Path, features: str, read_states: Any, texts: list[str], **options: Any) -> Batch:
    """The captions of `val` in mode frozen, from states of a stage."""
    config = config_of("neighborretr", mode="frozen", text_features=features, **options)
    captions = [(f"{video}0", text, video) for video, text in zip(VIDEOS, texts, strict=True)]
    splits = {"train": (VIDEOS, captions), "val": (VIDEOS, captions)}
    of("neighborretr", "data").pack(folder, config, splits, {"video": rows, "text": read_states})
    return next(of("neighborretr", "data").open_data(folder, config).text_batches("val"))


def test_every_row_of_imported_captions_is_a_word_whatever_their_texts(tmp_path: Path) -> None:
    """CLIP has 3 tokens for "text": the states of another tokenizer, or under placeholder texts, are more."""
    batch = texts_of(tmp_path, "import-words", states, ["text"] * 6, max_words=6)
    assert batch["word_mask"].sum(1).tolist() == [3, 4, 5, 6, 6, 6]
    assert batch["words"][0, :, 0].tolist() == [0, 1, 2, 0, 0, 0]
    assert batch["words"][5, :, 0].tolist() == [0, 1, 2, 3, 4, 7]  # the end token's state comes last


def test_stored_states_of_padding_are_kept_and_masked_and_a_long_caption_keeps_its_end_token(
    tmp_path: Path,
) -> None:
    """`clip_text` with pad: 77 states each, of which CLIP's tokens are real."""
    padded = np.ones((77, 64), np.float32)
    padded[:, 0] = np.arange(77)
    texts = ["dog"] * 5 + ["a man runs with a big dog"]  # 3 tokens with start and end, and 9
    batch = texts_of(tmp_path, "clip_text", lambda caption: padded, texts, max_words=6)
    assert batch["word_mask"].sum(1).tolist() == [3, 3, 3, 3, 3, 6]
    assert batch["words"][0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["words"][5, :, 0].tolist() == [0, 1, 2, 3, 4, 8]
