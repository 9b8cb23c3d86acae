"""A CSV, JSON Lines or Parquet table of captions, one a row with the media file it describes, as a manifest."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.corpus.manifest import LONGEST_SECONDS, SPLITS, Caption, Item, Protocol
from pipeline.errors import UserError
from pipeline.store.fingerprint import digest_text

COLUMNS = {  # what a column may be called; the first that is there counts
    "media": ("media", "video", "file", "path", "filename", "video_path", "clip"),
    "text": ("caption", "text", "sentence", "description", "query"),
    "id": ("id", "item", "video_id", "item_id"),
    "caption_id": ("caption_id", "query_id", "sen_id"),
    "split": ("split", "subset", "set"),
    "start": ("start", "start_seconds"),
    "end": ("end", "end_seconds"),
}
CAPTION_KEYS = {"id": "caption_id", "text": "caption", "start": "start", "end": "end"}  # to columns
Cells = dict[str, Any]
Row = tuple[str, Cells]  # with where it stands, for instance "line 2"
Read = Callable[[Cells, str], str]
SHARES = (0.7, 0.15, 0.15)  # of train, val and test where the table has no splits


@dataclass
class Imported:
    """What became of a source: the items, and each line or file that was left out, with its reason.

    `notes` tell what is worth knowing and cost nothing; `protocol` is that of a public corpus.
    """

    items: list[Item]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    protocol: Protocol | None = None


def read_csv(path: Path, relative_to: Path) -> Imported:
    """The items of a CSV or TSV file with a header. Media are found beside it; paths become relative."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(4096)
            file.seek(0)
            separator = "\t" if sample.count("\t") > sample.count(",") else ","
            reader = csv.DictReader(file, delimiter=separator)
            rows: list[Row] = [(f"line {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    return _items(path, rows, relative_to)


def read_jsonl(path: Path, relative_to: Path) -> Imported:
    """The items of a JSON Lines file, one caption (or one list of `captions`) a line."""
    rows: list[tuple[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        rows.append((f"line {number}", row))
    return _listed(path, rows, relative_to)


def read_parquet(path: Path, relative_to: Path) -> Imported:
    """The items of a Parquet file, one caption (or one list of `captions`) a row; needs pyarrow.

    Only the columns that mean something are read, so that media embedded in others cost nothing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            "Parquet is read by pyarrow, which is not installed: pip install 'crossreel[parquet]'"
        ) from None
    known = {name for names in COLUMNS.values() for name in names} | {"captions"}
    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name.strip().lower() in known]
            cells = file.read(columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from None
    return _listed(path, [(f"row {number}", row) for number, row in enumerate(cells, start=1)], relative_to)


def _listed(path: Path, rows: Iterable[tuple[str, Any]], relative_to: Path) -> Imported:
    """The items of rows that hold one caption each, or a list of `captions`."""
    single: list[Row] = []
    left_out = []
    for place, row in rows:
        if not isinstance(row, dict):
            left_out.append(f"{place}: not a JSON object")
            continue
        texts = row.pop("captions", None)
        several = isinstance(texts, list)
        single += [(place, _with_caption(row, text)) for text in texts] if several else [(place, row)]
    out = _items(path, single, relative_to)
    return Imported(out.items, left_out + out.left_out)


def _with_caption(row: Cells, caption: Any) -> Cells:
    """A row with one of its captions: a text, or an object with text, id, start and end as in a manifest."""
    if not isinstance(caption, dict):
        return {**row, "caption": caption}
    return row | {column: caption[key] for key, column in CAPTION_KEYS.items() if key in caption}


def _items(path: Path, rows: list[Row], relative_to: Path) -> Imported:
    if not rows:
        raise UserError(f"{path} has no rows")
    read = _columns(path, {name for _, row in rows for name in row})
    groups: dict[str, list[Row]] = {}
    left_out = []
    for place, row in rows:
        media, text = read(row, "media"), read(row, "text")
        if not media or not text:
            left_out.append(f"{place}: no {'media' if not media else 'caption'}")
        elif not (path.parent / media).is_file():
            left_out.append(f"{place}: {media} is not there")
        else:
            groups.setdefault(os.path.normpath(media), []).append((place, row))
    names = _names({media: read(group[0][1], "id") for media, group in groups.items()})
    items = [
        Item(
            names[media],
            read(group[0][1], "split"),
            tuple(
                _caption(path, number, place, row, names[media], read)
                for number, (place, row) in enumerate(group)
            ),
            relative(path.parent / media, relative_to),
        )
        for media, group in groups.items()
    ]
    return Imported(with_splits(items), left_out)


def _columns(path: Path, header: set[Any]) -> Read:
    """Reads a row by what a column means; "" where the table has none, or nothing in it."""
    names = {str(name).strip().lower(): name for name in header if name is not None}
    found = {
        key: names[name] for key, wanted in COLUMNS.items() for name in reversed(wanted) if name in names
    }
    for key, what in (("media", "media files"), ("text", "captions")):
        if key not in found:
            raise UserError(f"{path} has no column for {what}; it may be called {', '.join(COLUMNS[key])}")

    def read(row: Cells, key: str) -> str:
        value = row.get(found[key]) if key in found else None
        nothing = value is None or value != value  # pandas writes NaN for nothing
        return "" if nothing else str(value).strip()

    return read


def _caption(path: Path, number: int, place: str, row: Cells, item: str, read: Read) -> Caption:
    start, end = (_seconds(read(row, key), path, place) for key in ("start", "end"))
    return Caption(read(row, "caption_id") or f"{item}#{number}", read(row, "text"), start, end)


def _seconds(value: str, path: Path, place: str) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise UserError(f"{path}, {place}: {value!r} is not a number of seconds")
    return seconds


def _names(given: Mapping[str, str]) -> dict[str, str]:
    """Media -> item id: the one given, else the file's stem; where two coincide, with a digest of the path."""
    names = {media: name or Path(media).stem for media, name in given.items()}
    count = Counter(names.values())
    return {
        media: name if count[name] == 1 else f"{name}-{digest_text(media)[:6]}"
        for media, name in names.items()
    }


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
