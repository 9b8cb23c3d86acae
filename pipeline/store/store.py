"""The store keeps each artifact once, in a folder named by its fingerprint.

An artifact is written to a temporary path, checked, and then renamed to its final path.

segments/<stage>/<fingerprint>/<id>.h5     features of many items (pipeline.store.segments)
files/<stage>/<fingerprint>/ab/abcd....mp4 one file per item
runs/<stage>/<fingerprint>/                one folder per corpus: arrays, checkpoints, metrics, report
work/                                      unfinished artifacts; safe to delete when nothing runs
locks/                                     one file per fingerprint, locked by the process that makes it
index.sqlite                               pipeline.store.index
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint, digest_file
from pipeline.store.index import NO_LOCKS, DamagedIndex, Index
from pipeline.store.places import Place, Places, Units
from pipeline.store.segments import SPOOL_LOCK, Array, Damaged, Segment, SegmentWriter

RECORD = "artifact.json"
REFERENCES = "references"  # key of the record: segments that are part of the artifact, by path in the store, with bytes
IN_MEMORY = Path(":memory:")
RUN_LOCK = "run-{}"  # name of a lock in locks/ that the process of the run holds
ABANDONED_SECONDS = 86400.0
SPOOL_LETTERS = 32  # length of the name of a writer's folder in work/, which is a UUID

Seen = Callable[[int, int], None]
"""Called with the numbers of segments and folders that were read, and that there are."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """One fault that `verify` reports: a sentence that describes it, and the path of the segment or folder."""

    sentence: str
    path: Path


class Store:
    """A folder of artifacts. Reading needs no lock; making an artifact holds the lock of its fingerprint."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        path = self.root / "index.sqlite"
        try:
            for name in ("segments", "files", "runs", "work", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if not path.exists() and not (self.root / "segments").is_dir():
                raise UserError(
                    f"the store {self.root} cannot be written: {error.strerror or error}"
                ) from None
        fresh = not path.exists()
        try:
            self.index = Index(IN_MEMORY if fresh and not os.access(self.root, os.W_OK) else path)
        except DamagedIndex as damage:
            self.index = self._replaced_index(path, damage)
            fresh = True
        if fresh or self.index.empty:
            if self.index.read_only:  # an empty file that cannot be filled
                self.index = Index(IN_MEMORY)
            self.rebuild_index()

    @property
    def read_only(self) -> bool:
        """Whether the store cannot be written, so that only finished artifacts can be used."""
        return self.index.read_only or self.index.path == IN_MEMORY

    def _replaced_index(self, path: Path, damage: DamagedIndex) -> Index:
        """Return a new index and keep the damaged file beside it.

        The new index is in memory if the damaged file cannot be renamed.
        """
        aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            path.rename(aside)
            for tail in ("-wal", "-shm"):
                path.with_name(path.name + tail).unlink(missing_ok=True)
        except OSError:
            log.warning(
                "the index %s is damaged (%s); it is rebuilt in memory for this command", path, damage
            )
            return Index(IN_MEMORY)
        log.warning(
            "the index %s was damaged (%s) and is rebuilt from the segments; failures and runs are forgotten, "
            "the damaged file is %s",
            path, damage, aside,
        )  # fmt: skip
        return Index(path)

    # paths of artifacts ---------------------------------------------------------------------------

    def segment_path(self, stage: str, fp: str, segment: str) -> Path:
        """Path of a segment's file."""
        return self.root / "segments" / stage / fp / f"{segment}.h5"

    def segments_folder(self, stage: str, fp: str) -> Path:
        """Path of the folder that holds the segments of a fingerprint."""
        return self.root / "segments" / stage / fp

    def item_file(self, stage: str, fp: str, item: str, suffix: str) -> Path:
        """Path of the file that a stage made from an item."""
        return self.root / "files" / stage / fp / item[:2] / f"{item}{suffix}"

    def run_folder(self, stage: str, fp: str) -> Path:
        """Path of the finished folder of a stage over the whole corpus."""
        return self.root / "runs" / stage / fp

    def work_folder(self, stage: str, fp: str) -> Path:
        """Path of the work folder of a stage over the whole corpus.

        The folder stays when the stage is killed, so that the next run can resume it.
        """
        return self.root / "work" / stage / fp

    # features -----------------------------------------------------------------------------------

    def writer(self, stage: str, fingerprint: Fingerprint, fields: Mapping[str, Field]) -> SegmentWriter:
        """Return a writer for a new segment."""
        folder = self.segments_folder(stage, fingerprint.hex)
        return SegmentWriter(
            folder, self.root / "work", stage, fingerprint.hex, fingerprint.components, fields
        )

    def adopt(self, stage: str, fp: str) -> int:
        """Record the undamaged segments that the index lacks; return the number of items in them.

        The index lacks a segment if the run was killed after writing it, or if the index file was lost.
        The caller holds the lock of the fingerprint.
        """
        folder = self.segments_folder(stage, fp)
        known = self.index.segments(fp)
        adopted = 0
        for path in sorted(folder.glob("*.h5")) if folder.is_dir() else []:
            if path.stem in known:
                continue
            try:
                segment = Segment(path)
            except Damaged:
                continue  # `store verify` names it
            items = dict(zip(segment.items, segment.file_bytes, strict=True))
            self.index.add_fingerprint(fp, segment.stage, segment.components)
            self.index.add_segment(path.stem, fp, path.stat().st_size, items, path.stat().st_mtime)
            adopted += len(items)
        return adopted

    def drop_unused_segments(self, stage: str, fp: str) -> None:
        """Remove the segments to which no item refers any more. The caller holds the lock of the fingerprint."""
        for segment in self.index.unused_segments(fp):
            self.segment_path(stage, fp, segment).unlink(missing_ok=True)
            self.index.forget_segment(segment)

    def places(self, stage: str, fp: str, suffix: str | None = None) -> dict[str, Place]:
        """Return the place of each finished item, after a check of the segments' sizes.

        Items in a segment that is gone or truncated are left out, so they count as missing work. With a
        suffix, each item's file must also exist and have its recorded size.
        """
        places = self.index.places(fp)
        if bad := self._bad_segments(stage, fp, {place.segment for place in places.values()}):
            places = {item: place for item, place in places.items() if place.segment not in bad}
        if suffix is not None:
            sizes = {i: _size(self.item_file(stage, fp, i, suffix)) for i in places}
            places = {i: place for i, place in places.items() if sizes[i] == place.file_bytes}
        return places

    def places_of(self, stage: str, fp: str, units: Units, suffix: str | None = None) -> Places:
        """Return the same as `places` for the units of a corpus, as arrays, so that millions of units fit in memory."""
        places = self.index.places_of(fp, units)
        if bad := self._bad_segments(stage, fp, places.segments):
            places = places.without(bad)
        if suffix is None:
            return places
        folder = f"{self.root}/files/{stage}/{fp}"
        return places.with_files(lambda item: _size(f"{folder}/{item[:2]}/{item}{suffix}"))

    def _bad_segments(self, stage: str, fp: str, named: Iterable[str]) -> set[str]:
        """Return those of the `named` segments that are gone, truncated, or not recorded under this fingerprint."""
        sizes = self.index.segments(fp)
        return {
            segment
            for segment in named
            if segment not in sizes or _size(self.segment_path(stage, fp, segment)) != sizes[segment]
        }

    def reader(self, stage: str, fp: str) -> FeatureReader:
        """Return a reader of the features of a fingerprint, by item."""
        places = self.places(stage, fp)
        return FeatureReader({i: (self.segment_path(stage, fp, p.segment), p.row) for i, p in places.items()})

    # folders ------------------------------------------------------------------------------------

    def has_run(self, stage: str, fp: str) -> bool:
        """Whether a stage over the whole corpus is finished and its files have their recorded sizes.

        So must the segments that it refers to: a folder whose segments were made again, or dropped, is missing work.
        """
        return self._is_whole(self.run_folder(stage, fp), thorough=False)

    def has_folder(self, stage: str, fp: str) -> bool:
        """The same without a look at the segments that the folder refers to."""
        return not self._run_damage(self.run_folder(stage, fp), thorough=False)

    def run_record(self, stage: str, fp: str) -> dict[str, Any]:
        """Return the record of a finished folder: components, seconds, time of making, files."""
        return dict(json.loads((self.run_folder(stage, fp) / RECORD).read_text(encoding="utf-8")))

    def publish(self, stage: str, fingerprint: Fingerprint, seconds: float, extra: Mapping[str, Any]) -> Path:
        """Turn a work folder into the finished artifact with one rename; return the path of the artifact."""
        work, target = self.work_folder(stage, fingerprint.hex), self.run_folder(stage, fingerprint.hex)
        files = {
            str(path.relative_to(work)): [path.stat().st_size, digest_file(path)]
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != RECORD
        }
        record = {"stage": stage, "fingerprint": fingerprint.hex, "components": fingerprint.components,
                  "made": time.time(), "seconds": seconds, "files": files} | dict(extra)  # fmt: skip
        write_json(work / RECORD, record)
        self._move(work, target)
        self.index.add_fingerprint(fingerprint.hex, stage, fingerprint.components)
        return target

    def publish_finished(self, stage: str, fp: str) -> bool:
        """Rename a work folder that is complete already; return whether it was.

        A run that was killed between writing the record and renaming the folder leaves such a folder.
        """
        work = self.work_folder(stage, fp)
        if not self._is_whole(work, thorough=True):
            return False
        self._move(work, self.run_folder(stage, fp))
        return True

    @staticmethod
    def _move(work: Path, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)

    def _is_whole(self, folder: Path, thorough: bool) -> bool:
        """Whether a folder is undamaged, and the segments that it refers to are there."""
        return not self._run_damage(folder, thorough) and all(
            _size(self.root / name) == size for name, size in self._references(folder).items()
        )

    def _references(self, folder: Path) -> dict[str, int]:
        """Return the segments that a finished folder refers to: path in the store -> bytes."""
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return {str(name): int(size) for name, size in record.get(REFERENCES, {}).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _run_damage(self, folder: Path, thorough: bool) -> list[Damage]:
        if not (folder / RECORD).exists():
            return [Damage(f"{folder} was never finished", folder)]
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            files, own = record["files"], (record["stage"], record["fingerprint"])
        except (ValueError, KeyError, TypeError):
            return [Damage(f"{folder / RECORD} is damaged", folder)]
        if own != folder.parts[-2:]:
            return [Damage(f"{folder} holds what was made as {'/'.join(map(str, own))}", folder)]
        out = []
        for name, (size, digest) in files.items():
            path = folder / name
            if _size(path) != size or (thorough and digest_file(path) != digest):
                out.append(Damage(f"{path} is not what was written ({size} bytes)", folder))
        return out

    # locks --------------------------------------------------------------------------------------

    @contextmanager
    def lock(
        self, stage: str, fp: str, waiting: Callable[[str], None] = lambda sentence: None
    ) -> Iterator[None]:
        """Hold the lock of a fingerprint; if another live process holds it, call `waiting` once and wait.

        The kernel releases the lock when the process ends, also when it is killed. A network file system
        must support flock.
        """
        path = self.root / "locks" / f"{stage}-{fp}"
        if self.read_only:
            raise UserError(f"the store {self.root} cannot be written, and {stage} would have to be made")
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise without_locks(self.root, error) from None
                file.seek(0)
                waiting(
                    f"{stage} is being made by {file.read().strip() or 'another process'}; waiting for it"
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}")
            file.flush()
            yield

    @contextmanager
    def run(self, run: str) -> Iterator[None]:
        """Mark a run as alive until the block or this process ends."""
        path = self.root / "locks" / RUN_LOCK.format(run)
        try:
            with path.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError as error:
                    raise without_locks(self.root, error) from None
                yield
        finally:
            path.unlink(missing_ok=True)

    def is_alive(self, run: str) -> bool:
        """Whether the process of a run still runs."""
        try:
            with (self.root / "locks" / RUN_LOCK.format(run)).open() as file:
                return not _can_lock(file)
        except OSError:  # the run removed its lock file at its end, or its version of crossreel made none
            return False

    # maintenance ---------------------------------------------------------------------------------------

    def rebuild_index(self) -> int:
        """Record the items of every segment, and every finished folder, in a new index; return their number."""
        count = 0
        for folder in sorted((self.root / "segments").glob("*/*")):
            count += self.adopt(folder.parent.name, folder.name)
        for path in sorted((self.root / "runs").glob(f"*/*/{RECORD}")):
            if self._run_damage(path.parent, thorough=False):
                continue  # `store verify` names it
            record = json.loads(path.read_text(encoding="utf-8"))
            self.index.add_fingerprint(record["fingerprint"], record["stage"], record["components"])
            count += 1
        return count

    def verify(self, repair: bool = False, seen: Seen = lambda done, total: None) -> list[Damage]:
        """Return every difference between the store and what was written to it, bit for bit.

        With `repair`, damaged artifacts are removed, misplaced ones are put back, and the index is corrected.
        """
        damage: list[Damage] = []
        try:
            self.index.require_whole()
        except DamagedIndex as error:
            damage.append(Damage(f"the index {self.index.path} is damaged ({error})", self.index.path))
            if not repair:
                return damage
            self.index.close()
            self.index = self._replaced_index(self.index.path, error)
            self.rebuild_index()
        misplaced: list[Segment] = []
        mixed_up: list[Path] = []  # undamaged segments that the index describes wrongly
        paths = sorted((self.root / "segments").glob("*/*/*.h5"))
        folders = sorted(path for path in (self.root / "runs").glob("*/*") if path.is_dir())
        total = len(paths) + len(folders)
        seen(0, total)
        for number, path in enumerate(paths):
            segment, faults = self._segment_damage(path)
            damage.extend(faults)
            if segment is not None and segment.misplaced:
                damage.append(Damage(segment.misplaced, path))
                misplaced.append(segment)
            elif faults and repair:
                self.index.forget_segment(path.stem)
                path.unlink()
            elif segment is not None and (wrong := self._index_damage(segment)):
                damage.extend(wrong)
                mixed_up.append(path)
            seen(number + 1, total)
        if repair:
            self._record_again(mixed_up)
            self._put_back(misplaced)
        for number, folder in enumerate(folders):
            faults = self._run_damage(folder, thorough=True)
            damage.extend(faults)
            if faults and repair:
                shutil.rmtree(folder)
            seen(len(paths) + number + 1, total)
        for fp, (stage, _) in self.index.fingerprints().items():
            for name in self.index.named_segments(fp):
                path = self.segment_path(stage, fp, name)
                if not path.exists():
                    damage.append(Damage(f"the segment {path} is gone", path))
                    if repair:
                        self.index.forget_segment(name)
        return damage

    def _index_damage(self, segment: Segment) -> list[Damage]:
        """Return the contradictions between the index and an undamaged segment; [] if the index lacks the segment."""
        path, out = segment.path, []
        recorded = self.index.segment(segment.path.stem)
        size = path.stat().st_size
        if recorded is not None and recorded != (segment.fingerprint, len(segment.items), size):
            fp, items, size_then = recorded
            out.append(
                f"the index has the segment {path} with {items} items and {size_then} bytes under {fp}; "
                f"it has {len(segment.items)} items and {size} bytes"
            )
        for item, row, file_bytes in self.index.rows_of(path.stem):
            there = 0 <= row < len(segment.items)
            if not there or (segment.items[row], segment.file_bytes[row]) != (item, file_bytes):
                out.append(
                    f"the index places the item {item} in row {row} of the segment {path}, which holds another"
                )
        return [Damage(sentence, path) for sentence in out]

    def _record_again(self, paths: Collection[Path]) -> None:
        """Record undamaged segments again, by their own content.

        All of them are forgotten first; otherwise one segment would take over the items of another.
        """
        for path in paths:
            self.index.forget_segment(path.stem)
        for stage, fp in dict.fromkeys((path.parts[-3], path.parts[-2]) for path in paths):
            self.adopt(stage, fp)

    def _put_back(self, segments: Iterable[Segment]) -> None:
        """Move undamaged segments back to the paths they were written to, and record them again.

        Each file first gets a temporary name, so that two segments with swapped names do not overwrite each other.
        """
        moved = []
        for segment in segments:
            target = self.segment_path(segment.stage, segment.fingerprint, segment.id or segment.path.stem)
            aside = target.with_suffix(f".{segment.path.stem}.moved")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.index.forget_segment(segment.path.stem)
            moved.append((segment.path.rename(aside), target))
        for aside, target in moved:
            if target.exists():  # the segment is in its place, and this file was a copy of it
                aside.unlink()
            else:
                aside.rename(target)
        self._record_again([target for _, target in moved])

    def _segment_damage(self, path: Path) -> tuple[Segment | None, list[Damage]]:
        """Return the segment at a path (None if it is damaged) and the faults of its rows and its items' files."""
        try:
            segment = Segment(path)
            for row in range(len(segment.items)):
                segment.check(row)
        except Damaged as error:
            return None, [Damage(str(error), path)]
        out: list[Damage] = []
        if segment.misplaced:
            return segment, out
        for item, name, note, size in zip(
            segment.items, segment.names, segment.notes, segment.file_bytes, strict=True
        ):
            if size is None:
                continue
            values = json.loads(note)
            file = self.item_file(segment.stage, segment.fingerprint, item, values.get("suffix", ""))
            if _size(file) != size or digest_file(file) != values.get("file_digest"):
                out.append(Damage(f"{file} (made of {name}) is not what was written", path))
        return segment, out

    def gc(
        self, keep: set[str], dry_run: bool, older_than_seconds: float = 0,
        again: Collection[str] = (), seen: Seen = lambda done, total: None,
    ) -> list[tuple[Path, int]]:  # fmt: skip
        """Remove artifacts of other fingerprints than `keep`, orphaned segments and abandoned work.

        What a kept folder refers to is kept too. `again` are fingerprints whose artifacts go although a run may need
        them, because it can make them again: what they were made from stays known.
        Returns the path and the bytes of each file or folder; with `dry_run` nothing is removed.
        """
        removed: list[tuple[Path, int]] = []
        keep = keep - set(again)
        referred = {self.root / name for folder in self._folders(keep) for name in self._references(folder)}
        keep = keep | {path.parent.name for path in referred}

        def drop(path: Path) -> None:
            removed.append((path, tree_bytes(path)))
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        now = time.time()
        kinds = ("segments", "files", "runs", "work")
        folders = [path for kind in kinds for path in sorted((self.root / kind).glob("*/*")) if path.is_dir()]
        for number, folder in enumerate(folders):
            seen(number, len(folders))
            old = now - folder.stat().st_mtime >= older_than_seconds
            if folder.name not in keep and old and self._unlocked(folder.parent.name, folder.name):
                drop(folder)
                if not dry_run:
                    self.index.forget_fingerprint(folder.name, named=folder.name in again)
        for segment, path in self._unused_segments(keep, now - older_than_seconds):
            if path in referred:
                continue
            drop(path)
            if not dry_run:
                self.index.forget_segment(segment)
        seen(len(folders), len(folders))
        return removed

    def _folders(self, keep: set[str]) -> list[Path]:
        """Return the finished folders of these fingerprints."""
        return [path for path in (self.root / "runs").glob("*/*") if path.name in keep]

    def _unused_segments(self, keep: set[str], before: float) -> Iterator[tuple[str, Path]]:
        """Yield the segments of kept fingerprints that no item refers to, and damaged ones that are not recorded."""
        for folder in sorted((self.root / "segments").glob("*/*")):
            if folder.name not in keep or not self._unlocked(folder.parent.name, folder.name):
                continue
            self.adopt(folder.parent.name, folder.name)
            known, unused = self.index.segments(folder.name), self.index.unused_segments(folder.name)
            for path in sorted(folder.glob("*.h5")):
                if (path.stem in unused or path.stem not in known) and path.stat().st_mtime <= before:
                    yield path.stem, path

    def _unlocked(self, stage: str, fp: str) -> bool:
        path = self.root / "locks" / f"{stage}-{fp}"
        if not path.exists():
            return True
        with path.open("a") as file:
            return _can_lock(file)

    def sweep(self) -> None:
        """Remove the spool folders of killed workers, and record the end of killed runs.

        A live worker holds a lock in its spool folder. Work folders of stages stay, so that runs can resume them.
        """
        for run in self.index.open_runs():
            if not self.is_alive(run):
                self.index.end_run(run, "killed", {})
                (self.root / "locks" / RUN_LOCK.format(run)).unlink(missing_ok=True)
        for path in self.abandoned():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def abandoned(self) -> list[Path]:
        """Return the spool folders of killed workers, and old files beside them."""
        left = []
        for path in (self.root / "work").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the writer has just removed its folder
                old = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
                spool = path.is_dir() and len(path.name) == SPOOL_LETTERS
                if (spool and (old or _is_abandoned(path))) or (old and path.is_file()):
                    left.append(path)
        return left


class FeatureReader:
    """Reads the features of one fingerprint by item, and opens each segment once.

    Every read raises Damaged if the row belongs to another item, as after files of the store were swapped.
    """

    def __init__(self, where: Mapping[str, tuple[Path, int]]) -> None:
        self.where = where
        self._open: dict[Path, Segment] = {}

    def __contains__(self, item: str) -> bool:
        return item in self.where

    def _segment(self, item: str) -> tuple[Segment, int]:
        path, row = self.where[item]
        if path not in self._open:
            self._open[path] = Segment(path)
        segment = self._open[path]
        segment.require(row, item)
        return segment, row

    def rows(self, item: str, field: str, check: bool = False) -> Array:
        """Return one item's output (rows, ...). With `check`, raise Damaged if its checksum is wrong."""
        segment, row = self._segment(item)
        if field not in segment.fields:
            raise UserError(
                f"stage {segment.stage} has no output {field!r}; it has {', '.join(segment.fields)}"
            )
        if check:
            segment.check(row)
        return segment.rows(field, row)

    def length(self, item: str, field: str) -> int:
        """Return the number of rows of an item's output."""
        segment, row = self._segment(item)
        return segment.length(field, row)

    def note(self, item: str) -> dict[str, Any]:
        """Return the note that the stage wrote about an item, for instance which decoder read it."""
        segment, row = self._segment(item)
        return dict(json.loads(segment.notes[row]))

    def require_file(self, item: str, path: Path) -> None:
        """Raise Damaged unless the file at `path` is the one that the stage made from the item."""
        segment, row = self._segment(item)
        segment.require_file(row, path)


def without_locks(place: Path, error: OSError) -> UserError:
    """Return the error, with a remedy, for a file system that has no locks or refuses one."""
    return UserError(
        f"the file system of {place} gives no locks (flock: {error.strerror or error}); {NO_LOCKS}"
    )


def _can_lock(file: IO[Any]) -> bool:
    """Whether no process holds the lock of an open file. On a file system without locks it counts as held."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_abandoned(spool: Path) -> bool:
    """Whether the writer of a spool folder has ended.

    A folder without a lock file counts as in use: its writer may have made it a moment ago.
    """
    try:
        with (spool / SPOOL_LOCK).open() as file:
            return _can_lock(file)
    except OSError:
        return False


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """Write JSON to a temporary file, sync it to disk, and rename it.

    With `compact` all of it is on one line, which is three times as fast.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        if compact:
            file.write(json.dumps(value))  # the encoder in C, which `json.dump` never uses
        else:
            json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def tree_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _size(path: Path | str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
