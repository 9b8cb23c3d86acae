"""`corpus check`: what would cost hours later is said at once, errors first."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import numpy as np
import pytest

from pipeline.corpus import checking
from pipeline.corpus.checking import Finding, Minimum, check
from pipeline.corpus.contents import read_contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.corpus.splits import SPLITS
from pipeline.store.index import Index


@pytest.fixture
def findings(tmp_path):
    """What is found in a corpus of these items, by level."""

    def find(*items: Item, workers: int = 1) -> dict[str, list[str]]:
        """With one worker, because each is a new interpreter."""
        contents = read_contents(Corpus(tmp_path / "corpus.jsonl", items), Index(tmp_path / "index.sqlite"))
        seen: list[int] = []
        found = check(contents, workers, lambda done, total: seen.append(done))
        assert [finding.level for finding in found] == sorted(finding.level for finding in found)
        assert seen == list(range(1, len(seen) + 1))
        small = [f"the split {split!r} has {n} items" for split in SPLITS for n in range(1, 10)]
        found = [f for f in found if not f.sentence.startswith(tuple(small))]  # as nearly all are, here
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
    errors = findings(*map(item, ("good", "empty", "text", "cut", "gone")), workers=2)["error"]
    told = dict(sentence.split(": ", 1) for sentence in errors)
    assert set(told) == {"empty", "text", "cut", "gone"}
    assert "empty (0 bytes)" in told["empty"] and "does not exist" in told["gone"]
    assert told["text"] == "it is a text ('not a video'), not a video"
    assert "not a readable video" in told["cut"]


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


def test_missing_and_mute_splits_are_reported(findings, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path)
    found = findings(Item("clip00", "val", (), "clip00.mp4"))
    assert "the split 'val' has no captions" in found["error"]
    assert {"there is no split 'train'", "there is no split 'test'"} <= set(found["warning"])


def test_imported_items_have_nothing_to_open(findings):
    said = (Caption("c", "x"),)
    found = findings(*(Item(split, split, said, digest=split) for split in ("train", "val", "test")))
    assert found["error"] == []


# point clouds --------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).uniform(0, 1, (20, 6))
BYTES = ROWS * [1, 1, 1, 255, 255, 255]
ALONG = np.array([1, 0, 0, 0, 0, 0])


@pytest.fixture
def cloud(tmp_path):
    """`cloud(name, rows)` writes a table and gives its item."""

    def make(name: str, rows: np.ndarray, split: str = "train") -> Item:
        np.savetxt(tmp_path / f"{name}.txt", rows)
        return Item(name, split, (Caption(f"{name}#0", f"{name} said"),), f"{name}.txt", "pointcloud")

    return make


def test_good_clouds_have_no_findings(findings, cloud):
    items = [cloud(split, BYTES + n * ALONG, split) for n, split in enumerate(("train", "val", "test"))]
    assert findings(*items) == {"error": [], "warning": []}


def test_a_cloud_that_cannot_be_used_is_an_error_with_its_reason(findings, cloud, tmp_path):
    items = [
        cloud("good", BYTES),
        cloud("narrow", BYTES[:, :5]),
        cloud("nan", BYTES * np.nan),
        cloud("empty", BYTES),
    ]
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "cut.ply").write_bytes(b"ply\nformat")
    errors = findings(*items, Item("cut", "train", (), "cut.ply", "pointcloud"))["error"]
    assert sorted(errors) == [
        "cut: it is no .ply file: its header does not end",
        "empty: the file is empty (0 bytes)",
        "nan: none of its 20 points is finite",
        "narrow: it has 5 columns; x y z r g b needs 6, x y z alone 3 (the setting columns says which they are)",
    ]


def test_what_may_mislead_in_clouds_is_a_warning(findings, cloud):
    dropped = BYTES.copy()
    dropped[3] = np.nan
    items = [
        cloud("dropped", dropped), cloud("bytes", BYTES[::-1]), cloud("unit", ROWS), cloud("bare", ROWS[:, :3]),
        cloud("far", BYTES + 4.5e6 * ALONG), cloud("dot", BYTES[[0, 0]]),
        cloud("black", ROWS * [1, 1, 1, 0, 0, 0]),
    ]  # fmt: skip
    warnings = findings(*items)["warning"][:5]
    assert warnings[:3] == [
        "dropped: 1 of 20 points are NaN or infinite and are left out",
        "far: it measures 0.983 and lies 4.5e+06 from the origin, where float32 has steps of 0.5; move it to the "
        "origin",
        "dot: all its points are one",
    ]
    assert warnings[3] == "1 of 7 point clouds have no colours, for instance bare; 0 is taken"
    assert warnings[4] == (
        "two scales of colours in one corpus: 1 point clouds reach no more than 1, for instance unit, and 4 reach "
        "more, for instance dropped"
    )


def test_the_same_cloud_in_two_splits_is_an_error(findings, cloud):
    found = findings(cloud("a", BYTES), cloud("b", BYTES, "test"))["error"]
    assert "the same bytes in several splits: a (train), b (test)" in found


def test_each_item_of_two_kinds_is_opened_as_what_it_is(findings, cloud, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path)
    (tmp_path / "torn.mp4").write_text("not a video")
    (tmp_path / "torn.txt").write_text("no numbers")
    torn = Item("torn cloud", "train", (), "torn.txt", "pointcloud")
    found = findings(cloud("good", BYTES), item("clip00"), torn, item("torn"))["error"]
    assert {sentence.split(": ")[0] for sentence in found if sentence.startswith("torn")} == {
        "torn", "torn cloud",
    }  # fmt: skip
    assert not any(sentence.startswith(("good", "clip00")) for sentence in found)


def test_captions_and_splits_of_two_kinds_are_judged_by_themselves(findings, cloud, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path)
    same = cloud("good", BYTES, "test").captions[0].text
    found = findings(cloud("good", BYTES, "test"), item("clip00", "train", same))
    assert found["error"] == []
    assert not any("stand in train too" in sentence for sentence in found["warning"])
    assert {f"items of the kind {kind}: there is no split {split!r}"
            for kind, split in (("video", "test"), ("pointcloud", "train"))} <= set(found["warning"])  # fmt: skip


# what misleads without breaking -----------------------------------------------------------------------


def test_a_cloud_with_fewer_points_than_a_stage_needs_is_found(cloud, tmp_path):
    items = (cloud("few", BYTES[:7]), cloud("many", BYTES))
    contents = read_contents(Corpus(tmp_path / "corpus.jsonl", items), Index(tmp_path / "index.sqlite"))
    for level in ("warning", "error"):
        found = check(contents, 1, lambda done, total: None, minima=[Minimum("dgcnn", 20, level)])
        assert Finding(level, "few: 7 points are too few for dgcnn, which needs 20") in found
        assert not any("many" in finding.sentence for finding in found)


def test_clouds_are_read_with_the_settings_of_their_stage(cloud, tmp_path):
    labelled = np.insert(BYTES, 3, 12, axis=1)[:, :4]  # x y z label
    contents = read_contents(
        Corpus(tmp_path / "c.jsonl", (cloud("a", labelled),)), Index(tmp_path / "index.sqlite")
    )
    found = check(contents, 1, lambda done, total: None)
    assert found[0].level == "error" and "it has 4 columns" in found[0].sentence
    found = check(contents, 1, lambda done, total: None, reading={"columns": "x y z label"})
    assert not any(finding.level == "error" and "columns" in finding.sentence for finding in found)


def test_an_odd_line_of_a_cloud_is_named(findings, cloud, tmp_path):
    one = cloud("a", np.tile(BYTES, (6, 1)))
    lines = (tmp_path / "a.txt").read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b".", b"\x10", 1)
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    warnings = [words for words in findings(one)["warning"] if words.startswith("a: ")]
    assert warnings == ["a: line 5 has 7 columns, the file has 6; it is left out"]


def test_moments_after_the_end_of_their_video_are_counted(findings, rendered, tmp_path):
    shutil.copy(rendered / "clip00.mp4", tmp_path / "a.mp4")  # 2 s
    times = [(0.0, 2.0), (0.0, 2.4), (1.0, 3.0), (7.0, None)]
    captions = tuple(Caption(f"a#{n}", f"moment {n}", *time) for n, time in enumerate(times))
    found = findings(Item("a", "train", captions, "a.mp4"))
    assert "a: 2 of 4 captions end after its 2.0 s, a#3 at 7.0 s for instance" in found["warning"]
    assert not [words for words in found["error"] if words.startswith("a:")]


def test_a_split_of_fewer_than_ten_items_is_reported(tmp_path):
    items = tuple(
        Item(f"{split}{n}", split, (Caption(f"{split}{n}#0", f"said {split} {n}"),), digest=f"{split}{n}")
        for split, size in (("train", 10), ("val", 9), ("test", 1))
        for n in range(size)
    )
    contents = read_contents(Corpus(tmp_path / "c.jsonl", items), Index(tmp_path / "index.sqlite"))
    found = check(contents, 1, lambda done, total: None)
    assert [finding.sentence for finding in found] == [
        "the split 'val' has 9 items; with fewer than 10, figures say little",
        "the split 'test' has 1 items; with fewer than 10, figures say little",
    ]


def test_many_captions_that_stand_at_several_items_are_reported(findings):
    def said(name: str, *texts: str) -> Item:
        return Item(name, "test", tuple(Caption(f"{name}#{n}", t) for n, t in enumerate(texts)), digest=name)

    found = findings(
        said("a", "A  video", "one", "one"), said("b", "a video", "two"), said("c", "three", "a VIDEO")
    )
    (words,) = (words for words in found["warning"] if "several items" in words)
    assert words.startswith("3 of 7 captions of test stand at several items, 'a video' 3 times")
    many = [said(f"i{n}", f"text {n}", f"more {n}") for n in range(40)]
    assert not [w for w in findings(*many, said("x", "text 1"))["warning"] if "several items" in w]


def test_items_of_train_and_test_and_splits_with_odd_names_are_reported(findings):
    lent = (Caption("a#0", "own"), Caption("a#1", "lent", split="test"))
    found = findings(
        Item("a", "train", lent, digest="a"), Item("b", "tset", (Caption("b#0", "x"),), digest="b")
    )
    assert "1 items are in train and in test: a" in found["warning"]
    assert (
        "1 items are in the split 'tset', which is used only where evaluate.split names it; did you mean 'test'?"
        in found["warning"]
    )


def test_ids_that_look_alike_or_hold_unseen_signs_are_named(findings):
    names = ("caf\u00e9", "cafe\u0301", "red\x1b[31m", "\u202eevil", "plain")
    found = findings(*(Item(n, "test", (Caption(f"{n}#0", n),), digest=n) for n in names))["warning"]
    assert r"2 ids look the same and differ in their Unicode form: 'caf\xe9', 'cafe\u0301'" in found
    assert r"2 ids hold control characters or marks that are not shown: 'red\x1b[31m', '\u202eevil'" in found


def test_a_pointer_a_page_and_an_empty_file_are_named_as_what_they_are(findings, tmp_path):
    (tmp_path / "pointer.mp4").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    )
    (tmp_path / "page.mp4").write_bytes(b"<!DOCTYPE html><html><head></head></html>")
    (tmp_path / "empty.mp4").touch()
    told = dict(
        words.split(": ", 1)
        for words in findings(*map(item, ("pointer", "page", "empty")))["error"]
        if ": " in words
    )
    assert told["pointer"].startswith("it is a Git LFS pointer and not the file itself; `git lfs pull`")
    assert told["page"].startswith("it is an HTML page") and told["empty"] == "the file is empty (0 bytes)"


KILLED_PROBE = """
import os, signal
from pathlib import Path
from pipeline.media.video import serve_probe

