"""What GARE packs and the batches it learns from; one training and evaluation from pictures and from features."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ItemError, UserError
from trainers.data import SplitIndex
from trainers.gare.config import GareConfig
from trainers.gare.data import open_data, pack
from trainers.gare.method import Gare, build, optimizer
from trainers.layers.pair_data import PairData
from trainers.loop.engine import fit
from trainers.measure.evaluate import evaluate

COUNTS = {"a": 2, "b": 5, "c": 1, "d": 3, "e": 3}
CAPTIONS = [(f"{video}{n}", f"{video} number {n}", video) for video in "abcde" for n in range(2)]
SPLITS = {"train": (list("abcde"), CAPTIONS), "val": (list("abcde"), CAPTIONS)}
SMALL: dict[str, Any] = {
    "max_frames": 3,
    "max_words": 8,
    "num_hidden_layers": 1,
    "batch_size": 4,
    "augment": False,
}


def pictures(item: str) -> NDArray[np.uint8]:
    rng = np.random.default_rng(ord(item))
    colour = rng.integers(0, 256, (1, 1, 1, 3))
    return np.clip(colour + rng.integers(-20, 20, (COUNTS[item], 16, 16, 3)), 0, 255).astype(np.uint8)


def features(name: str) -> NDArray[np.float16]:
    rows = COUNTS[name] if len(name) == 1 else 1
    own = np.random.default_rng(ord(name[0])).normal(size=16)
    return (own + np.random.default_rng(len(name)).normal(size=(rows, 16)) / 10).astype(np.float16)


def packed(folder: Path, **options: Any) -> PairData:
    config = GareConfig(**{**SMALL, **options})
    read = {"video": pictures} if config.mode == "finetune" else {"video": features, "text": features}
    pack(folder, config, SPLITS, read)
    return open_data(folder, config)


def test_pictures_are_kept_as_they_are_and_many_are_thinned_out(tmp_path: Path) -> None:
    data = packed(tmp_path)
    assert data.frames.dtype == np.uint8 and data.side == 16
    assert np.array_equal(data.frames[0], pictures("a"))
    assert np.array_equal(data.frames[1], pictures("b")[[0, 2, 4]])
    batch = next(data.item_batches("val"))
    assert batch["frames"].shape == (5, 3, 16, 16, 3) and batch["frame_mask"].sum(1).tolist() == [
        2,
        3,
        1,
        3,
        3,
    ]
    assert not batch["frames"][2, 1:].any()


def test_captions_are_token_ids_padded_to_the_longest_of_a_batch(tmp_path: Path) -> None:
    data = packed(tmp_path, batch_size_val=4)
    batches = list(data.text_batches("val"))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    tokens = batches[0]["tokens"]
    assert tokens.shape == (4, 5) and (tokens[:, 0] == 49406).all() and (tokens[:, -1] == 49407).all()


def test_epochs_hold_whole_batches_of_pairs_that_depend_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    data = packed(tmp_path)
    assert data.train_steps() == 2

    def order(epoch: int, seed: int) -> list[list[int]]:
        return [batch["tokens"][:, 1].tolist() for batch in data.train_batches(epoch, seed)]

    assert order(1, 2) == order(1, 2) and len({str(order(e, s)) for e in range(3) for s in range(3)}) > 3
    assert [len(batch) for batch in order(0, 0)] == [4, 4]


def test_pairs_are_captions_with_their_own_video_and_processes_share_them(tmp_path: Path) -> None:
    data = packed(tmp_path)
    letters = {int(data.tokens[2 * n][1]): letter for n, letter in enumerate("abcde")}
    whole = next(data.train_batches(0, 0))
    for tokens, frames in zip(whole["tokens"], whole["frames"], strict=True):
        assert np.array_equal(frames[0], pictures(letters[int(tokens[1])])[0])
    shares = [next(data.train_batches(0, 0, rank, 3)) for rank in range(3)]
    assert [len(share["tokens"]) for share in shares] == [2, 1, 1]
    assert torch.equal(shares[1]["frames"][0], whole["frames"][1])
    with pytest.raises(UserError, match="4 pairs cannot be shared by 5 processes"):
        next(data.train_batches(0, 0, 0, 5))


def test_augmentation_is_of_training_alone_and_repeats(tmp_path: Path) -> None:
    data = packed(tmp_path, augment=True)
    plain = PairData(tmp_path, data.config.model_copy(update={"augment": False}))
    first, again, other = (next(data.train_batches(epoch, 0)) for epoch in (0, 0, 1))
    assert torch.equal(first["frames"], again["frames"])
    assert not torch.equal(first["frames"], next(plain.train_batches(0, 0))["frames"])
    assert not torch.equal(first["frames"], other["frames"])
    assert torch.equal(next(data.item_batches("val"))["frames"], next(plain.item_batches("val"))["frames"])


def test_smaller_corpora_than_a_batch_make_one_batch_and_one_caption_is_refused(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    assert packed(tmp_path / "few", batch_size=64).train_steps() == 1
    (tmp_path / "one").mkdir()
    pack(tmp_path / "one", GareConfig(**SMALL), {"train": (["a"], CAPTIONS[:1])}, {"video": pictures})
    with pytest.raises(UserError, match="two at least"):
        open_data(tmp_path / "one", GareConfig(**SMALL)).train_steps()


def test_what_cannot_be_packed_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ItemError, match=r"a: its features have the shape \(0, 4, 4, 3\), pictures are needed"
    ):
        pack(tmp_path, GareConfig(**SMALL), SPLITS, {"video": lambda _: np.zeros((0, 4, 4, 3), np.uint8)})
    frozen = GareConfig(**SMALL, mode="frozen")
    with pytest.raises(ItemError, match="a: its features are not all finite"):
        pack(tmp_path, frozen, SPLITS, {"video": lambda _: np.full((2, 4), np.nan), "text": features})
    pack(tmp_path, frozen, SPLITS, {"video": features, "text": lambda _: np.zeros((1, 8))})
    with pytest.raises(UserError, match="captions have 8 features and frames 16"):
        open_data(tmp_path, frozen)


def tiny(folder: Path) -> str:
    """The path of a CLIP network of two blocks."""
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    content = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    path = folder / "tiny.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"mode": "frozen"}, {"precision": "bf16", "agg_module": "seqLSTM"}])
def test_training_lowers_the_loss_and_finds_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    (tmp_path / "data").mkdir()
    backbone = {"base_encoder": tiny(tmp_path), "backbone_weights": "seed:1", "coef_lr": 1.0, "lr": 1e-3}
    monkeypatch.setitem(SPLITS, "train", (list("abcde"), CAPTIONS[::2]))
    data = packed(tmp_path / "data", epochs=12, psi_dropout=0.1, batch_size=5, **backbone, **options)
    torch.manual_seed(0)
    method = build(data.config, data)
    seen: list[float] = []
    later = count()  # the last weights are the best
    adam = optimizer(data.config, method, data.config.epochs * data.train_steps())
    fit(
        method, data, data.config, adam, validate=lambda _: {"R@1": float(next(later))}, figure="R@1", folder=tmp_path,
        device=torch.device("cpu"), on_progress=lambda p: seen.append(p.loss),
    )  # fmt: skip
    assert seen[-1] < seen[0]
    index = SplitIndex.read(tmp_path / "data" / "splits" / "val.json")
    result = evaluate(method, data, "val", index, ("t2v", "v2t"), torch.device("cpu"), memory_mb=64, seed=0)
    assert result.metrics["v2t"]["R@1"].value >= 40


def test_frames_of_another_size_than_the_network_reads_are_refused(tmp_path: Path) -> None:
    data = packed(tmp_path, base_encoder="crossreel-demo", backbone_weights="seed:0")
    with pytest.raises(
        UserError, match=r"pictures of 64 pixels, and the frames have 16: set extractors\.frames\.size"
    ):
        build(data.config, data)


def test_more_frames_than_positions_are_refused(tmp_path: Path) -> None:
    data = packed(tmp_path, base_encoder=tiny(tmp_path), backbone_weights="seed:0", max_frames=9)
    with pytest.raises(UserError, match=r"max_frames = 9: .*tiny\.json has positions for 8"):
        build(data.config, data)


def test_half_precision_trains_the_towers_in_float16_and_the_rest_in_float32(tmp_path: Path) -> None:
    data = packed(tmp_path, base_encoder=tiny(tmp_path), backbone_weights="seed:1", precision="fp16-legacy")
    method = build(data.config, data).train()
    assert isinstance(method, Gare)
    sum(method.losses(next(data.train_batches(0, 0)), 0).values()).backward()
    kinds = {name: p.dtype for name, p in method.named_parameters()}
    half = {name for name, kind in kinds.items() if kind is torch.float16}
    assert half and all("towers.clip." in name for name in half)
    adam = optimizer(data.config, method, 10)
    adam.step(), adam.step()
    assert all(torch.isfinite(p).all() for p in method.parameters())


def test_schedule_can_be_that_of_five_epochs_whatever_is_trained(tmp_path: Path) -> None:
    data = packed(tmp_path, mode="frozen", epochs=10, t_total_epochs=5)
    method = build(data.config, data)
    assert optimizer(data.config, method, 1000).param_groups[0]["total_steps"] == 500
    usual = data.config.model_copy(update={"t_total_epochs": None})
    assert optimizer(usual, method, 1000).param_groups[0]["total_steps"] == 1000
