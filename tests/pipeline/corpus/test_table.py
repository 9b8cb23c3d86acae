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


def test_what_is_left_out_is_reported_with_its_line(table):
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


# rows that swallow others, rows of two splits, and every editor's way to write a table -------------------

CLIPS = ("v1.mp4", "v2.mp4", "v3.mp4", "v4.mp4", "v5.mp4")


@pytest.fixture
def raw(tmp_path):
    """`raw(content)` reads a table of these bytes beside the files v1.mp4 to v5.mp4, and checks the manifest."""

    def read(content: str | bytes, name: str = "t.csv") -> Imported:
        for clip in CLIPS:
            (tmp_path / clip).write_bytes(clip.encode())
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return valid(read_csv(tmp_path / name, tmp_path), tmp_path)

    return read


def told(found: Imported) -> dict[str, list[tuple[str, str]]]:
    """By item, each caption with the split that it is in."""
    return {item.id: [(c.text, c.split or item.split) for c in item.captions] for item in found.items}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('v1.mp4,"a man says hello,train\nv2.mp4,b,train\nv5.mp4,"e",test\n', "line 2: a quote opens in this row and "
         "closes inside line 4"),
        ('v1.mp4,a,train\nv5.mp4,"e unclosed,test\nv2.mp4,b,train\n', "line 3: a quote opens in this row and is not"),
        ('v1.mp4,a,train\nv5.mp4,"e unclosed,test', "line 3: a quote opens in this row and is not closed"),
        ('v1.mp4,"a,train\nv2.mp4,b",train\n', "line 2: a quoted cell reaches over line 3, which looks like a row"),
        ('v1.mp4,"a,train\nv2.mp4,",",train\nv3.mp4,c,val\n', "line 2: a quote"),
        ('v1.mp4,"a ""man,train\r\nv2.mp4,b,train\r\n', "line 2: a quote opens in this row and is not closed"),
    ],
)  # fmt: skip
def test_a_quote_that_swallows_rows_refuses_the_table_and_names_its_line(raw, content, words):
    with pytest.raises(UserError, match=words):
        raw("video,caption,split\n" + content)


def test_a_row_whose_cells_do_not_fit_is_named_and_the_others_are_read(raw):
    found = raw(
        "video,caption,split\nv1.mp4,a man, smiling, walks,train\nv2.mp4,b,train\nv3.mp4,c\n"
        'v4.mp4,"he says "hi" twice",test\nv5.mp4,"d, ""e""",test,,\n,,\n\n'
    )
    assert told(found) == {"v2": [("b", "train")], "v5": [('d, "e"', "test")]}
    assert found.left_out == [
        "line 2: it has 5 cells for 3 columns; a cell that holds the separator needs quotes",
        "line 4: it has no text 'split': 2 cells for 3 columns",
        'line 5: text stands behind a closing quote; a quote inside a quoted cell is written twice ("")',
    ]


def test_a_caption_over_several_lines_and_quotes_inside_words_are_read(raw):
    found = raw('video,caption\nv1.mp4,"one,\ntwo"\nv2.mp4,a 12" pipe\nv3.mp4, "padded" \n')
    assert [item.captions[0].text for item in found.items] == ["one,\ntwo", 'a 12" pipe', "padded"]
    assert not found.left_out


def test_each_caption_keeps_the_split_of_its_row(raw):
    rows = "video,caption,split\nv1.mp4,train caption,train\nv1.mp4,test caption,test\nv2.mp4,b,train\n"
    found = raw(rows)
    assert told(found)["v1"] == [("train caption", "train"), ("test caption", "test")]
    assert found.notes == [
        "1 files have captions of several splits, each caption stays in its own: v1.mp4 (train, test)"
    ]
    corpus = Corpus(Path("c.jsonl"), tuple(found.items))
    assert [caption.text for _, caption in corpus.captions("test")] == ["test caption"]


def test_the_same_caption_of_a_file_in_two_splits_is_named_and_stays_in_the_first(raw):
    found = raw("video,caption,split\nv1.mp4,a,train\nv1.mp4,a,test\nv1.mp4,a,train\n")
    assert told(found) == {"v1": [("a", "train"), ("a", "train")]}
    assert found.left_out == [
        "line 3: the same caption of the same file stands on line 2 in the split 'train', here in 'test'"
    ]


