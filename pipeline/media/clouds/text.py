"""Point clouds as text, one point on each line: .txt, .xyz, .pts, and the bodies of ascii .ply and .pcd files."""

from __future__ import annotations

import io
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import Cloud, Columns, Doubles, Refused, automatic, finite, require_columns

HEADER_LINES = 32  # limit on the lines before the first line of numbers
PARTS = b"+-.#/\n"  # bytes that are no separators, with ASCII digits and letters
SEPARATED = bytes(n if n in PARTS or (chr(n).isalnum() and n < 128) else 32 for n in range(256))
ODD_LINES = 0.01  # largest share of a file's lines that is left out for another number of columns
# One comma between digits and none beside them: "0,458"; in "1,2,3" and "0.5,1.5" commas stand between numbers.
DECIMAL_COMMA = re.compile(rb"(?<![\d.,])\d+,\d+(?=[\s;|eE]|,\s|\Z)")
SPACED = re.compile(rb"\d(?:[;|]|,?[ \t])[ \t]*[-+]?\d")  # two numbers separated by more than a comma
# One byte that is no text, with a separator on one side and a number on the other: it may stand for a digit.
LOST_DIGIT = re.compile(
    rb"(?:(?<=[\s,;|])|\A)[\x00-\x08\x0e-\x1f\x7f-\xff](?=[\d.])"
    rb"|(?<=[\d.])[\x00-\x08\x0e-\x1f\x7f-\xff](?=[\s,;|])"
)
FOREIGN = re.compile(
    rb"(?<=[\d.])[\x80-\xff]+|[\x80-\xff]+(?=[\d.])"
)  # other characters than ASCII's at a number
MINUS = "\u2212"  # what a word processor makes of a minus
COMMENT = re.compile(rb"(#|//)[^\n]*")


def read_text(data: bytes, columns: Columns | None) -> Cloud:
    """A cloud from a text. Leading lines without numbers, and a count of points, are skipped with a remark.

    Any byte that no number contains separates columns: spaces, tabs, commas and others, because
    Area_5/hallway_6/Annotations/ceiling_1.txt of S3DIS has a stray byte between two numbers. A line whose number of
    columns differs from the file's, as where a stray byte splits a number (Area_3/hallway_2), is left out with a
    remark. Raises Refused, also if more than one line in a hundred is left out.
    """
    if b"\0" in data:
        raise Refused("it holds null bytes, so it is no text of numbers (UTF-16, or a binary file?)")
    _require_decimal_points(data)
    data, remarks = _without_comments(data)
    start, announced = _header(data, remarks)
    first = data.count(b"\n", 0, start) + 1
    body, width, odd = _regular(data[start:], columns, first)
    columns = columns or automatic(width)
    rows = numbers(body, columns, first)
    doubts = [
        f"line {number} has {count} columns, the file has {width}; it is left out" for number, count in odd
    ]
    points = len(rows) + len(odd)
    if announced is not None and announced > points:
        raise Refused(f"it announces {announced} points and has {points}: truncated")
    if announced is not None and announced < points:
        doubts.append(f"it announces {announced} points and has {points}")
    return finite(rows, remarks, doubts, len(odd))


def count_columns(data: bytes) -> int:
    """Number of columns in the first line of numbers, given the beginning of a file; 0 if it has no such line."""
    data, remarks = _without_comments(data)
    try:
        return len(_first_line(data[_header(data, remarks)[0] :]))
    except Refused:
        return 0


