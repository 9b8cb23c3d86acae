"""`corpus check`: what would cost hours later is said at once, errors first."""

from __future__ import annotations

import shutil

import pytest

from pipeline.checking import check
from pipeline.contents import read_contents
from pipeline.corpus import Caption, Corpus, Item
from pipeline.index import Index


@pytest.fixture
def findings(tmp_path):
    """What is found in a corpus of these items, by level."""

    def find(*items: Item) -> dict[str, list[str]]:
        contents = read_contents(Corpus(tmp_path / "corpus.jsonl", items), Index(tmp_path / "index.sqlite"))
        seen: list[int] = []
        found = check(contents, 2, lambda done, total: seen.append(done))
        assert [finding.level for finding in found] == sorted(finding.level for finding in found)
        assert seen == list(range(1, len(seen) + 1))
        return {level: [f.sentence for f in found if f.level == level] for level in ("error", "warning")}

    return find


def item(name: str, split: str = "train", *texts: str, media: str | None = None) -> Item:
    said = texts or (f"{name} in {split}",)
    return Item(
        name, split, tuple(Caption(f"{name}#{n}", t) for n, t in enumerate(said)), media or f"{name}.mp4"
    )


def test_a_good_corpus_has_no_findings(findings, rendered, tmp_path):
    items = [item(f"clip0{n}", split) for n, split in enumerate(("train", "val", "test"))]
    for one in items:
        shutil.copy(rendered / (one.media or ""), tmp_path)
    assert findings(*items) == {"error": [], "warning": []}


def test_each_broken_file_is_an_error_with_its_reason_and_the_rest_is_opened(findings, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path / "good.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    shutil.copy(rendered / "clip01.mp4", tmp_path / "cut.mp4")
    with (tmp_path / "cut.mp4").open("r+b") as file:
        file.truncate(600)
    errors = findings(*(item(name) for name in ("good", "empty", "text", "cut", "gone")))["error"]
    told = dict(sentence.split(": ", 1) for sentence in errors)
    assert set(told) == {"empty", "text", "cut", "gone"}
    assert "empty (0 bytes)" in told["empty"] and "does not exist" in told["gone"]
    assert "not a readable video" in told["text"] and "not a readable video" in told["cut"]


def test_the_same_bytes_are_a_warning_within_a_split_and_an_error_across(findings, rendered, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copy(rendered / "clip00.mp4", tmp_path / f"{name}.mp4")
    assert findings(item("a"), item("b"))["warning"][0] == "the same bytes: a (train), b (train)"
    found = findings(item("a"), item("b"), item("c", "test"))
    assert "the same bytes in several splits: a (train), b (train), c (test)" in found["error"]


def test_captions_that_stand_in_train_too_are_a_warning(findings, rendered, tmp_path):
    for n in range(2):
        shutil.copy(rendered / f"clip0{n}.mp4", tmp_path)
    found = findings(item("clip00", "train", "a dog", "a cat"), item("clip01", "test", "a dog", "a bird"))
    assert "1 of 2 captions of test stand in train too, for instance 'a dog'" in found["warning"]


def test_missing_and_mute_splits_are_told(findings, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path)
    found = findings(Item("clip00", "val", (), "clip00.mp4"))
    assert "the split 'val' has no captions" in found["error"]
    assert {"there is no split 'train'", "there is no split 'test'"} <= set(found["warning"])


def test_imported_items_have_nothing_to_open(findings):
    said = (Caption("c", "x"),)
    found = findings(*(Item(split, split, said, digest=split) for split in ("train", "val", "test")))
    assert found["error"] == []
