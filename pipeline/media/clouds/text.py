"""Point clouds as text, a point a line: .txt, .xyz, .pts, and the bodies of ascii .ply and .pcd files."""

from __future__ import annotations

import io
import re

import numpy as np

from pipeline.media.clouds.cloud import Cloud, Columns, Doubles, Refused, automatic, finite, require_columns

HEADER_LINES = 32  # at most, before the first line of numbers
PARTS = b"+-.#/\n"  # with digits and letters, what is not a separator
SEPARATED = bytes(n if n in PARTS or (chr(n).isalnum() and n < 128) else 32 for n in range(256))
COMMENT = re.compile(rb"(#|//)[^\n]*")


def read_text(data: bytes, columns: Columns | None) -> Cloud:
    """The cloud of a text; leading lines that are no numbers, and a count of points, are skipped and told.

    Columns stand between spaces, tabs, commas, or any other byte that no number has: in S3DIS,
    Area_5/hallway_6/Annotations/ceiling_1.txt has one such byte between two numbers. Raises Refused.
    """
    if b"\0" in data:
        raise Refused("it holds null bytes, so it is no text of numbers (UTF-16, or a binary file?)")
    data, said = _without_comments(data)
    start, announced = _header(data, said)
    body = data[start:]
    columns = columns or automatic(len(_first_line(body)))
    rows = numbers(body, columns, data.count(b"\n", 0, start) + 1)
    if announced is not None and announced > len(rows):
        raise Refused(f"it announces {announced} points and has {len(rows)}: truncated")
    if announced is not None and announced < len(rows):
        said.append(f"it announces {announced} points and has {len(rows)}")
    return finite(rows, said)


def count_columns(data: bytes) -> int:
    """How many columns the first line of numbers has, from the beginning of a file; 0 without one."""
    data, said = _without_comments(data)
    try:
        return len(_first_line(data[_header(data, said)[0] :]))
    except Refused:
        return 0


def numbers(body: bytes, columns: Columns, first: int = 1, most: int | None = None) -> Doubles:
    """The wanted columns (N, 3 or 6) of at most so many lines of numbers, between spaces.

    Raises Refused with the first line that is wrong; `first` is the number of the body's first line.
    """
    if not body.strip():
        raise Refused("it holds no points")
    try:
        return np.loadtxt(io.BytesIO(body), usecols=columns.positions, comments=None, ndmin=2, max_rows=most)
    except ValueError:  # which line is looked for below
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
    """The same lines with a space for every byte that no number has."""
    return data.translate(SEPARATED)


def _without_comments(data: bytes) -> tuple[bytes, list[str]]:
    """Lines with columns between spaces, and whether there were comments among them."""
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    data = separated(data)
    bare = COMMENT.sub(b"", data) if b"#" in data or b"//" in data else data
    return bare, ["comments were skipped"] if len(bare) < len(data) else []


def _header(data: bytes, said: list[str]) -> tuple[int, int | None]:
    """Where the first line of numbers begins, and the number of points announced before it."""
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
            said.append("a header line was skipped")
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
