"""Push and pull: what arrives is what was written, whatever was interrupted, and nothing hostile gets in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint, digest_file
from pipeline.store.segments import Segment
from pipeline.store.store import RECORD, Store
from pipeline.store.transfer import pull as pulling
from pipeline.store.transfer.entry import Blob, Untrusted, Where, read_entry, require_plain
from pipeline.store.transfer.pull import pull
from pipeline.store.transfer.push import push
from pipeline.store.transfer.remote import Remote, RemoteTrouble, as_json
from pipeline.store.transfer.work import How, Meter, together

FIELDS = {"row": Field("float32", (None, 3))}
FP = Fingerprint.of({"stage": "made", "version": 1})
FILED = Fingerprint.of({"stage": "compress", "version": 1})
RUN = Fingerprint.of({"stage": "train", "version": 1})
NUMBERS = "0123456789abcdef" * 2


def key(number: int) -> str:
    return f"{number:02}{NUMBERS}"[:32]


def rows(number: int, times: int = 1) -> np.ndarray:
    return np.full((times * (1 + number % 3), 3), number, np.float32)


def write(store: Store, *numbers: int, times: int = 1, filed: bool = False) -> Path:
    """A segment of these items, with a file each where asked."""
    stage, fp = ("compress", FILED) if filed else ("made", FP)
    with store.writer(stage, fp, FIELDS) as writer:
        for number in numbers:
            note, size = {}, None
            if filed:
                file = store.item_file(stage, fp.hex, key(number), ".mp4")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"video" * (number + 1))
                note, size = {"suffix": ".mp4", "file_digest": digest_file(file)}, file.stat().st_size
            writer.append(key(number), f"item {number}", {"row": rows(number, times)}, note, size)
        kept, path = dict(writer.items), writer.finish()
    assert path is not None
    store.index.add_fingerprint(fp.hex, stage, fp.components)
    store.index.add_segment(path.stem, fp.hex, path.stat().st_size, kept)
    return path


def publish(store: Store, **files: bytes) -> Path:
    work = store.work_folder("train", RUN.hex)
    for name, content in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    return store.publish("train", RUN, 1.5, {"epochs": 3})


@pytest.fixture
def full(tmp_path) -> Store:
    """Two segments, one with files of its items, and a finished folder."""
    store = Store(tmp_path / "full")
    write(store, 1, 2, 3)
    write(store, 4, 5, filed=True)
    publish(store, **{"weights": b"w" * 100, "inner/metrics.json": b"{}", "inner/empty": b""})
    return store


@pytest.fixture
def empty(tmp_path) -> Store:
    return Store(tmp_path / "empty")


@pytest.fixture(params=["memory", "file"])
def remote(request, tmp_path) -> Remote:
    url = f"memory://{uuid.uuid4().hex}/below" if request.param == "memory" else f"file://{tmp_path}/shelf"
    return Remote.open(url)


@pytest.fixture
def shelf(tmp_path) -> Remote:
    """A folder, whose objects a test can look at."""
    return Remote.open(str(tmp_path / "shelf"))


def the_same(one: Store, other: Store) -> bool:
    """Whether two stores hold the same artifacts, byte for byte, and know them."""

    def content(store: Store) -> dict[str, bytes]:
        kinds = ("segments", "files", "runs")
        paths = (path for kind in kinds for path in (store.root / kind).rglob("*") if path.is_file())
        return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}

    def known(store: Store) -> list:
        prints = store.index.fingerprints()
        return [prints, [(store.index.segments(fp), store.index.places(fp)) for fp in sorted(prints)]]

    return content(one) == content(other) and known(one) == known(other)


def entry_path(shelf: Remote, kind: str) -> Path:
    (path,) = Path(shelf.root).glob(f"entries/*/*/{kind}-*.json")
    return path


def object_of(shelf: Remote, content: bytes) -> Path:
    (path,) = (p for p in Path(shelf.root).glob("data/*/*") if content in p.read_bytes())
    return path


def reasons(outcome) -> str:
    return "\n".join(f"{name}: {reason}" for name, reason in outcome.failed)


def test_what_was_pushed_and_pulled_is_the_same_store(full, empty, remote):
    sent = push(full, remote)
    assert (sent.segments, sent.folders, sent.already, sent.failed) == (2, 1, 0, [])
    fetched = pull(empty, remote)
    assert (fetched.segments, fetched.folders, fetched.already, fetched.failed) == (2, 1, 0, [])
    assert the_same(full, empty) and empty.verify() == [] and empty.has_run("train", RUN.hex)
    assert not [p for p in (empty.root / "work").rglob("*") if p.is_file()]
    assert sent.bytes == fetched.bytes


def test_what_is_there_already_is_neither_sent_nor_fetched_again(full, empty, remote, monkeypatch):
    push(full, remote), pull(empty, remote)
    monkeypatch.setattr(Remote, "put", None)
    monkeypatch.setattr(pulling, "_download", None)
    again, back = push(full, remote), pull(empty, remote)
    assert (again.already, again.bytes, again.files) == (3, 0, 0)
    assert (back.already, back.bytes, back.files) == (3, 0, 0)
    assert push(empty, remote).already == 3


def test_a_dry_run_says_what_would_go_and_moves_nothing(full, empty, shelf):
    said = push(full, shelf, how=How(dry_run=True))
    assert (said.segments, said.folders) == (2, 1) and not Path(shelf.root).exists()
    sent = push(full, shelf)
    assert said.bytes == sum(p.stat().st_size for p in Path(shelf.root).glob("data/*/*")) == sent.bytes
    said = pull(empty, shelf, how=How(dry_run=True))
    assert (said.segments, said.folders, said.bytes) == (2, 1, sent.bytes)
    assert not any(empty.root.glob("segments/*")) and not any(empty.root.glob("runs/*"))


def test_a_stage_alone_goes_where_it_is_named(full, empty, remote):
    assert push(full, remote, stages=["made"]).segments == 1
    assert pull(empty, remote, stages=["train"]).segments == 0
    assert pull(empty, remote).segments == 1 and set(empty.index.fingerprints()) == {FP.hex}


def test_an_experiment_moves_only_the_segments_that_hold_items_of_it(full, empty, remote):
    other = write(full, 7, 8)
    selection = {FP.hex: {key(1), key(99)}, RUN.hex: {"corpus"}}
    sent = push(full, remote, selection=selection)
    assert (sent.segments, sent.folders) == (1, 1)
    push(full, remote)
    got = pull(empty, remote, selection={FP.hex: {key(7)}})
    assert (got.segments, got.folders) == (1, 0)
    assert set(empty.index.segments(FP.hex)) == {other.stem}


def test_a_segment_whose_items_are_all_here_is_not_fetched(full, empty, remote):
    """Two machines made the same items: each has its own segments of them."""
    push(full, remote)
    write(empty, 1, 2), write(empty, 3)
    outcome = pull(empty, remote, stages=["made"])
    assert (outcome.segments, outcome.already) == (0, 1)
    (empty.segment_path("made", FP.hex, empty.places("made", FP.hex)[key(3)].segment)).unlink()
    assert pull(empty, remote, stages=["made"]).segments == 1
    assert set(empty.places("made", FP.hex)) == {key(1), key(2), key(3)}


def test_files_that_are_gone_are_fetched_without_their_segment(full, empty, remote):
    push(full, remote), pull(empty, remote)
    file = empty.item_file("compress", FILED.hex, key(4), ".mp4")
    content = file.read_bytes()
    file.unlink()
    outcome = pull(empty, remote)
    assert (outcome.files, outcome.bytes, outcome.failed) == (1, len(content), [])
    assert file.read_bytes() == content and the_same(full, empty)


def test_failures_of_items_stay_where_they_happened(full, empty, remote):
    full.index.add_failure(FP.hex, key(9), "item 9", "broken")
    push(full, remote), pull(empty, remote)
    assert empty.index.failures(FP.hex) == {}


def test_who_pushes_at_the_same_time_loses_nothing(full, empty, remote, tmp_path):
    """One copy of the same store, and one with work of its own, at once."""
    full.index.close()
    shutil.copytree(full.root, tmp_path / "copy")
    third = Store(tmp_path / "third")
    write(third, 10)
    third.index.close()
    trouble: list[str] = []

    def send(root: Path) -> None:
        trouble.extend(name for name, _ in push(Store(root), remote).failed)

    threads = [
        threading.Thread(target=send, args=(root,)) for root in (full.root, tmp_path / "copy", third.root)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trouble == []
    outcome = pull(empty, remote)
    assert (outcome.segments, outcome.folders, outcome.failed) == (3, 1, [])
    assert empty.verify() == []


def test_damage_here_is_not_published(full, shelf):
    path = next((full.root / "segments" / "made").rglob("*.h5"))
    content = bytearray(path.read_bytes())
    content[content.index(rows(2).tobytes())] ^= 1
    path.write_bytes(content)
    full.item_file("compress", FILED.hex, key(4), ".mp4").write_bytes(b"VIDEO" * 5)
    outcome = push(full, shelf)
    assert (outcome.segments, outcome.folders, len(outcome.failed)) == (0, 1, 2)
    assert "the rows of item 2 do not have" in reasons(outcome) and ".mp4 is not what was written" in reasons(
        outcome
    )
    assert not list(Path(shelf.root).glob("entries/made")) and not list(
        Path(shelf.root).glob("entries/compress")
    )


@pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
def test_a_damaged_object_is_named_and_the_rest_goes_on(full, empty, shelf, how):
    push(full, shelf)
    path = object_of(shelf, b"w" * 100)
    if how == "flipped":
        path.write_bytes(b"v" + b"w" * 99)
    elif how == "truncated":
        os.truncate(path, 50)
    else:
        path.unlink()
    outcome = pull(empty, shelf)
    said = {
        "flipped": "does not have the digest",
        "truncated": "has 50 bytes, 100 were",
        "gone": "is not there",
    }
    assert outcome.segments == 2 and outcome.folders == 0 and len(outcome.failed) == 1
    assert f"{shelf.url}/{path.relative_to(shelf.root)} {said[how]}" in reasons(outcome)
    assert not empty.has_run("train", RUN.hex) and not list((empty.root / "work").glob("*.part"))
    push(full, shelf, how=How(again=True))
    mended = pull(empty, shelf)
    assert (mended.folders, mended.files, mended.failed) == (1, 1, []) and the_same(full, empty)


def test_a_folder_published_twice_is_fetched_from_the_one_that_is_whole(full, empty, shelf, tmp_path):
    """Two machines trained the same; one of the two copies was damaged since."""
    push(full, shelf, stages=["train"])
    other = Store(tmp_path / "other")
    publish(other, weights=b"x" * 100)
    push(other, shelf, how=How(again=True))
    assert len(list(Path(shelf.root).glob("entries/train/*/*"))) == 2
    for damaged in (b"w" * 100, b"x" * 100):
        path = object_of(shelf, damaged)
        path.write_bytes(b"?" * 100)
        outcome = pull(empty, shelf)
        assert outcome.folders == 1 and empty.has_run("train", RUN.hex) and len(outcome.failed) <= 1
        shutil.rmtree(empty.run_folder("train", RUN.hex))
        path.write_bytes(damaged)


class Breaking(Remote):
    """A connection that breaks after so many blocks."""

    left = 0

    def part(self, path: str, start: int, stop: int) -> bytes:
        if path.startswith("data/"):
            if self.left == 0:
                raise RemoteTrouble(f"{self.url}/{path} cannot be used: connection reset")
            self.left -= 1
        return super().part(path, start, stop)


def test_a_broken_connection_is_gone_on_from_inside_the_file(full, empty, shelf, monkeypatch):
    size = write(full, 20, times=2000).stat().st_size
    push(full, shelf)
    monkeypatch.setattr(pulling, "PART_BYTES", 1000)
    breaking = Breaking(shelf.fs, shelf.root, shelf.protocol, shelf.url)
    breaking.left = 30
    selection = {FP.hex: {key(20)}}
    first = pull(empty, breaking, selection=selection, how=How(jobs=1))
    (part,) = (empty.root / "work").glob("*.part")
    assert "connection reset" in reasons(first) and part.stat().st_size == 30_000
    second = pull(empty, shelf, selection=selection)
    assert (second.bytes, second.segments, second.failed) == (size - 30_000, 1, [])
    assert set(empty.places("made", FP.hex)) == {key(20)} and not part.exists()


def test_a_part_that_was_damaged_meanwhile_is_dropped_and_fetched_anew(full, empty, shelf, monkeypatch):
    write(full, 20, times=2000)
    push(full, shelf)
    monkeypatch.setattr(pulling, "PART_BYTES", 1000)
    breaking = Breaking(shelf.fs, shelf.root, shelf.protocol, shelf.url)
    breaking.left = 30
    pull(empty, breaking, selection={FP.hex: {key(20)}}, how=How(jobs=1))
    (part,) = (empty.root / "work").glob("*.part")
    part.write_bytes(b"?" * part.stat().st_size)
    assert "does not have the digest" in reasons(pull(empty, shelf, selection={FP.hex: {key(20)}}))
    assert pull(empty, shelf).failed == [] and the_same(full, empty)


@pytest.mark.slow
def test_a_large_file_is_never_whole_in_memory(tmp_path):
    """In a process of its own, whose peak can be read: 200 MB go there and back in less than 150 MB more."""
    program = """
