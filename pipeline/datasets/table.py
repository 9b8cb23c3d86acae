"""A CSV or JSON Lines table of captions, one a line with the media file it describes, as a manifest."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.corpus import SPLITS, Caption, Item
from pipeline.errors import UserError
from pipeline.fingerprint import digest_text

COLUMNS = {  # what a column may be called; the first that is there counts
    "media": ("media", "video", "file", "path", "filename", "video_path", "clip"),
    "text": ("caption", "text", "sentence", "description", "query"),
    "id": ("id", "item", "video_id", "item_id"),
    "caption_id": ("caption_id", "query_id", "sen_id"),
    "split": ("split", "subset", "set"),
    "start": ("start", "start_seconds"),
    "end": ("end", "end_seconds"),
}
SHARES = (0.7, 0.15, 0.15)  # of train, val and test where the table has no splits


@dataclass
class Imported:
    """What became of a source: the items, and each line or file that was left out, with its reason."""

    items: list[Item]
    left_out: list[str] = field(default_factory=list)


def read_csv(path: Path, relative_to: Path) -> Imported:
    """The items of a CSV or TSV file with a header. Media are found beside it; paths become relative."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(4096)
            file.seek(0)
            separator = "\t" if sample.count("\t") > sample.count(",") else ","
            rows = list(csv.DictReader(file, delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    return _items(path, list(enumerate(rows, start=2)), relative_to)


def read_jsonl(path: Path, relative_to: Path) -> Imported:
    """The items of a JSON Lines file, one caption (or one list of `captions`) a line."""
    rows: list[tuple[int, dict[str, Any]]] = []
    left_out = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            left_out.append(f"line {number}: not a JSON object")
            continue
        texts = row.pop("captions", None)
        many = isinstance(texts, list)
        rows += [(number, {**row, "caption": t}) for t in texts] if many else [(number, row)]
    out = _items(path, rows, relative_to)
    return Imported(out.items, left_out + out.left_out)


def _items(path: Path, rows: list[tuple[int, dict[str, Any]]], relative_to: Path) -> Imported:
    if not rows:
        raise UserError(f"{path} has no rows")
    columns = _columns(path, rows[0][1])
    groups: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    left_out = []
    for number, row in rows:
        media, text = (str(row.get(columns[key]) or "").strip() for key in ("media", "text"))
        if not media or not text:
            left_out.append(f"line {number}: no {'media' if not media else 'caption'}")
        elif not (path.parent / media).is_file():
            left_out.append(f"line {number}: {media} is not there")
        else:
            groups.setdefault(media, []).append((number, row))
    items = [_item(path, media, group, columns, relative_to) for media, group in groups.items()]
    return Imported(with_splits(_unique(items)), left_out)


def _columns(path: Path, row: Mapping[str, Any]) -> dict[str, str]:
    names = {str(name).strip().lower(): name for name in row if name is not None}
    found = {key: next((names[n] for n in wanted if n in names), "") for key, wanted in COLUMNS.items()}
    for key, what in (("media", "media files"), ("text", "captions")):
        if not found[key]:
            raise UserError(f"{path} has no column for {what}; it may be called {', '.join(COLUMNS[key])}")
    return found


def _item(
    path: Path,
    media: str,
    group: list[tuple[int, Mapping[str, Any]]],
    columns: dict[str, str],
    relative_to: Path,
) -> Item:
    first = group[0][1]
    name = str(first.get(columns["id"]) or "").strip() or Path(media).stem
    captions = tuple(
        Caption(
            id=str(row.get(columns["caption_id"]) or f"{name}#{number}"),
            text=str(row[columns["text"]]).strip(),
            start=_seconds(row.get(columns["start"]), path, line),
            end=_seconds(row.get(columns["end"]), path, line),
        )
        for number, (line, row) in enumerate(group)
    )
    split = str(first.get(columns["split"]) or "").strip()
    return Item(name, split, captions, relative(path.parent / media, relative_to))


def _seconds(value: Any, path: Path, line: int) -> float | None:
    if value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{path}, line {line}: {value!r} is not a number of seconds") from None


def _unique(items: list[Item]) -> list[Item]:
    """Items whose names coincide (two files with one stem) are told apart by a digest of their path."""
    names = [item.id for item in items]
    return [
        item
        if names.count(item.id) == 1
        else Item(
            f"{item.id}-{digest_text(item.media or '')[:6]}", item.split, item.captions, item.media, item.kind
        )
        for item in items
    ]


def relative(media: Path, folder: Path) -> str:
    """A media path as the manifest in `folder` writes it."""
    return os.path.relpath(media.absolute(), folder.absolute())


def with_splits(items: Iterable[Item]) -> list[Item]:
    """Items with a split each: their own, or train, val and test by a digest of the id, none left empty."""
    items = list(items)
    bare = sorted((item for item in items if not item.split), key=lambda item: digest_text(item.id))
    held = max(1, round(len(bare) * SHARES[1])) if len(bare) > 2 else 0
    given: dict[str, str] = {}
    for number, item in enumerate(bare):
        place = 1 if number < held else 2 if number < 2 * held else 0
        given[item.id] = SPLITS[place]
    return [Item(i.id, i.split or given[i.id], i.captions, i.media, i.kind, i.meta, i.digest) for i in items]
