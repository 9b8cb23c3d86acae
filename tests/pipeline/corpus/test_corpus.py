"""Manifests: what is written is read back, and each thing wrong is a sentence with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.manifest import SUGGESTIONS, Caption, Corpus, Item, parse, write_manifest
from pipeline.errors import UserError

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1)
SPLIT = st.sampled_from(["train", "val", "test", "other"])
SECONDS = st.none() | st.floats(0, 1e5)


@st.composite
def captions(draw: st.DrawFn) -> list[dict[str, Any]]:
    start, end = draw(SECONDS), draw(SECONDS)
    if start is not None and end is not None:
        start, end = sorted((start, end))
    text = draw(TEXT.filter(str.strip))
    return [{"text": text, "start": start, "end": end, "split": draw(st.none() | SPLIT)}] * draw(
        st.integers(0, 2)
    )


@st.composite
def corpora(draw: st.DrawFn) -> list[Item]:
    items = []
    for name in draw(st.lists(TEXT, min_size=1, max_size=5, unique=True)):
        said = tuple(Caption(f"{name}#{n}", **kept) for n, kept in enumerate(draw(captions())))
        media = draw(TEXT)
        meta = draw(st.dictionaries(TEXT, st.integers() | TEXT, max_size=2))
        items.append(Item(name, draw(SPLIT), said, media, meta=meta))
    return items


@settings(max_examples=60, deadline=None)
@given(items=corpora())
def test_what_is_written_is_read_back(items: list[Item], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("manifest") / "corpus.jsonl"
    write_manifest(path, items)
    ids = [caption.id for item in items for caption in item.captions]
    found, problems = parse(path)
    assert found == items
    assert bool(problems) == (len(set(ids)) < len(ids))


@settings(max_examples=60, deadline=None)
@given(items=corpora())
def test_every_caption_is_a_query_of_one_split_and_its_item_is_in_that_gallery(items: list[Item]) -> None:
    corpus = Corpus(Path("corpus.jsonl"), tuple(items))
    queries = [(s, item, caption) for s in corpus.splits for item, caption in corpus.captions(s)]
    assert len(queries) == sum(len(item.captions) for item in items)
    assert all(item in corpus.gallery(split) for split, item, _ in queries)
    assert {item.id for split in corpus.splits for item in corpus.gallery(split)} == {
        item.id for item in items
    }


def line(**changes: Any) -> str:
    return json.dumps(
        {"id": "a", "media": "a.mp4", "split": "train", "captions": [{"text": "one"}]} | changes
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        (line(medai="b"), "unknown key 'medai' of an item; did you mean 'media'?"),
        (line(captions=[{"text": "x", "tekst": 1}]), "unknown key 'tekst' of a caption; did you mean 'text'?"),
        (line(id=""), "the item has no id"),
        (line(id=None), "the item has no id"),
        (line(split=None), "item 'a' has no split"),
        (line(split=["train"]), "item 'a' has no split"),
        (line(kind="vidoe"), "of kind 'vidoe'; did you mean 'video'?"),
        (line(media=None), "neither media nor a digest"),
        (line(media=7), "a media path that is not a text"),
        (line(media="a\0b"), "a media path that is not a text"),
        (line(meta="x"), "meta is not an object"),
        (line(captions="x"), "captions is not a list"),
        (line(captions=["x"]), "caption 0 of item 'a' is not an object"),
        (line(captions=[{"text": " \n"}]), "caption 'a#0' of item 'a' is empty"),
        (line(captions=[{"text": 5}]), "caption 'a#0' of item 'a' is empty"),
        (line(captions=[{"text": "x", "split": ["val"]}]), "the split ['val'], which is not a name"),
        (line(captions=[{"text": "x", "start": "0"}]), "the time '0', which is not a number of seconds"),
        (line(captions=[{"text": "x", "start": -1}]), "the time -1, which is not a number of seconds"),
        (line(captions=[{"text": "x", "end": float("inf")}]), "the time inf, which is not a number"),
        (line(captions=[{"text": "x", "end": float("nan")}]), "the time nan, which is not a number"),
        (line(captions=[{"text": "x", "start": 3, "end": 1}]), "ends at 1.0 s, before its start at 3.0 s"),
        (line(window=[3, 1]), "the window [3, 1]; a start and an end in seconds are needed"),
        (line(window=[0]), "the window [0]; a start and an end"),
        (line(window=[0, "31"]), "the window [0, '31']; a start and an end"),
        (line(window=[0, 31], kind="pointcloud"), "of kind 'pointcloud' and has a window; only videos have seconds"),
        (line(id="\ud800"), "half a character"),
        (line(id="a\0b"), r"it holds a NUL byte, in 'a\x00b'"),
        (line(captions=[{"text": "x\0"}]), "it holds a NUL byte"),
        (line(captions=[{"text": "x\udc80"}]), "half a character"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_what_is_wrong(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(line(id="fine", captions=[]) + "\n\n" + text + "\n")
    items, problems = parse(path)
    assert [item.id for item in items] == ["fine"]
    assert problems[0].line == 3 and sentence in problems[0].sentence
    with pytest.raises(UserError, match="line 3: "):
        Corpus.read(path)


def test_several_wrong_lines_are_counted_and_the_first_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("x\ny\nz\n")
    with pytest.raises(UserError, match=r"line 1: .* \(and 2 more; `crossreel corpus check` lists them\)"):
        Corpus.read(path)


def test_a_table_in_place_of_a_manifest_is_told_what_makes_one_of_it(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("id,text\na,a dog\nb,a cat\n")
    with pytest.raises(
        UserError, match=r"captions\.csv is a table and not a corpus manifest .* corpus import csv"
    ):
        parse(path)
    path.write_text(line() + "\nx\n")
    assert [problem.line for problem in parse(path)[1]] == [2]


def test_ids_that_stand_twice_name_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [
        line(captions=[{"id": "c", "text": "x"}]),
        line(captions=[]),
        line(id="b", captions=[{"id": "c", "text": "y"}]),
    ]
    path.write_text("\n".join(rows))
    assert [str(problem) for problem in parse(path)[1]] == [
        "line 2: the item id 'a' stands already on line 1",
        "line 3: the caption id 'c' stands already on line 1",
    ]


def test_a_manifest_with_a_byte_order_mark_and_dos_lines_is_read(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (line() + "\r\n" + line(id="b", captions=[]) + "\r\n").encode())
    assert [item.id for item in Corpus.read(path).items] == ["a", "b"]


def test_numbers_are_taken_as_ids(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(line(id=7, captions=[{"id": 0, "text": "x"}]))
    (item,) = Corpus.read(path).items
    assert (item.id, item.captions[0].id) == ("7", "0")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "no corpus manifest"),
        (lambda path: path.mkdir(), "is not a corpus manifest"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is not a corpus manifest"),
        (lambda path: path.write_text("\n \n"), "the manifest holds no items"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_one_sentence(make: Any, sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "corpus.jsonl")
    with pytest.raises(UserError, match=sentence):
        Corpus.read(tmp_path / "corpus.jsonl")


def test_a_split_without_queries_is_named_with_those_that_have_some() -> None:
    items = (Item("a", "train", (Caption("a#0", "x"),), "a"), Item("b", "val", (), "b"))
    with pytest.raises(UserError, match=r"the split 'val' has no captions.*splits with captions: train"):
        Corpus(Path("c.jsonl"), items).require_queries("val")


@st.composite
def corpora_with_others(draw: st.DrawFn) -> list[Item]:
    """Items of which some captions name others of their split."""
    splits = draw(st.lists(SPLIT, min_size=2, max_size=6))
    items = []
    for n, split in enumerate(splits):
        others = [f"i{k}" for k, other in enumerate(splits) if other == split and k != n]
        named = draw(st.lists(st.sampled_from(others), unique=True)) if others else []
        said = (Caption(f"c{n}", f"text {n}", also=tuple(named)), Caption(f"d{n}", "plain"))
        items.append(Item(f"i{n}", split, said, "a.ply", "pointcloud"))
    return items


@settings(max_examples=40, deadline=None)
@given(items=corpora_with_others())
def test_other_items_of_captions_are_written_and_read_back_and_count_in_the_digest_where_there_are_some(
    items: list[Item], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "corpus.jsonl"
    write_manifest(path, items)
    corpus = Corpus.read(path)
    assert list(corpus.items) == items
    plain = tuple(replace(i, captions=tuple(replace(c, also=()) for c in i.captions)) for i in items)
    for split in corpus.splits:
        named = any(caption.also for _, caption in corpus.captions(split))
        assert (corpus.split_digest(split) == Corpus(path, plain).split_digest(split)) == (not named)
        turned = tuple(
            replace(i, captions=tuple(replace(c, also=c.also[::-1]) for c in i.captions)) for i in items
        )
        assert corpus.split_digest(split) == Corpus(path, turned).split_digest(split)
    write_manifest(path, plain)
    assert "also" not in path.read_text()


def test_digest_of_a_split_without_other_items_is_what_it_always_was() -> None:
    items = (Item("a", "test", (Caption("c", "x", 1.0, 2.0), Caption("d", "y")), "a.mp4"),)
    assert Corpus(Path("c.jsonl"), items).split_digest("test") == "94ac249da7946371"


@pytest.mark.parametrize(
    ("also", "sentence"),
    [
        (["aple"], "line 1: the caption 'q' also names 'aple', which is no item of this corpus; did you mean 'apple'?"),
        (["xyz"], "line 1: the caption 'q' also names 'xyz', which is no item of this corpus"),
        (["a"], "line 1: the caption 'q' also names 'a', which is its own item"),
        (["pear"], "line 1: the caption 'q' also names 'pear', which is not in its split 'train'"),
        (["apple", "apple"], "line 1: caption 'q' names the item 'apple' twice in also"),
        ("apple", "line 1: caption 'q': also is not a list of item ids"),
        ([["apple"]], "line 1: caption 'q': an entry of also has no id"),
        ([None], "line 1: caption 'q': an entry of also has no id"),
    ],
)  # fmt: skip
def test_a_wrong_other_item_is_reported_with_its_line(also: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [
        line(captions=[{"id": "q", "text": "x", "also": also}]),
        line(id="apple", captions=[]),
        line(id="pear", split="val", captions=[]),
    ]
    path.write_text("\n".join(rows))
    assert [str(problem) for problem in parse(path)[1]] == [sentence]


def test_another_item_may_be_one_that_only_lends_the_split_a_caption_and_an_id_may_be_a_number(
    tmp_path: Path,
) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [
        line(id="a", split="val", captions=[{"text": "x", "also": [7, "lender"]}]),
        line(id=7, split="val", captions=[]),
        line(id="lender", split="test", captions=[{"text": "y", "split": "val"}]),
    ]
    path.write_text("\n".join(rows))
    assert Corpus.read(path).items[0].captions[0].also == ("7", "lender")


def test_unknown_other_items_are_not_reported_while_lines_cannot_be_read_and_problems_are_in_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [
        line(captions=[{"id": "q", "text": "x", "also": ["b", "a"]}]),
        "{",
        line(id="c", captions=[{"id": "q", "text": "y"}]),
    ]
    path.write_text("\n".join(rows))
    assert [problem.line for problem in parse(path)[1]] == [1, 2, 3]


def test_only_so_many_unknown_other_items_are_compared_with_all_others(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [line(id="chair", captions=[])]
    rows += [line(id=f"i{n}", captions=[{"text": "x", "also": [f"chai{n}"]}]) for n in range(SUGGESTIONS + 5)]
    path.write_text("\n".join(rows))
    problems = parse(path)[1]
    assert len(problems) == SUGGESTIONS + 5
    assert sum("did you mean 'chair'?" in problem.sentence for problem in problems) == SUGGESTIONS


def test_kind_of_a_split_is_pointcloud_where_all_its_items_are() -> None:
    cloud, video = Item("a", "train", (), "a", "pointcloud"), Item("b", "test", (), "b")
    mixed = Item("c", "test", (), "c", "pointcloud")
    corpus = Corpus(Path("c.jsonl"), (cloud, video, mixed))
    assert (corpus.kind("train"), corpus.kind("test")) == ("pointcloud", "video")


def read_lines(tmp_path: Path, *rows: bytes) -> tuple[list[Item], list[str]]:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join(rows))
    items, problems = parse(path)
    return items, [str(problem) for problem in problems]


def test_other_names_of_the_usual_splits_are_understood_and_own_splits_stay(tmp_path: Path) -> None:
    rows = (
        b'{"id": "a", "media": "a.mp4", "split": "Training", "captions": [{"text": "x", "split": "testing"}]}',
        b'{"id": "b", "media": "b.mp4", "split": "validation"}', b'{"id": "c", "media": "c.mp4", "split": "hard"}',
    )  # fmt: skip
    items, problems = read_lines(tmp_path, *rows)
    assert [item.split for item in items] == ["train", "val", "hard"] and not problems
    assert items[0].captions[0].split == "test"


def test_a_key_that_stands_twice_is_named_and_colons_in_texts_do_no_harm(tmp_path: Path) -> None:
    good = (
        b'{"id": "a:b", "media": "a.mp4", "split": "train", "captions": [{"text": "\\"split\\": x"}], '
        b'"meta": {"m": [{"k": 1}]}}'
    )
    twice = b'{"id": "a", "media": "a.mp4", "split": "train", "split": "test"}'
    inside = b'{"id": "b", "media": "b.mp4", "split": "test", "captions": [{"text": "x", "text": "y"}]}'
    items, problems = read_lines(tmp_path, good, twice, inside)
    assert [item.id for item in items] == ["a:b"] and problems == [
        "line 2: the key 'split' stands twice in one object", "line 3: the key 'text' stands twice in one object",
    ]  # fmt: skip


def test_lines_that_are_not_utf8_are_named_and_a_pointer_says_what_it_is(tmp_path: Path) -> None:
    good = b'{"id": "a", "media": "a.mp4", "split": "train"}'
    items, problems = read_lines(tmp_path, good, b'{"id": "caf\xe9", "media": "b.mp4", "split": "train"}')
    assert [item.id for item in items] == ["a"] and problems == ["line 2: not UTF-8 (b'\\xe9' at column 12)"]
    _, problems = read_lines(tmp_path, b"version https://git-lfs.github.com/spec/v1", b"oid sha256:0")
    assert problems[0].startswith("line 1: the file is a Git LFS pointer and not the file itself")
