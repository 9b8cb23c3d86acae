"""What HLFormer reads: pooling against a loop, packing and batching against what went in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ItemError, UserError
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.data import HLFormerData, frame_rows, open_data, pack, pool_segments, token_rows

CONFIG = HLFormerConfig(map_size=4, max_ctx_l=6, max_desc_l=3, batch_size=2, item_batch=2, text_batch=2)
LENGTHS = {"a": 2, "b": 9, "c": 5, "d": 6, "e": 1}
CAPTIONS = [("b0", "b"), ("a0", "a"), ("b1", "b"), ("c0", "c"), ("d0", "d"), ("b2", "b")]


def video(name: str) -> NDArray:
    return np.random.default_rng(ord(name)).normal(size=(LENGTHS[name], 7)).astype(np.float32)


def tokens(name: str) -> NDArray:
    return np.random.default_rng(ord(name[0]) + 100 * ord(name[1])).normal(size=(1 + int(name[1]) * 2, 5))


def made(folder: Path, config: HLFormerConfig = CONFIG) -> HLFormerData:
    rows = [(caption, f"text of {caption}", item) for caption, item in CAPTIONS]
    splits = {"train": (["a", "b", "c", "d", "e"], rows), "val": (["d", "b"], [rows[0], rows[4], rows[5]])}
    pack(folder, config, splits, {"video": video, "text": tokens})
    return open_data(folder, config)


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 100, 128, 200])
@pytest.mark.parametrize("segments", [32, 128])
def test_pooled_segments_are_those_of_a_loop(n: int, segments: int) -> None:
    rows = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    bounds = [min(round(i / segments * n), n - 1) for i in range(segments + 1)]
    expected = [rows[a:b].astype(np.float64).mean(0) if a < b else rows[a] for a, b in pairwise(bounds)]
    np.testing.assert_allclose(pool_segments(rows, segments), expected, atol=1e-12)


def test_last_row_is_unused_where_the_cap_cuts_it_off() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    changed = np.concatenate([rows[:-1], rows[-1:] + 100])
    np.testing.assert_array_equal(pool_segments(rows, 32), pool_segments(changed, 32))


def test_rows_end_a_little_shorter_than_one_and_a_row_of_zeros_stays_zero() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(frame_rows(rows, CONFIG)[0], np.array([3, 4]) / (5 + 1e-5), rtol=1e-7)
    assert frame_rows(rows, CONFIG)[1].tolist() == [0, 0]


def test_tokens_are_cut_to_the_longest_that_is_kept() -> None:
    assert token_rows(tokens("b2"), CONFIG).shape == (3, 5)
    assert token_rows(tokens("b2"), CONFIG).dtype == np.float32


def test_packed_videos_have_a_fixed_number_of_clips_and_at_most_so_many_frames(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert data.clips.lengths.tolist() == [4] * 5
    assert data.frames.lengths.tolist() == [2, 6, 5, 6, 1]
    assert (data.visual_dim, data.text_dim) == (7, 5)
    index = data.splits["val"]
    np.testing.assert_array_equal(data.frames[index.item_rows[1]], frame_rows(video("b"), CONFIG))
    np.testing.assert_array_equal(data.tokens[index.caption_rows[2]], token_rows(tokens("b2"), CONFIG))


def test_training_batch_puts_the_video_with_most_frames_first_with_all_its_captions(tmp_path: Path) -> None:
    data = made(tmp_path)
    batch, videos, captions = data.train_batch("train", [0, 1, 2, 3])
    index = data.splits["train"]
    assert [index.items[v] for v in videos] == ["b", "d", "c", "a"]
    assert [index.captions[c] for c in captions] == ["b0", "b1", "b2", "d0", "c0", "a0"]
    assert batch["owner"].tolist() == [0, 0, 0, 1, 2, 3]
    assert batch["clips"].shape == (4, 4, 7) and batch["frames"].shape == (4, 6, 7)
    assert batch["frame_mask"].sum(1).tolist() == [6, 6, 5, 2]
    assert batch["token_mask"].sum(1).tolist() == [1, 3, 3, 1, 1, 1]
    assert (batch["frames"][3, 2:] == 0).all()


def test_an_epoch_shows_every_video_that_has_a_caption_once(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert data.train_steps() == 2
    batches = list(data.train_batches(epoch=3, seed=1))
    assert len(batches) == 2
    assert sorted(batch["clips"].shape[0] for batch in batches) == [2, 2]  # 'e' has no caption
    shown = {tuple(row.flatten().tolist()) for batch in batches for row in batch["clips"]}
    assert len(shown) == 4


def test_an_epoch_is_a_function_of_epoch_and_seed(tmp_path: Path) -> None:
    data = made(tmp_path, CONFIG.model_copy(update={"batch_size": 1}))

    def order(epoch: int, seed: int) -> list[float]:
        return [float(batch["clips"][0, 0, 0]) for batch in data.train_batches(epoch, seed)]

    assert order(2, 5) == order(2, 5)
    assert len({tuple(order(epoch, 0)) for epoch in range(6)}) > 1  # the epoch counts by itself
    assert len({tuple(order(0, seed)) for seed in range(6)}) > 1  # and so does the seed


def test_processes_share_the_videos_of_a_batch_and_take_equally_many_steps(tmp_path: Path) -> None:
    data = made(tmp_path, CONFIG.model_copy(update={"batch_size": 3}))
    both = [list(data.train_batches(0, 0, rank, 2)) for rank in range(2)]
    assert len(both[0]) == len(both[1]) == data.train_steps(2) == 2
    assert [batch["clips"].shape[0] for batch in both[0]] == [2, 1]
    assert [batch["clips"].shape[0] for batch in both[1]] == [1, 1]


def test_evaluation_batches_keep_gallery_order_and_name_the_place_of_each_caption(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert [batch["clips"].shape[0] for batch in data.item_batches("train")] == [2, 2, 1]
    first = next(data.item_batches("val"))
    np.testing.assert_array_equal(first["clips"][0], data.clips[3])
    batches = list(data.text_batches("train"))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [2, 3], [5, 4]]  # longest first
    assert batches[2]["token_mask"].sum(1).tolist() == [3, 1]


def test_video_or_caption_without_rows_is_named(tmp_path: Path) -> None:
    splits = {"train": (["a"], [("a0", "", "a")])}
    with pytest.raises(ItemError, match=r"a: its features have the shape \(0, 7\)"):
        pack(tmp_path, CONFIG, splits, {"video": lambda _: np.zeros((0, 7)), "text": tokens})
    with pytest.raises(ItemError, match="a: its features are not all finite"):
        pack(tmp_path, CONFIG, splits, {"video": lambda _: np.full((2, 7), np.nan), "text": tokens})
    with pytest.raises(ItemError, match="a0: its features"):
        pack(tmp_path, CONFIG, splits, {"video": video, "text": lambda _: np.zeros(5)})


def test_caption_of_a_video_outside_its_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="caption 'b0' belongs to 'b'"):
        pack(tmp_path, CONFIG, {"train": (["a"], [("b0", "", "b")])}, {"video": video, "text": tokens})


def test_missing_training_split_is_said(tmp_path: Path) -> None:
    pack(tmp_path, CONFIG, {"test": (["a"], [("a0", "", "a")])}, {"video": video, "text": tokens})
    with pytest.raises(UserError, match="no split 'train'"):
        open_data(tmp_path, CONFIG).train_steps()
