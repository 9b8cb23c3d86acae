"""Contents: an item is its bytes, read once, and what cannot be read is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.corpus import contents as module
from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.errors import UserError
from pipeline.store.fingerprint import digest_file
from pipeline.store.index import Index


@pytest.fixture
def index(tmp_path) -> Index:
    return Index(tmp_path / "index.sqlite")


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return digest_file(path)

    monkeypatch.setattr(module, "digest_file", counted)
    return names


def corpus(folder: Path, *media: str | None, captions: int = 1) -> Corpus:
    items = [
        Item(f"item {n}", "train", tuple(Caption(f"{n}#{k}", f"text {k}") for k in range(captions)), name,
             digest="" if name else f"imported {n}")
        for n, name in enumerate(media)
    ]  # fmt: skip
    return Corpus(folder / "corpus.jsonl", tuple(items))


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path, index, hashed):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    known = read_contents(corpus(tmp_path, "a", "b"), index)
    assert known.digests == {"item 0": digest_file(tmp_path / "a"), "item 1": digest_file(tmp_path / "b")}
    assert read_contents(corpus(tmp_path, "a", "b"), index).digests == known.digests
    assert sorted(hashed) == ["a", "b"]
    (tmp_path / "a").write_text("c")  # as long as before
    os.utime(tmp_path / "a", ns=(0, 1))
    assert read_contents(corpus(tmp_path, "a", "b"), index).digests["item 0"] == digest_file(tmp_path / "a")
    assert sorted(hashed) == ["a", "a", "b"]


def test_a_window_is_part_of_what_an_item_is_and_the_file_is_read_once(tmp_path, index, hashed):
    (tmp_path / "a").write_text("a")
    items = [
        Item(f"item {n}", "train", media="a", window=w)
        for n, w in enumerate([None, (0, 31), (0, 31), (1, 31)])
    ]
    for _ in range(2):
        digests = read_contents(Corpus(tmp_path / "corpus.jsonl", tuple(items)), index).digests
        assert digests["item 0"] == digest_file(tmp_path / "a"), "an item without a window is its bytes"
        assert digests["item 1"] == digests["item 2"] != digests["item 3"]
        assert len({*digests.values()}) == 3 and {len(digest) for digest in digests.values()} == {32}
    assert {*hashed} == {"a"} and len(hashed) == 4  # four unknown items at first, none afterwards


def test_files_read_so_far_are_remembered_when_reading_is_broken_off(tmp_path, index, hashed, monkeypatch):
    monkeypatch.setattr(module, "REMEMBER_EVERY", 2)
    for n in range(5):
        (tmp_path / str(n)).write_text(str(n))

    def stop(count: int, of: int) -> None:
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_contents(corpus(tmp_path, *"01234"), index, stop)
    hashed.clear()
    assert len(read_contents(corpus(tmp_path, *"01234"), index).digests) == 5
    assert hashed == ["4"]


def test_what_cannot_be_read_has_a_reason_and_the_rest_is_known(tmp_path, index):
    (tmp_path / "good").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    media = ["good", "folder", "loop", "dangling", "pipe", "missing", "good/below", "x" * 300]
    found = read_contents(corpus(tmp_path, *media), index)
    assert set(found.digests) == {"item 0"}
    reasons = [found.unreadable[f"item {n}"] for n in range(1, len(media))]
    expected = ["is not a file", "cannot be read", "does not exist", "is not a file", "does not exist",
                "cannot be read", "cannot be read"]  # fmt: skip
    assert all(words in reason for words, reason in zip(expected, reasons, strict=True)), reasons


def test_imported_items_are_known_by_what_the_manifest_says(tmp_path, index):
    assert read_contents(corpus(tmp_path, None), index).digests == {"item 0": "imported 0"}


def test_items_of_the_same_bytes_and_captions_of_the_same_words_are_one(tmp_path, index):
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
    found = read_contents(corpus(tmp_path, "a", "b", captions=2), index)
    assert [item.id for item in found.items().values()] == ["item 0"]
    assert [caption.text for caption in found.captions().values()] == ["text 0", "text 1"]
    assert len(found.names("items")) == 2 and len(found.names("captions")) == 4
    assert len(set(found.names("items").values())) == 1 and len(set(found.names("captions").values())) == 2
    assert [(item.id, caption.id) for _, item, caption in found.queries("train")] == [
        ("item 0", "0#0"), ("item 0", "0#1"), ("item 1", "1#0"), ("item 1", "1#1"),
    ]  # fmt: skip


def test_queries_and_gallery_leave_out_what_cannot_be_read(tmp_path):
    found = Contents(corpus(tmp_path, "a", "b"), {"item 1": "d"}, {"item 0": "gone"})
    assert [key for key, _ in found.gallery("train")] == ["d"]
    assert [item.id for _, item, _ in found.queries("train")] == ["item 1"]
    assert list(found.names("items")) == ["item 1"]


def test_weights_are_read_once_and_looked_for_once_while_they_stay(tmp_path, index, hashed):
    known, weights, asked = RememberedDigests(index), tmp_path / "weights", []
    weights.write_text("w")
    assert known.file(weights) == known.file(weights) == digest_file(weights) and hashed == ["weights"]

    def find() -> Path | None:
        asked.append(1)
        return weights if weights.exists() else None

    assert known.located("openai", find) == known.located("openai", find) == weights and len(asked) == 1
    weights.unlink()
    assert known.located("openai", find) is None and known.located("openai", find) is None and len(asked) == 3


def test_a_corpus_of_one_kind_is_its_own_part(index, tmp_path):
    found = read_contents(corpus(tmp_path, None, None), index)
    for kind in ("video", "pointcloud", ""):
        assert found.of_kind(kind) is found and found.corpus.of_kind(kind) is found.corpus


def test_a_part_of_a_corpus_knows_the_items_of_its_kind_alone(index, tmp_path):
    both = Caption("both", "a red thing", also=("cloud",))
    items = (
        Item("clip", "test", (both,), digest="1"),
        Item("cloud", "test", (Caption("c", "a red thing"),), kind="pointcloud", digest="2"),
        Item("gone", "test", (), "gone.ply", "pointcloud"),
    )
    found = read_contents(Corpus(tmp_path / "corpus.jsonl", items), index)
    videos, clouds = found.of_kind("video"), found.of_kind("pointcloud")
    assert found.of_kind("") is found and found.of_kind("video") is videos
    assert (dict(videos.digests), dict(clouds.digests)) == ({"clip": "1"}, {"cloud": "2"})
    assert (dict(videos.unreadable), [*clouds.unreadable]) == ({}, ["gone"])
    assert [key for key, _ in clouds.gallery("test")] == ["2"]
    assert videos.corpus.kind("test") == "video" and clouds.corpus.kind("test") == "pointcloud"


def test_a_split_without_captions_of_a_kind_is_one_sentence(tmp_path):
    items = (
        Item("clip", "test", (Caption("v", "one"),), digest="1"),
        Item("cloud", "train", (Caption("c", "two"),), kind="pointcloud", digest="2"),
    )
    whole = Corpus(tmp_path / "corpus.jsonl", items)
    whole.of_kind("video").require_queries("test")
    with pytest.raises(UserError, match="items of the kind pointcloud: the split 'test' has no captions"):
        whole.of_kind("pointcloud").require_queries("test")
