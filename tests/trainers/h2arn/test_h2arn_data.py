"""What H2ARN reads: packing and batching against what went in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ItemError, UserError
from trainers.data import write_also
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.data import H2arnData, open_data, pack

CONFIG = H2arnConfig(d_model=8, nhead=2, batch_size=4, eval_batch=2)
CAPTIONS = [("b0", "b"), ("a0", "a"), ("b1", "b"), ("c0", "c"), ("a1", "a"), ("b2", "b")]
CLOUDS = ["a", "b", "c"]


def rows(name: str, count: int, size: int) -> NDArray:
    return np.random.default_rng([ord(c) for c in name]).normal(size=(count, size)).astype(np.float16)


def reader(**changes: Callable[[str], NDArray]) -> dict[str, Any]:
    return {"cloud": lambda item: rows(item, 5, 6), "text": lambda text: rows(text, 7, 4), **changes}


def made(folder: Path, config: H2arnConfig = CONFIG, **changes: Any) -> H2arnData:
    split = [(caption, f"text of {caption}", item) for caption, item in CAPTIONS]
    pack(
        folder,
        config,
        {"train": (CLOUDS, split), "val": (["c", "b"], [split[3], split[0]])},
        reader(**changes),
    )
    return open_data(folder, config)


def test_packed_tokens_come_back_as_float32_and_are_stored_as_they_came(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert (data.cloud_dim, data.text_dim) == (6, 4)
    stored = sorted(path.stat().st_size for path in tmp_path.glob("*.float16"))
    assert stored == [2 * 3 * 5 * 6, 2 * 6 * 7 * 4]  # 3 clouds, 6 captions
    (clouds,) = data.item_batches("val")
    assert clouds["cloud"].dtype == torch.float32
    np.testing.assert_array_equal(clouds["cloud"][1], rows("b", 5, 6).astype(np.float32))
    (texts,) = data.text_batches("val")
    assert texts.keys() == {"text", "index"} and texts["index"].tolist() == [0, 1]
    np.testing.assert_array_equal(texts["text"][0], rows("c0", 7, 4).astype(np.float32))


def test_an_epoch_shows_every_caption_once_with_its_cloud_and_keeps_the_last_batch(tmp_path: Path) -> None:
    data = made(tmp_path)
    batches = list(data.train_batches(1, 0))
    assert [len(batch["text"]) for batch in batches] == [4, 2] and data.train_steps() == 2
    shown = []
    for batch in batches:
        for text, owner in zip(batch["text"], batch["owner"].tolist(), strict=True):
            (caption,) = [c for c, _ in CAPTIONS if np.array_equal(rows(c, 7, 4).astype(np.float32), text)]
            (item,) = [
                i for i in CLOUDS if np.array_equal(rows(i, 5, 6).astype(np.float32), batch["cloud"][owner])
            ]
            assert dict(CAPTIONS)[caption] == item
            shown.append(caption)
    assert sorted(shown) == sorted(caption for caption, _ in CAPTIONS)


def test_a_cloud_of_several_captions_comes_once_and_they_are_its_positives(tmp_path: Path) -> None:
    data = made(tmp_path, CONFIG.model_copy(update={"batch_size": 6}))
    (batch,) = data.train_batches(0, 0)
    assert batch["cloud"].shape == (3, 5, 6) and batch["text"].shape == (6, 7, 4)
    assert sorted(batch["owner"].bincount().tolist()) == [1, 2, 3]
    assert torch.equal(batch["positive"], batch["owner"][:, None] == batch["owner"])


def test_a_further_item_that_a_caption_describes_is_positive_too(tmp_path: Path) -> None:
    """Caption c0 describes a as well; a's own captions describe a alone."""
    made(tmp_path)
    write_also(tmp_path, {"train": [["a"] if caption == "c0" else [] for caption, _ in CAPTIONS]})
    data = open_data(tmp_path, CONFIG.model_copy(update={"batch_size": 6}))
    (batch,) = data.train_batches(0, 0)
    own = batch["owner"][:, None] == batch["owner"]
    extra = batch["positive"] & ~own
    sizes = batch["owner"].bincount()[batch["owner"]]
    assert extra.sum() == 2 and sizes[extra.any(1)].tolist() == [1] and sizes[extra.any(0)].tolist() == [2, 2]


def test_an_epoch_is_a_function_of_epoch_and_seed_and_processes_share_it(tmp_path: Path) -> None:
    data = made(tmp_path)

    def order(epoch: int, seed: int, rank: int = 0, world: int = 1) -> list[list[float]]:
        return [batch["text"][:, 0, 0].tolist() for batch in data.train_batches(epoch, seed, rank, world)]

    assert order(2, 5) == order(2, 5)
    assert len({str(order(epoch, 0)) for epoch in range(4)}) > 1  # the epoch counts by itself
    assert len({str(order(0, seed)) for seed in range(4)}) > 1  # and so does the seed
    joint, first, second = order(0, 0), order(0, 0, 0, 2), order(0, 0, 1, 2)
    assert [batch[::2] for batch in joint] == first and [batch[1::2] for batch in joint] == second
    thirds = list(data.train_batches(0, 0, 2, 3))
    assert [batch["text_place"].tolist() for batch in thirds] == [[2], [0]]  # nothing left: the first again
    for batch, whole in zip(thirds, data.train_batches(0, 0), strict=True):
        assert torch.equal(batch["owner"], whole["owner"])


def test_captions_of_different_lengths_are_padded_where_padding_is_masked(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"mask_padding": True})
    data = made(tmp_path, config, text=lambda text: rows(text, 3 + ord(text[0]) % 4, 4))
    (batch,) = data.text_batches("val")
    assert batch["text"].shape == (2, 6, 4)  # c0 is the longest
    assert (~batch["text_padding"]).sum(1).tolist() == [6, 5]
    assert batch["text"][batch["text_padding"]].abs().max() == 0
    for training in data.train_batches(0, 0):
        assert training["text_padding"].shape == training["text"].shape[:2]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="a0: it has 3 tokens and b0 7: H2ARN reads captions padded to 77"):
        made(tmp_path / "a", text=lambda text: rows(text, 7 if text == "b0" else 3, 4))
    with pytest.raises(ItemError, match="b: it has 4 tokens and a 5: all clouds need the same number"):
        made(tmp_path / "b", cloud=lambda item: rows(item, 5 if item == "a" else 4, 6))
    with pytest.raises(ItemError, match="c: its tokens have 2 features, those of a 6"):
        made(tmp_path / "c", cloud=lambda item: rows(item, 5, 2 if item == "c" else 6))
    with pytest.raises(ItemError, match="b: its features are not all finite"):
        made(tmp_path / "d", cloud=lambda item: np.full((5, 6), np.nan if item == "b" else 1))
    with pytest.raises(ItemError, match=r"a: its features have the shape \(0, 6\)"):
        made(tmp_path / "e", cloud=lambda item: np.zeros((0, 6)))
    (tmp_path / "f").mkdir()
    pack(tmp_path / "f", CONFIG, {"test": (["a"], [("a0", "", "a")])}, reader())
    with pytest.raises(UserError, match="no split 'train'"):
        open_data(tmp_path / "f", CONFIG).train_steps()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    """Packing writes into folders that are there."""
    for name in "abcde":
        (tmp_path / name).mkdir()
