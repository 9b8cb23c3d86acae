"""Import of published features into the store as ordinary artifacts, with a manifest of their corpus."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.importers.published import HELD_OUT, PAPERS, held_out
from pipeline.corpus.manifest import Caption, Corpus, Item, Protocol, write_manifest
from pipeline.errors import ItemError, UserError
from pipeline.features.imported import Imported
from pipeline.features.layouts.feature_files import FeatureFiles, as_rows, match
from pipeline.features.layouts.h2arn_files import H2arnFiles, stage_words
from pipeline.features.layouts.ms_sl import MsSl
from pipeline.run.plan import components
from pipeline.store.fingerprint import Fingerprint, digest_of
from pipeline.store.imports import PREFIX, ImportedParams
from pipeline.store.segments import Array
from pipeline.store.store import Store

ITEMS_A_SEGMENT = 2048
NOT_THERE = "not in the imported features"
SAME_WITHIN = 2.0**-8  # share of the largest number; float16 and other batch sizes differ by less than 2^-9

Seen = Callable[[str, int, int], None]
"""Progress callback: name of the stage, number of its items that are stored, number of all its items."""


@dataclass(frozen=True)
class ImportReport:
    """Result of an import: path of the manifest, names of the stages with the features, and counts."""

    manifest: Path
    video_stage: str  # stage of the items' features; the items may be point clouds
    text_stage: str
    items: int
    captions: int
    failed: dict[str, str] = field(default_factory=dict)  # item or caption -> reason
    unlinked: int = 0  # captions that belong to no item, and were left out
    validated: str = ""  # a phrase that names the validation items


@dataclass(frozen=True)
class FilesReport:
    """Result of an import by name: the stage, and counts of matched and unmatched arrays and ids."""

    stage: str
    total: int  # items or captions of the corpus
    matched: int  # items or captions with an array: their own, or that of the same bytes or text
    by_stem: int  # matches by the stem of the id alone
    missing: list[str]  # ids of the corpus without an array
    unused: int  # arrays that belong to no id of the corpus
    unreadable: int  # items whose media file is missing, so that their digest is unknown
    failed: dict[str, str]  # name of the array -> reason
    arrays: int  # stored arrays; fewer than `matched` where several items or captions share one
    zeros: list[str] = field(default_factory=list)  # names of stored arrays that hold nothing but zeros


def import_ms_sl(
    store: Store, folder: Path, manifest: Path, visual_feature: str | None = None, text_file: str | None = None,
    seen: Seen = lambda stage, done, total: None,
) -> ImportReport:  # fmt: skip
    """Import an MS-SL directory into a store, and write the manifest of its corpus.

    The digest of a video or caption is computed from its id and all source files, so that another release
    of the features gives other artifacts. Raises UserError naming the first row or file that is missing.
    """
    with MsSl.open(folder, visual_feature, text_file) as source:
        digest = _source_digest(RememberedDigests(store.index), folder)
        items = _items(source, digest)
        videos = {item.digest: item.id for item in items}
        captions = {c.digest: c.id for item in items for c in item.captions}
        names = [_stage_name(path) for path in (source.visual_name, source.text_name)]
        if not captions:
            raise UserError(f"{folder} has no captions")
        first = next(iter(captions.values()))
        tokens = as_rows(first, source.tokens(first))
        kept: tuple[
            tuple[Literal["items", "captions"], str, int, dict[str, str], Callable[[str], Array]], ...
        ]
        kept = (
            ("items", names[0], source.visual_dim, videos, source.video),
            ("captions", names[1], tokens.shape[1], captions, source.tokens),
        )
        failed: dict[str, str] = {}
        for of, name, dims, keys, read in kept:
            stage = Imported(name, ImportedParams(layout="ms-sl", source=digest, of=of, dims=dims))
            failed |= _fill(store, stage, keys, read, seen)
    write_manifest(manifest, items)
    return ImportReport(manifest, names[0], names[1], len(videos), len(captions), failed)


def import_h2arn(
    store: Store,
    source: H2arnFiles,
    manifest: Path,
    seen: Seen = lambda stage, done, total: None,
    val: str = "",
) -> ImportReport:
    """Import a subset of H2ARN's feature files into a store, and write the manifest of its corpus.

    The digest of an item or caption is computed from its split, its row and the link lists, so that other
    features of the same rows (BERT beside CLIP) belong to the same corpus. A text with links to several clouds
    becomes a caption of the first cloud, and its `also` lists the other clouds. Clouds without texts stay in
    the gallery; texts without clouds are left out and counted. The validation clouds are a tenth of the
    training clouds, or as many as `val` gives, or for "papers" those of the test split. Raises UserError for
    any other `val`.
    """
    known = RememberedDigests(store.index)
    linked = _linked_items(source)
    items, validated = _with_validation(linked, val)
    captions = {c.digest: c.id for item in linked for c in item.captions}
    clouds = {item.digest: item.id for item in linked}
    kept: tuple[tuple[Literal["items", "captions"], str, dict[str, str], tuple[Path, ...]], ...] = (
        ("items", source.cloud_name, clouds, source.cloud_files),
        ("captions", source.text_name, captions, source.text_files),
    )
    failed: dict[str, str] = {}
    names = []
    for of, name, keys, files in kept:
        digest = digest_of([[str(path.relative_to(source.folder)), known.file(path)] for path in files])
        arrays = {
            split: part.clouds if of == "items" else part.texts for split, part in source.splits.items()
        }

        def read(name: str, arrays: Mapping[str, Array] = arrays) -> Array:
            split, *_, row = name.split("/")
            return arrays[split][int(row)]

        dims = next(iter(arrays.values())).shape[2]
        stage = Imported(
            _stage_name(stage_words(source.subset, name)),
            ImportedParams(layout="h2arn", source=digest, of=of, dims=dims),
        )
        failed |= _fill(store, stage, keys, read, seen)
        names.append(stage.name)
    protocol = f"train and test as {source.folder.name} gives them; {validated or 'nothing to validate on'}"
    write_manifest(manifest, items, Protocol(f"H2ARN's features of {source.subset}", protocol))
    unlinked = sum(len(part.texts) - len(part.clouds_of()) for part in source.splits.values())
    return ImportReport(manifest, names[0], names[1], len(clouds), len(captions), failed, unlinked, validated)


def _linked_items(source: H2arnFiles) -> list[Item]:
    """One item for each cloud (`train/3`) with its captions (`train/text/7`), whose words are unpublished."""
    links = [[split, *part.links] for split, part in source.splits.items()]
    digest = digest_of(["h2arn", source.subset, *links])
    items = []
    for split, part in source.splits.items():
        captions: dict[int, list[Caption]] = {}
        for text, (first, *others) in part.clouds_of().items():
            name = f"{split}/text/{text}"
            words = f"(text {text} of {source.subset} {split}; its words were not published)"
            also = tuple(f"{split}/{cloud}" for cloud in others)
            caption = Caption(name, words, digest=digest_of([name, digest]), also=also)
            captions.setdefault(first, []).append(caption)
        for cloud in range(len(part.clouds)):
            name = f"{split}/{cloud}"
            key = digest_of([name, digest])
            items.append(Item(name, split, tuple(captions.get(cloud, ())), kind="pointcloud", digest=key))
    return items


def _with_validation(items: list[Item], val: str) -> tuple[list[Item], str]:
    """Items with a validation split, and a phrase that names the validation items.

    Items that share a caption stay together in the training split.
    """
    if any(item.split == "val" for item in items):
        if val:
            raise UserError(
                f"--val {val}: the features have a validation split of their own; leave --val out"
            )
        return items, "validated on a split of their own"
    if val == PAPERS:
        lending = {item.id for item in items if item.split == "test" and item.captions}
        return [_lending(item, lending) if item.id in lending else item for item in items], (
            "validated on the test split, as the papers do"
        )
    shared = {name for item in items for c in item.captions if c.also for name in (item.id, *c.also)}
    queried = [i.id for i in items if i.split == "train" and i.captions and i.id not in shared]
    if not val and 1 < len(queried) < 10:
        val = "1"  # a tenth would be no item, and a run without validation cannot choose its best epoch
    held = held_out(queried, val, HELD_OUT, "clouds")
    chosen = [replace(item, split="val") if item.id in held else item for item in items]
    return (
        chosen,
        f"validated on {len(held)} training clouds held out by a digest of their rows" if held else "",
    )


def _lending(item: Item, lending: set[str]) -> Item:
    """The test item with a second copy of its captions, for validation."""
    again = (
        replace(c, id=f"{c.id}@val", split="val", also=tuple(name for name in c.also if name in lending))
        for c in item.captions
    )
    return replace(item, captions=(*item.captions, *again))


def import_files(
    store: Store, files: FeatureFiles, layout: str, array: str, manifest: Path,
    of: Literal["items", "captions"], name: str, seen: Seen = lambda stage, done, total: None,
) -> FilesReport:  # fmt: skip
    """Import arrays by name into a store, for the items or captions of an existing corpus.

    An array belongs to the id that equals its name, or its stem. It is stored under the digest that the
    corpus' extraction stages use, so that a method can read both. Items without an array are recorded as
    failed, and runs leave them out. Raises UserError if no array belongs to any id.
    """
    corpus = Corpus.read(manifest)
    contents = read_contents(corpus, store.index)
    ids = contents.names(of)
    array_names = match(ids, files.names)
    keys = _shared(files, contents, of, {one: ids[one] for one in array_names}, array_names)
    missing: dict[str, str] = {}
    without = [one for one, key in ids.items() if key not in keys]
    for one in without:
        missing.setdefault(ids[one], one)
    if not keys:
        raise UserError(_nothing_fits(files, contents, of))
    digest = _source_digest(RememberedDigests(store.index), files.path)
    params = ImportedParams(
        layout=layout, source=digest, of=of, dims=files.dims(keys.values()), array=array,
        dtype="float16" if files.half(keys.values()) else "float32",
    )  # fmt: skip
    stage = Imported(_stage_name(name.removeprefix(PREFIX)), params)
    _require_same_kind(store, stage)
    zeros: list[str] = []

    def rows(array_name: str) -> Array:
        found = files.rows(array_name)
        if not found.any():
            zeros.append(array_name)
        return found

    failed = _fill(store, stage, keys, rows, seen, missing)
    return FilesReport(
        stage=stage.name,
        total=len(ids),
        matched=len(ids) - len(without),
        by_stem=sum(one != array_name for one, array_name in array_names.items()),
        missing=without,
        unused=len({*files.names} - {*array_names.values()}),
        unreadable=len(contents.unreadable) if of == "items" else 0,
        failed=failed,
        arrays=len(keys) - len(failed),
        zeros=[array_name for array_name in zeros if array_name not in failed],
    )


def _shared(
    files: FeatureFiles,
    contents: Contents,
    of: str,
    digests: Mapping[str, str],
    array_names: Mapping[str, str],
) -> dict[str, str]:
    """Name of the array to store under each digest. Keys of `digests` and `array_names` are ids.

    Items of the same bytes and captions of the same text have one digest and therefore share one array.
    Raises UserError if their arrays differ, because only one of them could be stored.
    """
    sharing: dict[str, dict[str, str]] = {}  # digest -> name of the array -> the first id that has it
    for one, key in digests.items():
        sharing.setdefault(key, {}).setdefault(array_names[one], one)
    keys, conflicts = {}, []
    for key, names in sharing.items():
        keys[key] = next(iter(names))
        if len(names) > 1:
            keys[key], other = _first_and_other(files, names)
            if other:
                conflicts.append((names[keys[key]], names[other]))
    if conflicts:
        raise UserError(_conflict(contents, of, *conflicts[0], len(conflicts)))
    return keys


def _first_and_other(files: FeatureFiles, names: Iterable[str]) -> tuple[str, str]:
    """Names of the first readable array and of the first array that differs from it ("" if none differs)."""
    first, kept = "", np.zeros((0, 0))
    for name in names:
        try:
            rows = files.rows(name)
        except ItemError:
            continue
        if not first:
            first, kept = name, rows
        elif not _alike(kept, rows):
            return first, name
    return first or next(iter(names)), ""


def _alike(a: Array, b: Array) -> bool:
    """Whether two arrays are equal up to rounding: a network's last bits change with its batch size."""
    if a.shape != b.shape:
        return False
    x, y = a.astype(np.float64), b.astype(np.float64)
    return bool(np.abs(x - y).max() <= SAME_WITHIN * max(np.abs(x).max(), np.abs(y).max()))


