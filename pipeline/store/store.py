"""The store: every artifact once, under the fingerprint of what decided it. Written aside, checked, renamed.

segments/<stage>/<fingerprint>/<id>.h5     features of many items (pipeline.store.segments)
files/<stage>/<fingerprint>/ab/abcd....mp4 a file an item
runs/<stage>/<fingerprint>/                a folder a corpus: arrays, checkpoints, metrics, report
work/                                      what is being made; safe to delete when nothing runs
locks/                                     one file a fingerprint, locked by the process that makes it
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
IN_MEMORY = Path(":memory:")
RUN_LOCK = "run-{}"  # in locks/, held by the process of the run
ABANDONED_SECONDS = 86400.0
SPOOL_LETTERS = 32  # of a writer's folder in work/: a UUID


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Damage:
    """One thing that `verify` found: what is wrong, and the segment or folder it is in."""

    sentence: str
    path: Path


class Store:
    """A folder of artifacts. Reading needs no lock; making one holds the lock of its fingerprint."""

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
        """Whether nothing can be written here, so that only what is finished can be used."""
        return self.index.read_only or self.index.path == IN_MEMORY

    def _replaced_index(self, path: Path, damage: DamagedIndex) -> Index:
        """A new index in place of a damaged one, which is kept beside it; in memory where it cannot be replaced."""
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

    # where things are ---------------------------------------------------------------------------

    def segment_path(self, stage: str, fp: str, segment: str) -> Path:
        """The file of a segment."""
        return self.root / "segments" / stage / fp / f"{segment}.h5"

    def segments_folder(self, stage: str, fp: str) -> Path:
        """The segments of a fingerprint."""
        return self.root / "segments" / stage / fp

    def item_file(self, stage: str, fp: str, item: str, suffix: str) -> Path:
        """The file that a stage made of an item."""
        return self.root / "files" / stage / fp / item[:2] / f"{item}{suffix}"

    def run_folder(self, stage: str, fp: str) -> Path:
        """The finished folder of a stage over the whole corpus."""
        return self.root / "runs" / stage / fp

    def work_folder(self, stage: str, fp: str) -> Path:
        """Where a stage over the whole corpus works; kept when it is killed, so that it can resume."""
        return self.root / "work" / stage / fp

    # features -----------------------------------------------------------------------------------

    def writer(self, stage: str, fingerprint: Fingerprint, fields: Mapping[str, Field]) -> SegmentWriter:
        """A new segment in the making."""
        folder = self.segments_folder(stage, fingerprint.hex)
        return SegmentWriter(
            folder, self.root / "work", stage, fingerprint.hex, fingerprint.components, fields
        )

    def adopt(self, stage: str, fp: str) -> int:
        """Record whole segments that the index does not know: their run was killed just then, or it is gone.

        Called with the fingerprint's lock held. Returns how many items were found.
        """
        folder = self.segments_folder(stage, fp)
        known = self.index.segments(fp)
        found = 0
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
            found += len(items)
        return found

    def drop_unused_segments(self, stage: str, fp: str) -> None:
        """Remove the segments whose items were all forgotten. Called with the fingerprint's lock held."""
        for segment in self.index.unused_segments(fp):
            self.segment_path(stage, fp, segment).unlink(missing_ok=True)
            self.index.forget_segment(segment)

    def places(self, stage: str, fp: str, suffix: str | None = None) -> dict[str, Place]:
        """Where each finished item is, after a look at sizes: what is gone or cut short is missing work.

        With a suffix, each item's file must be there too, in its recorded size.
        """
        places = self.index.places(fp)
        if bad := self._bad_segments(stage, fp, {place.segment for place in places.values()}):
            places = {item: place for item, place in places.items() if place.segment not in bad}
        if suffix is not None:
            sizes = {i: _size(self.item_file(stage, fp, i, suffix)) for i in places}
            places = {i: place for i, place in places.items() if sizes[i] == place.file_bytes}
        return places

    def places_of(self, stage: str, fp: str, units: Units, suffix: str | None = None) -> Places:
        """As `places`, of the units of a corpus, however many they are."""
        places = self.index.places_of(fp, units)
        if bad := self._bad_segments(stage, fp, places.segments):
            places = places.without(bad)
        if suffix is None:
            return places
        folder = f"{self.root}/files/{stage}/{fp}"
        return places.with_files(lambda item: _size(f"{folder}/{item[:2]}/{item}{suffix}"))

    def _bad_segments(self, stage: str, fp: str, named: Iterable[str]) -> set[str]:
        """Those of the `named` segments that are gone, cut short, or not recorded under this fingerprint."""
        sizes = self.index.segments(fp)
        return {
            segment
            for segment in named
            if segment not in sizes or _size(self.segment_path(stage, fp, segment)) != sizes[segment]
        }

    def reader(self, stage: str, fp: str) -> FeatureReader:
        """The features of a fingerprint, by item."""
        places = self.places(stage, fp)
        return FeatureReader({i: (self.segment_path(stage, fp, p.segment), p.row) for i, p in places.items()})

    # folders ------------------------------------------------------------------------------------

    def has_run(self, stage: str, fp: str) -> bool:
        """Whether a stage over the whole corpus is finished and its files have their sizes."""
        return not self._run_damage(self.run_folder(stage, fp), thorough=False)

    def run_record(self, stage: str, fp: str) -> dict[str, Any]:
        """What was written of a finished folder: components, seconds, when, files."""
        return dict(json.loads((self.run_folder(stage, fp) / RECORD).read_text(encoding="utf-8")))

    def publish(self, stage: str, fingerprint: Fingerprint, seconds: float, extra: Mapping[str, Any]) -> Path:
        """Turn a work folder into the finished artifact, by one rename."""
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
        """Whether a work folder was finished already, by a run killed before it could rename it; now it is."""
        work = self.work_folder(stage, fp)
        if self._run_damage(work, thorough=True):
            return False
        self._move(work, self.run_folder(stage, fp))
        return True

    @staticmethod
    def _move(work: Path, target: Path) -> None:
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.rename(target)

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
        """Hold the lock of a fingerprint; while another live process has it, say so once and wait.

        The kernel releases it with its process, however that ends. On a network file system this
        needs working flock.
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
        """Mark a run as alive for as long as the block, and this process, last."""
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
        """Whether the process of a run goes on."""
        try:
            with (self.root / "locks" / RUN_LOCK.format(run)).open() as file:
                return not _can_lock(file)
        except OSError:  # removed with its end, or of a version that made none
            return False

    # care ---------------------------------------------------------------------------------------

    def rebuild_index(self) -> int:
        """Record every segment and folder on disk in a new index; returns how many."""
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

    def verify(self, repair: bool = False, seen: Callable[[], None] = lambda: None) -> list[Damage]:
        """Everything in the store that is not, bit for bit, what was written; with `repair` it is dropped."""
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
        mixed_up: list[Path] = []  # whole segments of which the index says something else
        for path in sorted((self.root / "segments").glob("*/*/*.h5")):
            segment, found = self._segment_damage(path)
            damage.extend(found)
            if segment is not None and segment.misplaced:
                damage.append(Damage(segment.misplaced, path))
                misplaced.append(segment)
            elif found and repair:
                self.index.forget_segment(path.stem)
                path.unlink()
            elif segment is not None and (wrong := self._index_damage(segment)):
                damage.extend(wrong)
                mixed_up.append(path)
            seen()
        if repair:
            self._record_again(mixed_up)
            self._put_back(misplaced)
        for folder in sorted(path for path in (self.root / "runs").glob("*/*") if path.is_dir()):
            found = self._run_damage(folder, thorough=True)
            damage.extend(found)
            if found and repair:
                shutil.rmtree(folder)
            seen()
        for fp, (stage, _) in self.index.fingerprints().items():
            for name in self.index.named_segments(fp):
                path = self.segment_path(stage, fp, name)
                if not path.exists():
                    damage.append(Damage(f"the segment {path} is gone", path))
                    if repair:
                        self.index.forget_segment(name)
        return damage

    def _index_damage(self, segment: Segment) -> list[Damage]:
        """What the index says of a whole segment that the segment itself does not say; [] if it knows it not at all."""
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
        """Record whole segments by what they hold; all are forgotten first, or one would take another's items."""
        for path in paths:
            self.index.forget_segment(path.stem)
        for stage, fp in dict.fromkeys((path.parts[-3], path.parts[-2]) for path in paths):
            self.adopt(stage, fp)

    def _put_back(self, segments: Iterable[Segment]) -> None:
        """Give whole segments the names they were written under, also where two were swapped; record them again."""
        moved = []
        for segment in segments:
            target = self.segment_path(segment.stage, segment.fingerprint, segment.id or segment.path.stem)
            aside = target.with_suffix(f".{segment.path.stem}.moved")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.index.forget_segment(segment.path.stem)
            moved.append((segment.path.rename(aside), target))
        for aside, target in moved:
            if target.exists():  # this was a copy of it
                aside.unlink()
            else:
                aside.rename(target)
        self._record_again([target for _, target in moved])

    def _segment_damage(self, path: Path) -> tuple[Segment | None, list[Damage]]:
        """The segment at a path, None if it is not whole, and what is wrong with its rows and its items' files."""
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

    def gc(self, keep: set[str], dry_run: bool, older_than_seconds: float = 0) -> list[tuple[Path, int]]:
        """Remove what no kept fingerprint needs, orphans, and abandoned work; returns (path, bytes) of each."""
        removed: list[tuple[Path, int]] = []

        def drop(path: Path) -> None:
            removed.append((path, tree_bytes(path)))
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        now = time.time()
        for kind in ("segments", "files", "runs", "work"):
            for folder in sorted(p for p in (self.root / kind).glob("*/*") if p.is_dir()):
                old = now - folder.stat().st_mtime >= older_than_seconds
                if folder.name not in keep and old and self._unlocked(folder.parent.name, folder.name):
                    drop(folder)
                    if not dry_run:
                        self.index.forget_fingerprint(folder.name)
        for segment, path in self._unused_segments(keep, now - older_than_seconds):
            drop(path)
            if not dry_run:
                self.index.forget_segment(segment)
        return removed

    def _unused_segments(self, keep: set[str], before: float) -> Iterator[tuple[str, Path]]:
        """Segments of kept fingerprints that nothing refers to: all made again elsewhere, or damaged orphans."""
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
        """Remove what killed workers spooled, and record that killed runs have ended.

        The folder of a worker that is alive is locked by it. Work folders of stages stay, to be resumed.
        """
        for run in self.index.open_runs():
            if not self.is_alive(run):
                self.index.end_run(run, "killed", {})
                (self.root / "locks" / RUN_LOCK.format(run)).unlink(missing_ok=True)
        for path in (self.root / "work").iterdir():
            with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                old = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
                if path.is_dir() and len(path.name) == SPOOL_LETTERS:
                    if old or _is_abandoned(path):
                        shutil.rmtree(path, ignore_errors=True)
                elif old and path.is_file():
                    path.unlink()


