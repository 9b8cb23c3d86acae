"""Strict reader of separated values (CSV, TSV, semicolons): a row that cannot be read is reported by its
line.

Python's csv module accepts a table with an unclosed quote, and returns rows that contain other rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.corpus.importers.texts import unreadable

SEPARATORS = (",", "\t", ";", "|")
EXCEL = re.compile(r"sep=(.)\n", re.IGNORECASE)  # first line of Excel's tables that names the separator
OPENING = re.compile(r' *(?=")')
QUOTED = re.compile(r'"(?:[^"]++|"")*+"')  # possessive: a doubled quote at the end closes nothing
PADDING = re.compile(r" *")
PLAIN = {sign: re.compile(rf"[^\n{re.escape(sign)}]*") for sign in SEPARATORS}

Cells = dict[str, str]
Row = tuple[int, Cells | str]
"""Number of the line on which a row begins, and its cells by column or the reason why it cannot be read."""


class Confused(ValueError):
    """The bounds of a table's rows are unclear; the message is one sentence."""


@dataclass(frozen=True)
class Sheet:
    """A table: the names of its columns in order, its rows, and the separator between its cells."""

    columns: tuple[str, ...]
    rows: list[Row]
    separator: str


class _Stray(Exception):
    """There is text after the closing quote of a cell, at `place`."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class _Unclosed(Exception):
    """A quote is still open at the end of the table."""


def read_sheet(
    text: str, known: Callable[[Sequence[str]], int], is_row: Callable[[Sequence[str], Sequence[str]], bool]
) -> Sheet:
    """The table of a decoded text whose first line names the columns; it may have no columns and no rows.

    The separator is that with the highest count `known(columns)` of known columns. `is_row(columns, cells)`
    returns whether a line inside a quoted cell looks like a separate row. Blank lines and lines of empty
    cells are skipped. Raises Confused, naming the line, if a quoted cell contains other rows.
    """
    start, number = 0, 1
    named = EXCEL.match(text)
    if named:
        start, number = named.end(), 2
    while text.startswith("\n", start):
        start, number = start + 1, number + 1
    separator = named[1] if named and named[1] in SEPARATORS else _separator(text, start, known)
    if text[start:].partition("\n")[0].count('"') % 2 and not known(_columns(text, start, separator)):
        raise Confused(f"line {number}: a quote in the names of the columns is not closed")
    columns, at, number = _header(text, start, number, separator)
    rows: list[Row] = []
    while at < len(text):
        first = number
        cells, end = _record_or_reason(text, at, number, separator)
        record = text[at:end]
        at, number = end, number + record.count("\n")
        if isinstance(cells, str):
            rows.append((first, cells))
            continue
        if number - first > 1:
            _require_apart(record, first, columns, separator, is_row)
        if any(cell.strip() for cell in cells):
            rows.append((first, _named(cells, columns) if not (bad := unreadable(record)) else bad))
    return Sheet(tuple(columns), rows, separator)


def _separator(text: str, start: int, known: Callable[[Sequence[str]], int]) -> str:
    """The separator that gives the most known columns in the header; among equals, the most cells."""

    found = {sign: _columns(text, start, sign) for sign in SEPARATORS}
    return max(SEPARATORS, key=lambda sign: (known(found[sign]), len(found[sign])))


def _columns(text: str, start: int, separator: str) -> list[str]:
    """Columns of the header with a separator; an empty list if a quote is unclosed or followed by text."""
    try:
        return _record(text, start, separator)[0]
    except (_Stray, _Unclosed):
        return []


def _header(text: str, start: int, number: int, separator: str) -> tuple[list[str], int, int]:
    """Columns without the unnamed last ones, and the offset and line number at which the rows begin."""
    try:
        cells, at = _record(text, start, separator)
    except (_Stray, _Unclosed):
        raise Confused(f"line {number}: a quote in the names of the columns is not closed") from None
    bad = unreadable(text[start:at])
    if bad:
        raise Confused(f"line {number}: {bad}")
    columns = [cell.strip() for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    return columns, at, number + text.count("\n", start, at)


def _record_or_reason(text: str, at: int, number: int, separator: str) -> tuple[list[str] | str, int]:
    """Cells of the record at an offset, or the reason why it cannot be read, and the next record's offset."""
    try:
        return _record(text, at, separator)
    except _Unclosed:
        raise Confused(
            f"line {number}: a quote opens in this row and is not closed before the end of the file, so the rows "
            'below cannot be told apart; close it, or double it ("") where it belongs to the caption'
        ) from None
    except _Stray as error:
        over = text.count("\n", at, error.place)
        if over:
            raise Confused(
                f"line {number}: a quote opens in this row and closes inside line {number + over}, so the rows between "
                'cannot be told apart; close it, or double it ("") where it belongs to the caption'
            ) from None
        end = text.find("\n", at)
        reason = 'text stands behind a closing quote; a quote inside a quoted cell is written twice ("")'
        return reason, len(text) if end < 0 else end + 1


def _record(text: str, at: int, separator: str) -> tuple[list[str], int]:
    """Cells of the record at an offset, and the next record's offset. Raises _Stray and _Unclosed."""
    cells: list[str] = []
    while True:
        opening = OPENING.match(text, at)
        if opening:
            quoted = QUOTED.match(text, opening.end())
            if not quoted:
                raise _Unclosed
            cells.append(quoted[0][1:-1].replace('""', '"'))
            end = _end(PADDING, text, quoted.end())
        else:
            end = _end(PLAIN[separator], text, at)
            cells.append(text[at:end])
        if end == len(text):
            return cells, end
        if text[end] == "\n":
            return cells, end + 1
        if text[end] != separator:
            raise _Stray(end)
        at = end + 1


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Offset of the end of a pattern's match at an offset; `at` if there is none."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _named(cells: list[str], columns: Sequence[str]) -> Cells | str:
    """Cells by column (the first of equal names), or the reason if there are too many or too few cells."""
    while len(cells) > len(columns) and not cells[-1].strip():
        cells.pop()
    if len(cells) > len(columns):
        return f"it has {len(cells)} cells for {len(columns)} columns; a cell that holds the separator needs quotes"
    if len(cells) < len(columns):
        return f"it has no text {columns[len(cells)]!r}: {len(cells)} cells for {len(columns)} columns"
    return dict(reversed(list(zip(columns, cells, strict=True))))


def _require_apart(
    record: str, first: int, columns: Sequence[str], separator: str,
    is_row: Callable[[Sequence[str], Sequence[str]], bool],
) -> None:  # fmt: skip
    """Raise Confused if a line inside a quoted cell looks like a separate row."""
    for below, line in enumerate(record.removesuffix("\n").split("\n")[1:], start=first + 1):
        if is_row(columns, [cell.strip().strip('"') for cell in line.split(separator)]):
            raise Confused(
                f"line {first}: a quoted cell reaches over line {below}, which looks like a row of its own; close the "
                'quote, or double it ("") where it belongs to the caption'
            )
