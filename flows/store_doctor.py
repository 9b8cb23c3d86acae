"""Cheap checks of a store: nothing of it is read but its index and the sizes of its files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import h5py

from flows.doctor import Finding
from flows.graph import EVERY_EXTRACTOR
from pipeline.errors import UserError
from pipeline.store.index import NO_LOCKS, DamagedIndex, Index, is_remote
from pipeline.store.store import Store, tree_bytes

LEAST_FREE_BYTES = 1e9  # less on the disk of a store is a fault
NAMED = 3  # examples in a line


def examine_store(root: Path) -> list[Finding]:
    """The result of each check; an index that cannot be used leaves out those that need it.

    Raises UserError if there is no store. Files are made in the store and removed again, where it can be written.
    """
    index = root / "index.sqlite"
    if not index.exists() and not (root / "segments").is_dir():
        raise UserError(f"{root} is not a store; an experiment file names its store as `store`")
    findings = [_readable(root), _writable(root), _locks(root), _free(root)]
    usable = _index(index)
    findings.append(usable)
    if usable.ok and _has_content(index):
        store = Store(root)
        with contextlib.closing(store.index):
            findings += [_segments(store), _folders(store), _partial(store), _runs(store), _versions(store)]
    return findings


def _readable(root: Path) -> Finding:
    """Whether every folder of the store can be listed."""
    closed = []
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        try:
            os.listdir(folder)
        except OSError as error:
            closed.append(f"{folder.name} ({error.strerror})")
    return Finding("readable", not closed, f"cannot be listed: {', '.join(closed)}" if closed else str(root))


def _writable(root: Path) -> Finding:
    """Whether a file can be made in the store."""
    try:
        with tempfile.NamedTemporaryFile(dir=root):
            return Finding("writable", True, "a file can be made")
    except OSError as error:
        return Finding("writable", False, f"{error.strerror}; what is finished can be read, and nothing made")


def _locks(root: Path) -> Finding:
    """Whether locks of files hold, those of the store's own (flock) and those of its index (SQLite's)."""
    network = " on a network file system" if is_remote(root / "index.sqlite") else ""
    try:
        with tempfile.TemporaryDirectory(dir=root) as folder:
            trouble = _flock_trouble(Path(folder) / "lock") or _sqlite_trouble(Path(folder) / "index.sqlite")
    except OSError as error:
        return Finding("locks", True, f"not tried, because nothing can be written: {error.strerror}")
    return Finding("locks", not trouble, f"{trouble}; {NO_LOCKS}" if trouble else f"work here{network}")


def _flock_trouble(path: Path) -> str:
    """Why a lock of a file does not keep another holder out; "" if it does."""
    with path.open("w") as one, path.open("w") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"flock: {error.strerror}"
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
    return "flock lets two hold one lock"


def _sqlite_trouble(path: Path) -> str:
    """Why SQLite's lock does not keep another writer out; "" if it does."""
    with contextlib.ExitStack() as stack:
        one, other = (
            stack.enter_context(contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)))
            for _ in range(2)
        )
        try:
            one.execute("CREATE TABLE probe(x)")
            one.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            return f"SQLite: {error}"
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return ""
    return "SQLite lets two write at a time"


def _free(root: Path) -> Finding:
    """Room on the store's disk."""
    free = shutil.disk_usage(root).free
    return Finding("disk", free >= LEAST_FREE_BYTES, f"{free / 1e9:.1f} GB free")


def _index(path: Path) -> Finding:
    """Whether the index opens and passes SQLite's quick check."""
    if not _has_content(path):
        return Finding(
            "index", True, "there is none; the next command on this store rebuilds it from the segments"
        )
    try:
        with contextlib.closing(Index(path)) as index:
            index.require_whole(quick=True)
            items = sum(index.items_of(fp) for fp in index.fingerprints())
    except DamagedIndex as damage:
        return Finding("index", False, f"damaged ({damage}); crossreel store verify --repair rebuilds it")
    except UserError as error:
        return Finding("index", False, str(error))
    return Finding("index", True, f"whole, {items} artifacts, {path.stat().st_size / 1e6:.1f} MB")


def _has_content(path: Path) -> bool:
    """Whether there is an index; opening an empty file would make it one that is never rebuilt."""
    return path.exists() and path.stat().st_size > 0


def _segments(store: Store) -> Finding:
    """Whether every segment that the index has is there with its recorded size."""
    count = total = 0
    wrong = []
    for fp, (stage, _) in store.index.fingerprints().items():
        for name, size in store.index.segments(fp).items():
            count, total = count + 1, total + size
            path = store.segment_path(stage, fp, name)
            if not path.exists():
                wrong.append(f"{path.relative_to(store.root)} is gone")
            elif (found := path.stat().st_size) != size:
                wrong.append(f"{path.relative_to(store.root)} has {found} of {size} bytes")
    if wrong:
        return Finding(
            "segments",
            False,
            f"{len(wrong)} of {count} damaged, the next run makes them again: {_some(wrong)}",
        )
    return Finding("segments", True, f"{count}, {total / 1e6:.1f} MB, each of its recorded size")


def _folders(store: Store) -> Finding:
    """Whether the files of every finished folder have their recorded sizes."""
    folders = sorted(path for path in (store.root / "runs").glob("*/*") if path.is_dir())
    wrong = [
        str(path.relative_to(store.root))
        for path in folders
        if not store.has_run(path.parent.name, path.name)
    ]
    if wrong:
        return Finding("folders", False, f"{len(wrong)} of {len(folders)} damaged: {_some(wrong)}")
    return Finding("folders", True, f"{len(folders)} finished, each file of its recorded size")


def _partial(store: Store) -> Finding:
    """What dead runs left of shards that they had begun."""
    left = store.abandoned()
    if not left:
        return Finding("partial folders", True, "none of dead runs")
    size = sum(tree_bytes(path) for path in left)
    return Finding(
        "partial folders", True, f"{len(left)} of dead runs, {size / 1e6:.1f} MB; the next run removes them"
    )


def _runs(store: Store) -> Finding:
    """How many runs are at work, and how many were killed since the last one ended."""
    alive = Counter(store.is_alive(run) for run in store.index.open_runs())
    killed = f", {alive[False]} killed; the same command goes on" if alive[False] else ""
    return Finding("runs", True, f"{alive[True]} at work{killed}")


def _versions(store: Store) -> Finding:
    """Stages whose artifacts another version of their code made."""
    now = {name: EVERY_EXTRACTOR.find(name).version for name in EVERY_EXTRACTOR.names()}
    older = [
        f"{stage} {components.get('version')}, now {now[stage]}"
        for stage, components in store.index.fingerprints().values()
        if components.get("version") != now.get(stage, components.get("version"))
    ]
    detail = f"SQLite {sqlite3.sqlite_version}, HDF5 {h5py.version.hdf5_version}; "
    detail += f"made by other versions: {_some(sorted(set(older)))}" if older else "all extractors as now"
    programs = sorted({str(run["summary"].get("crossreel", "")) for run in store.index.runs()} - {""})
    detail += f"; runs by crossreel {_some(programs)}" if programs else ""
    return Finding("versions", True, detail)


def _some(words: list[str]) -> str:
    """The first few of a list, in a line."""
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more
