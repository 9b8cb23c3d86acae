"""The index of a store, an SQLite file: the place of each item's output, the failures, and the runs.

It is the only file of a store that changes, and only the coordinating process writes to it. If it is lost, it is
rebuilt from the segments; only the failures, the runs and the cached digests of files are lost with it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast

from pipeline.errors import UserError
from pipeline.store.places import Place, Places, Units

SCHEMA = """
CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, size INT, mtime_ns INT, digest TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fingerprints(fp TEXT PRIMARY KEY, stage TEXT, components TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments(id TEXT PRIMARY KEY, fp TEXT, items INT, bytes INT, made REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifacts(fp TEXT, item TEXT, segment TEXT, row INT, file_bytes INT,
                                     PRIMARY KEY(fp, item)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS artifacts_by_segment ON artifacts(segment);
CREATE TABLE IF NOT EXISTS failures(fp TEXT, item TEXT, name TEXT, reason TEXT, attempts INT, time REAL,
                                    kind TEXT NOT NULL DEFAULT 'failed', PRIMARY KEY(fp, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs(id TEXT PRIMARY KEY, started REAL, ended REAL, experiment TEXT, status TEXT,
                                summary TEXT) WITHOUT ROWID;
"""
REMOTE = re.compile(r"nfs4?|cifs|smb3|smbfs|lustre|beegfs\w*|gpfs|ceph|glusterfs|9p|fuse\..*")
MOUNTS = Path("/proc/self/mountinfo")
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none
BUSY_SECONDS = 60.0  # how long a run waits for another run on the same store that is writing


def is_remote(path: Path, mounts: Path = MOUNTS) -> bool:
    """Whether a path lies on a network file system, by the table of mounts; False if that cannot be read."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        real = path.parent.resolve()
    except OSError:
        return False
    longest = (0, "")  # letters of the mount point, type of its file system
    for line in lines:  # 36 35 98:0 /root /mount/point options ... - type source more
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        if real.is_relative_to(point):
            longest = max(longest, (len(point), after.split()[0]), key=lambda pair: pair[0])
    return REMOTE.fullmatch(longest[1]) is not None


# An index without the column `kind` recorded killed items as failed; only killed items have these words as reason.
KINDS = """
ALTER TABLE failures ADD COLUMN kind TEXT NOT NULL DEFAULT 'failed';
UPDATE failures SET kind='killed' WHERE reason LIKE 'its worker process died % times: SIGKILL%'
    OR reason LIKE 'its worker process died % times: SIGTERM%' OR reason='ffmpeg could not read it: no reason given';
"""
Kind = Literal["failed", "killed"]


COLUMNS = {
    "files": {"path", "size", "mtime_ns", "digest"}, "fingerprints": {"fp", "stage", "components"},
    "segments": {"id", "fp", "items", "bytes", "made"}, "artifacts": {"fp", "item", "segment", "row", "file_bytes"},
    "failures": {"fp", "item", "name", "reason", "attempts", "time"},
    "runs": {"id", "started", "ended", "experiment", "status", "summary"},
}  # fmt: skip
# columns that an index of any version has
CELLS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "fingerprints": {"fp": str, "stage": str, "components": str},
    "segments": {"id": str, "fp": str, "items": int, "bytes": int},
    "artifacts": {"fp": str, "item": str, "segment": str, "row": int, "file_bytes": (int, NoneType)},
    "failures": {"fp": str, "item": str, "name": str, "reason": str, "attempts": int, "time": (float, int)},
    "runs": {
        "id": str, "started": (float, int), "ended": (float, int, NoneType), "experiment": str, "status": str,
        "summary": str,
    },
    "files": {"path": str, "size": int, "mtime_ns": int, "digest": str},
}  # fmt: skip
# what their cells hold: SQLite takes any value in any column, so a damaged file can hold others
LARGE = ("artifacts", "files")  # tables with a row for each item of a stage


def is_unwritable(error: sqlite3.Error) -> bool:
    """Whether SQLite could not write a file or make one beside it."""
    return any(words in str(error) for words in ("readonly database", "unable to open database file"))


def _object(column: str, cell: Any) -> dict[str, Any]:
    """Return the JSON object of a cell. Raises sqlite3.DatabaseError, because SQLite itself keeps no checksums."""
    try:
        found = json.loads(cell)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise sqlite3.DatabaseError(f"a cell of the column {column!r} holds no JSON object")
    return found


def remedy(error: sqlite3.Error) -> str:
    """Return SQLite's message, with a remedy if the file system has no locks or another process holds the lock."""
    words = str(error)
    if "locked" in words:
        return (
            f"{words} for {BUSY_SECONDS:.0f} s: another process writes it, or its file system has no working locks; "
            f"wait for that process, or {NO_LOCKS}"
        )
    if "locking protocol" in words or "disk I/O error" in words:
        return f"{words}: its file system may lack locks; {NO_LOCKS}"
    return words


NO_LOCKS = (
    "keep the store on a local disk, or mount with locks (NFS version 4, or 3 with lockd and without nolock; "
    "Lustre: -o flock)"
)


@dataclass(frozen=True)
class Failure:
    """The reason why an item has no output of a stage, and the number of attempts.

    An item of the kind "killed" is not at fault: each worker that had it was killed, the last one while no other
    worker ran. The next run tries it again.
    """

    item: str
    name: str
    reason: str
    attempts: int
    kind: Kind = "failed"
    time: float = 0.0  # time of the record, in seconds since 1970


class DamagedIndex(Exception):
    """The file is not an index, or lacks tables or columns that every index has."""


class Index:
    """The database of one store. Each process and thread needs an object of its own.

    A file that cannot be written is opened for reading (`read_only`). `empty` is true if the file had no tables yet.
    Raises DamagedIndex, and UserError if the file can be neither read nor written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.read_only, self.empty = path, False, False
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        if path.exists() and not os.access(
            path, os.W_OK
        ):  # false for root too where the file system is read-only
            self._open_to_read()
            return
        try:
            self._open()
        except sqlite3.OperationalError as error:
            if not path.exists() or not is_unwritable(error):
                raise UserError(f"the store's index {path} cannot be opened: {remedy(error)}") from None
            self._open_to_read()
        except sqlite3.DatabaseError as error:
            self.close()
            raise DamagedIndex(str(error)) from None

    def _open_to_read(self) -> None:
        """Open the file for reading. If a write-ahead log lies beside it, copies of both files are opened instead."""
        self.close()
        self.read_only = True
        log = self.path.with_name(f"{self.path.name}-wal")
        try:
            path = self.path
            if log.exists() and log.stat().st_size:
                self._copy = tempfile.TemporaryDirectory(prefix="crossreel-index-")
                path = Path(self._copy.name) / self.path.name
                for source in (self.path, log):
                    shutil.copy(source, path.with_name(source.name))
            quoted = urllib.parse.quote(str(path.absolute()))
            way = "" if self._copy else "?mode=ro&immutable=1"
            self.db = sqlite3.connect(f"file:{quoted}{way}", uri=True, isolation_level=None)
            self.db.execute("PRAGMA query_only=ON")
            self._require_tables()
        except (OSError, sqlite3.OperationalError) as error:
            raise UserError(f"the store's index {self.path} cannot be read: {error}") from None
        except sqlite3.DatabaseError as error:
            raise DamagedIndex(str(error)) from None

    def _require_tables(self) -> None:
        """Raise DamagedIndex if the file has some of the tables or columns and lacks others."""
        tables = {name for (name,) in self.db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        self.empty = not tables
        for table, columns in {} if self.empty else COLUMNS.items():
            if table not in tables:
                raise DamagedIndex(f"it lacks the table {table}")
            has = {row[1] for row in self.db.execute(f"PRAGMA table_info({table})")}
            if not has >= columns:
                raise DamagedIndex(f"it lacks {table}({', '.join(sorted(columns - has))})")

    def require_whole(self, quick: bool = False) -> None:
        """Raise DamagedIndex unless SQLite's integrity check passes and every cell holds what its column is for.

        It reads the whole file. The `quick` check does not compare indexes with their tables, nor does it look at the
        cells of those tables that have a row for each item.
        """
        check = "quick_check" if quick else "integrity_check"
        try:
            (answer,) = self.db.execute(f"PRAGMA {check}(1)").fetchone()
        except sqlite3.DatabaseError as error:
            answer = str(error)
        if answer != "ok":
            raise DamagedIndex(answer)
        try:
            for table, cells in CELLS.items():
                if not (quick and table in LARGE):
                    for _ in self._rows(table, ", ".join(cells)):
                        pass
            self.fingerprints()
            self.runs(-1)
            other = self.db.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')"
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise DamagedIndex(str(error)) from None
        if other:
            raise DamagedIndex(f"it has {other[0]!r}, which no index has")

    def _rows(
        self, table: str, columns: str, where: str = "", values: tuple[Any, ...] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table. Raises sqlite3.DatabaseError at a cell that holds another type than its column."""
        names = columns.split(", ")
        kinds = [CELLS[table][name] for name in names]
        for row in self.db.execute(f"SELECT {columns} FROM {table} {where}", values):
            if not all(map(isinstance, row, kinds)):
                wrong = next(
                    n for n, cell, kind in zip(names, row, kinds, strict=True) if not isinstance(cell, kind)
                )
                raise sqlite3.DatabaseError(f"a cell of the column {table}.{wrong} holds something else")
            yield row

    def _open(self) -> None:
        self._require_locks()
        self.db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        self._require_tables()
        if is_remote(self.path):  # WAL shares memory between the processes of one host, and of one host alone
            self.db.execute("PRAGMA journal_mode=DELETE")
            self.db.execute("PRAGMA synchronous=FULL")
        else:
            self._keep_a_log()
            # losing the last commit costs repeated work, no damage
            self.db.execute("PRAGMA synchronous=NORMAL")
        if self._has_kinds():
            self.db.executescript(SCHEMA)  # waits for no writer, as all tables are there
            return
        # All tables of a new index at once: another process that opens it meanwhile would call it damaged.
        with self.transaction():
            for statement in filter(str.strip, SCHEMA.split(";")):
                self.db.execute(statement)
            if not self._has_kinds():
                for statement in filter(str.strip, KINDS.split(";")):
                    self.db.execute(statement)

    def _keep_a_log(self) -> None:
        """Let the file keep a write-ahead log, waiting at most BUSY_SECONDS for other processes that open it.

        Where two of them turn it on in a new file at once, SQLite refuses one without waiting, since each holds the
        shared lock for which the other would have to wait.
        """
        end = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self.db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() >= end:
                    raise
            time.sleep(0.01)

    def _require_locks(self) -> None:
        """Raise UserError on a file system without POSIX locks, which SQLite would take for a lock of another process.

        A file of its own is locked: closing any file of the index would let go of SQLite's locks of it.
        """
        try:
            with tempfile.TemporaryFile(dir=self.path.parent) as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                lack = f"gives no locks (fcntl: {error.strerror}); {NO_LOCKS}"
                raise UserError(f"the file system of the store's index {self.path} {lack}") from None

    def close(self) -> None:
        """Close the database."""
        if hasattr(self, "db"):
            self.db.close()
        if self._copy is not None:
            self._copy.cleanup()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything written inside the block, or nothing if the block raises."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # when the disk is full, SQLite has rolled back already
                self.db.execute("ROLLBACK")
            raise

    def changes_of_others(self) -> int:
        """Return a number that changes whenever another connection writes to the index."""
        (number,) = self.db.execute("PRAGMA data_version").fetchone()
        return int(number)

    # digests of files ---------------------------------------------------------------------------

    def known_files(self) -> dict[str, tuple[int, int, str]]:
        """Return every cached digest: path -> (size, mtime in ns, digest)."""
        rows = self._rows("files", "path, size, mtime_ns, digest")
        return {path: (size, mtime, digest) for path, size, mtime, digest in rows}

    def known_files_at(self, path: str) -> tuple[int, int, str] | None:
        """Return the size and mtime in ns of one path when its digest was computed, and the digest."""
        row = next(self._rows("files", "size, mtime_ns, digest", "WHERE path=?", (path,)), None)
        return None if row is None else (row[0], row[1], row[2])

    def remember_files(self, rows: Iterable[tuple[str, int, int, str]]) -> None:
        """Cache digests: (path, size, mtime in ns, digest). Does nothing if the index cannot be written."""
        if self.read_only:
            return
        with self.transaction():
            self.db.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?)", rows)

    # fingerprints -------------------------------------------------------------------------------

    def add_fingerprint(self, fp: str, stage: str, components: Mapping[str, Any]) -> None:
        """Record the components of a fingerprint, which `why` compares."""
        self.db.execute(
            "INSERT OR IGNORE INTO fingerprints VALUES (?,?,?)", (fp, stage, json.dumps(components))
        )

    def fingerprints(self, stage: str | None = None) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return the recorded fingerprints, of all stages or of one: fp -> (stage, components)."""
        where: tuple[str, tuple[Any, ...]] = ("WHERE stage=?", (stage,)) if stage else ("", ())
        rows = self._rows("fingerprints", "fp, stage, components", *where)
        return {fp: (name, _object("components", components)) for fp, name, components in rows}

    # segments and artifacts ---------------------------------------------------------------------

    def add_segment(
        self, segment: str, fp: str, size: int, items: Mapping[str, int | None], made: float | None = None
    ) -> None:
        """Record a finished segment: its items in row order, each with the size of its file or None."""
        with self.transaction():
            made = time.time() if made is None else made
            self.db.execute(
                "INSERT OR REPLACE INTO segments VALUES (?,?,?,?,?)", (segment, fp, len(items), size, made)
            )
            self.db.executemany(
                "INSERT OR REPLACE INTO artifacts VALUES (?,?,?,?,?)",
                [(fp, item, segment, row, bytes_) for row, (item, bytes_) in enumerate(items.items())],
            )
            self.db.executemany("DELETE FROM failures WHERE fp=? AND item=?", [(fp, item) for item in items])

    def segments(self, fp: str) -> dict[str, int]:
        """Return the recorded segments of a fingerprint: id -> bytes."""
        return dict(self._rows("segments", "id, bytes", "WHERE fp=?", (fp,)))

    def segment(self, segment: str) -> tuple[str, int, int] | None:
        """Return the fingerprint, number of items and bytes of a segment; None if it is not recorded."""
        row = next(self._rows("segments", "fp, items, bytes", "WHERE id=?", (segment,)), None)
        return None if row is None else (row[0], row[1], row[2])

    def rows_of(self, segment: str) -> list[tuple[str, int, int | None]]:
        """Return the items recorded in a segment: digest, row, and bytes of the item's file or None."""
        rows = self._rows("artifacts", "item, row, file_bytes", "WHERE segment=?", (segment,))
        return [(item, row, size) for item, row, size in rows]

    def named_segments(self, fp: str) -> list[str]:
        """Return every segment that is recorded under a fingerprint, or named as the place of one of its items."""
        sql = "SELECT id FROM segments WHERE fp=? UNION SELECT DISTINCT segment FROM artifacts WHERE fp=?"
        return [segment for (segment,) in self.db.execute(sql, (fp, fp))]

    def items_of(self, fp: str) -> int:
        """Return the number of items or captions in the segments of a fingerprint."""
        (items,) = self.db.execute(
            "SELECT COALESCE(SUM(items), 0) FROM segments WHERE fp=?", (fp,)
        ).fetchone()
        return int(items)

    def stage_totals(self, stage: str) -> tuple[int, int]:
        """Return the number of items in all segments of a stage, and the bytes of segments and items' files."""
        inside = "SELECT fp FROM fingerprints WHERE stage=?"
        items, size = self.db.execute(
            f"SELECT COALESCE(SUM(items), 0), COALESCE(SUM(bytes), 0) FROM segments WHERE fp IN ({inside})",
            (stage,),
        ).fetchone()
        sql = f"SELECT COALESCE(SUM(file_bytes), 0) FROM artifacts WHERE fp IN ({inside})"
        (files,) = self.db.execute(sql, (stage,)).fetchone()
        return int(items), int(size) + int(files)

    def places(self, fp: str) -> dict[str, Place]:
        """Return the place of every item's output under a fingerprint."""
        rows = self._rows("artifacts", "item, segment, row, file_bytes", "WHERE fp=?", (fp,))
        return {item: Place(segment, row, size) for item, segment, row, size in rows}

    def places_of(self, fp: str, units: Units) -> Places:
        """Return the places of these units' outputs as arrays, so that millions of units fit in memory."""
        rows = self._rows("artifacts", "item, segment, row, file_bytes", "WHERE fp=?", (fp,))
        return Places.of(units, cast("Iterator[tuple[str, str, int, int | None]]", rows))

    def forget_segment(self, segment: str) -> int:
        """Drop a segment, so that its items count as missing work; return the number of items."""
        with self.transaction():
            count = self.db.execute("DELETE FROM artifacts WHERE segment=?", (segment,)).rowcount
            self.db.execute("DELETE FROM segments WHERE id=?", (segment,))
        return int(count)

    def forget_items(self, fp: str, items: Iterable[str]) -> None:
        """Drop the outputs and failures of single items, so that they count as missing work again."""
        pairs = [(fp, item) for item in items]
        with self.transaction():
            self.db.executemany("DELETE FROM artifacts WHERE fp=? AND item=?", pairs)
            self.db.executemany("DELETE FROM failures WHERE fp=? AND item=?", pairs)

    def forget_fingerprint(self, fp: str, named: bool = False) -> None:
        """Drop everything recorded under a fingerprint; with `named`, all but its components."""
        with self.transaction():
            for table in ("artifacts", "segments", "failures", *(() if named else ("fingerprints",))):
                self.db.execute(f"DELETE FROM {table} WHERE fp=?", (fp,))

    def unused_segments(self, fp: str) -> list[str]:
        """Return the segments of a fingerprint whose items were all forgotten, or made again in other segments."""
        sql = (
            "SELECT id FROM segments s WHERE fp=? AND "
            "NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.segment = s.id)"
        )
        return [segment for (segment,) in self.db.execute(sql, (fp,))]

    # failures -----------------------------------------------------------------------------------

    def add_failure(self, fp: str, item: str, name: str, reason: str, kind: Kind = "failed") -> None:
        """Record that an item failed or was killed; a further failure raises its number of attempts."""
        self.db.execute(
            "INSERT INTO failures(fp, item, name, reason, attempts, time, kind) VALUES (?,?,?,?,1,?,?) "
            "ON CONFLICT(fp, item) DO UPDATE SET name=excluded.name, reason=excluded.reason, "
            "attempts=attempts+1, time=excluded.time, kind=excluded.kind",
            (fp, item, name, reason, time.time(), kind),
        )

    def failures(self, fp: str) -> dict[str, Failure]:
        """Return the failed and the killed items of a fingerprint, by key."""
        rows = self._rows("failures", "item, name, reason, attempts, time", "WHERE fp=?", (fp,))
        kinds: dict[str, Kind] = {}
        if self._has_kinds():  # else an index of an older version that cannot be written
            kinds = dict(
                self.db.execute("SELECT item, kind FROM failures WHERE fp=? AND kind='killed'", (fp,))
            )
        return {
            item: Failure(item, name, reason, attempts, kinds.get(item, "failed"), time)
            for item, name, reason, attempts, time in rows
        }

    def _has_kinds(self) -> bool:
        return any(row[1] == "kind" for row in self.db.execute("PRAGMA table_info(failures)"))

    # runs ---------------------------------------------------------------------------------------

    def start_run(self, run: str, experiment: str) -> None:
        """Record that a run began."""
        row = (run, time.time(), None, experiment, "running", "{}")
        self.db.execute("INSERT OR REPLACE INTO runs VALUES (?,?,?,?,?,?)", row)

    def open_runs(self) -> list[str]:
        """Return the runs without a recorded end: they still run, or were killed."""
        return [run for (run,) in self._rows("runs", "id", "WHERE status='running'")]

    def end_run(self, run: str, status: str, summary: Mapping[str, Any]) -> None:
        """Record how a run ended."""
        sql = "UPDATE runs SET ended=?, status=?, summary=? WHERE id=?"
        self.db.execute(sql, (time.time(), status, json.dumps(summary), run))

    def runs(self, most: int = 20) -> list[dict[str, Any]]:
        """Return the latest runs, newest first; all of them with -1."""
        keys = ("id", "started", "ended", "experiment", "status", "summary")
        found = self._rows("runs", ", ".join(keys), "ORDER BY started DESC LIMIT ?", (most,))
        rows = [dict(zip(keys, row, strict=True)) for row in found]
        return [row | {"summary": _object("summary", row["summary"])} for row in rows]
