"""Published features enter the store as ordinary artifacts, with a manifest of their corpus beside them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.contents import RememberedDigests
from pipeline.corpus import Caption, Item, write_manifest
from pipeline.datasets.ms_sl import MsSl
from pipeline.errors import UserError
from pipeline.fingerprint import Fingerprint, digest_of
from pipeline.imported import PREFIX, Imported, ImportedParams
from pipeline.plan import components
from pipeline.segments import Array
from pipeline.store import Store

ITEMS_A_SEGMENT = 2048


@dataclass(frozen=True)
class ImportReport:
    """What came in: the manifest, the stages that hold the features, and the counts."""

    manifest: Path
    video_stage: str
    text_stage: str
    items: int
    captions: int


def import_ms_sl(
    store: Store, folder: Path, manifest: Path, visual_feature: str | None = None, text_file: str | None = None,
    seen: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> ImportReport:  # fmt: skip
    """Bring an MS-SL directory into a store, and write the manifest of its corpus.

    A video's and a caption's digest is that of its id and of all source files, so that the features
    of another release are other artifacts. Raises UserError naming the first row or file that is missing.
    """
    with MsSl.open(folder, visual_feature, text_file) as source:
        digest = _source_digest(RememberedDigests(store.index), folder)
        items = _items(source, digest)
        videos = {item.digest: item.id for item in items}
        captions = {c.digest: c.id for item in items for c in item.captions}
        names = [_stage_name(path) for path in (source.visual_name, source.text_name)]
        if not captions:
            raise UserError(f"{folder} has no captions")
        tokens = source.tokens(next(iter(captions.values())))
        kept = (
            ("items", names[0], source.visual_dim, videos, source.video),
            ("captions", names[1], tokens.shape[1], captions, source.tokens),
        )
        for of, name, dims, keys, read in kept:
            params = ImportedParams(layout="ms-sl", source=digest, of=of, dims=dims)
            _fill(store, Imported(name, params), keys, read, seen)
    write_manifest(manifest, items)
    return ImportReport(manifest, names[0], names[1], len(videos), len(captions))


def _stage_name(source: str) -> str:
    return PREFIX + re.sub(r"[^a-z0-9_]+", "-", source.lower()).strip("-")


def _source_digest(known: RememberedDigests, folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_of([[str(path.relative_to(folder)), known.file(path)] for path in files])


def _items(source: MsSl, digest: str) -> list[Item]:
    """One item a video, in the order of the caption files; a caption of another split says so."""
    split_of: dict[str, str] = {}
    captions: dict[str, list[Caption]] = {}
    for split, (videos, rows) in source.splits.items():
        for video in videos:
            split_of.setdefault(video, split)
        for name, text, video in rows:
            own = None if split_of[video] == split else split
            key = digest_of([name, digest])
            captions.setdefault(video, []).append(Caption(name, text, split=own, digest=key))
    return [
        Item(video, split, tuple(captions.get(video, ())), digest=digest_of([video, digest]))
        for video, split in split_of.items()
    ]


def _fill(
    store: Store, stage: Imported, keys: dict[str, str], read: Callable[[str], Array],
    seen: Callable[[str, int, int], None],
) -> None:  # fmt: skip
    """Write every item's rows under the stage's fingerprint, in place of what was imported under its name."""
    known = RememberedDigests(store.index)
    fingerprint = Fingerprint.of(components(stage, {}, known))
    with store.lock(stage.name, fingerprint.hex):
        store.adopt(stage.name, fingerprint.hex)
        have = store.places(stage.name, fingerprint.hex)
        todo = [key for key in keys if key not in have]
        done = len(keys) - len(todo)
        for start in range(0, len(todo), ITEMS_A_SEGMENT):
            part = todo[start : start + ITEMS_A_SEGMENT]
            with store.writer(stage.name, fingerprint, stage.fields) as writer:
                for key in part:
                    writer.append(key, keys[key], {"row": read(keys[key])}, {"imported": stage.params.layout})
                rows, path = dict(writer.items), writer.finish()
            if path is not None:
                store.index.add_segment(path.stem, fingerprint.hex, path.stat().st_size, rows)
            done += len(part)
            seen(stage.name, done, len(keys))
        store.index.add_fingerprint(fingerprint.hex, stage.name, fingerprint.components)
    _forget_others(store, stage.name, fingerprint.hex)


def _forget_others(store: Store, name: str, keep: str) -> None:
    """What was imported under the same name before; its stage now stands for the new files."""
    for fp in store.index.fingerprints(name):
        if fp != keep:
            store.index.forget_fingerprint(fp)
            shutil.rmtree(store.segments_folder(name, fp), ignore_errors=True)


def require_layout(layout: str, possible: Iterable[str] = ("ms-sl",)) -> None:
    """Raise UserError for a layout that cannot be read."""
    if layout not in possible:
        raise UserError(f"unknown layout {layout!r}; possible: {', '.join(possible)}")
