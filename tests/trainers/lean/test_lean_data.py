"""What LEAN reads: words to nodes, rows to key frames, packing and batching against what went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ItemError, UserError
from pipeline.settings import fill
from trainers.lean import nodes
from trainers.lean.config import LeanConfig
from trainers.lean.data import LeanData, caption_nodes, open_data, pack, video_frames

#        0123456789012345678901234567
TEXT = "a man in red is riding bikes"
TOKENS = [(0, 0), (0, 1), (2, 5), (6, 8), (9, 12), (13, 15), (16, 20), (20, 22), (23, 28), (0, 0)]
SPANS = [(0, 0, 2, 5), (0, 1, 13, 22), (0, 2, 23, 28), (1, 0, 2, 5), (1, 1, 6, 8), (1, 2, 9, 12)]
CONFIG = LeanConfig(frames=4, max_triples=2, batch_size=2, item_batch=2)
CAPTIONS = [("b0", "b"), ("a0", "a"), ("b1", "b"), ("c0", "c"), ("a1", "a")]
VIDEOS = {"a": 4, "b": 2, "c": 4}


def rows(name: str, count: int, size: int) -> NDArray:
    return np.random.default_rng([ord(c) for c in name]).normal(size=(count, size)).astype(np.float16)


def reader(**changes: Any) -> dict[str, Any]:
    """The inputs of captions that all read alike, but for 'b1', which was cut before its second triple."""

    def cut(caption: str) -> int:
        return 4 if caption == "b1" else len(TOKENS)

    found = {
        "frame": lambda item: rows(item, VIDEOS[item], 6),
        "top": lambda item: np.array([0, 1, 3] if item == "a" else [1]),
        "token": lambda caption: rows(caption, len(TOKENS), 5)[: cut(caption)],
        "offset": lambda caption: np.array(TOKENS, np.int32)[: cut(caption)],
        "span": lambda caption: np.array(SPANS, np.int32),
    }
    return {**found, **changes}


def made(folder: Path, config: LeanConfig = CONFIG, **changes: Any) -> LeanData:
    split = [(caption, f"text of {caption}", item) for caption, item in CAPTIONS]
    splits = {"train": (list(VIDEOS), split), "val": (["c", "b"], [split[3], split[0]])}
    pack(folder, config, splits, reader(**changes))
    return open_data(folder, config)


def test_a_triple_is_the_mean_of_the_tokens_that_its_words_overlap() -> None:
    tokens = rows("b0", len(TOKENS), 5)
    caption = caption_nodes("b0", CONFIG, reader())
    first = [2, 5, 6, 7, 8]  # man | is rid ##ing | bikes
    np.testing.assert_allclose(caption.vectors[0], tokens[first].astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(caption.vectors[1], tokens[[2, 3, 4]].astype(float).mean(0), rtol=1e-6)
    assert caption.words.tolist() == [
        [0, 2, 5], [0, 13, 22], [0, 23, 28], [1, 2, 5], [1, 6, 8], [1, 9, 12],
    ]  # fmt: skip
    assert caption.vectors.dtype == np.float32


def test_entities_are_the_distinct_subjects_and_objects() -> None:
    tokens = rows("b0", len(TOKENS), 5).astype(float)
    config = CONFIG.model_copy(update={"nodes": "entities", "max_triples": 8})
    caption = caption_nodes("b0", config, reader())
    np.testing.assert_allclose(caption.vectors, tokens[[2, 8, 4]], rtol=1e-6)  # man, bikes, red
    config = CONFIG.model_copy(update={"nodes": "entities"})
    assert len(caption_nodes("b0", config, reader()).vectors) == 2


def test_the_sentence_is_the_mean_of_all_words_without_special_tokens() -> None:
    tokens = rows("b0", len(TOKENS), 5).astype(float)
    config = CONFIG.model_copy(update={"nodes": "sentence"})
    caption = caption_nodes("b0", config, reader())
    np.testing.assert_allclose(caption.vectors, tokens[1:9].mean(0, keepdims=True), rtol=1e-6)
    assert caption.words.shape == (0, 3)
    without = {name: read for name, read in reader().items() if name != "offset"}
    np.testing.assert_allclose(caption_nodes("b0", config, without).vectors[0], tokens.mean(0), rtol=1e-6)


def test_a_triple_that_was_cut_off_is_left_out_and_the_sentence_stands_in_for_all() -> None:
    tokens = rows("b1", len(TOKENS), 5).astype(float)
    offsets = np.array(TOKENS, np.int32)[:2]  # nothing but "a"
    assert len(caption_nodes("b1", CONFIG, reader()).vectors) == 2  # both begin with "man"
    vectors, words = nodes.text_nodes([[(23, 28)], [(13, 15), (0, 1)]], tokens[:2], offsets, 8)
    np.testing.assert_allclose(vectors, tokens[1:2], rtol=1e-6)
    assert words == [[(13, 15), (0, 1)]]
    vectors, words = nodes.text_nodes([[(23, 28)]], tokens[:2], offsets, 8)
    np.testing.assert_allclose(vectors, tokens[1:2], rtol=1e-6)
    assert words == [[]]


def test_equal_words_make_one_node() -> None:
    spans = np.array([(0, 0, 2, 5), (0, 2, 9, 12), (1, 2, 9, 12), (1, 0, 2, 5), (2, 0, 0, 1)], np.int32)
    assert nodes.triple_words(spans) == [[(2, 5), (9, 12)], [(0, 1)]]
    assert nodes.entity_words(spans) == [[(2, 5)], [(9, 12)], [(0, 1)]]


def test_a_video_of_fewer_key_frames_repeats_its_last_and_one_of_more_is_named() -> None:
    video = video_frames("b", CONFIG, reader())
    assert video.frames.shape == (4, 6) and video.top.tolist() == [1]
    np.testing.assert_array_equal(video.frames[1:], np.repeat(rows("b", 2, 6)[1:], 3, axis=0))
    with pytest.raises(ItemError, match="a: it has 4 key frames, LEAN takes 3: set"):
        video_frames("a", CONFIG.model_copy(update={"frames": 3}), reader())
    with pytest.raises(ItemError, match=r"b: its top frames \[4\] are not among its 4 key frames"):
        video_frames("b", CONFIG, reader(top=lambda item: np.array([4])))


def test_rows_tell_the_key_frames_where_no_stage_does() -> None:
    steps = np.array([0, 1, 5, 1, 9, 2, 0])  # the change to the row before
    values = np.cumsum(steps)[:, None].astype(float)
    kept, top = nodes.salient_positions(values, 4, 2)
    assert values[kept, 0].tolist() == [0, 6, 16, 18]  # the first row, and the changes by 5, 9 and 2
    assert top.tolist() == [1, 2]
    config, without = CONFIG.model_copy(update={"top": 3}), reader(frame=lambda item: values[: int(item)])
    del without["top"]
    two = video_frames("2", config, without)
    assert two.frames[:, 0].tolist() == [0, 1, 1, 1] and two.top.tolist() == [0, 1, 2]
    one = video_frames("1", config, without)
    assert one.frames[:, 0].tolist() == [0] * 4 and one.top.tolist() == [0, 1, 2]
    without = {name: read for name, read in reader().items() if name != "top"}
    assert video_frames("a", CONFIG.model_copy(update={"frames": 2}), without).frames.shape == (2, 6)


def test_packed_captions_and_videos_come_back_padded(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert (data.visual_dim, data.text_dim) == (6, 5)
    (batch,) = data.item_batches("val")
    assert batch["frames"].shape == (2, 4, 6) and batch["top"].tolist() == [[1, 1, 1], [1, 1, 1]]
    np.testing.assert_array_equal(batch["frames"][1], video_frames("b", CONFIG, reader()).frames)
    (texts,) = data.text_batches("val")
    caption = caption_nodes("c0", CONFIG, reader())
    np.testing.assert_array_equal(texts["triples"][0], caption.vectors)
    assert texts["count"].tolist() == [2, 2] and texts["index"].tolist() == [0, 1]
    assert texts["words"][0, 1].tolist() == [[2, 5], [6, 8], [9, 12], [0, 0], [0, 0], [0, 0]]
    assert next(data.item_batches("train"))["top"].tolist() == [[0, 1, 3], [1, 1, 1]]


def test_an_epoch_shows_every_caption_once_with_its_video(tmp_path: Path) -> None:
    data = made(tmp_path)
    batches = list(data.train_batches(1, 0))
    assert len(batches) == data.train_steps() == 3
    assert [len(batch["count"]) for batch in batches] == [2, 2, 1]
    videos = np.concatenate([batch["video"] for batch in batches])
    assert sorted(videos.tolist()) == [0, 0, 1, 1, 2]
    shown = {tuple(row.flatten().tolist()) for batch in batches for row in batch["triples"]}
    assert len(shown) == 5
    for batch in batches:
        for video, frames in zip(batch["video"].tolist(), batch["frames"], strict=True):
            expected = video_frames(list(VIDEOS)[video], CONFIG, reader()).frames
            np.testing.assert_array_equal(frames, expected)


def test_an_epoch_is_a_function_of_epoch_and_seed_and_processes_share_it(tmp_path: Path) -> None:
    data = made(tmp_path, CONFIG.model_copy(update={"batch_size": 3}))

    def order(epoch: int, seed: int, rank: int = 0, world: int = 1) -> list[list[float]]:
        return [batch["triples"][:, 0, 0].tolist() for batch in data.train_batches(epoch, seed, rank, world)]

    assert order(2, 5) == order(2, 5)
    assert len({str(order(epoch, 0)) for epoch in range(4)}) > 1  # the epoch counts by itself
    assert len({str(order(0, seed)) for seed in range(4)}) > 1  # and so does the seed
    joint, first, second = order(0, 0), order(0, 0, 0, 2), order(0, 0, 1, 2)
    assert [batch[::2] for batch in joint] == first and [batch[1::2] for batch in joint] == second
    thirds = list(data.train_batches(0, 0, 2, 3))
    assert [batch["place"].tolist() for batch in thirds] == [[2], [0]]  # nothing left: the first again


def test_captions_and_videos_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="c0: its features are not all finite"):
        caption_nodes("c0", CONFIG, reader(token=lambda caption: np.full((3, 5), np.nan)))
    with pytest.raises(ItemError, match=r"c0: its 3 tokens have places of the shape \(10, 2\)"):
        caption_nodes("c0", CONFIG, reader(token=lambda caption: np.ones((3, 5))))
    with pytest.raises(ItemError, match=r"a: its features have the shape \(0, 6\)"):
        video_frames("a", CONFIG, reader(frame=lambda item: np.zeros((0, 6))))
    pack(tmp_path, CONFIG, {"test": (["a"], [("a0", "", "a")])}, reader())
    with pytest.raises(UserError, match="no split 'train'"):
        open_data(tmp_path, CONFIG).train_steps()


def test_inputs_are_what_the_settings_need() -> None:
    assert LeanConfig().inputs() == {
        "frame": ("vgg16", ""),
        "token": ("bert", ""),
        "top": ("keyframes", "top"),
        "offset": ("bert", "offset"),
        "span": ("triples", "span"),
    }
    assert LeanConfig().features() == ("vgg16", "bert", "keyframes", "triples")
    imported = {
        "video_features": "import-v",
        "keyframes": "",
        "text_features": "import-t",
        "nodes": "sentence",
    }
    assert LeanConfig(**imported).inputs() == {"frame": ("import-v", ""), "token": ("import-t", "")}
    assert LeanConfig(**imported).wishes() == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"video_features": "import-v"}, "are no key frames of ours"),
        ({"text_features": "import-t"}, 'so its words cannot be found; possible: "sentence"'),
        ({"without": ("global", "text")}, "text and cross edges must stay"),
        ({"without": ("frames",)}, "trainers.lean.without.0 = 'frames' is not possible"),
        ({"layers": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_settings_are_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        fill(LeanConfig, settings, "trainers.lean")
    assert message in str(error.value)
