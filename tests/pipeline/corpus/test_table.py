"""Tables of captions: found columns, told line by line what was left out, and a manifest that is always valid."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.importers.table import Imported, read_csv, read_jsonl, read_parquet, with_splits
from pipeline.corpus.manifest import SPLITS, Corpus, Item, write_manifest
from pipeline.errors import UserError


@pytest.fixture
def table(tmp_path):
    """`table(rows, media)` reads a CSV of these lines beside files of these names, and checks the manifest."""

    def read(
        lines: list[list[str]], media: list[str], delimiter: str = ",", encoding: str = "utf-8"
    ) -> Imported:
        for name in media:
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / name).write_bytes(name.encode())
        path = tmp_path / "data" / "captions.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding=encoding) as file:
            csv.writer(file, delimiter=delimiter).writerows(lines)
        return valid(read_csv(path, tmp_path), tmp_path)

    return read


def valid(found: Imported, folder: Path) -> Imported:
    """The same, after its manifest was written and read back, and every media path found."""
    write_manifest(folder / "corpus.jsonl", found.items)
    corpus = Corpus.read(folder / "corpus.jsonl")
    assert list(corpus.items) == found.items
    assert all((corpus.media_path(item) or Path()).is_file() for item in corpus.items)
    return found


def test_rows_of_one_file_are_one_item_in_the_order_of_the_table(table):
    found = table(
        [["video", "caption"], ["b.mp4", "one"], ["a.mp4", "two"], ["b.mp4", " three "]], ["a.mp4", "b.mp4"]
    )
    assert [(item.id, [c.text for c in item.captions]) for item in found.items] == [
        ("b", ["one", "three"]), ("a", ["two"]),
    ]  # fmt: skip
    assert [c.id for c in found.items[0].captions] == ["b#0", "b#1"]
    assert found.items[0].media == "data/b.mp4" and found.left_out == []


@pytest.mark.parametrize(
    ("media", "text"), [("file", "sentence"), ("Path", " Caption "), ("video_path", "query")]
)
def test_columns_are_found_by_any_usual_name(table, media, text):
    assert table([["no", text, media], ["1", "x", "a.mp4"]], ["a.mp4"]).items[0].captions[0].text == "x"


def test_ids_splits_and_moments_are_taken_from_their_columns(table):
    rows = [
        ["id", "caption_id", "split", "start", "end", "video", "caption"],
        ["v1", "q1", "val", "1.5", "2", "a.mp4", "x"],
    ]
    (item,) = table(rows, ["a.mp4"]).items
    (caption,) = item.captions
    assert (item.id, item.split) == ("v1", "val")
    assert (caption.id, caption.start, caption.end) == ("q1", 1.5, 2.0)


def test_the_unnamed_index_that_pandas_writes_means_nothing(table):
    found = table([["", "video", "caption"], ["0", "a.mp4", "x"], ["1", "b.mp4", "y"]], ["a.mp4", "b.mp4"])
    assert [item.id for item in found.items] == ["a", "b"]
    assert {item.split for item in found.items} <= set(SPLITS)
    assert found.items[0].captions[0].start is None


def test_two_files_with_one_stem_are_two_items_with_captions_of_their_own(table):
    media = ["x/a.mp4", "y/a.mp4", "b.mp4"]
    found = table([["video", "caption"], *[[name, "seen"] for name in media for _ in range(2)]], media)
    names = [item.id for item in found.items]
    assert len(set(names)) == 3 and names[2] == "b" and all(name.startswith("a-") for name in names[:2])
    again = table([["video", "caption"], *[[name, "seen"] for name in reversed(media)]], media)
    assert set(names) == {item.id for item in again.items}  # whatever the order of the rows


def test_one_file_spelled_two_ways_is_one_item(table):
    found = table(
        [["video", "caption"], ["a.mp4", "x"], ["./a.mp4", "y"], ["c/../a.mp4", "z"]], ["a.mp4", "c/k.mp4"]
    )
    assert [len(item.captions) for item in found.items] == [3]


def test_what_is_left_out_is_told_with_its_line(table):
    rows = [
        ["video", "caption"],
        ["a.mp4", "several\nlines"],
        ["gone.mp4", "x"],
        ["", "x"],
        ["a.mp4", "  "],
        ["d", "x"],
    ]
    found = table(rows, ["a.mp4", "d/k.mp4"])
    assert found.left_out == [
        "line 4: gone.mp4 is not there", "line 5: no media", "line 6: no caption", "line 7: d is not there",
    ]  # fmt: skip
    assert len(found.items) == 1


@pytest.mark.parametrize(("delimiter", "encoding"), [("\t", "utf-8"), (",", "utf-8-sig")])
def test_tabs_and_byte_order_marks_are_read(table, delimiter, encoding):
    found = table([["video", "caption"], ["é.mp4", 'a "quoted", caption']], ["é.mp4"], delimiter, encoding)
    assert (found.items[0].id, found.items[0].captions[0].text) == ("é", 'a "quoted", caption')


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has no rows"),
        (b"video,caption\n", "has no rows"),
        (b"vid,caption\na,b\n", "no column for media files; it may be called media, video"),
        (b"video,words\na,b\n", "no column for captions; it may be called caption, text"),
        (b"video,caption\n\xff\xfe,x\n", "cannot be read as CSV"),
        (b"video,caption,start\na.mp4,x,soon\n", "line 2: 'soon' is not a number of seconds"),
        (b"video,caption,start\na.mp4,x,nan\n", "line 2: 'nan' is not a number of seconds"),
        (b"video,caption,end\na.mp4,x,-1\n", "line 2: '-1' is not a number of seconds"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(content, sentence, tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_csv(tmp_path / "t.csv", tmp_path)


def lines(tmp_path: Path, *rows: Any) -> Imported:
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return valid(read_jsonl(path, tmp_path), tmp_path)


def test_json_lines_hold_one_caption_or_a_list_of_texts_or_objects(tmp_path):
    found = lines(
        tmp_path,
        {"video": "a.mp4", "caption": "one"},
        {"video": "a.mp4", "captions": ["two", {"id": "q3", "text": "three", "start": 0, "end": 2.5}]},
    )
    (item,) = found.items
    assert [c.text for c in item.captions] == ["one", "two", "three"]
    assert (item.captions[2].id, item.captions[2].start, item.captions[2].end) == ("q3", 0.0, 2.5)


def test_a_manifest_of_ours_is_a_table_too(tmp_path):
    row = {
        "id": "v",
        "media": "a.mp4",
        "split": "val",
        "captions": [{"id": "v#0", "text": "x", "start": 1.0, "end": 2.0}],
    }
    (item,) = lines(tmp_path, row).items
    assert (item.id, item.split, item.captions[0].id, item.captions[0].start) == ("v", "val", "v#0", 1.0)


def test_lines_that_are_no_objects_are_left_out(tmp_path):
    found = lines(tmp_path, {"video": "a.mp4", "caption": "x"}, "{", "", "[1]")
    assert found.left_out == ["line 2: not a JSON object", "line 4: not a JSON object"]


@pytest.fixture
def parquet(tmp_path):
    """`parquet(columns)` reads a Parquet file of these columns beside a.mp4 and b.mp4."""
    arrow = pytest.importorskip("pyarrow", reason="pyarrow, which reads Parquet, is not installed")

    def read(columns: dict[str, list[Any]]) -> Imported:
        from pyarrow import parquet

        for name in "ab":
            (tmp_path / f"{name}.mp4").touch()
        parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
        return valid(read_parquet(tmp_path / "t.parquet", tmp_path), tmp_path)

    return read


def test_parquet_is_the_same_table_as_csv(parquet, table):
    rows = [["id", "split", "start", "end", "video", "caption"], ["v", "val", 1.5, 2.0, "a.mp4", "é, x"],
            ["w", "test", 0.0, 3.0, "b.mp4", "y"]]  # fmt: skip
    found = parquet({str(name): [row[n] for row in rows[1:]] for n, name in enumerate(rows[0])})
    by_csv = table([[str(cell) for cell in row] for row in rows], ["a.mp4", "b.mp4"])
    assert [(i.id, i.split, i.captions) for i in found.items] == [
        (i.id, i.split, i.captions) for i in by_csv.items
    ]


def test_parquet_has_lists_of_captions_nothing_where_pandas_has_nan_and_media_that_are_not_read(parquet):
    found = parquet(
        {
            "Video": ["a.mp4", "b.mp4", "c.mp4", None],
            "captions": [["one", "two"], ["three"], ["four"], ["five"]],
            "start": [float("nan"), 1.0, None, None],
            "bytes": [b"\0" * 10] * 4,
        }
    )
    assert [[c.text for c in item.captions] for item in found.items] == [["one", "two"], ["three"]]
    assert [item.captions[0].start for item in found.items] == [None, 1.0]
    assert found.left_out == ["row 3: c.mp4 is not there", "row 4: no media"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"video": [], "caption": []}, "has no rows"),
        ({"x": [1]}, "has no column for media files"),
        ({"video": ["a.mp4"], "caption": ["x"], "end": [-1.0]}, "row 1: '-1.0' is not a number of seconds"),
    ],
)
def test_a_parquet_table_that_is_no_corpus_is_one_sentence(parquet, columns, sentence):
    with pytest.raises(UserError, match=sentence):
        parquet(columns)


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"video,caption"])
def test_a_file_that_is_no_parquet_is_one_sentence(parquet, content, tmp_path):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.parquet cannot be read as Parquet"):
        read_parquet(tmp_path / "x.parquet", tmp_path)


def test_without_pyarrow_parquet_says_how_to_have_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'crossreel\[parquet\]'"):
        read_parquet(tmp_path / "x.parquet", tmp_path)


@given(names=st.sets(st.text("abcdef", min_size=1, max_size=5), max_size=40), given_split=st.booleans())
def test_an_item_without_a_split_is_dealt_by_its_own_id_alone(names, given_split):
    items = [Item(name, "") for name in sorted(names)] + ([Item("mine", "val")] if given_split else [])
    split = {item.id: item.split for item in with_splits(items)}
    assert list(split) == [item.id for item in items] and set(split.values()) <= set(SPLITS)
    for item in items:  # whoever else is there
        (alone,) = with_splits([item])
        assert alone.split == split[item.id]
    if given_split:
        assert split["mine"] == "val"