def _conflict(contents: Contents, of: str, one: str, other: str, count: int) -> str:
    """Error sentence: why two arrays of one digest cannot both be stored."""
    more = f" ({count} such pairs in all)" if count > 1 else ""
    if of == "items":
        return (
            f"the items {one!r} and {other!r} are the same file, and their arrays differ{more}: an item is known by "
            "the bytes of its media, so one array would stand for both; leave media out of the manifest, and items "
            "are known by their ids"
        )
    text = next(c.text for i in contents.corpus.items for c in i.captions if c.id == one)
    return (
        f"the captions {one!r} and {other!r} have the same text {text!r}, and their arrays differ{more}: a caption is "
        "known by its text, so one array would stand for both; give each its own text, or a `digest` of its own in "
        f"{contents.corpus.path}"
    )


def _nothing_fits(files: FeatureFiles, contents: Contents, of: str) -> str:
    """Error sentence: why no array belongs to any item."""
    ids = contents.names(of)
    if not ids and contents.unreadable:
        item, reason = next(iter(contents.unreadable.items()))
        return f"no item of {contents.corpus.path} has a digest to import features for: {item}: {reason}"
    if not ids:
        return f"{contents.corpus.path} has no {of}"
    theirs, ours = next(iter(files.names)), next(iter(ids))
    ends = {name.rpartition("/")[2] for name in files.names}
    hint = f"; is --dataset {ends.pop()} what you want?" if len(ends) == 1 and len(files.names) > 1 else ""
    return (
        f"no array of {files.path} ({theirs!r} is the first) is named as one of the {of} of "
        f"{contents.corpus.path} ({ours!r} is the first){hint}"
    )