class FeatureReader:
    """Reads one fingerprint's features by item, opening each segment once.

    Every read raises Damaged where the row is another item's: the index, or the files, were mixed up.
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
        """One item's output, (rows, ...). With `check`, Damaged where it is not what was written."""
        segment, row = self._segment(item)
        if field not in segment.fields:
            raise UserError(
                f"stage {segment.stage} has no output {field!r}; it has {', '.join(segment.fields)}"
            )
        if check:
            segment.check(row)
        return segment.rows(field, row)

    def length(self, item: str, field: str) -> int:
        """How many rows an item's output has."""
        segment, row = self._segment(item)
        return segment.length(field, row)

    def note(self, item: str) -> dict[str, Any]:
        """What was noted of an item when it was made (the decoder it took, for instance)."""
        segment, row = self._segment(item)
        return dict(json.loads(segment.notes[row]))

    def require_file(self, item: str, path: Path) -> None:
        """Raise Damaged unless the file at `path` is the one that was made of an item."""
        segment, row = self._segment(item)
        segment.require_file(row, path)


def without_locks(place: Path, error: OSError) -> UserError:
    """The error of a file system that has no locks, or refuses one, with the remedy."""
    return UserError(
        f"the file system of {place} gives no locks (flock: {error.strerror or error}); {NO_LOCKS}"
    )


def _can_lock(file: IO[Any]) -> bool:
    """Whether nobody has the lock of an open file. Where there are no locks nobody can tell, and it counts as held."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_abandoned(spool: Path) -> bool:
    """Whether the writer of a spool folder has ended. One that was made just now may not have its lock yet."""
    try:
        with (spool / SPOOL_LOCK).open() as file:
            return _can_lock(file)
    except OSError:
        return False


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """Write JSON aside, sync it to disk, rename it. With `compact` on one line, which is three times as fast."""
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
    """Bytes on disk of a file or folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _size(path: Path | str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
