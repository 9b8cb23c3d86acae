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
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint, digest_file
from pipeline.store.index import Index
from pipeline.store.places import Place, Places, Units
from pipeline.store.segments import Array, Damaged, Segment, SegmentWriter

RECORD = "artifact.json"
ABANDONED_SECONDS = 86400.0
SPOOL_LETTERS = 32  # of a writer's folder in work/: a UUID


@dataclass(frozen=True)
class Damage:
    """One thing that `verify` found: what is wrong, and the segment or folder it is in."""

    sentence: str
    path: Path


class Store:
    """A folder of artifacts. Reading needs no lock; making one holds the lock of its fingerprint."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        try:
            for name in ("segments", "files", "runs", "work", "locks"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the store {self.root} cannot be written: {error.strerror or error}") from None
        fresh = not (self.root / "index.sqlite").exists()
        self.index = Index(self.root / "index.sqlite")
        if fresh:
            self.rebuild_index()

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
        bad = self._bad_segments(stage, fp)
        places = self.index.places(fp)
        if bad:
            places = {item: place for item, place in places.items() if place.segment not in bad}
        if suffix is not None:
            sizes = {i: _size(self.item_file(stage, fp, i, suffix)) for i in places}
            places = {i: place for i, place in places.items() if sizes[i] == place.file_bytes}
        return places

    def places_of(self, stage: str, fp: str, units: Units, suffix: str | None = None) -> Places:
        """As `places`, of the units of a corpus, however many they are."""
        places = self.index.places_of(fp, units)
        if bad := self._bad_segments(stage, fp):
            places = places.without(bad)
        if suffix is None:
            return places
        folder = f"{self.root}/files/{stage}/{fp}"
        return places.with_files(lambda item: _size(f"{folder}/{item[:2]}/{item}{suffix}"))

    def _bad_segments(self, stage: str, fp: str) -> set[str]:
        """Recorded segments that are gone or cut short."""
        return {
            segment
            for segment, size in self.index.segments(fp).items()
            if _size(self.segment_path(stage, fp, segment)) != size
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
            files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        except (ValueError, KeyError):
            return [Damage(f"{folder / RECORD} is damaged", folder)]
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
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                waiting(
                    f"{stage} is being made by {file.read().strip() or 'another process'}; waiting for it"
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}")
            file.flush()
            yield

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
        for path in sorted((self.root / "segments").glob("*/*/*.h5")):
            found = self._segment_damage(path)
            damage.extend(found)
            if found and repair:
                self.index.forget_segment(path.stem)
                path.unlink()
            seen()
        for folder in sorted(path for path in (self.root / "runs").glob("*/*") if path.is_dir()):
            found = self._run_damage(folder, thorough=True)
            damage.extend(found)
            if found and repair:
                shutil.rmtree(folder)
            seen()
        for fp, (stage, _) in self.index.fingerprints().items():
            for segment in self.index.segments(fp):
                path = self.segment_path(stage, fp, segment)
                if not path.exists():
                    damage.append(Damage(f"the segment {path} is gone", path))
                    if repair:
                        self.index.forget_segment(segment)
        return damage

    def _segment_damage(self, path: Path) -> list[Damage]:
        try:
            segment = Segment(path)
            for row in range(len(segment.items)):
                segment.check(row)
        except Damaged as error:
            return [Damage(str(error), path)]
        out = []
        for item, name, note, size in zip(
            segment.items, segment.names, segment.notes, segment.file_bytes, strict=True
        ):
            if size is None:
                continue
            values = json.loads(note)
            file = self.item_file(segment.stage, segment.fingerprint, item, values.get("suffix", ""))
            if _size(file) != size or digest_file(file) != values.get("file_digest"):
                out.append(Damage(f"{file} (made of {name}) is not what was written", path))
        return out

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
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def sweep(self) -> None:
        """Remove what killed workers spooled and were told; work folders of stages stay, to be resumed."""
        for path in (self.root / "work").iterdir():
            with contextlib.suppress(FileNotFoundError):  # its writer has just ended
                old = time.time() - path.stat().st_mtime > ABANDONED_SECONDS
                if old and path.is_dir() and len(path.name) == SPOOL_LETTERS:
                    shutil.rmtree(path, ignore_errors=True)
                elif old and path.is_file():
                    path.unlink()


class FeatureReader:
    """Reads one fingerprint's features by item, opening each segment once."""

    def __init__(self, where: Mapping[str, tuple[Path, int]]) -> None:
        self.where = where
        self._open: dict[Path, Segment] = {}

    def __contains__(self, item: str) -> bool:
        return item in self.where

    def _segment(self, item: str) -> tuple[Segment, int]:
        path, row = self.where[item]
        if path not in self._open:
            self._open[path] = Segment(path)
        return self._open[path], row

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
