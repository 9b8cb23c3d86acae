"""The store: what was finished is found again, whatever happened to the index, and what is damaged is named."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.places import Units
from pipeline.store.segments import Damaged
from pipeline.store.store import RECORD, REFERENCES, Store, write_json

FIELDS = {"row": Field("float32", (None, 3))}
FP = Fingerprint.of({"stage": "made", "version": 1})
OTHER = Fingerprint.of({"stage": "made", "version": 2})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def rows(item: str) -> np.ndarray:
    return np.full((1 + int(item) % 3, 3), int(item), np.float32)


def write(store: Store, *items: str, record: bool = True, fp: Fingerprint = FP) -> Path:
    """A segment of these items; without `record`, as a run leaves it that was killed before the index knew."""
    with store.writer("made", fp, FIELDS) as writer:
        for item in items:
            writer.append(item, f"item {item}", {"row": rows(item)})
        kept, path = dict(writer.items), writer.finish()
    assert path is not None
    if record:
        store.index.add_fingerprint(fp.hex, "made", fp.components)
        store.index.add_segment(path.stem, fp.hex, path.stat().st_size, kept)
    return path


def publish(store: Store, **files: bytes) -> Path:
    work = store.work_folder("train", FP.hex)
    work.mkdir(parents=True)
    for name, content in files.items():
        (work / name).write_bytes(content)
    return store.publish("train", FP, 1.5, {"epochs": 3})


def test_features_are_read_by_item_wherever_they_lie(store):
    write(store, "1", "2", "3")
    write(store, "4")
    reader = store.reader("made", FP.hex)
    for item in "1234":
        np.testing.assert_array_equal(reader.rows(item, "row", check=True), rows(item))
        assert reader.length(item, "row") == len(rows(item)) and item in reader
    assert "5" not in reader and reader.note("1") == {}
    with pytest.raises(UserError, match="no output 'frame'; it has row"):
        reader.rows("1", "frame")


def test_an_item_made_again_is_read_from_where_it_was_made_last(store):
    first, second = write(store, "1", "2"), write(store, "1")
    places = store.places("made", FP.hex)
    assert places["1"].segment == second.stem and places["2"].segment == first.stem


def test_a_segment_that_is_gone_or_of_another_size_is_missing_work(store):
    whole, cut, gone = (write(store, item) for item in "123")
    os.truncate(cut, cut.stat().st_size - 1)
    gone.unlink()
    assert set(store.places("made", FP.hex)) == {"1"} and whole.exists()


def test_a_file_that_is_gone_or_of_another_size_is_missing_work(store):
    path = write(store, *"123")
    store.index.add_segment(path.stem, FP.hex, path.stat().st_size, {item: 5 for item in "123"})
    for item, content in (("1", b"12345"), ("2", b"1234")):
        file = store.item_file("made", FP.hex, item, ".mp4")
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    assert set(store.places("made", FP.hex, ".mp4")) == {"1"}


def test_an_orphan_is_adopted_once_and_a_broken_one_is_not(store):
    write(store, "1")
    write(store, "2", "3", record=False)
    os.truncate(write(store, "4", record=False), 100)
    assert store.adopt("made", FP.hex) == 2
    assert store.adopt("made", FP.hex) == 0
    assert set(store.places("made", FP.hex)) == set("123")


def test_an_index_that_was_deleted_is_rebuilt_from_segments_and_folders(store):
    write(store, "1", "2")
    write(store, "3", fp=OTHER)
    publish(store, weights=b"w")
    before = (store.places("made", FP.hex), store.places("made", OTHER.hex), store.index.fingerprints())
    store.index.close()
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    again = Store(store.root)
    assert (
        again.places("made", FP.hex),
        again.places("made", OTHER.hex),
        again.index.fingerprints(),
    ) == before


def test_a_damaged_record_does_not_keep_an_index_from_being_rebuilt(store):
    folder = publish(store, weights=b"w")
    write(store, "1")
    (folder / RECORD).write_text("{")
    (store.root / "index.sqlite").unlink()
    again = Store(store.root)
    assert set(again.places("made", FP.hex)) == {"1"} and not again.has_run("train", FP.hex)


def test_an_index_that_is_no_database_is_rebuilt_and_kept_beside_the_new_one(store, caplog):
    write(store, "1", "2")
    store.index.close()
    for path in store.root.glob("index.sqlite-*"):
        path.unlink()
    (store.root / "index.sqlite").write_bytes(b"not a database" * 100)
    assert set(Store(store.root).places("made", FP.hex)) == {"1", "2"}
    (aside,) = store.root.glob("index.sqlite.damaged-*")
    assert aside.read_bytes() == b"not a database" * 100
    assert "index.sqlite was damaged (file is not a database) and is rebuilt from the segments" in caplog.text
    assert str(aside) in caplog.text


def test_a_store_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the store .*file/store cannot be"):
        Store(tmp_path / "file" / "store")


def test_a_folder_is_published_whole_with_its_record(store):
    folder = publish(store, a=b"1", b=b"22")
    assert store.has_run("train", FP.hex) and not store.has_run("train", OTHER.hex)
    record = store.run_record("train", FP.hex)
    assert (record["epochs"], record["seconds"], record["components"]) == (3, 1.5, FP.components)
    assert {name: size for name, (size, _) in record["files"].items()} == {"a": 1, "b": 2}
    assert not store.work_folder("train", FP.hex).exists()
    (folder / "b").unlink()
    assert not store.has_run("train", FP.hex)


def test_a_folder_published_twice_is_the_second(store):
    publish(store, a=b"1")
    folder = publish(store, b=b"2")
    assert {path.name for path in folder.iterdir()} == {"b", RECORD}


def test_work_that_was_finished_but_not_renamed_is_not_done_again(store, monkeypatch):
    """Killed between the two, a training would otherwise begin anew."""
    monkeypatch.setattr(Store, "_move", lambda self, work, target: None)
    publish(store, weights=b"w")
    monkeypatch.undo()
    assert not store.has_run("train", FP.hex)
    assert store.publish_finished("train", FP.hex) and store.has_run("train", FP.hex)
    assert not store.publish_finished("train", FP.hex)


def test_work_that_was_not_finished_or_was_damaged_since_is_not_published(store, monkeypatch):
    monkeypatch.setattr(Store, "_move", lambda self, work, target: None)
    publish(store, weights=b"w")
    (store.work_folder("train", FP.hex) / "weights").write_bytes(b"x")
    assert not store.publish_finished("train", FP.hex)
    (store.work_folder("train", FP.hex) / RECORD).unlink()
    assert not store.publish_finished("train", FP.hex)


def test_verify_finds_nothing_in_a_whole_store(store):
    write(store, *"123")
    publish(store, weights=b"w")
    seen: list[tuple[int, int]] = []
    assert store.verify(seen=lambda *place: seen.append(place)) == [] and seen == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("repair", [False, True])
def test_verify_names_all_that_is_wrong_and_repair_makes_it_missing_work(store, repair):
    whole, flipped, gone = (write(store, item) for item in "123")
    folder = publish(store, weights=b"w")
    content = bytearray(flipped.read_bytes())
    content[content.index(rows("2").tobytes())] ^= 1
    flipped.write_bytes(content)
    gone.unlink()
    (folder / "weights").write_bytes(b"x")
    sentences = [damage.sentence for damage in store.verify(repair)]
    assert len(sentences) == 3
    for path, words in (
        (flipped, "the rows of item 2"),
        (gone, "is gone"),
        (folder / "weights", "is not what was"),
    ):
        assert any(str(path) in sentence and words in sentence for sentence in sentences)
    assert set(store.places("made", FP.hex)) == ({"1"} if repair else {"1", "2"})
    assert whole.exists() and flipped.exists() != repair and folder.exists() != repair
    assert (store.verify() == []) == repair


def swap(one: Path, other: Path) -> None:
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def without_id(path: Path) -> None:
    """A segment as it was written before segments kept their id."""
    with h5py.File(path, "r+") as file:
        del file.attrs["id"]


@pytest.mark.parametrize("old", [False, True])
def test_two_segments_of_a_fingerprint_that_were_swapped_are_not_read_as_each_other(store, old):
    one, two = write(store, "1"), write(store, "4")  # rows of the same number and size
    if old:
        for path in (one, two):
            without_id(path)
            store.index.forget_segment(path.stem)
        assert store.adopt("made", FP.hex) == 2
    assert one.stat().st_size == two.stat().st_size and store.verify() == []
    np.testing.assert_array_equal(store.reader("made", FP.hex).rows("1", "row", check=True), rows("1"))
    swap(one, two)
    for check in (False, True):
        with pytest.raises(Damaged, match="store verify --repair"):
            store.reader("made", FP.hex).rows("1", "row", check)
    with pytest.raises(Damaged):
        store.reader("made", FP.hex).length("4", "row")
    sentences = [damage.sentence for damage in store.verify(repair=True)]
    assert len(sentences) == 2 and all("segment" in sentence for sentence in sentences)
    assert store.verify() == [] and set(store.places("made", FP.hex)) == {"1", "4"}  # nothing was lost
    for item in "14":
        np.testing.assert_array_equal(store.reader("made", FP.hex).rows(item, "row", check=True), rows(item))


def test_a_segment_of_another_fingerprint_is_not_read_and_is_put_where_it_belongs(store):
    mine, other = write(store, "1"), write(store, "1", fp=OTHER)
    content = other.read_bytes()
    mine.write_bytes(content)  # a copy by hand
    with pytest.raises(Damaged, match=f"is the segment made/{OTHER.hex}/{other.stem}"):
        store.reader("made", FP.hex).rows("1", "row", check=True)
    assert [damage.path for damage in store.verify(repair=True)] == [mine]
    assert store.verify() == [] and other.read_bytes() == content
    assert set(store.places("made", FP.hex)) == set() and set(store.places("made", OTHER.hex)) == {"1"}


@pytest.mark.parametrize(
    "change", ["UPDATE artifacts SET row = 1 - row", "UPDATE artifacts SET row = row + 7 WHERE item = '4'"]
)
def test_an_index_row_that_points_at_another_row_is_an_error_and_is_mended(store, change):
    path = write(store, "1", "4")
    store.index.db.execute(change)
    with pytest.raises(Damaged, match=f"the index places the item 4|places the item 4 in row .* {path}"):
        store.reader("made", FP.hex).rows("4", "row")
    found = store.verify(repair=True)
    assert found and all("the index places the item" in damage.sentence for damage in found)
    assert store.verify() == []
    np.testing.assert_array_equal(store.reader("made", FP.hex).rows("4", "row"), rows("4"))


def test_an_index_row_that_names_a_segment_nobody_recorded_is_missing_work(store):
    write(store, "1", "4")
    store.index.db.execute("UPDATE artifacts SET segment = 'f00d' WHERE item = '4'")
    assert set(store.places("made", FP.hex)) == {"1"}
    assert set(store.places_of("made", FP.hex, Units(["1", "4"]))) == {"1"}
    (damage,) = store.verify(repair=True)
    assert "f00d.h5 is gone" in damage.sentence and store.verify() == []


def test_verify_names_a_size_or_fingerprint_of_the_index_that_is_not_the_segments(store):
    path = write(store, "1")
    store.index.db.execute("UPDATE segments SET bytes = bytes + 1")
    assert set(store.places("made", FP.hex)) == set()
    (damage,) = store.verify(repair=True)
    assert f"the index has the segment {path} with 1 items" in damage.sentence
    assert store.verify() == [] and set(store.places("made", FP.hex)) == {"1"}


def test_the_folder_of_another_fingerprint_is_no_finished_artifact(store):
    folder = publish(store, weights=b"w")
    other = store.run_folder("train", OTHER.hex)
    shutil.copytree(folder, other)
    assert store.has_run("train", FP.hex) and not store.has_run("train", OTHER.hex)
    (damage,) = store.verify()
    assert f"{other} holds what was made as train/{FP.hex}" in damage.sentence


def test_verify_reads_the_files_of_items_too(store):
    with store.writer("made", FP, FIELDS) as writer:
        writer.append("1", "one", {"row": rows("1")}, {"suffix": ".mp4", "file_digest": "0"}, 3)
        path = writer.finish()
    file = store.item_file("made", FP.hex, "1", ".mp4")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"abc")
    (damage,) = store.verify()
    assert damage.path == path and f"{file} (made of one) is not what was written" in damage.sentence


def test_reading_a_damaged_row_names_file_and_item(store):
    path = write(store, "2")
    content = bytearray(path.read_bytes())
    content[content.index(rows("2").tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="the rows of item 2"):
        store.reader("made", FP.hex).rows("2", "row", check=True)


def test_gc_keeps_what_is_named_and_says_first_what_would_go(store):
    kept, other = write(store, "1"), write(store, "2", fp=OTHER)
    replaced, again = write(store, "3"), write(store, "3")
    broken = write(store, "4", record=False)
    os.truncate(broken, 50)
    orphan = write(store, "5", record=False)
    spooled = store.work_folder("train", OTHER.hex)
    spooled.mkdir(parents=True)
    gone = {other.parent, replaced, broken, spooled}
    assert {path for path, _ in store.gc({FP.hex}, dry_run=True)} == gone
    assert all(path.exists() for path in gone)
    assert {path for path, _ in store.gc({FP.hex}, dry_run=False)} == gone
    assert not any(path.exists() for path in gone) and kept.exists() and again.exists() and orphan.exists()
    assert set(store.places("made", FP.hex)) == {"1", "3", "5"} and not store.places("made", OTHER.hex)


def test_gc_leaves_what_is_young_or_being_made(store):
    path = write(store, "1", fp=OTHER)
    assert store.gc(set(), dry_run=False, older_than_seconds=60) == []
    with store.lock("made", OTHER.hex):
        assert store.gc(set(), dry_run=False) == []
    assert path.exists()
    assert store.gc(set(), dry_run=False) != []


def test_dropping_unused_segments_leaves_those_that_another_corpus_needs(store):
    shared, mine = write(store, "1", "2"), write(store, "3")
    store.index.forget_items(FP.hex, ["1", "3"])
    store.drop_unused_segments("made", FP.hex)
    assert shared.exists() and not mine.exists() and set(store.places("made", FP.hex)) == {"2"}


def test_sweeping_removes_what_killed_workers_left_a_day_ago_and_no_work_to_resume(store):
    spool, young, resumable = ("a" * 32, "b" * 32, "train")
    for name in (spool, young, resumable):
        (store.root / "work" / name).mkdir()
    told = store.root / "work" / "train-1.inputs.json"
    told.touch()
    for name in (spool, resumable, told.name):
        os.utime(store.root / "work" / name, (time.time() - 90_000,) * 2)
    store.sweep()
    assert {path.name for path in (store.root / "work").iterdir()} == {young, resumable}


def test_a_lock_is_had_by_one_at_a_time_and_the_other_learns_by_whom(store):
    told: list[str] = []
    order: list[str] = []

    def second() -> None:
        with Store(store.root).lock("made", FP.hex, told.append):
            order.append("second")

    with store.lock("made", FP.hex):
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            time.sleep(0.01)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert told[0].startswith(f"made is being made by process {os.getpid()} since ")
    with store.lock("made", OTHER.hex), store.lock("made", FP.hex, told.append):
        assert len(told) == 1


def test_json_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"b": 1})
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text()) == {"b": 1}


def test_a_store_can_be_copied(store, tmp_path):
    write(store, "1")
    publish(store, weights=b"w")
    store.index.close()
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    np.testing.assert_array_equal(copy.reader("made", FP.hex).rows("1", "row", check=True), rows("1"))
    assert copy.has_run("train", FP.hex) and copy.verify() == []


def test_a_full_disk_leaves_the_index_usable(store):
    with pytest.raises(sqlite3.OperationalError, match="full"), store.index.transaction():
        store.index.db.execute("PRAGMA max_page_count=1")
        store.index.db.execute(
            "CREATE TABLE big AS "
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n LIMIT 100000) SELECT * FROM n"
        )
    store.index.db.execute("PRAGMA max_page_count=100000")
    write(store, "1")
    assert set(store.places("made", FP.hex)) == {"1"}


def test_a_folder_is_whole_with_the_segments_it_refers_to_and_gc_keeps_them_with_it(store):
    referred, other = write(store, "1"), write(store, "2", fp=OTHER)
    pack = Fingerprint.of({"stage": "pack"})
    store.work_folder("pack", pack.hex).mkdir(parents=True)
    references = {str(referred.relative_to(store.root)): referred.stat().st_size}
    store.publish("pack", pack, 1.0, {REFERENCES: references})
    write(store, "1")  # made again elsewhere: no item refers to the first segment any more
    seen: list[tuple[int, int]] = []
    removed = store.gc({pack.hex}, dry_run=False, seen=lambda *place: seen.append(place))
    assert [path for path, _ in removed] == [other.parent] and referred.exists()
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert store.has_run("pack", pack.hex)
    content = referred.read_bytes()
    referred.write_bytes(content[:-1])
    assert not store.has_run("pack", pack.hex) and store.has_folder("pack", pack.hex)
    referred.write_bytes(content)
    removed = store.gc({pack.hex, FP.hex}, dry_run=False, again={pack.hex})
    assert store.run_folder("pack", pack.hex) in [path for path, _ in removed]
    assert store.index.fingerprints()[pack.hex] == ("pack", {"stage": "pack"}), (
        "what it was made of stays known"
    )
