"""Reader of the annotation files of a public corpus in a folder, plain or gzipped, row by row.

An invalid row is left out and reported by file and line; an invalid file ends the import.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from reprlib import repr as shown  # never longer than a line
from typing import Any

from pipeline.corpus.importers.separated import Confused, read_sheet
from pipeline.corpus.importers.texts import decode_text
from pipeline.corpus.manifest import LONGEST_SECONDS
from pipeline.errors import UserError

Row = tuple[str, Any]
"""Location ("train.csv, line 3") and value of a row."""


class Wrong(Exception):
    """A row cannot be used; the message is one sentence."""


class Absent(Exception):
    """A split cannot be read because its file is not in the folder; the message is one sentence."""


@dataclass(frozen=True)
class Annotation:
    """One caption of an annotation file; `id` is its id in the file, "" if it has none."""

    video: str
    text: str
    where: str
    start: float | None = None
    end: float | None = None
    id: str = ""


class Annotations:
    """A folder of annotation files, with the rows left out (`left_out`) and other remarks (`notes`).

    File names are matched by shell patterns, because publishers put prefixes before the usual names.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; a folder with the corpus' annotation files is needed")
        self.folder = folder
        self.left_out: list[str] = []
        self.notes: list[str] = []
        paths = sorted((path for path in folder.iterdir() if path.is_file()), reverse=True)
        # in reverse order `a.csv` comes after `a.csv.gz`, so that the plain file replaces the gzipped one
        self._files = {path.name.removesuffix(".gz"): path for path in paths}

    def find(self, *patterns: str) -> Path | None:
        """File of the first pattern that matches any, or None. Raises UserError if it matches several."""
        for pattern in patterns:
            fitting = [path for name, path in self._files.items() if fnmatchcase(name, pattern)]
            if len(fitting) > 1:
                names = ", ".join(sorted(path.name for path in fitting))
                raise UserError(f"{self.folder} has several files {pattern}: {names}; leave one there")
            if fitting:
                return fitting[0]
        return None

    def need(self, *patterns: str) -> Path:
        """File of the first pattern that matches any. Raises Absent if there is none."""
        path = self.find(*patterns)
        if path is None:
            names = " or ".join(pattern.lstrip("*") for pattern in patterns)
            raise Absent(f"there is no {names} in {self.folder}")
        return path

    def gather(
        self, rows: Iterable[Row], read: Callable[[str, Any], Iterable[Annotation]]
    ) -> list[Annotation]:
        """Captions of all rows; a row for which `read` raises Wrong is left out and reported."""
        out: list[Annotation] = []
        for where, row in rows:
            try:
                out += read(where, row)
            except Wrong as error:
                self.left_out.append(f"{where}: {error}")
        return out

    def choose(
        self, ids: Mapping[str, str], captions: Iterable[Annotation], whole: bool = False
    ) -> list[Annotation]:
        """Captions of the listed videos (id -> location in the list), in the order of the list.

        A listed video without captions is left out and reported. With `whole`, all captions should belong to
        the list's split, so that videos missing from the list are noted.
        """
        of: dict[str, list[Annotation]] = {name: [] for name in ids}
        beside: set[str] = set()
        for caption in captions:
            if caption.video in of:
                of[caption.video].append(caption)
            else:
                beside.add(caption.video)
        self.left_out += [f"{ids[name]}: {name} has no captions" for name, texts in of.items() if not texts]
        if whole and beside:
            named = next(iter(ids.values()), "the list").partition(",")[0]
            self.notes.append(f"{len(beside)} videos with captions are not in {named}, {min(beside)} is one")
        return [caption for texts in of.values() for caption in texts]

    def lines(self, path: Path) -> list[Row]:
        """Lines of a text file, stripped, without blank ones."""
        rows = enumerate(read_text(path).split("\n"), start=1)
        return [(f"{path.name}, line {number}", line.strip()) for number, line in rows if line.strip()]

    def names(self, path: Path) -> dict[str, str]:
        """Video ids of a list with one id a line, each with its first location."""
        return self._distinct(self.lines(path), name)

    def column(self, path: Path, column: str) -> dict[str, str]:
        """Video ids of a column of a CSV file, each with its first location."""
        return self._distinct(self.table(path, column), lambda row: text(row, column))

    def entries(self, path: Path) -> dict[str, str]:
        """Video ids of a JSON list, each with its first location."""
        return self._distinct(self.items(path), name)

    def _distinct(self, rows: Iterable[Row], read: Callable[[Any], str]) -> dict[str, str]:
        out: dict[str, str] = {}
        for where, row in rows:
            try:
                video = read(row)
            except Wrong as error:
                self.left_out.append(f"{where}: {error}")
                continue
            if video in out:
                self.notes.append(f"{where}: {video} stands already at {out[video]}")
            out.setdefault(video, where)
        return out

    def table(self, path: Path, *columns: str) -> list[Row]:
        """Rows of a CSV file whose header has these columns; an unreadable row is left out and reported."""

        def known(names: Sequence[str]) -> int:
            return len({*names} & {*columns})

        def is_row(names: Sequence[str], cells: Sequence[str]) -> bool:
            return len(cells) == len(names) > 1

        try:
            sheet = read_sheet(read_text(path), known, is_row)
        except Confused as error:
            raise UserError(f"{path}, {error}") from None
        for column in columns:
            if sheet.columns.count(column) != 1:
                having = ", ".join(sheet.columns) or "none"
                words = "several columns" if column in sheet.columns else "no column"
                raise UserError(f"{path} has {words} {column!r}; its columns: {having}")
        rows: list[Row] = []
        for number, cells in sheet.rows:
            where = f"{path.name}, line {number}"
            if isinstance(cells, str):
                self.left_out.append(f"{where}: {cells}")
            else:
                rows.append((where, cells))
        return rows

    def json_lines(self, path: Path) -> Iterator[Row]:
        """Objects of a JSON Lines file; a line that is not an object is left out and reported."""
        for where, line in self.lines(path):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            if isinstance(value, dict):
                yield where, value
            else:
                self.left_out.append(f"{where}: not a JSON object")

    def items(self, path: Path, key: str | None = None) -> list[Row]:
        """Entries of a JSON list, or of the list under a key of a JSON object."""
        value = self.json(path)
        if key is not None:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, list):
            raise UserError(f"{path} holds no list{f' {key!r}' if key else ''}")
        return [(f"{path.name}, {key or 'entry'} {number}", row) for number, row in enumerate(value, start=1)]

    def members(self, path: Path) -> list[Row]:
        """Members of a JSON object as (key, value)."""
        value = self.json(path)
        if not isinstance(value, dict):
            raise UserError(f"{path} holds no object of video ids")
        return [(f"{path.name}, {member}", (member, inside)) for member, inside in value.items()]

    def json(self, path: Path) -> Any:
        """Value of a JSON file; a repeated key of an object is reported, and its last value is used."""

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            out = dict(pairs)
            if len(out) < len(pairs):
                seen: set[str] = set()
                twice = {key for key, _ in pairs if key in seen or seen.add(key)}  # type: ignore[func-returns-value]
                self.left_out += [
                    f"{path.name}: {key!r} stands twice, the last counts" for key in sorted(twice)
                ]
            return out

        try:
            return json.loads(read_text(path), object_pairs_hook=once)
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise UserError(f"{path}, {place}: not valid JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not valid JSON ({error})") from None