def serve(request, send):
    tries = Path(__file__).with_name("tries")
    if Path(request["path"]).stem == "hit":
        before = tries.read_text() if tries.exists() else ""
        tries.write_text(before + "x")
        if len(before) < int(os.environ["KILLS"]):
            os.kill(os.getpid(), getattr(signal, os.environ["KILLED_BY"]))
    serve_probe(request, send)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "by", "found", "tries"),
    [(1, "SIGKILL", {}, 2), (9, "SIGKILL", {"unchecked": 1}, 2), (9, "SIGSEGV", {"error": 1}, 1)],
)
def test_a_file_is_not_at_fault_for_a_probe_that_was_killed(
    rendered, tmp_path, monkeypatch, kills, by, found, tries
):
    for name, clip in (("hit", "clip00"), ("other", "clip01")):
        shutil.copy(rendered / f"{clip}.mp4", tmp_path / f"{name}.mp4")
    (tmp_path / "killed_probe.py").write_text(KILLED_PROBE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("KILLS", str(kills))
    monkeypatch.setenv("KILLED_BY", by)
    monkeypatch.setitem(checking.PROBES, "video", "killed_probe:serve")
    corpus = Corpus(tmp_path / "corpus.jsonl", (item("hit"), item("other", "test")))
    findings = check(read_contents(corpus, Index(tmp_path / "index.sqlite")), 2, lambda done, total: None)
    of_hit = [finding for finding in findings if finding.sentence.startswith("hit: ")]
    assert Counter(finding.level for finding in of_hit) == found
    assert all(by in finding.sentence for finding in of_hit)
    assert len((tmp_path / "tries").read_text()) == tries
