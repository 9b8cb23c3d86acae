"""Fetch segments and finished folders that were published below a URL, check them, and record them in a store.

Nothing is trusted without a check: every name must lead below the folder of its fingerprint, every file must
have the size and digest that its entry announces, every segment must pass its own checksums, and a fingerprint
must be the digest of the components published with it. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.store.fingerprint import Fingerprint, digest_text
from pipeline.store.imports import PREFIX, ImportedParams
from pipeline.store.segments import Damaged, Segment
from pipeline.store.store import RECORD, Store
from pipeline.store.transfer.entry import (
    MOST_ENTRY_BYTES,
    Blob,
    Entry,
    Untrusted,
    Where,
    read_entry,
    read_record,
    sizes_of,
)
from pipeline.store.transfer.remote import PART_BYTES, Remote, RemoteTrouble
from pipeline.store.transfer.work import How, Meter, Moved, OnMoved, Outcome, Say, Selection, together

PULLED = "pulled"  # the folder in work/ where finished folders are assembled from their files
SEGMENT_DATASETS = {"items", "names", "notes", "file_bytes", "checksums"}
FIELD_DATASETS = {"values", "offsets"}
NO_SEGMENT = (
    Damaged,
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass
class _Coming:
    """A segment or folder that is being fetched: the files that are missing here, and those that have arrived."""

    entry: Entry
    lacking: Mapping[str, Blob]
    come: dict[str, Path] = field(default_factory=dict)


_Fetched = Moved[_Coming, Path]


def pull(
    store: Store,
    remote: Remote,
    stages: Collection[str] = (),
    selection: Selection | None = None,
    how: How = How(),  # noqa: B008  # frozen
    on_moved: OnMoved = lambda moved, total: None,
    say: Say = lambda sentence: None,
) -> Outcome:
    """Fetch the published artifacts that this store lacks: all, or those of the stages and items named.

    The lock of a fingerprint is held while its files arrive, so that a run that needs them waits and then uses them.
    If a pull is killed, an incomplete file is never used as a complete one, and the next pull resumes it where it
    stopped. Raises UserError if nothing is published or the disk has too little space.
    """
    outcome, meter = Outcome(), Meter(on_moved)
    there = remote.entries()
    if not there:
        raise UserError(f"{remote.url} holds nothing that `crossreel store push` has written")
    requested = {
        where: size
        for where, size in there.items()
        if (not stages or where.stage in stages) and (selection is None or where.fingerprint in selection)
    }
    known = _known(store, requested)
    unknown = {where: size for where, size in requested.items() if where not in known}
    outcome.already = len(requested) - len(unknown)
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in _read(remote, unknown, how.jobs, meter, outcome):
        groups.setdefault((entry.stage, entry.fingerprint), []).append(entry)
    chosen = [entry for entries in groups.values() for entry in _chosen(store, entries, selection)]
    meter.total = sum(blob.size for entry in chosen for blob in _lacking(store, entry).values())
    if how.dry_run:
        outcome.already = len(requested) - len(chosen) - len(outcome.failed)
        outcome.bytes = meter.total
        for entry in chosen:
            outcome.count(entry.kind)
        return outcome
    if (free := shutil.disk_usage(store.root).free) < meter.total:
        raise UserError(f"{meter.total} bytes are to be fetched, {free} are free in {store.root}")
    for (stage, fp), entries in sorted(groups.items()):
        with store.lock(stage, fp, say):
            now = _chosen(store, entries, selection)  # another run may have made some since
            outcome.already += len(entries) - len(now)
            _fetch_group(store, remote, now, how.jobs, meter, outcome)
            for spare in [entry for entry in entries if entry.kind == "folder"][1:]:
                if not store.has_run(stage, fp):  # the first copy was refused; another machine's may be whole
                    _fetch_group(store, remote, [spare], how.jobs, meter, outcome)
            store.adopt(stage, fp)
    return outcome


def _known(store: Store, wheres: Iterable[Where]) -> set[Where]:
    """Return the finished folders and the segments without items' files that this store has, by index and sizes."""
    known, segments = set(), {}
    for where in wheres:
        stage, fp = where.stage, where.fingerprint
        if where.kind == "folder":
            here = store.has_run(stage, fp)
        else:
            if fp not in segments:
                filed = {p.segment for p in store.places(stage, fp).values() if p.file_bytes is not None}
                sizes = store.index.segments(fp)
                segments[fp] = {one: size for one, size in sizes.items() if one not in filed}
            here = where.id in segments[fp] and _size(store.root / where.segment) == segments[fp][where.id]
        if here:
            known.add(where)
    return known