def read_text(path: Path) -> str:
    """Text of a file, unpacked if its name ends in .gz, without byte order mark and with plain line ends."""
    data = read_bytes(path)
    try:
        out = decode_text(data)
        out.encode()
    except UnicodeEncodeError as error:
        line = out.count("\n", 0, error.start) + 1
        wrong = out[error.start : error.end].encode("utf-8", "surrogateescape")
        raise UserError(f"{path}, line {line}: not UTF-8 ({wrong!r})") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as text: {error}") from None
    return out


def read_bytes(path: Path) -> bytes:
    """Bytes of a file, unpacked if its name ends in .gz."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not data:
        raise UserError(f"{path} is empty")
    return data


def text(row: Any, key: str) -> str:
    """Text under a key of an object, stripped. Raises Wrong if there is none."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise Wrong(f"it has no text {key!r}" if isinstance(row, dict) else "not an object")
    if not value.strip():
        raise Wrong(f"its {key!r} is empty")
    return value.strip()


def name(value: Any) -> str:
    """Id as text; JSON may store it as a number. Raises Wrong for any other value."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise Wrong(f"{shown(value)} is not an id")
    return str(value).strip()


def seconds(value: Any) -> float:
    """Time in seconds. Raises Wrong for any other value."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= LONGEST_SECONDS:
        raise Wrong(f"{shown(value)} is not a number of seconds")
    return number


def window(value: Any) -> tuple[float, float]:
    """Start and end of a moment in seconds from a list of two. Raises Wrong for any other value."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise Wrong(f"{shown(value)} is not a start and an end")
    return seconds(value[0]), seconds(value[1])


def paragraphs(captions: Iterable[Annotation], end: Mapping[str, float]) -> list[Annotation]:
    """One caption for each video, from 0 to its `end`: its sentences in file order, joined by a space."""
    of: dict[str, list[Annotation]] = {}
    for caption in captions:
        of.setdefault(caption.video, []).append(caption)
    return [
        Annotation(video, " ".join(one.text for one in sentences), sentences[0].where, 0.0, end[video])
        for video, sentences in of.items()
    ]
