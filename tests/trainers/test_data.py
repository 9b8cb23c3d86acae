"""Who is in a split and what is right for whom: written, read back, and read from before captions had others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainers.data import SplitIndex, read_splits, write_also, write_splits

GALLERY = ["a", "b", "c"]
QUERIES = [("q0", "one", "b"), ("q1", "two", "a"), ("q2", "three", "c")]
FORMER = (
    '{"items": ["a", "b", "c"], "item_rows": [0, 1, 2], "captions": ["q0", "q1", "q2"], '
    '"caption_rows": [0, 1, 2], "caption_item": [1, 0, 2], "texts": ["one", "two", "three"]}'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_splits(tmp_path, {"test": (GALLERY, QUERIES), "val": (GALLERY, QUERIES)})
    return tmp_path


def test_index_without_other_items_has_the_bytes_it_always_had_and_these_are_read(folder: Path) -> None:
    write_also(folder, {"test": [[], [], []]})
    assert (folder / "splits" / "test.json").read_text() == FORMER
    index = read_splits(folder)["test"]
    assert index.caption_also == [] and index.positives == [[1], [0], [2]]
    assert not index.relevance.several and index.relevance.item.tolist() == [1, 0, 2]


def test_other_items_are_added_to_their_split_alone_own_first_each_once(folder: Path) -> None:
    write_also(folder, {"test": [["c", "a", "c", "b"], [], ["a"]], "val": [[], [], []]})
    splits = read_splits(folder)
    assert splits["test"].positives == [[1, 0, 2], [0], [2, 0]]
    assert splits["test"].relevance.several and splits["test"].relevance.caption.tolist() == [
        0,
        0,
        0,
        1,
        2,
        2,
    ]
    assert (folder / "splits" / "val.json").read_text() == FORMER
    assert replace(splits["test"], caption_also=[]) == splits["val"]


def test_other_items_that_are_the_own_ones_by_their_bytes_leave_the_index_as_it_is(folder: Path) -> None:
    write_also(folder, {"test": [["b"], ["a"], []]})
    assert (folder / "splits" / "test.json").read_text() == FORMER


def test_other_items_of_another_number_of_captions_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_also(folder, {"test": [["c"]]})


def test_index_with_other_items_is_read_back(tmp_path: Path) -> None:
    index = SplitIndex(**json.loads(FORMER), caption_also=[[2], [], [0, 1]])
    index.write(tmp_path / "x.json")
    assert SplitIndex.read(tmp_path / "x.json") == index