import resource, sys
from pathlib import Path
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store
from pipeline.store.transfer.remote import Remote
from pipeline.store.transfer.pull import pull
from pipeline.store.transfer.push import push
root = Path(sys.argv[1])
store, run = Store(root / "a"), Fingerprint.of({"stage": "train"})
work = store.work_folder("train", run.hex)
work.mkdir(parents=True)
with (work / "weights").open("wb") as file:
    for n in range(200):
        file.write(bytes([n]) * 10**6)
store.publish("train", run, 1.0, {})
remote = Remote.open(str(root / "shelf"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert push(store, remote).folders == pull(Store(root / "b"), remote).folders == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(ended.stdout) < 150_000


def kill_when(condition, *arguments: object) -> None:
    """Start a command and kill it with -9 at a moment; where it was faster, nothing is lost."""
    command = [sys.executable, "-P", "-m", "flows.cli", "store", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_in_the_middle_both_verbs_leave_nothing_half_and_go_on(full, empty, shelf, tmp_path):
    for number in range(20, 28):
        write(full, number, times=200_000)
    full.index.close()
    root = Path(shelf.root)
    kill_when(lambda: len(list(root.glob("data/*/*"))) > 1, "push", root, "--store", full.root, "--jobs", 2)
    for path in root.glob("entries/*/*/*.json"):  # what is named is there, whole
        for blob in json.loads(path.read_text())["files"].values():
            assert (root / "data" / blob["sha256"][:2] / blob["sha256"]).stat().st_size == blob["size"]
    assert len(list(root.glob("entries/*/*/*.json"))) < 11
    push(Store(full.root), shelf)
    assert len(list(root.glob("entries/*/*/*.json"))) == 11

    empty.index.close()
    kill_when(
        lambda: any((empty.root / "work").glob("*.part")), "pull", root, "--store", empty.root, "--jobs", 2
    )
    again = Store(empty.root)
    assert [damage for damage in again.verify() if "was never finished" not in damage.sentence] == []
    outcome = pull(again, shelf)
    assert outcome.failed == [] and the_same(Store(full.root), again)


def test_a_run_that_needs_what_is_being_fetched_waits_for_it(full, empty, shelf):
    push(full, shelf)
    told: list[str] = []
    with empty.lock("made", FP.hex):
        thread = threading.Thread(target=lambda: pull(Store(empty.root), shelf, say=told.append))
        thread.start()
        while not told:
            time.sleep(0.01)
        assert not any(empty.segments_folder("made", FP.hex).glob("*"))
    thread.join(60)
    assert told[0].startswith("made is being made by process") and the_same(full, empty)


# what a stranger may have written there ---------------------------------------------------------------


def changed(shelf: Remote, kind: str, change) -> None:
    path = entry_path(shelf, kind)
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


@pytest.mark.parametrize(
    "name",
    [
        "../../evil", "/etc/evil", "runs/train/{fp}/../../../evil", "C:/evil", "runs/train/{fp}/C:evil",
        "runs/train/{fp}/a\\..\\b", "runs/train/{fp}/a\nb", "runs/train/{fp}/a\u0085b", "runs/train/{fp}//a",
        "runs/train/{fp}/.", "runs/train/{fp}/ ", "runs/train/{fp}/" + "a" * 300, "runs/train/{fp}/" + "a/" * 40 + "b",
        "",
        "runs/other/{fp}/a", "segments/train/{fp}/a.h5", "index.sqlite", "locks/a", "runs/train/{fp}/weights/inside",
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(full, empty, shelf, name):
    push(full, shelf)
    name = name.format(fp=RUN.hex)
    changed(shelf, "folder", lambda entry: entry["files"].update({name: next(iter(entry["files"].values()))}))
    before = {path for path in empty.root.parent.rglob("*") if "work" not in path.parts}
    outcome = pull(empty, shelf, stages=["train"])
    assert outcome.folders == 0 and "is refused" in reasons(outcome)
    assert {path for path in empty.root.parent.rglob("*") if "work" not in path.parts} - before <= {
        empty.root / "locks" / f"train-{RUN.hex}"
    }


@pytest.mark.parametrize(
    "name",
    ["files/compress/{fp}/ab/abcd.mp4", "files/compress/{fp}/../x.mp4", "segments/compress/{fp}/" + "a" * 32 + ".h5",
     "files/compress/{fp}/{item2}/{item}/.mp4", "files/made/{fp}/{item2}/{item}.mp4"],
)  # fmt: skip
def test_a_segment_brings_files_of_its_own_items_alone(full, empty, shelf, name):
    push(full, shelf, stages=["compress"])
    name = name.format(fp=FILED.hex, item=key(4), item2=key(4)[:2])
    changed(
        shelf, "segment", lambda entry: entry["files"].update({name: next(iter(entry["files"].values()))})
    )
    outcome = pull(empty, shelf)
    assert outcome.segments == 0 and "is refused" in reasons(outcome)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b'{"format": 2}', b"null", b"\xff\xfe", b'{"format":1,"files":' + b'{"a":' * 5000,
     b'{"format":1,"kind":"folder","stage":"train","fingerprint":"0","id":"1","files":{"x":{"size":-1,"sha256":"0"}}}'],
)  # fmt: skip
def test_an_entry_that_is_none_is_refused_with_a_reason(full, empty, shelf, content):
    push(full, shelf, stages=["train"])
    entry_path(shelf, "folder").write_bytes(content)
    outcome = pull(empty, shelf)
    assert len(outcome.failed) == 1 and "is refused" in reasons(outcome) and len(reasons(outcome)) < 1000


def test_an_entry_of_another_place_or_of_any_size_is_refused(full, empty, shelf, monkeypatch):
    push(full, shelf, stages=["train"])
    path = entry_path(shelf, "folder")
    with pytest.raises(Untrusted, match="it says that it is the folder"):
        read_entry(Where("train", RUN.hex, "folder", "0" * 32), path.read_bytes())
    monkeypatch.setattr("pipeline.store.transfer.remote.MOST_ENTRY_BYTES", 10)
    assert "which no entry has" in reasons(pull(empty, shelf))


def test_more_than_was_announced_is_not_read(full, empty, shelf):
    push(full, shelf, stages=["train"])
    with object_of(shelf, b"w" * 100).open("ab") as file:
        file.truncate(10**9)
    assert "has 1000000000 bytes, 100 were announced" in reasons(pull(empty, shelf))


def test_more_than_the_disk_holds_is_refused_before_anything_is_fetched(full, empty, shelf):
    push(full, shelf, stages=["train"])
    changed(shelf, "folder", lambda entry: next(iter(entry["files"].values())).update(size=1 << 44))
    with pytest.raises(UserError, match=r"\d+ bytes are to be fetched, \d+ are free in"):
        pull(empty, shelf)


def announce(shelf: Remote, entry_file: Path, name: str, content: bytes) -> None:
    """Publish another content for a file, as somebody would who can write there."""
    import hashlib

    blob = Blob(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    shelf.write(blob.path, content)
    entry = json.loads(entry_file.read_text())
    entry["files"][name] = blob.model_dump()
    entry_file.write_bytes(as_json(entry))


def shaped(tmp_path: Path, source: Path, shape) -> bytes:
    """A segment that somebody changed with an HDF5 library."""
    path = tmp_path / "shaped.h5"
    shutil.copy(source, path)
    with h5py.File(path, "a") as file:
        shape(file)
    return path.read_bytes()


def linked_outside(file: h5py.File) -> None:
    del file["names"]
    file["names"] = h5py.ExternalLink("/etc/passwd", "/names")


def swollen(file: h5py.File) -> None:
    del file["checksums"]
    file.create_dataset("checksums", shape=(10**11,), dtype="u8", chunks=(1000,), compression="gzip")


def read_from_outside(file: h5py.File) -> None:
    del file["row/values"]
    file.create_dataset(
        "row/values", shape=(10, 3), dtype="f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def of_another_fingerprint(file: h5py.File) -> None:
    file.attrs["components"] = json.dumps({"stage": "made", "version": 3})


def of_strange_items(file: h5py.File) -> None:
    del file["items"]
    file["items"] = np.arange(3)


def deep(file: h5py.File) -> None:
    file.attrs["components"] = "[" * 50_000


def in_a_circle(file: h5py.File) -> None:
    file["row/more"] = file["/"]
    file["more"] = file["/"]


SHAPES = (
    linked_outside,
    swollen,
    read_from_outside,
    of_another_fingerprint,
    of_strange_items,
    deep,
    in_a_circle,
)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_segment_that_somebody_shaped_is_refused(full, empty, shelf, tmp_path, shape):
    push(full, shelf, stages=["made"])
    source = next((full.root / "segments" / "made").rglob("*.h5"))
    name = str(source.relative_to(full.root))
    announce(shelf, entry_path(shelf, "segment"), name, shaped(tmp_path, source, shape))
    outcome = pull(empty, shelf)
    assert outcome.segments == 0 and len(outcome.failed) == 1
    assert "is no whole segment" in reasons(outcome) or "components of its fingerprint" in reasons(outcome)
    assert not any((empty.root / "segments").rglob("*.h5")) and not empty.index.fingerprints()


def test_a_segment_of_other_items_than_announced_is_refused(full, empty, shelf):
    push(full, shelf, stages=["made"])
    changed(shelf, "segment", lambda entry: entry["items"].append(key(50)))
    assert "does not hold the items and files that were announced" in reasons(pull(empty, shelf))


@pytest.mark.parametrize(
    "change",
    [{"components": {"stage": "train", "version": 2}}, {"files": {}}, {"files": 3}, {"stage": "other"},
     {"fingerprint": FP.hex}, {"components": []}],
)  # fmt: skip
def test_a_folder_whose_record_does_not_fit_is_refused(full, empty, shelf, change):
    push(full, shelf, stages=["train"])
    record = json.loads((full.run_folder("train", RUN.hex) / RECORD).read_text())
    content = json.dumps(record | change).encode()
    announce(shelf, entry_path(shelf, "folder"), f"runs/train/{RUN.hex}/{RECORD}", content)
    outcome = pull(empty, shelf)
    assert outcome.folders == 0 and len(outcome.failed) == 1 and RUN.hex in reasons(outcome)
    assert not empty.has_run("train", RUN.hex) and not list((empty.root / "work" / "pulled").glob("*"))


def test_imported_features_with_settings_that_no_import_writes_are_refused(tmp_path, empty, shelf):
    store, fp = (
        Store(tmp_path / "imported"),
        Fingerprint.of({"stage": "import-x", "params": {"dims": "many"}}),
    )
    with store.writer("import-x", fp, FIELDS) as writer:
        writer.append(key(1), "one", {"row": rows(1)})
        kept, path = dict(writer.items), writer.finish()
    store.index.add_fingerprint(fp.hex, "import-x", fp.components)
    store.index.add_segment(path.stem, fp.hex, path.stat().st_size, kept)
    push(store, shelf)
    assert "components of its fingerprint" in reasons(pull(empty, shelf))


def test_names_that_stay_inside_are_taken():
    for name in ("a", "runs/x/a.json", "inner/.hidden", "a b/é.txt"):
        require_plain(name)


# the other side -----------------------------------------------------------------------------------------


def test_places_that_cannot_be_are_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for url, said in (
        ("nowhere://x", "cannot be opened"),
        ("simplecache::file:///x", "chains file systems"),
        ("ftp://me:secret@host/x", "holds a password"),
    ):
        with pytest.raises(UserError, match=said) as told:
            Remote.open(url)
        assert "secret" not in str(told.value)
    with pytest.raises(UserError, match="--endpoint-url is for s3"):
        Remote.open(str(tmp_path), "http://localhost:1")


@pytest.mark.parametrize(("url", "extra"), [("s3://b/x", "s3"), ("gs://b/x", "gcs")])
def test_a_missing_package_is_reported_with_what_brings_it(monkeypatch, url, extra):
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    import fsspec  # noqa: F401  # loads the registry that is emptied

    for protocol in ("s3", "gs"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    with pytest.raises(UserError, match=rf'pip install "crossreel\[{extra}\]"'):
        Remote.open(url)


def test_nothing_published_there_is_one_sentence(empty, remote):
    with pytest.raises(UserError, match="holds nothing that `crossreel store push` has written"):
        pull(empty, remote)


def test_objects_of_others_beside_ours_are_left_alone(full, empty, shelf):
    push(full, shelf)
    for name in ("entries/README", "entries/made/x/y.json", f"entries/made/{FP.hex}/segment-short.json"):
        shelf.write(name, b"mine")
    assert pull(empty, shelf).failed == [] and the_same(full, empty)


def test_what_a_thread_raises_is_raised_and_the_others_stop():
    meter, ran = Meter(lambda moved, total: None), []

    def task(number: int):
        def run() -> int:
            meter.add(1)
            ran.append(number)
            if number == 3:
                raise OSError(28, "No space left on device")
            time.sleep(0.01)
            return number

        return run

    with pytest.raises(OSError, match="No space left"):
        list(together(2, map(task, range(10_000)), meter))
    assert len(ran) < 100


def test_a_pushed_segment_reads_as_it_did(full, empty, remote):
    push(full, remote), pull(empty, remote)
    reader = empty.reader("made", FP.hex)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(reader.rows(key(number), "row", check=True), rows(number))
    assert Segment(next((empty.root / "segments" / "compress").rglob("*.h5"))).names == ["item 4", "item 5"]
