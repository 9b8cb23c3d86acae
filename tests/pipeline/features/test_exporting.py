"""A corpus out in the MS-SL layout and in again: the same rows bit for bit, the same captions, the same splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.errors import UserError
from pipeline.features.exporting import Output, export_ms_sl
from pipeline.features.importing import import_ms_sl
from pipeline.features.layouts.ms_sl import MsSl
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store

ITEMS = (
    Item("film_é", "train", (Caption("film#0", "first\r\n line"), Caption("x", "second ")), digest="d0"),
    Item("b", "val", (Caption("b#enc#7", "lent", split="test"), Caption("b#enc#3", "own")), digest="d1"),
    Item("中", "test", (Caption("c", "own"),), digest="d2"),
    Item("mute", "test", (), digest="d3"),
    Item("failed", "train", (Caption("f", "gone"),), digest="d4"),
)
RNG = np.random.default_rng(0)


def contents(*items: Item) -> Contents:
    return Contents(Corpus(Path("corpus.jsonl"), items), {item.id: item.digest for item in items})


def output(store: Store, stage: str, keys: list[str], dtype: str = "float32", dims: int = 3) -> Output:
    fields = {"row": Field(dtype, (None, None)), "time": Field("float32", (None,))}
    fp = Fingerprint.of({"stage": stage})
    with store.writer(stage, fp, fields) as writer:
        for n, key in enumerate(keys, start=1):
            writer.append(key, key, {"row": RNG.normal(size=(n, dims)), "time": np.zeros(n)})
        items, path = dict(writer.items), writer.finish()
    assert path is not None
    store.index.add_segment(path.stem, fp.hex, path.stat().st_size, items)
    return Output(stage, "row", store.reader(stage, fp.hex))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_what_goes_out_comes_back(store, tmp_path):
    corpus = contents(*ITEMS)
    captions = [c.digest for c in corpus.captions().values()]
    video = output(store, "clip", ["d2", "d0", "d1", "d3"], "float16")
    text = output(store, "clip_text", captions, dims=2)
    report = export_ms_sl(tmp_path / "our corpus", corpus, video, text)
    assert (report.videos, report.rows, report.captions) == (3, 6, 5)
    assert set(report.left_out) == {"mute", "failed"} and "no captions" in report.left_out["mute"]
    with MsSl.open(tmp_path / "our corpus") as found:
        for item in corpus.corpus.items[:3]:
            rows = video.reader.rows(item.digest, "row")
            np.testing.assert_array_equal(found.video(item.id), rows.astype(np.float32))
        assert found.splits["train"] == (
            ["film_é"],
            [("film_é#enc#0", "first line", "film_é"), ("film_é#enc#1", "second", "film_é")],
        )
        assert found.splits["val"] == (["b"], [("b#enc#3", "own", "b")])
        assert [name for name, _, _ in found.splits["test"][1]] == ["b#enc#7", "中#enc#0"]
        tokens = text.reader.rows(corpus.corpus.items[1].captions[0].digest, "row")
        np.testing.assert_array_equal(found.tokens("b#enc#7"), tokens)


def test_an_export_that_is_imported_has_the_same_splits(store, tmp_path):
    corpus = contents(*ITEMS)
    video = output(store, "clip", ["d0", "d1", "d2"])
    text = output(store, "clip_text", [c.digest for c in corpus.captions().values()])
    export_ms_sl(tmp_path / "out", corpus, video, text)
    again = import_ms_sl(Store(tmp_path / "other"), tmp_path / "out", tmp_path / "again.jsonl")
    assert (again.video_stage, again.text_stage) == ("import-clip", "import-clip_text_out_query_feat")
    back = Corpus.read(tmp_path / "again.jsonl")
    for split in ("train", "val", "test"):
        gallery = {item.id for item in corpus.corpus.gallery(split)} - {"mute", "failed"}
        assert {item.id for item in back.gallery(split)} == gallery
        texts = [" ".join(c.text.split()) for item, c in corpus.corpus.captions(split) if item.id != "failed"]
        assert sorted(c.text for _, c in back.captions(split)) == sorted(texts)


def test_a_caption_without_tokens_is_left_out_by_name(store, tmp_path):
    corpus = contents(*ITEMS[:3])
    keys = [c.digest for c in corpus.captions().values() if c.text != "own"]
    report = export_ms_sl(
        tmp_path / "out", corpus, output(store, "clip", ["d0", "d1", "d2"]), output(store, "words", keys)
    )
    assert report.left_out == {name: "it has no features of words" for name in ("b#enc#3", "c")}
    assert report.videos == 2


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Item("a b", "train", digest="d"), "the item id 'a b' cannot be written as ms-sl.*rename it"),
        (Item("a#b", "train", digest="d"), "the item id 'a#b' cannot be written"),
        (Item("a", "all", digest="d"), "the split 'all'; ms-sl knows train, val, test alone"),
        (
            Item("a", "train", digest="d"),
            "no video has features of both clip and clip_text; a: it has no capt",
        ),
    ],
)
def test_what_the_layout_cannot_express_is_refused_before_anything_is_written(store, tmp_path, item, words):
    video, text = output(store, "clip", ["d"]), output(store, "clip_text", ["c"])
    with pytest.raises(UserError, match=words):
        export_ms_sl(tmp_path / "out", contents(item), video, text)
    assert not (tmp_path / "out").exists()


def test_an_output_without_rows_of_numbers_is_named(store, tmp_path):
    item = Item("a", "train", (Caption("c", "x", digest="c"),), digest="d")
    video, text = output(store, "clip", ["d"]), output(store, "clip_text", ["c"])
    with pytest.raises(UserError, match=r"'time' of clip has the shape \(1,\) for a"):
        export_ms_sl(tmp_path / "out", contents(item), Output("clip", "time", video.reader), text)