def widths(body: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of columns of each line (0 for a blank line), and the offset of each line; spaces separate columns."""
    signs = np.frombuffer(body, np.uint8)
    inside = (signs != ord(" ")) & (signs != ord("\n"))
    begins = inside.copy()
    begins[1:] &= ~inside[:-1]
    starts = np.concatenate([[0], np.flatnonzero(signs == ord("\n")) + 1])
    starts = starts[starts < len(body)]
    if len(starts) == 0:
        return starts, starts
    return np.add.reduceat(begins, starts, dtype=np.int64), starts


def _regular(body: bytes, columns: Columns | None, first: int) -> tuple[bytes, int, list[tuple[int, int]]]:
    """The body with odd lines blanked, the file's number of columns, and (line number, columns) of each odd line.

    An odd line has another number of columns than most lines. One that is too narrow to be read is left in place, so
    that `numbers` raises an error with its number. Raises Refused if many lines are odd.
    """
    counts, starts = widths(body)
    filled = counts[counts > 0]
    if len(filled) == 0 or (filled == filled[0]).all():
        return body, int(filled[0]) if len(filled) else 0, []
    usual = np.bincount(filled)
    width = int(filled[0]) if usual[filled[0]] == usual.max() else int(usual.argmax())
    least = max((columns or automatic(width)).positions) + 1
    odd = np.flatnonzero((counts != width) & (counts >= least))
    if len(odd) == 0:
        return body, width, []
    if len(odd) > max(1, ODD_LINES * len(filled)):
        raise Refused(
            f"line {first + int(odd[0])} has {counts[odd[0]]} columns, the file has {width}; {len(odd)} of "
            f"{len(filled)} lines have another number of columns"
        )
    blanked, ends = bytearray(body), np.append(starts[1:] - 1, len(body))
    for line in odd:
        blanked[starts[line] : ends[line]] = b" " * int(ends[line] - starts[line])
    return bytes(blanked), width, [(first + int(line), int(counts[line])) for line in odd]


def require_width(body: bytes, width: int, first: int, rows: int) -> None:
    """Raise Refused if one of the first `rows` lines that are not blank has more columns than the header names."""
    counts, _ = widths(body)
    filled = np.flatnonzero(counts)[:rows]
    wide = filled[counts[filled] > width]
    if len(wide):
        raise Refused(f"line {first + int(wide[0])} has {counts[wide[0]]} columns, its header names {width}")


def _require_decimal_points(data: bytes) -> None:
    """Raise Refused for a line with decimal commas: each such number would be read as two."""
    if b"," not in data or not (DECIMAL_COMMA.search(data) and SPACED.search(data)):
        return
    for number, line in enumerate(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), start=1):
        bare = COMMENT.sub(b"", line)
        decimal = DECIMAL_COMMA.search(bare)
        if decimal and SPACED.search(bare) and all(map(_is_number, separated(bare).split())):
            raise Refused(
                f"line {number}: {decimal[0].decode()!r} has a decimal comma; numbers need decimal points"
            )


def numbers(body: bytes, columns: Columns, first: int = 1, most: int | None = None) -> Doubles:
    """The given columns (N, 3 or 6) of at most `most` lines of numbers separated by spaces.

    Raises Refused with the number of the first line that is wrong; `first` is the number of the body's first line.
    """
    if not body.strip():
        raise Refused("it holds no points")
    try:
        return np.loadtxt(io.BytesIO(body), usecols=columns.positions, comments=None, ndmin=2, max_rows=most)
    except ValueError:  # numpy's message has no line number: the loop below finds the line
        pass
    for number, line in enumerate(body.split(b"\n"), start=first):
        words = line.split()
        if words:
            require_columns(columns, len(words), f"line {number}")
            _require_numbers([words[place] for place in columns.positions], number)
    raise Refused("it is not a text of numbers")


def _require_numbers(words: list[bytes], line: int) -> None:
    for word in words:
        if not _is_number(word):
            raise Refused(f"line {line}: {word[:40].decode('ascii', 'replace')!r} is not a number")


def separated(data: bytes) -> bytes:
    """The same lines with a space in place of every byte that no number contains.

    Raises Refused where such a byte stands at an end of a number, in place of a digit perhaps, and where characters
    mean a sign or a digit that no program writes: a minus of word processors, digits of other scripts.
    """
    lost = LOST_DIGIT.search(data)
    if lost:
        raise Refused(
            f"line {_line(data, lost)}: the byte {lost[0]!r} stands at the end of a number, as if it replaced a digit"
        )
    for foreign in FOREIGN.finditer(COMMENT.sub(_blank, data)) if not data.isascii() else ():
        for character in foreign[0].decode("utf-8", "replace"):
            if character == MINUS or unicodedata.category(character) in ("Pd", "Nd"):
                name = unicodedata.name(character).lower()
                raise Refused(
                    f"line {_line(data, foreign)}: {character!r} ({name}) is part of no number; write ASCII"
                )
    return data.translate(SEPARATED)


def _line(data: bytes, found: re.Match[bytes]) -> int:
    """The number of the line of a match, from 1."""
    return data.count(b"\n", 0, found.start()) + 1


def _blank(comment: re.Match[bytes]) -> bytes:
    """Spaces in place of a comment, so that what follows stays where it is."""
    return b" " * len(comment[0])


def _without_comments(data: bytes) -> tuple[bytes, list[str]]:
    """Lines without comments and with spaces between columns, and a remark if there were comments."""
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    data = separated(data)
    bare = COMMENT.sub(b"", data) if b"#" in data or b"//" in data else data
    return bare, ["comments were skipped"] if len(bare) < len(data) else []


def _header(data: bytes, remarks: list[str]) -> tuple[int, int | None]:
    """Offset of the first line of numbers, and the announced number of points or None; appends to `remarks`."""
    announced, start = None, 0
    for _ in range(HEADER_LINES):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        words = data[start:end].split()
        if words and all(map(_is_number, words)):
            if len(words) > 1 or announced is not None or not words[0].isdigit():
                return start, announced
            announced = int(words[0][:18])
        elif words:
            strange = [word for word in words if not _is_number(word)]
            if 2 * len(strange) < len(words):  # a point with a damaged number, not a line of names
                _require_numbers(strange, data.count(b"\n", 0, start) + 1)
            remarks.append("a header line was skipped")
        if end == len(data):
            raise Refused("it has no line of numbers" if data.strip() else "it holds no points")
        start = end + 1
    raise Refused(f"its first {HEADER_LINES} lines are no numbers")


def _first_line(body: bytes) -> list[bytes]:
    return body.lstrip().partition(b"\n")[0].split()


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
