"""A CSV, JSON Lines or Parquet table of captions, one a row with the media file it describes, as a manifest.

Each row is read right, or left out and named by its line; a table whose rows cannot be told apart is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from reprlib import repr as shown  # never longer than a line
from typing import Any

from pipeline.corpus.importers.separated import SEPARATORS, Confused, read_sheet
from pipeline.corpus.importers.texts import read_text_file, unreadable
from pipeline.corpus.manifest import LONGEST_SECONDS, SPLITS, Caption, Item, Protocol
from pipeline.corpus.splits import USUAL, Shares, dealt, nearest_split, split_named
from pipeline.errors import UserError
from pipeline.media.mistaken import mistaken_file
from pipeline.store.fingerprint import digest_text

COLUMNS = {  # accepted column names of each meaning; the first that the table has is read
    "media": ("media", "video", "file", "path", "filename", "video_path", "clip"),
    "text": ("caption", "text", "sentence", "description", "query"),
    "id": ("id", "item", "video_id", "item_id"),
    "caption_id": ("caption_id", "query_id", "sen_id"),
    "split": ("split", "subset", "set"),
    "start": ("start", "start_seconds"),
    "end": ("end", "end_seconds"),
}
KNOWN = {name: key for key, names in COLUMNS.items() for name in names}
LIST = "captions"  # key of a list of captions in a row of JSON Lines or Parquet
ENTRY_KEYS = {  # from the keys of a caption that is an object to column names
    "id": "caption_id", "text": "caption", "start": "start", "end": "end", "split": "split",
}  # fmt: skip
HOME = ("train", "test", "val")  # a file with captions of several splits belongs to the first of these
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"\d+,\d+", re.ASCII)
COMMA_TABLES = {";", "\t"}  # separators of the tables whose times may have decimal commas
NAMED = 3  # examples in a note

Cells = dict[str, Any]
ColumnsByMeaning = Mapping[
    str, tuple[str, ...]
]  # meaning -> the columns of that meaning, the preferred one first
Row = tuple[int, Cells | str]
"""The number of a row and its cells by column, in small letters; or why it cannot be used."""


@dataclass
class Imported:
    """The result of an import: the items, and each line or file that was left out, with the reason.

    `notes` are remarks about rows that were read all the same; `protocol` is that of a public corpus; `dealt` counts
    the items without a split in the source, which got one by the hash of their id.
    """

    items: list[Item]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    protocol: Protocol | None = None
    dealt: int = 0

    @property
    def splits(self) -> set[str]:
        """The splits that have an item or a caption."""
        of_captions = {caption.split for item in self.items for caption in item.captions if caption.split}
        return of_captions | {item.split for item in self.items}


class Wrong(Exception):
    """A row cannot be used, in one sentence."""


def read_csv(path: Path, relative_to: Path, shares: Shares = USUAL) -> Imported:
    """The items of a table with a header, separated by commas, tabs, semicolons or bars.

    Media are found beside it; paths become relative to `relative_to`. Raises UserError where rows cannot be
    told apart.
    """

    def known(columns: Sequence[str]) -> int:
        return len({KNOWN[name.strip().lower()] for name in columns if name.strip().lower() in KNOWN})

    def is_row(columns: Sequence[str], cells: Sequence[str]) -> bool:
        names = [name.strip().lower() for name in columns]
        column = next((name for name in COLUMNS["media"] if name in names), None)
        place = names.index(column) if column else len(cells)
        return len(cells) > 1 and place < len(cells) and _looks_like_media(path.parent, cells[place])

    try:
        sheet = read_sheet(read_text_file(path, "CSV"), known, is_row)
    except Confused as error:
        raise UserError(f"{path}, {error}") from None
    twice = [name for name, times in Counter(c.lower() for c in sheet.columns if c).items() if times > 1]
    for name in twice:
        if name in KNOWN:
            raise UserError(f"{path} has several columns {name!r}; leave one of them")
    rows: list[Row] = [
        (number, cells if isinstance(cells, str) else {name.lower(): cell for name, cell in cells.items()})
        for number, cells in sheet.rows
    ]
    table = Table(path, "CSV", "line", sheet.columns, relative_to, sheet.separator in COMMA_TABLES)
    return table.read(rows, shares)


def _other_separator(columns: Sequence[str]) -> str:
    """The end of a sentence about a table of one column that another sign separates; "" for other tables."""
    if len(columns) != 1:
        return ""
    for sign in dict.fromkeys(re.findall(r"[^\w\s]", columns[0])):
        if sum(name.strip().lower() in KNOWN for name in columns[0].split(sign)) > 1:
            return f"; {sign!r} seems to separate them: possible are {', '.join(map(repr, SEPARATORS))}"
    return ""


def _looks_like_media(folder: Path, name: str) -> bool:
    """Whether a cell may name a media file: the file exists, or the name has a suffix like a media file's."""
    return os.path.isfile(folder / name) or bool(re.fullmatch(r"\.[a-zA-Z]\w{1,4}", Path(name).suffix))