def test_the_usual_names_of_splits_are_understood_and_others_refused_with_the_nearest(raw):
    names = ["Training", "validation", "valid", "dev", "TESTING"]
    rows = "".join(f"{clip},caption of {clip},{name}\n" for clip, name in zip(CLIPS, names, strict=True))
    assert [item.split for item in raw("video,caption,subset\n" + rows).items] == [
        "train", "val", "val", "val", "test",
    ]  # fmt: skip
    with pytest.raises(
        UserError, match=r"t\.csv, line 3: unknown split 'tset'; did you mean 'test'\? \(1 more"
    ):
        raw("video,caption,split\nv1.mp4,a,train\nv2.mp4,b,tset\nv3.mp4,b,fold7\n")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_separators_encodings_and_line_ends_of_every_editor_are_read(raw, separator, encoding, line_end):
    rows = [
        ["video", "caption", "split", "end"],
        ["v1.mp4", f'"é{separator} ü"', "val", "1.5"],
        ["v2.mp4", "b", "", ""],
    ]
    text = line_end.join(separator.join(row) for row in rows) + line_end
    data = ("\ufeff" * (encoding == "utf-16-le") + text).encode(encoding)
    found = raw(data)
    assert (told(found)["v1"], found.items[0].captions[0].end) == ([(f"é{separator} ü", "val")], 1.5)
    assert [item.id for item in found.items] == ["v1", "v2"] and not found.left_out
    assert found.notes == ["1 items have no split in the table and are dealt by a hash of their ids: v2"]


def test_a_bad_time_costs_its_row_and_decimal_commas_are_read_where_commas_separate_nothing(raw):
    rows = ["v1.mp4;a;0,5;2,25", "v2.mp4;b;soon;2", "v3.mp4;c;2;1", "v4.mp4;d;1_0;", "v5.mp4;e;1.000,5;"]
    found = raw("\n".join(["video;caption;start;end", *rows]))
    assert [(item.id, item.captions[0].start, item.captions[0].end) for item in found.items] == [
        ("v1", 0.5, 2.25)
    ]
    assert found.left_out == [
        "line 3: 'soon' is not a number of seconds", "line 4: the caption ends at 1.0 s, before its start at 2.0 s",
        "line 5: '1_0' is not a number of seconds", "line 6: '1.000,5' is not a number of seconds",
    ]  # fmt: skip
    found = raw('video,caption,end\nv1.mp4,a,"0,5"\nv2.mp4,b,2\n')
    assert found.left_out == ["line 2: '0,5' is not a number of seconds"] and len(found.items) == 1


