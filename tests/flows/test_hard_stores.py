"""Stores that cannot be written, whose index is damaged, that have no locks, or that a killed run left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store

FP = Fingerprint.of({"stage": "made", "version": 1})
FIELDS = {"row": Field("float32", (None, 3))}
VERBS = (
    "plan {toml}", "status {toml}", "why compress clip00 {toml}", "store ls {store}", "store du {store}",
    "store verify {store}", "export features clip {out} {toml}",
)  # fmt: skip
NO_FLOCK = "#include <errno.h>\nint flock(int fd, int op) { errno = ENOLCK; return -1; }\n"


def filled(folder: Path) -> Path:
    """A store with two segments, and its index closed."""
    store = Store(folder / "store")
    store.index.add_fingerprint(FP.hex, "made", FP.components)
    for item in ("1" * 32, "2" * 32):
        with store.writer("made", FP, FIELDS) as writer:
            writer.append(item, f"item {item[0]}", {"row": np.ones((4, 3), np.float32)})
            kept, path = dict(writer.items), writer.finish()
        assert path is not None
        store.index.add_segment(path.stem, FP.hex, path.stat().st_size, kept)
    store.index.close()
    return store.root


@pytest.mark.slow
@pytest.mark.parametrize("log", [False, True])
def test_what_is_finished_is_used_where_nothing_can_be_written(made, read_only, log):
    writer = sqlite3.connect(made.store / "index.sqlite")
    if log:  # a run that was killed leaves its last records in the write-ahead log
        writer.execute("INSERT INTO files VALUES ('x', 1, 1, 'd')")
        writer.commit()
    verbs = [verb.format(toml=made.toml, store=made.store, out=made.folder / "out") for verb in VERBS]
    last = [f"doctor --store {made.store}", f"stage compress {made.toml} --redo"]
    ended = read_only(made.store, *verbs, *last, cwd=made.folder)
    writer.close()
    codes = [line for line in ended.stdout.splitlines() if line.startswith("status ")]
    assert codes == ["status 0"] * len(VERBS) + ["status 1", "status 2"], ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and "cannot be" in ended.stderr.splitlines()[-1]
    assert "ok       index: whole" in ended.stdout
    assert "WRONG    writable: Read-only file system" in ended.stdout
    assert "4 stages to run" not in ended.stdout and len(list((made.folder / "out").glob("*.npz"))) == 12


def test_a_store_without_an_index_is_read_where_nothing_can_be_written(tmp_path, read_only):
    root = filled(tmp_path)
    for path in root.glob("index.sqlite*"):
        path.unlink()
    ended = read_only(root, f"store ls {root} --json", cwd=tmp_path)
    listed, _, code = ended.stdout.rpartition("status ")
    assert code == "0\n", ended.stderr
    assert json.loads(listed)[0]["items"] == 2 and not (root / "index.sqlite").exists()


def zeroed(path: Path, start: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * count)


DAMAGES = {
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "header": lambda path: zeroed(path, 0, 100),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "pages": lambda path: zeroed(path, 4096, path.stat().st_size - 4096),
    "table": lambda path: sqlite3.connect(path).execute("DROP TABLE artifacts").connection.close(),
    "column": lambda path: (
        sqlite3.connect(path).execute("ALTER TABLE segments DROP COLUMN bytes").connection.close()
    ),
    "cell": lambda path: rewritten(path, "UPDATE fingerprints SET components=substr(components, 2)"),
    "run": lambda path: rewritten(path, "INSERT INTO runs VALUES ('r', 1.0, 2.0, 'e', 'done', '{\"a\": ')"),
}


def rewritten(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)
    db.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_index_that_is_damaged_anywhere_is_rebuilt_or_named(tmp_path, crossreel, damage):
    root = filled(tmp_path)
    assert crossreel("doctor", "--store", root).code == 0
    DAMAGES[damage](root / "index.sqlite")
    checked = crossreel("doctor", "--store", root)
    if damage == "empty":
        assert checked.code == 0 and "ok       index: there is none" in checked.out
    else:
        assert (
            checked.code == 1 and "WRONG    index: " in checked.out and "store verify --repair" in checked.out
        )
    told = crossreel("store", "ls", root, "--json")
    assert told.code in (0, 2), told.err
    if told.code:
        assert "the store's index" in told.err and "store verify --repair" in told.err
    else:
        assert json.loads(told.out)[0]["items"] == 2
    assert crossreel("store", "verify", root, "--repair").code == 0
    assert json.loads(crossreel("store", "ls", root, "--json").out)[0]["items"] == 2
    assert crossreel("store", "verify", root).out.startswith("2 segments and folders read, 0 damaged")


def test_a_byte_of_the_index_that_was_overwritten_is_never_a_traceback(tmp_path, crossreel):
    """Each page of the file in turn, zeroed."""
    root = filled(tmp_path)
    whole = (root / "index.sqlite").read_bytes()
    for page in range(1, len(whole) // 4096):
        shutil.rmtree(root)
        filled(tmp_path)
        zeroed(root / "index.sqlite", 4096 * page, 4096)
        for verb in (("store", "ls", root), ("store", "du", root), ("store", "verify", root)):
            told = crossreel(*verb)
            assert told.code in (0, 1, 2), told.err
        assert crossreel("store", "verify", root, "--repair").code == 0
        assert json.loads(crossreel("store", "ls", root, "--json").out)[0]["items"] == 2


CELLS_DAMAGED = [
    ("UPDATE artifacts SET row='x'", "artifacts.row"),
    ("UPDATE artifacts SET row=NULL", "artifacts.row"),
    ("UPDATE artifacts SET segment=x'ff00'", "artifacts.segment"),
    ("UPDATE artifacts SET item=x'ff00' WHERE item=(SELECT MIN(item) FROM artifacts)", "artifacts.item"),
    ("UPDATE artifacts SET file_bytes='many'", "artifacts.file_bytes"),
    ("UPDATE segments SET bytes='many'", "segments.bytes"),
    ("UPDATE fingerprints SET stage=NULL", "fingerprints.stage"),
    ("UPDATE fingerprints SET components='3'", "components"),
    ("UPDATE runs SET started='Monday'", "runs.started"),
    ("UPDATE runs SET summary='[1]'", "summary"),
    ("UPDATE files SET size='many'", "files.size"),
    ("INSERT INTO failures SELECT fp, item, NULL, NULL, 'x', 'y', 'odd' FROM artifacts", "failures.name"),
    ("CREATE TRIGGER t AFTER INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no'); END", "'t', which no index has"),
]


@pytest.mark.slow
def test_a_cell_of_the_index_that_holds_something_else_is_named_and_mended(small):
    """SQLite takes any value in any column, and has no checksum."""
    store, toml, whole = small.store, small.toml, small.folder / "whole"
    assert small.run("stage", "compress", toml).code == 0
    shutil.copytree(store, whole)
    readers = [
        ("status", toml), ("plan", toml), ("why", "compress", "clip01", toml), ("store", "ls", store),
        ("doctor", "--store", store),
    ]  # fmt: skip
    for harm, words in CELLS_DAMAGED:
        shutil.rmtree(store)
        shutil.copytree(whole, store)
        with contextlib.closing(sqlite3.connect(store / "index.sqlite")) as db, db:
            db.execute(harm)
        for verb in readers:
            told = small.run(*verb)
            assert told.code in (0, 1, 2), (harm, verb, told.err)
            if told.code == 2:
                assert words in told.err and "crossreel store verify --repair" in told.err, (harm, verb)
        told = small.run("store", "verify", store)
        assert told.code == 1 and words in told.out, (harm, told)
        assert small.run("store", "verify", store, "--repair").code == 0, harm
        assert small.run("store", "verify", store).code == 0, harm
        assert small.plan()["compress"]["cached"] == 3, harm


@pytest.mark.slow
def test_a_file_system_without_locks_gets_one_sentence_with_the_remedy(small, one_interpreter):
    library = small.folder / "nolock.so"
    source = library.with_suffix(".c")
    source.write_text(NO_FLOCK)
    if shutil.which("cc") is None:
        pytest.skip("needs a compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    ended = small.run("stage", "compress", small.toml, LD_PRELOAD=str(library))
    assert ended.code == 2 and "Traceback" not in ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("crossreel:")]
    assert "gives no locks" in line and "keep the store on a local disk" in line and "NFS version 4" in line
    assert small.run("stage", "compress", small.toml).code == 0
    reading = f"plan {small.toml}", f"status {small.toml}", f"store verify {small.store}"
    env = os.environ | {"LD_PRELOAD": str(library)}
    told = one_interpreter(f"doctor --store {small.store}", *reading, cwd=small.folder, env=env)
    assert "WRONG    locks: flock: No locks available; keep the store" in told.stdout, told.stderr
    codes = [line for line in told.stdout.splitlines() if line.startswith("status ")]
    assert codes == ["status 1", "status 0", "status 0", "status 0"], (
        told.stdout + told.stderr
    )  # read all the same


def test_locks_that_only_sqlite_lacks_are_told_at_once(tmp_path, crossreel, monkeypatch):
    root = filled(tmp_path)

    def refused(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refused)
    ended = crossreel("store", "ls", root)
    assert ended.code == 2 and "gives no locks (fcntl: No locks available); keep the store on a" in ended.err
    assert [path.name for path in root.iterdir() if path.name.startswith("tmp")] == []


@pytest.mark.slow
def test_a_killed_run_is_shown_as_killed_and_what_it_left_is_removed_by_the_next(lab):
    def spooled() -> bool:
        return any((lab.store / "work").glob("*/*.mp4"))

    assert lab.killed(spooled, "stage", "compress", lab.toml)
    assert lab.gone_within(30) == []
    store, deadline = Store(lab.store), time.monotonic() + 30
    while not store.abandoned() and time.monotonic() < deadline:
        time.sleep(0.05)  # a fork that is just beginning holds the locks of its parent, and has no name yet
    assert [path for path in store.abandoned() if len(path.name) == 32]
    store.index.close()
    told = lab.run("status", lab.toml)
    assert "killed, when is not known" in told.out and "running" not in told.out
    checked = lab.run("doctor", "--store", lab.store)
    assert checked.code == 0 and "runs: 0 at work, 1 killed; the same command goes on" in checked.out
    assert "of dead runs, " in checked.out and "the next run removes them" in checked.out
    assert lab.run("stage", "compress", lab.toml).code == 0
    assert [path for path in (lab.store / "work").iterdir() if len(path.name) == 32] == []
    assert list((lab.store / "locks").glob("run-*")) == []
    runs = json.loads(lab.run("status", lab.toml, "--json").out)["runs"]
    assert [run["status"] for run in runs] == ["done", "killed"]


@pytest.mark.slow
def test_a_run_that_goes_on_is_shown_as_running_and_its_folders_stay(lab):
    process = lab.start("stage", "compress", lab.toml)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any((lab.store / "work").glob("*/*.mp4")):
            for pid in (process.pid, *lab.processes()):
                os.kill(pid, signal.SIGSTOP)
            if any(
                (lab.store / "work").glob("*/*.mp4")
            ):  # a folder that was removed while we looked would be none
                break
            for pid in (process.pid, *lab.processes()):
                os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    before = set((lab.store / "work").iterdir())
    assert "running" in lab.run("status", lab.toml).out
    store = Store(lab.store)
    store.sweep()
    store.index.close()
    assert before and set((lab.store / "work").iterdir()) == before
    for pid in (process.pid, *lab.processes()):
        os.kill(pid, signal.SIGCONT)
    process.communicate()
    assert process.returncode == 0


def test_verify_prints_a_summary_and_the_first_ten(tmp_path, crossreel):
    root = filled(tmp_path)
    for n in range(12):
        (root / "segments" / "made" / FP.hex / f"{n}.h5").write_bytes(b"no segment")
    told = crossreel("store", "verify", root)
    lines = told.out.splitlines()
    assert told.code == 1 and lines[0] == "14 segments and folders read, 12 damaged"
    assert (
        sum(line.startswith("damaged:") for line in lines) == 10
        and lines[-1] == "... and 2 more: --json lists all"
    )
    assert len(json.loads(crossreel("store", "verify", root, "--json").out)["damaged"]) == 12


def test_doctor_finds_segments_and_folders_that_are_not_as_they_were_written(made, crossreel):
    assert crossreel("doctor", "--store", made.store).code == 0
    cut, gone = sorted((made.store / "segments").glob("*/*/*.h5"))[:2]
    size = cut.stat().st_size
    os.truncate(cut, size - 1)
    gone.unlink()
    (folder,) = (made.store / "runs" / "pack-hlformer").iterdir()
    next(path for path in folder.rglob("*.npy")).unlink()
    checked = crossreel("doctor", "--store", made.store)
    assert checked.code == 1
    (segments,) = [line for line in checked.out.splitlines() if " segments: " in line]
    assert segments.startswith("WRONG    segments: 2 of ")
    assert f"{cut.name} has {size - 1} of {size} bytes" in segments and f"{gone.name} is gone" in segments
    assert f"folders: 1 of 4 damaged: runs/pack-hlformer/{folder.name}" in checked.out
    both = crossreel("doctor", made.toml, "--store", made.store)
    assert both.code == 2 and "one at a time" in both.err
    assert crossreel("doctor", "--store", made.folder).code == 2