def read_jsonl(path: Path, relative_to: Path, shares: Shares = USUAL) -> Imported:
    """The items of a JSON Lines file, one caption (or one list of `captions`) a line."""
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(read_text_file(path, "JSON Lines").split("\n"), start=1):
        if line.strip():
            rows.append((number, unreadable(line) or _parsed(line)))
    return _listed(Table(path, "JSON Lines", "line", (), relative_to), rows, shares)


def _parsed(line: str) -> Any:
    """The object on a line of JSON, or the reason, a text, why it cannot be used."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            twice.extend(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        return out

    try:
        row = json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return "not a JSON object"
    if twice:
        return f"the key {twice[0]!r} stands twice"
    return row if isinstance(row, dict) else "not a JSON object"


def read_parquet(path: Path, relative_to: Path, shares: Shares = USUAL) -> Imported:
    """The items of a Parquet file, one caption (or one list of `captions`) a row; needs pyarrow.

    Only the columns in COLUMNS are read, so that media embedded in other columns cost no memory.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UserError(
            "Parquet is read by pyarrow, which is not installed: pip install 'crossreel[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name.strip().lower() in {*KNOWN, LIST}]
            doubled = [name for name, n in Counter(name.strip().lower() for name in names).items() if n > 1]
            if doubled:
                raise UserError(f"{path} has several columns {doubled[0]!r}; leave one of them")
            cells = file.read(columns=names).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        found = mistaken_file(path) if path.is_file() else None
        reason = f"it is {found}" if found else str(error)
        raise UserError(f"{path} cannot be read as Parquet: {reason}") from None
    return _listed(Table(path, "Parquet", "row", names, relative_to), list(enumerate(cells, start=1)), shares)


def _listed(table: Table, rows: Iterable[tuple[int, Any]], shares: Shares) -> Imported:
    """The items of rows with one caption or a list of `captions` each; a row may be the reason why it is unusable."""
    single: list[Row] = []
    ignored: set[str] = set()
    columns: dict[str, None] = dict.fromkeys(name.strip().lower() for name in table.columns)
    for number, row in rows:
        if isinstance(row, str):
            single.append((number, row))
            continue
        cells = {str(key).strip().lower(): value for key, value in row.items()}
        doubled = len(cells) < len(row)
        columns |= dict.fromkeys(cells)
        texts = cells.pop(LIST, None)
        ignored |= _ignored(cells, texts)
        if doubled:
            single.append((number, "two of its keys differ in nothing but case"))
        elif texts is None:
            single.append((number, cells))
        elif not isinstance(texts, list):
            single.append((number, f"its captions are {shown(texts)}, not a list"))
        elif not texts:
            single.append((number, cells | {"caption": NO_CAPTION}))
        else:
            entries = [_with_caption(cells, text) for text in texts]
            columns |= dict.fromkeys(name for entry in entries for name in entry)
            single += [(number, entry) for entry in entries]
    if LIST in columns:
        columns["caption"] = None
    if ignored:
        table.notes.append(
            f"a table gives no {', '.join(sorted(ignored))}: these keys of a manifest are not read"
        )
    table.columns = [name for name in columns if name != LIST]
    return table.read(single, shares)


def _ignored(row: Cells, captions: Any) -> set[str]:
    """The keys of a manifest's line that are ignored because a table has no column for them."""
    entries = [entry for entry in captions if isinstance(entry, dict)] if isinstance(captions, list) else []
    keys = {"also"} if any(entry.get("also") for entry in entries) else set()
    return keys | ({"meta"} if row.get("meta") else set())


class _NoCaption:
    """Marks a row with an empty list of captions: its item is in the gallery, but has no query."""


NO_CAPTION = _NoCaption()


def _with_caption(row: Cells, caption: Any) -> Cells:
    """A row with one of its captions: a text, or an object with text, id, start, end and split as in a manifest."""
    if not isinstance(caption, dict):
        return {**row, "caption": caption}
    cells = {column: caption[key] for key, column in ENTRY_KEYS.items() if caption.get(key) is not None}
    return {**row, "caption": None} | cells


@dataclass(frozen=True)
class _TableRow:
    """One usable row: its number, and the id, split, caption and times that it gives its media file."""

    number: int
    id: str
    split: str
    text: str | None  # None: the item has no caption
    caption_id: str
    start: float | None
    end: float | None


@dataclass
class Table:
    """A table of captions, with the rows that were left out and the notes about others.

    `kind` is the format's name; `row_word` is "line" or "row"; `comma`: times may have decimal commas.
    """

    path: Path
    kind: str
    row_word: str
    columns: Sequence[str]
    relative_to: Path
    comma: bool = False
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _seen: dict[tuple[Any, ...], tuple[str, int]] = field(
        default_factory=dict
    )  # caption -> its split and row number
    _caption_ids: dict[str, int] = field(default_factory=dict)  # caption id -> its row number

    def read(self, rows: Sequence[Row], shares: Shares) -> Imported:
        """The items of the rows. Raises UserError if no row is usable, and for unknown splits."""
        if not rows:
            raise UserError(f"{self.path} has no rows")
        if all(isinstance(cells, str) for _, cells in rows):
            number, reason = rows[0]
            raise UserError(self._unusable(len(rows), f"{self.row_word} {number}: {reason}"))
        columns_of = self._columns_by_meaning()
        groups: dict[str, list[_TableRow]] = {}
        unknown: list[tuple[int, str]] = []
        for number, cells in rows:
            try:
                media, table_row = self._row(number, cells, columns_of, unknown)
                if media:
                    self._require_new(media, table_row)
                    groups.setdefault(media, []).append(table_row)
            except Wrong as error:
                self.left_out.append(f"{self.row_word} {number}: {error}")
        if unknown:
            raise UserError(self._unknown_splits(unknown))
        if not groups:
            raise UserError(self._unusable(len(rows), self.left_out[0]))
        items, names = self._items(groups)
        out = with_splits(items, shares, names)
        bare = [item.id for item in items if not item.split]
        if bare and "split" in columns_of:
            self.notes.append(
                f"{len(bare)} items have no split in the table and are dealt by a hash of their ids: {_examples(bare)}"
            )
        return Imported(out, self.left_out, self.notes, dealt=len(bare))

    def _unusable(self, rows: int, first: str) -> str:
        return f"{self.path} cannot be read as {self.kind}: none of its {rows} {self.row_word}s can be used; {first}"

    def _columns_by_meaning(self) -> ColumnsByMeaning:
        """The columns that each meaning is read from. Raises UserError without a media or a caption column."""
        having = {str(name).strip().lower() for name in self.columns if name}
        columns_of: dict[str, tuple[str, ...]] = {}
        for key, names in COLUMNS.items():
            fitting = tuple(name for name in names if name in having)
            if not fitting:
                continue
            columns_of[key] = fitting
            if len(fitting) > 1 and key in WORDS:
                others = ", ".join(map(repr, fitting[1:]))
                self.notes.append(f"{WORDS[key]} are read from the column {fitting[0]!r}, not from {others}")
        for key in ("media", "text"):
            if key not in columns_of:
                listed = ", ".join(str(name) for name in self.columns if name) or "none"
                raise UserError(
                    f"{self.path} has no column for {WORDS[key]}; it may be called {', '.join(COLUMNS[key])}; "
                    f"its columns: {listed[:200]}{_other_separator(self.columns)}"
                )
        return columns_of

    def _row(
        self, number: int, cells: Cells | str, columns_of: ColumnsByMeaning, unknown: list[tuple[int, str]]
    ) -> tuple[str, _TableRow]:
        """The normalised media path of a row, and its content; the path is "" if the split is unknown.

        Raises Wrong.
        """
        if isinstance(cells, str):
            raise Wrong(cells)
        bare = isinstance(_cell(cells, columns_of, "text"), _NoCaption)
        media, text = _text(cells, columns_of, "media"), "" if bare else _text(cells, columns_of, "text")
        if not media or not (text or bare):
            raise Wrong(f"no {'media' if not media else 'caption'}")
        place = self._place(media)
        if place is None:
            raise Wrong(f"{media} is not there")
        start, end = (self._seconds(_cell(cells, columns_of, key)) for key in ("start", "end"))
        if start is not None and end is not None and end < start:
            raise Wrong(f"the caption ends at {end} s, before its start at {start} s")
        split = _text(cells, columns_of, "split")
        known = split_named(split) if split else ""
        table_row = _TableRow(
            number, _name(cells, columns_of, "id"), known or "", None if bare else text,
            _name(cells, columns_of, "caption_id"), start, end,
        )  # fmt: skip
        if known is None:
            unknown.append((number, split))
            return "", table_row
        return place, table_row

    def _place(self, media: str) -> str | None:
        """The normalised path of an existing media file, also if written with backslashes; None if there is none."""
        for name in (media, media.replace("\\", "/")):
            if os.path.isfile(self.path.parent / name):
                return os.path.normpath(name)
        return None

    def _seconds(self, value: Any) -> float | None:
        """A time in seconds; None for an empty cell. Raises Wrong for any other value."""
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            return None
        text = str(value).strip()
        if self.comma and DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        number = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        if number and NUMBER.fullmatch(text) and 0 <= float(text) <= LONGEST_SECONDS:
            return float(text)
        raise Wrong(f"{shown(text)} is not a number of seconds")

    def _require_new(self, media: str, table_row: _TableRow) -> None:
        """Raise Wrong for a repeated caption id, and for a caption that an earlier row has in another split."""
        if table_row.text is not None and table_row.split:
            key = (media, table_row.text, table_row.start, table_row.end)
            split, number = self._seen.setdefault(key, (table_row.split, table_row.number))
            if split != table_row.split:
                raise Wrong(
                    f"the same caption of the same file stands on {self.row_word} {number} in the split {split!r}, "
                    f"here in {table_row.split!r}"
                )
        if table_row.caption_id in self._caption_ids:
            number = self._caption_ids[table_row.caption_id]
            raise Wrong(f"the caption id {table_row.caption_id!r} stands already on {self.row_word} {number}")
        if table_row.caption_id:
            self._caption_ids[table_row.caption_id] = table_row.number

    def _unknown_splits(self, unknown: Sequence[tuple[int, str]]) -> str:
        """The error sentence about unknown splits."""
        (number, split), others = unknown[0], len(unknown) - 1
        more = f" ({others} more {self.row_word}s have unknown splits)" if others else ""
        return f"{self.path}, {self.row_word} {number}: unknown split {split!r}; {nearest_split(split)}{more}"

    def _items(self, groups: Mapping[str, Sequence[_TableRow]]) -> tuple[list[Item], dict[str, str]]:
        """One item for each media file, its split "" if none is given; and by id the name to hash for a split."""
        given_ids = {
            media: next((table_row.id for table_row in group if table_row.id), "")
            for media, group in groups.items()
        }
        names = _names(given_ids)
        self._note_ids(groups, given_ids)
        items, several = [], []
        for media, group in groups.items():
            splits = {table_row.split for table_row in group if table_row.split}
            home = next((split for split in HOME if split in splits), "")
            if len(splits) > 1:
                several.append(f"{media} ({', '.join(s for s in SPLITS if s in splits)})")
            items.append(Item(
                names[media], home, tuple(_captions(names[media], home, group, self._caption_ids)),
                relative(self.path.parent / media, self.relative_to),
            ))  # fmt: skip
        if several:
            self.notes.append(
                f"{len(several)} files have captions of several splits, each caption stays in its own: "
                f"{_examples(several)}"
            )
        return items, {names[media]: given_ids[media] or Path(media).stem for media in groups}

    def _note_ids(self, groups: Mapping[str, Sequence[_TableRow]], given_ids: Mapping[str, str]) -> None:
        """Note files with several ids, and ids of several files."""
        ids = {
            media: list(dict.fromkeys(table_row.id for table_row in group if table_row.id))
            for media, group in groups.items()
        }
        several = [f"{media} ({', '.join(given[:NAMED])})" for media, given in ids.items() if len(given) > 1]
        if several:
            self.notes.append(
                f"{len(several)} files have rows with different ids, the first id is the item's: {_examples(several)}"
            )
        shared = [name for name, times in Counter(filter(None, given_ids.values())).items() if times > 1]
        if shared:
            self.notes.append(
                f"{len(shared)} ids are given to several files, each with a digest of its path: {_examples(shared)}"
            )


WORDS = {"media": "media files", "text": "captions", "split": "splits"}


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


def _cell(cells: Cells, columns_of: ColumnsByMeaning, key: str) -> Any:
    """The cell of the first column of a meaning that the row has; None if it has none of them."""
    return next((cells[name] for name in columns_of.get(key, ()) if name in cells), None)


def _text(cells: Cells, columns_of: ColumnsByMeaning, key: str) -> str:
    """The stripped text of a cell; "" for an empty or missing one. Raises Wrong for another type than text."""
    value = _cell(cells, columns_of, key)
    if value is None or value != value:  # pandas writes NaN for an empty cell
        return ""
    if not isinstance(value, str):
        raise Wrong(f"its {columns_of[key][0]} is {shown(value)}, not a text")
    bad = unreadable(value)
    if bad:
        raise Wrong(bad)
    return value.strip()


def _name(cells: Cells, columns_of: ColumnsByMeaning, key: str) -> str:
    """The id in a cell, which may be a number; "" for an empty or missing one. Raises Wrong for other types."""
    value = _cell(cells, columns_of, key)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return str(value)
    return _text(cells, columns_of, key)


def _captions(item: str, home: str, group: Sequence[_TableRow], taken: Collection[str]) -> Iterator[Caption]:
    """Yield the captions of an item; one without an id gets its number, or a later number if that id is taken."""
    later = count(len(group))
    for number, table_row in enumerate(group):
        if table_row.text is None:
            continue
        own = table_row.caption_id or f"{item}#{number}"
        while not table_row.caption_id and own in taken:
            own = f"{item}#{next(later)}"
        other = table_row.split if table_row.split not in ("", home) else None
        yield Caption(own, table_row.text, table_row.start, table_row.end, other)


def _names(given: Mapping[str, str]) -> dict[str, str]:
    """Item id by media path: the given id or the file's stem, with a digest of the path where two coincide."""
    names = {media: name or Path(media).stem for media, name in given.items()}
    times = Counter(names.values())
    for digits in (6, 32):  # of 10,000 files of one stem, three are expected to share 6 digits
        out = {
            media: name if times[name] == 1 else f"{name}-{digest_text(media)[:digits]}"
            for media, name in names.items()
        }
        if len(set(out.values())) == len(out):
            break
    return out


def relative(media: Path, folder: Path) -> str:
    """A media path as the manifest in `folder` writes it."""
    return os.path.relpath(media.absolute(), folder.absolute())


def with_splits(
    items: Iterable[Item], shares: Shares = USUAL, names: Mapping[str, str] | None = None
) -> list[Item]:
    """The items, each with a split: the given one, or one dealt by the hash of its id.

    `names`: by id, the name to hash instead, which does not change when other items are added to the corpus.
    """
    others = names or {}
    return [replace(i, split=i.split or dealt(others.get(i.id, i.id), shares)) for i in items]