def _read(
    remote: Remote, wheres: Mapping[Where, int], jobs: int, meter: Meter, outcome: Outcome
) -> Iterator[Entry]:
    """Yield the published entries in sorted order; add those that cannot be read to the failures of `outcome`."""

    def read(where: Where, size: int) -> tuple[Where, Entry | str]:
        try:
            return where, read_entry(where, remote.read(where.path, size))
        except Untrusted as reason:
            return where, f"{remote.url}/{where.path} is refused: {reason}"
        except RemoteTrouble as trouble:
            return where, str(trouble)

    tasks = (partial(read, where, size) for where, size in wheres.items())
    for where, entry in sorted(together(jobs, tasks, meter), key=lambda result: result[0]):
        if isinstance(entry, Entry):
            yield entry
        else:
            outcome.failed.append((where.sentence, entry))


def _chosen(store: Store, entries: Sequence[Entry], selection: Selection | None) -> list[Entry]:
    """Return the entries of a fingerprint that contain an item or a folder that this store lacks."""
    stage, fp = entries[0].stage, entries[0].fingerprint
    chosen = [] if store.has_folder(stage, fp) else [entry for entry in entries if entry.kind == "folder"][:1]
    places = store.places(stage, fp)
    coming: set[str] = set()
    for entry in (entry for entry in entries if entry.kind == "segment"):
        files = {Path(name).stem: name for name in entry.files if name != entry.where.segment}
        whole = {
            item for item in entry.items
            if item in places
            and (item not in files or _size(store.root / files[item]) == places[item].file_bytes)
        }  # fmt: skip
        requested = set(entry.items) if selection is None else set(entry.items).intersection(selection[fp])
        if requested - whole - coming:
            chosen.append(entry)
            coming.update(entry.items)
    return chosen


def _lacking(store: Store, entry: Entry) -> dict[str, Blob]:
    """Return the files of an entry that are missing here or have another size.

    The size is enough: a file gets its final name only after its digest was checked.
    """
    return {
        name: blob for name, blob in entry.files.items() if _size(_target(store, entry, name)) != blob.size
    }


def _target(store: Store, entry: Entry, name: str) -> Path:
    """Return the final path of a file; files of a finished folder are first assembled in work/."""
    if entry.kind == "segment":
        return store.root / name
    return _assembled(store, entry) / name.removeprefix(f"{entry.where.folder}/")


def _assembled(store: Store, entry: Entry) -> Path:
    return store.root / "work" / PULLED / f"{entry.fingerprint}-{entry.id}"


def _fetch_group(
    store: Store, remote: Remote, entries: Iterable[Entry], jobs: int, meter: Meter, outcome: Outcome
) -> None:
    """Fetch the missing files of entries of one fingerprint, and place each entry that is complete.

    The caller holds the lock of the fingerprint.
    """
    comings = [_Coming(entry, _lacking(store, entry)) for entry in entries]
    for coming in comings:
        if not coming.lacking:  # an earlier pull was killed just before it placed this entry
            _place(store, coming, outcome)
    tasks: Iterator[Callable[[], _Fetched]] = (
        partial(_fetch, store, remote, coming, name, meter) for coming in comings for name in coming.lacking
    )
    for fetched in together(jobs, tasks, meter):
        coming = fetched.of
        outcome.bytes += fetched.bytes
        if fetched.content is None:
            outcome.failed.append((fetched.name, fetched.trouble))
            continue
        coming.come[fetched.name] = fetched.content
        outcome.files += 1
        if len(coming.come) == len(coming.lacking):
            _place(store, coming, outcome)


def _fetch(store: Store, remote: Remote, coming: _Coming, name: str, meter: Meter) -> _Fetched:
    """Fetch one file to a temporary path, check it, and move it to its final path.

    A segment stays at the temporary path until the files of its items have arrived.
    """
    entry, blob = coming.entry, coming.lacking[name]
    part = store.root / "work" / f"{digest_text(f'{name} {blob.sha256}')}.part"
    target = _target(store, entry, name)
    try:
        fetched = _download(remote, blob, part, meter)
        if name == entry.where.segment:
            _require_segment(part, entry)
            return _Fetched(coming, name, part, fetched)
    except Untrusted as reason:
        part.unlink(missing_ok=True)
        return _Fetched(coming, name, trouble=str(reason))
    except RemoteTrouble as trouble:  # the part that has arrived is kept, so that the next pull resumes it
        return _Fetched(coming, name, trouble=str(trouble))
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
    return _Fetched(coming, name, target, fetched)