def _require_same_kind(store: Store, stage: Imported) -> None:
    """Raise UserError if the stage's name is in use for captions and these are items, or the reverse."""
    for _, made_of in store.index.fingerprints(stage.name).values():
        if (of := made_of["params"]["of"]) != stage.over:
            raise UserError(
                f"{stage.name} stands for features of {of}; choose another --name for those of {stage.over}"
            )


def _stage_name(source: str) -> str:
    words = re.sub(r"[^a-z0-9_]+", "-", source.lower()).strip("-")
    if not words:
        raise UserError(f"no stage can be named after {source!r}; Latin letters and digits are needed")
    return PREFIX + words


def _source_digest(known: RememberedDigests, source: Path) -> str:
    """Digest of one file, or of all files of a folder."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return digest_of([[str(path.relative_to(source)), known.file(path)] for path in files])


def _items(source: MsSl, digest: str) -> list[Item]:
    """One item for each video, in the order of the caption files.

    A caption has a split of its own only if it differs from its video's split.
    """
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
    store: Store, stage: Imported, keys: Mapping[str, str], read: Callable[[str], Array], seen: Seen,
    missing: Mapping[str, str] = {},
) -> dict[str, str]:  # fmt: skip
    """Store every item's rows under the stage's fingerprint, replacing earlier imports of the same name.

    `keys` and `missing` map digests to names. Returns the reason for each array that could not be stored, by
    name; raises UserError if none could be stored.
    """
    fingerprint = Fingerprint.of(components(stage, {}, RememberedDigests(store.index)))
    failed: dict[str, str] = {}
    with store.lock(stage.name, fingerprint.hex):
        store.adopt(stage.name, fingerprint.hex)
        have = store.places(stage.name, fingerprint.hex)
        _require_same_names(store, stage, fingerprint.hex, keys)
        todo = [key for key in keys if key not in have]
        done = len(keys) - len(todo)
        for start in range(0, len(todo), ITEMS_A_SEGMENT):
            part = todo[start : start + ITEMS_A_SEGMENT]
            with store.writer(stage.name, fingerprint, stage.fields) as writer:
                for key in part:
                    try:
                        rows = _of_width(keys[key], as_rows(keys[key], read(keys[key])), stage.params.dims)
                        note = {"imported": stage.params.layout, "from": keys[key]}
                        writer.append(key, keys[key], {"row": rows}, note)
                    except ItemError as error:
                        failed[key] = error.reason
                written, path = dict(writer.items), writer.finish()
            if path is not None:
                store.index.add_segment(path.stem, fingerprint.hex, path.stat().st_size, written)
            done += len(part)
            seen(stage.name, done, len(keys))
        if len(failed) == len(keys):
            name, reason = next((keys[key], reason) for key, reason in failed.items())
            raise UserError(f"none of the {len(keys)} arrays can be imported; the first, {name}: {reason}")
        store.index.add_fingerprint(fingerprint.hex, stage.name, fingerprint.components)
        _record_failures(store, fingerprint.hex, {key: (keys[key], why) for key, why in failed.items()})
        _record_failures(store, fingerprint.hex, {key: (name, NOT_THERE) for key, name in missing.items()})
    _forget_others(store, stage.name, fingerprint.hex)
    return {keys[key]: reason for key, reason in failed.items()}


def _of_width(name: str, rows: Array, dims: int) -> Array:
    """Rows (T, dims), integers converted to float32. Raises ItemError for rows of another width."""
    if rows.shape[1] != dims:
        raise ItemError(name, f"its rows have {rows.shape[1]} numbers, those of the others {dims}")
    return rows if rows.dtype.kind == "f" else rows.astype(np.float32)


def _require_same_names(store: Store, stage: Imported, fp: str, keys: Mapping[str, str]) -> None:
    """Raise UserError if an earlier import of the same files gave an item another array, by another id.

    The two imports have the same fingerprint, so a training on one would pass for a training on the other.
    """
    reader = store.reader(stage.name, fp)
    for key, name in keys.items():
        if key in reader and (before := reader.note(key).get("from", name)) != name:
            raise UserError(
                f"{stage.name} holds the array {before!r} for what these files call {name!r}; choose another --name"
            )


def _record_failures(store: Store, fp: str, failures: Mapping[str, tuple[str, str]]) -> None:
    """Record name and reason of failed items, except where the index already has the same reason."""
    known = store.index.failures(fp)
    with store.index.transaction():
        for key, (name, reason) in failures.items():
            if key not in known or known[key].reason != reason:
                store.index.add_failure(fp, key, name, reason)


def _forget_others(store: Store, name: str, keep: str) -> None:
    """Delete earlier imports of the same name; the stage now stands for the new files."""
    for fp in store.index.fingerprints(name):
        if fp != keep:
            store.index.forget_fingerprint(fp)
            shutil.rmtree(store.segments_folder(name, fp), ignore_errors=True)


def require_layout(layout: str, possible: Iterable[str]) -> None:
    """Raise UserError for a layout that cannot be read or written."""
    if layout not in possible:
        raise UserError(f"unknown layout {layout!r}; possible: {', '.join(possible)}")