def test_bytes_that_are_no_text_cost_their_row(raw):
    found = raw(b"video,caption\nv1.mp4,caf\xe9\nv2.mp4,a\0b\nv3.mp4,c\n")
    assert [item.id for item in found.items] == ["v3"]
    assert found.left_out == [
        "line 2: it is not UTF-8 (b'\\xe9'); save the file as UTF-8", "line 3: it holds a NUL byte",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("video,caption\nv1.mp4,a\n".encode("utf-16-le"), "holds NUL bytes, as UTF-16 without a byte order mark does"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a Git LFS pointer and not the"),
        (b"<!DOCTYPE html>\n<html></html>", "it is an HTML page"),
        (b"PK\x03\x04rest of a workbook", "it is a ZIP archive"),
        ("v1.mp4,a man\nv2.mp4,b\n", "no column for media files.*its columns: v1.mp4, a man"),
        ("video,Caption,caption\nv1.mp4,a,b\n", "several columns 'caption'"),
        ('video,"caption\nv1.mp4,a\n', "line 1: a quote in the names of the columns is not closed"),
        ("video,caption,split\n,,\n\n", "has no rows"),
        ("video,caption\ngone.mp4,a\n", "none of its 1 lines can be used; line 2: gone.mp4 is not there"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_one_sentence(raw, content, words):
    with pytest.raises(UserError, match=words):
        raw(content)


def test_the_line_by_which_excel_names_the_separator_means_nothing_else(raw):
    assert told(raw("sep=;\nvideo;caption\nv1.mp4;a, b\nv9.mp4;c\n"))["v1"][0][0] == "a, b"
    assert raw("sep=;\nvideo;caption\nv1.mp4;a\nv9.mp4;c\n").left_out == ["line 4: v9.mp4 is not there"]


def test_unnamed_columns_at_the_end_hold_nothing(raw):
    found = raw("video,caption,,\nv1.mp4,a\nv2.mp4,b,,\nv3.mp4,c, d\n")
    assert [item.id for item in found.items] == ["v1", "v2"]
    assert found.left_out == [
        "line 4: it has 3 cells for 2 columns; a cell that holds the separator needs quotes"
    ]


def test_ids_that_contradict_each_other_are_reported(raw):
    found = raw("id,video,caption,caption_id\n7,v1.mp4,a,q1\n8,v1.mp4,b,q1\n9,v2.mp4,c,q2\n9,v3.mp4,d,\n")
    assert found.left_out == ["line 3: the caption id 'q1' stands already on line 2"]
    assert found.items[0].id == "7" and {item.id[:2] for item in found.items[1:]} == {"9-"}
    assert found.notes == ["1 ids are given to several files, each with a digest of its path: 9"]
    found = raw("id,video,caption\n7,v1.mp4,a\n8,v1.mp4,b\n")
    assert found.notes == ["1 files have rows with different ids, the first id is the item's: v1.mp4 (7, 8)"]
    assert len(found.items[0].captions) == 2


def test_a_caption_id_that_another_item_would_make_up_is_left_to_its_owner(raw):
    found = raw("video,caption,caption_id\nv1.mp4,a,v2#0\nv2.mp4,b,\n")
    assert [caption.id for item in found.items for caption in item.captions] == ["v2#0", "v2#1"]


def test_paths_of_windows_are_found(table):
    assert table([["video", "caption"], ["d\\a.mp4", "x"]], ["d/a.mp4"]).items[0].media == "data/d/a.mp4"


def test_a_column_that_is_not_read_beside_another_of_its_meaning_is_reported(raw):
    found = raw("video,file,caption\nv1.mp4,v2.mp4,a\n")
    assert found.notes == ["media files are read from the column 'video', not from 'file'"]


def test_json_values_that_are_no_texts_cost_their_row(tmp_path):
    found = lines(
        tmp_path, {"video": "a.mp4", "caption": "x"}, {"video": "a.mp4", "caption": ["y", "z"]},
        {"video": ["a.mp4"], "caption": "x"}, '{"video": "a.mp4", "caption": "one", "caption": "two"}',
        {"video": "a.mp4", "captions": "x"}, {"video": "a.mp4", "captions": ["ok", 5]},
        {"video": "a.mp4", "caption": "x", "start": True}, {"video": "a.mp4", "caption": "\ud800"},
        {"video": "a.mp4", "Caption": "x", "caption": "y"},
    )  # fmt: skip
    assert [c.text for c in found.items[0].captions] == ["x", "ok"]
    assert [line.split(": ", 1) for line in found.left_out] == [
        ["line 2", "its caption is ['y', 'z'], not a text"], ["line 3", "its video is ['a.mp4'], not a text"],
        ["line 4", "the key 'caption' stands twice"], ["line 5", "its captions are 'x', not a list"],
        ["line 6", "its caption is 5, not a text"], ["line 7", "'True' is not a number of seconds"],
        ["line 8", "it holds '\\ud800', half a character"],
        ["line 9", "two of its keys differ in nothing but case"],
    ]  # fmt: skip


def test_a_manifest_as_a_table_keeps_captions_splits_and_items_without_captions(tmp_path):
    (tmp_path / "b.mp4").touch()
    said = [{"id": "q", "text": "x"}, {"id": "r", "text": "y", "split": "test", "also": ["w"]}]
    found = lines(
        tmp_path, {"id": "v", "media": "a.mp4", "split": "train", "captions": said},
        {"id": "w", "media": "b.mp4", "split": "test", "captions": []},
    )  # fmt: skip
    assert told(found) == {"v": [("x", "train"), ("y", "test")], "w": []}
    assert "a table gives no also: these keys of a manifest are not read" in found.notes


def test_ten_thousand_files_of_one_name_have_ids_of_their_own(tmp_path):
    from pipeline.corpus.importers.table import _names

    names = _names({f"video{n}/clip.mp4": "" for n in range(10_000)})
    assert len(set(names.values())) == 10_000


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "video:caption:split\na.mp4:a:train\n", "':' seems to separate them: possible are ',', '\\t'"),
        ("t.csv", "video^caption\na.mp4^a\n", "'^' seems to separate them"),
        ("t.jsonl", '[{"media": "a.mp4", "caption": "a"}]\n', "none of its 1 lines can be used; line 1: not"),
        ("t.jsonl", '{\n"media": "a.mp4", "caption": "a"}\n', "none of its 2 lines can be used; line 1: not"),
        ("t.parquet", "version https://git-lfs.github.com/spec/v1\n", "as Parquet: it is a Git LFS pointer"),
        ("t.parquet", "", "as Parquet: it is empty"),
    ],
)  # fmt: skip
def test_a_table_of_another_kind_is_told_what_it_is(tmp_path, name, text, words):
    (tmp_path / "a.mp4").write_bytes(b"a")
    (tmp_path / name).write_text(text)
    reader = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}[Path(name).suffix]
    with pytest.raises(UserError) as error:
        reader(tmp_path / name, tmp_path)
    assert words in str(error.value)