def _download(remote: Remote, blob: Blob, part: Path, meter: Meter) -> int:
    """Fetch the rest of a partly fetched file; return the number of bytes fetched.

    Raises Untrusted if the file does not have the announced size or digest.
    """
    if (size := remote.size(blob.path)) != blob.size:
        state = "is not there" if size is None else f"has {size} bytes"
        raise Untrusted(f"{remote.url}/{blob.path} {state}, {blob.size} were announced")
    sha256, had, fetched = hashlib.sha256(), 0, 0
    with part.open("a+b") as file:
        file.seek(0)
        while block := file.read(PART_BYTES):
            sha256.update(block)
            had += len(block)
            meter.add(len(block))
        for start in range(had, blob.size, PART_BYTES):
            stop = min(start + PART_BYTES, blob.size)
            block = remote.part(blob.path, start, stop)
            if len(block) != stop - start:
                raise Untrusted(f"{remote.url}/{blob.path} ends after {start + len(block)} bytes")
            file.write(block)
            sha256.update(block)
            fetched += len(block)
            meter.add(len(block))
        file.flush()
        os.fsync(file.fileno())
    if sha256.hexdigest() != blob.sha256:
        raise Untrusted(f"{remote.url}/{blob.path} does not have the digest that was announced")
    return fetched


def _place(store: Store, coming: _Coming, outcome: Outcome) -> None:
    """Move a complete segment or folder to its final path in the store."""
    entry = coming.entry
    try:
        if entry.kind == "folder":
            _place_folder(store, entry)
        elif part := coming.come.get(entry.where.segment):
            target = store.root / entry.where.segment
            target.parent.mkdir(parents=True, exist_ok=True)
            part.replace(target)
    except Untrusted as reason:
        outcome.failed.append((entry.where.sentence, str(reason)))
    else:
        outcome.count(entry.kind)


def _place_folder(store: Store, entry: Entry) -> None:
    """Check an assembled folder against its own record, and rename it to its final path."""
    folder, where = _assembled(store, entry), entry.where
    try:
        components = _folder_components(folder, entry)
    except Untrusted:
        shutil.rmtree(folder)
        raise
    target = store.run_folder(where.stage, where.fingerprint)
    if target.exists():  # it is unfinished or damaged: a whole folder would not have been fetched
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    store.index.add_fingerprint(where.fingerprint, where.stage, components)


def _folder_components(folder: Path, entry: Entry) -> Mapping[str, Any]:
    """Return the components of a folder's fingerprint. Raises Untrusted unless its record lists exactly these files."""
    prefix = f"{entry.where.folder}/"
    sizes = {name.removeprefix(prefix): blob.size for name, blob in entry.files.items()}
    if sizes.pop(RECORD) > MOST_ENTRY_BYTES:
        raise Untrusted(f"its {RECORD} is larger than any")
    record = read_record((folder / RECORD).read_bytes())
    if dict(sizes_of(record)) != sizes:
        raise Untrusted(f"its files are not those of its {RECORD}")
    _require_fingerprint(entry, record.stage, record.fingerprint, record.components)
    return record.components


def _require_segment(path: Path, entry: Entry) -> None:
    """Raise Untrusted unless a file is an undamaged segment with the announced items and files."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            _require_flat(file, path.stat().st_size)
        segment = Segment(path)
        for row in range(len(segment.items)):
            segment.check(row)
    except NO_SEGMENT as error:  # any error that h5py may raise for a file made to do harm
        raise Untrusted(f"{entry.where.segment} is no whole segment: {error}") from None
    _require_fingerprint(entry, segment.stage, segment.fingerprint, segment.components)
    if segment.id not in ("", entry.where.id):
        raise Untrusted(f"{entry.where.segment} is the segment {segment.id}")
    files = {Path(name).stem: blob.size for name, blob in entry.files.items() if name != entry.where.segment}
    sizes = dict(zip(segment.items, segment.file_bytes, strict=True))
    if segment.items != entry.items or {i: size for i, size in sizes.items() if size is not None} != files:
        raise Untrusted(f"{entry.where.segment} does not hold the items and files that were announced")


def _require_flat(file: h5py.File, size: int) -> None:
    """Raise ValueError if a file has what no segment has: links, compression, or datasets larger than the file."""
    for name in file:
        inside = {name} if name in SEGMENT_DATASETS else {f"{name}/{one}" for one in FIELD_DATASETS}
        links = [file.get(path, getlink=True) for path in {name, *inside}]
        if not all(isinstance(link, h5py.HardLink) for link in links):
            raise ValueError(f"{name} leads elsewhere")
        for path in inside:
            values = file[path]
            flat = isinstance(values, h5py.Dataset) and values.chunks is None and not values.is_virtual
            if not flat or values.external or values.nbytes > size:
                raise ValueError(f"{path} is not stored flat")


def _require_fingerprint(entry: Entry, stage: str, fp: str, components: Any) -> None:
    """Raise Untrusted unless the fingerprint is the digest of the components and they name the stage."""
    try:
        true = Fingerprint.of(components).hex if isinstance(components, dict) else ""
        if stage.startswith(PREFIX):
            ImportedParams(**components["params"])
    except (KeyError, RecursionError, TypeError, ValueError, ValidationError):
        true = ""
    if (stage, fp, true) != (entry.stage, entry.fingerprint, entry.fingerprint) or components[
        "stage"
    ] != stage:
        raise Untrusted(f"{entry.where.sentence} does not have the components of its fingerprint")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
