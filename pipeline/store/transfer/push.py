"""Publish a store's segments and finished folders below a URL: data first, then the entry that names them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipeline.store.fingerprint import CONTENT_BYTES
from pipeline.store.segments import Damaged, Segment
from pipeline.store.store import RECORD, Store
from pipeline.store.transfer.entry import Blob, Entry, Untrusted, Where, read_record
from pipeline.store.transfer.remote import Remote, RemoteTrouble, as_json
from pipeline.store.transfer.work import How, Meter, Moved, OnMoved, Outcome, Selection, together

BLOCK_BYTES = 4 << 20
ARRIVAL_SECONDS = (0.0, 0.05, 0.5, 2.0)  # waits before each look at an object that was uploaded


@dataclass
class _Leaving:
    """A segment or folder that is being published: its files with their expected digests, and those uploaded."""

    where: Where
    files: Mapping[
        str, str | None
    ]  # name in the store -> BLAKE2b digest; None if the file contains its own checksums
    items: list[str] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)


_Sent = Moved[_Leaving, Blob]


def push(
    store: Store,
    remote: Remote,
    stages: Collection[str] = (),
    selection: Selection | None = None,
    how: How = How(),  # noqa: B008  # frozen
    on_moved: OnMoved = lambda moved, total: None,
) -> Outcome:
    """Upload the artifacts that the remote side lacks: all, or those of the stages and items named.

    Damaged files are not published: each file is read once before its upload and compared with the checksum it was
    written with. A push that is killed leaves no entry with missing files. The next push skips published segments and
    folders without reading them, and files that the remote side has with the same digest and size.
    """
    outcome, meter = Outcome(), Meter(on_moved)
    there = remote.entries()
    folders = {where[:2] for where in there if where.kind == "folder"}  # one copy per fingerprint is enough
    todo: list[Where] = []
    for where, size in _here(store, stages, selection):
        published = where in there or (where.kind == "folder" and where[:2] in folders)
        if published and not how.again:
            outcome.already += 1
        else:
            todo.append(where)
            meter.total += size
    if how.dry_run:
        for where in todo:
            outcome.count(where.kind)
        outcome.bytes = meter.total
        return outcome
    for sent in together(how.jobs, _tasks(store, remote, todo, how.again, meter, outcome), meter):
        _count(remote, sent, outcome)
    return outcome


def _here(store: Store, stages: Collection[str], selection: Selection | None) -> Iterator[tuple[Where, int]]:
    """Yield the requested segments and finished folders of a store, with the bytes of each."""
    for fp, (stage, _) in sorted(store.index.fingerprints().items(), key=lambda entry: entry[1][0]):
        if (stages and stage not in stages) or (selection is not None and fp not in selection):
            continue
        places, sizes = store.places(stage, fp), Counter(store.index.segments(fp))
        for place in places.values():
            sizes[place.segment] += place.file_bytes or 0
        requested = places if selection is None else [item for item in selection[fp] if item in places]
        for segment in sorted({places[item].segment for item in requested}):
            yield Where(stage, fp, "segment", segment), sizes[segment]
        if store.has_run(stage, fp):
            record = store.run_folder(stage, fp) / RECORD
            size = sum(size for size, _ in store.run_record(stage, fp)["files"].values())
            digest = hashlib.sha256(record.read_bytes()).hexdigest()
            yield Where(stage, fp, "folder", digest[:32]), size + record.stat().st_size


def _tasks(
    store: Store, remote: Remote, todo: Collection[Where], again: bool, meter: Meter, outcome: Outcome
) -> Iterator[Callable[[], _Sent]]:
    """Yield one task per file; add segments and folders that cannot be read to the failures of `outcome`."""
    for where in todo:
        try:
            leaving = (_segment if where.kind == "segment" else _folder)(store, where)
        except (Damaged, Untrusted, FileNotFoundError) as error:
            outcome.failed.append((where.sentence, str(error)))
            continue
        for name in leaving.files:
            yield partial(_send, store, remote, leaving, name, again, meter)


def _segment(store: Store, where: Where) -> _Leaving:
    """Return a segment with the files of its items."""
    segment = Segment(store.root / where.segment)
    if segment.misplaced:
        raise Damaged(segment.misplaced)
    files: dict[str, str | None] = {}
    for item, note, size in zip(segment.items, segment.notes, segment.file_bytes, strict=True):
        if size is not None:
            record = json.loads(note)
            path = store.item_file(where.stage, where.fingerprint, item, record["suffix"])
            files[path.relative_to(store.root).as_posix()] = record["file_digest"]
    return _Leaving(where, files | {where.segment: None}, segment.items)


def _folder(store: Store, where: Where) -> _Leaving:
    """Return a finished folder: the files that its record lists, and the record itself."""
    record = read_record((store.root / where.folder / RECORD).read_bytes())
    files = {f"{where.folder}/{name}": str(digest) for name, (_, digest) in record.files.items()}
    return _Leaving(where, files | {f"{where.folder}/{RECORD}": None})


def _send(store: Store, remote: Remote, leaving: _Leaving, name: str, again: bool, meter: Meter) -> _Sent:
    """Check one file against the digest it was written with, and upload it if the remote side lacks it."""
    path = store.root / name
    try:
        before = path.stat()
        blob = _checked(path, leaving.files[name], meter)
        sent = again or remote.size(blob.path) != blob.size
        if not sent:
            meter.add(blob.size)
            return _Sent(leaving, name, blob)
        remote.put(path, blob.path, meter.add)
        if not _arrived(remote, blob):
            raise RemoteTrouble(f"{remote.url}/{blob.path} did not arrive whole")
        after = path.stat()
        if (after.st_ino, after.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
            remote.remove(blob.path)  # other content may have been uploaded under this digest
            raise Damaged(f"{path} was made again meanwhile; push once more")
    except (Damaged, RemoteTrouble) as error:
        return _Sent(leaving, name, trouble=str(error))
    except FileNotFoundError:
        return _Sent(leaving, name, trouble=f"{path} is gone")
    return _Sent(leaving, name, blob, blob.size)


def _arrived(remote: Remote, blob: Blob) -> bool:
    """Whether the remote side has an object whole.

    It is looked at several times: somebody who pushes the same content at this moment may have just begun to replace
    the object with its equal, which not every file system does at one stroke.
    """
    for seconds in ARRIVAL_SECONDS:
        time.sleep(seconds)
        if remote.size(blob.path) == blob.size:
            return True
    return False


def _checked(path: Path, expected: str | None, meter: Meter) -> Blob:
    """Return the size and digest of a file. Raises Damaged if it differs from what was written."""
    ours, sha256, size = hashlib.blake2b(digest_size=CONTENT_BYTES), hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            meter.add(0)
            sha256.update(block)
            if expected is not None:
                ours.update(block)
            size += len(block)
    if expected is not None and ours.hexdigest() != expected:
        raise Damaged(f"{path} is not what was written; `crossreel store verify --repair` drops it")
    if path.suffix == ".h5" and expected is None:
        segment = Segment(path)
        for row in range(len(segment.items)):
            segment.check(row)
    return Blob(size=size, sha256=sha256.hexdigest())


def _count(remote: Remote, sent: _Sent, outcome: Outcome) -> None:
    """Count a file; once all files of a segment or folder are there, publish the entry that names them."""
    leaving = sent.of
    if sent.content is None:
        outcome.failed.append((sent.name, sent.trouble))
        return
    leaving.blobs[sent.name] = sent.content
    outcome.files += sent.bytes > 0
    outcome.bytes += sent.bytes
    if len(leaving.blobs) < len(leaving.files):
        return
    where = leaving.where
    try:
        entry = Entry(kind=where.kind, stage=where.stage, fingerprint=where.fingerprint, id=where.id,
                      items=leaving.items, files=leaving.blobs)  # fmt: skip
        remote.write(where.path, as_json(entry.model_dump()))
    except RemoteTrouble as trouble:
        outcome.failed.append((where.sentence, str(trouble)))
    else:
        outcome.count(where.kind)
