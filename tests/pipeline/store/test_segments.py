"""Segments: what goes in comes out, what is damaged is found, what is half-written is never seen."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import ItemError
from pipeline.store.fields import Field
from pipeline.store.segments import Damaged, Segment, SegmentWriter

FIELDS = {
    "frame": Field("float16", (None, 4)),
    "time": Field("float64", (None,)),
    "node": Field("int32", (None, 2, None)),
}


def writer(folder: Path, fields: dict[str, Field] = FIELDS) -> SegmentWriter:
    return SegmentWriter(folder / "segments", folder / "work", "made", "fp", {"version": 1}, fields)


def outputs(rows: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "frame": random.normal(size=(rows, 4)).astype(np.float16), "time": np.arange(rows) / 3,
        "node": random.integers(0, 9, (rows + 1, 2, 3)).astype(np.int32),
    }  # fmt: skip


def written(folder: Path, count: int = 3) -> Path:
    with writer(folder) as out:
        for n in range(count):
            out.append(f"{n:032x}", f"item {n}", outputs(n + 1, n), {"decoder": "d", "n": n}, 10 * n or None)
        path = out.finish()
    assert path is not None
    return path


@settings(max_examples=25, deadline=None)
@given(
    arrays=st.lists(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1e3, 1e3, width=32)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_rows_come_back_bit_for_bit(arrays: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("segment")
    with writer(folder, {"row": Field("float32", (None, None))}) as out:
        for n, array in enumerate(arrays):
            out.append(str(n), str(n), {"row": array})
        path = out.finish()
    assert path is not None
    segment = Segment(path)
    for n, array in enumerate(arrays):
        assert segment.rows("row", n).tobytes() == array.tobytes()
        assert segment.length("row", n) == len(array)
        segment.check(n)


def test_items_names_notes_and_sizes_come_back(tmp_path: Path) -> None:
    segment = Segment(written(tmp_path))
    assert segment.items == [f"{n:032x}" for n in range(3)]
    assert segment.names == ["item 0", "item 1", "item 2"]
    assert segment.notes[2] == '{"decoder": "d", "n": 2}'
    assert segment.file_bytes == [None, 10, 20]
    assert (segment.stage, segment.fingerprint, segment.components) == ("made", "fp", {"version": 1})
    assert segment.fields == ["frame", "node", "time"]
    assert segment.rows("frame", 1).dtype == np.float16
    for name, array in outputs(3, 2).items():
        np.testing.assert_array_equal(segment.rows(name, 2), array)


def test_arrays_in_any_memory_order_come_back(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    with writer(tmp_path, {"row": Field("float32", (None, 4))}) as out:
        out.append("a", "a", {"row": array})
        out.append("b", "b", {"row": array[::-1]})
        path = out.finish()
    assert path is not None
    np.testing.assert_array_equal(Segment(path).rows("row", 0), array)
    np.testing.assert_array_equal(Segment(path).rows("row", 1), array[::-1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frame": np.zeros((0, 4))}, "output 'frame' is empty"),
        ({"frame": np.zeros((2, 5))}, r"output 'frame' has shape \(2, 5\), declared \(None, 4\)"),
        ({"frame": np.zeros(4)}, "has shape"),
        ({"frame": np.full((2, 4), np.nan)}, "holds NaN or infinity"),
        ({"time": np.array([0.0, np.inf])}, "holds NaN or infinity"),
        ({"frame": np.full((2, 4), 1e6)}, "exceeds the range of float16"),
        ({"node": np.zeros((2, 2, 9), np.int32)}, r"rows of shape \(2, 9\), others of \(2, 3\)"),
        ({"frame": None}, "made no output 'frame'"),
    ],
)
def test_what_is_not_as_declared_is_that_item_s_failure_and_the_others_are_kept(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    wrong = {name: array for name, array in (outputs(2) | change).items() if array is not None}
    with writer(tmp_path) as out:
        out.append("good", "good", outputs(2))
        with pytest.raises(ItemError, match=reason) as caught:
            out.append("bad", "the bad one", wrong)
        assert caught.value.item == "the bad one"
        out.append("later", "later", outputs(3))
        path = out.finish()
    assert path is not None
    segment = Segment(path)
    assert segment.items == ["good", "later"]
    for row in (0, 1):
        segment.check(row)


def test_the_shape_of_a_refused_item_binds_no_other(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        with pytest.raises(ItemError):
            out.append(
                "bad", "bad", {**outputs(2), "node": np.ones((1, 2, 7), np.int32), "time": np.array([np.nan])}
            )
        out.append("good", "good", outputs(2))


def test_an_item_may_stand_in_a_segment_once(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.append("a", "a", outputs(1))
        with pytest.raises(ValueError, match="in the segment already"):
            out.append("a", "a", outputs(1))


def test_a_segment_appears_only_when_it_is_finished_and_leaves_no_spool(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        out.append("a", "a", outputs(500))
        assert not list(tmp_path.glob("segments/**/*.h5"))
        out.finish()
    assert len(list(tmp_path.glob("segments/*.h5"))) == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_a_writer_that_is_left_early_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), writer(tmp_path) as out:
        out.append("a", "a", outputs(5))
        raise RuntimeError("stop")
    assert not (tmp_path / "segments").exists() and list((tmp_path / "work").iterdir()) == []


def test_a_shard_in_which_everything_failed_has_no_segment(tmp_path: Path) -> None:
    with writer(tmp_path) as out:
        assert out.finish() is None


def test_a_segment_of_many_blocks_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.segments.COPY_BYTES", 100)
    path = written(tmp_path, 20)
    for row in range(20):
        Segment(path).check(row)


def test_a_segment_cut_anywhere_is_named_as_damaged(tmp_path: Path) -> None:
    path = written(tmp_path, 8)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=str(path)):
            Segment(path)
    path.unlink()
    with pytest.raises(Damaged, match="is gone"):
        Segment(path)


def test_a_flipped_bit_is_found_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    """Over the whole file: rows, digests, notes and the structure around them."""
    path = written(tmp_path, 4)
    whole = bytearray(path.read_bytes())
    expected = [
        (f"{n:032x}", {name: array.tobytes() for name, array in outputs(n + 1, n).items()}) for n in range(4)
    ]
    chance, found = random.Random(0), 0
    for _ in range(400):
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        whole[at] ^= bit
        path.write_bytes(whole)
        whole[at] ^= bit
        try:
            segment = Segment(path)
            for row in range(len(segment.items)):
                segment.check(row)
        except Damaged:
            found += 1
            continue
        read = [
            (key, {name: segment.rows(name, row).tobytes() for name in segment.fields})
            for row, key in enumerate(segment.items)
        ]
        assert read == expected, f"bit {bit} of byte {at}"
    assert found > 20


def test_a_flipped_bit_in_the_rows_names_the_file_and_the_item(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(outputs(3, 2)["frame"].tobytes()) + 5] ^= 4
    path.write_bytes(whole)
    segment = Segment(path)
    segment.check(1)
    with pytest.raises(
        Damaged, match=rf"{path} is damaged: the rows of item 2 .*crossreel store verify --repair"
    ):
        segment.check(2)
