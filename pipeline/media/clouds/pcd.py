"""The points of a .pcd file of the Point Cloud Library: ascii, binary and binary_compressed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import (
    LARGEST_BYTES,
    Cloud,
    Columns,
    Doubles,
    Refused,
    finite,
    require_points,
)
from pipeline.media.clouds.ply import COORDINATES, named_colours
from pipeline.media.clouds.text import numbers, require_width, separated, widths

LONGEST_HEADER = 1 << 16  # bytes
PACKED = ("rgb", "rgba")  # fields that hold a colour as one number, whose bytes are 0, r, g, b
EXPANSION = 90  # largest ratio of unpacked to packed bytes: three bytes of LZF expand to at most 264


@dataclass(frozen=True)
class Header:
    """The layout of a point, the number of points, their storage format, and the byte where they begin."""

    kinds: dict[str, str]  # dtype of each field
    counts: tuple[int, ...]  # numbers in each field
    points: int
    storage: str
    start: int

    @property
    def row(self) -> np.dtype[np.void]:
        """The layout of a point."""
        fields = zip(self.kinds.items(), self.counts, strict=True)
        return np.dtype([(name, kind, (count,)) for (name, kind), count in fields])


def read_pcd(data: bytes, coloured: bool | None) -> Cloud:
    """The points as a cloud; `coloured`: required (True), left out (False), or read if present (None).

    Raises Refused.
    """
    header = _header(data)
    for name in COORDINATES:
        if name not in header.kinds:
            raise Refused(f"it has no field {name!r}; its fields: {' '.join(header.kinds)}")
    packed = next((name for name in PACKED if name in header.kinds and coloured is not False), None)
    plain = named_colours(list(header.kinds), coloured and not packed)
    names = (*COORDINATES, *((packed,) if packed else plain))
    read = {"ascii": _ascii, "binary": _binary, "binary_compressed": _compressed}.get(header.storage)
    if read is None:
        raise Refused(f"its data are {header.storage!r}; possible: ascii, binary, binary_compressed")
    columns = read(data, header, names)
    if packed:
        columns[3:] = _unpacked(columns[3], header.kinds[packed])
    with np.errstate(invalid="ignore"):  # converting a signalling NaN warns; `finite` drops it like any other
        return finite(np.stack([column.astype(np.float64) for column in columns], axis=1))


def _header(data: bytes) -> Header:
    entries: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in entries:
        end = data.find(b"\n", start, LONGEST_HEADER)
        if end < 0:
            raise Refused("it is no .pcd file: its header has no line DATA")
        key, *words = data[start:end].decode("ascii", "replace").split() or ["#"]
        entries[key] = words
        start = end + 1
    try:
        return _parse_header(entries, start)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise Refused(f"its header is not that of a .pcd file ({error})") from None


def _parse_header(entries: dict[str, list[str]], start: int) -> Header:
    names, sizes, types = entries["FIELDS"], entries["SIZE"], [word.lower() for word in entries["TYPE"]]
    counts = tuple(int(word) for word in entries.get("COUNT", ["1"] * len(names)))
    named = [name if name != "_" else f"_{n}" for n, name in enumerate(names)]  # "_" marks padding bytes
    if not set(types) <= set("iuf") or len({*named}) != len(counts) or min(counts) < 1:
        raise Refused("its header describes fields that are not possible")
    fields = zip(named, types, sizes, strict=True)
    kinds = {name: np.dtype(f"<{kind}{size}").str for name, kind, size in fields}
    if "POINTS" in entries:
        points = int(entries["POINTS"][0])
    else:
        points = int(entries["WIDTH"][0]) * int(entries["HEIGHT"][0])
    header = Header(kinds, counts, points, entries["DATA"][0], start)
    if header.row.itemsize > LONGEST_HEADER:
        raise Refused("its header describes fields that are not possible")
    return header


def _ascii(data: bytes, header: Header, names: tuple[str, ...]) -> list[NDArray[np.generic]]:
    require_points(header.points, (len(data) - header.start + 1) // 2)
    first = dict(zip(header.kinds, np.cumsum([0, *header.counts]).tolist(), strict=False))
    positions = Columns(tuple(first[name] for name in names))
    before = data.count(b"\n", 0, header.start) + 1
    body = separated(data[header.start :])
    lines = int((widths(body)[0] > 0).sum())
    if lines > header.points:
        raise Refused(f"it announces {header.points} points and has {lines}: its header is wrong")
    require_width(body, sum(header.counts), before, header.points)
    rows = numbers(body, positions, before, header.points)
    require_points(header.points, len(rows))
    return [_typed(column, header.kinds[name]) for name, column in zip(names, rows.T, strict=True)]


def _typed(column: Doubles, kind: str) -> NDArray[np.generic]:
    """Numbers (N,) converted from float64 to the dtype of their field, whose bits hold packed colours.

    Raises Refused for a number out of range.
    """
    if np.dtype(kind).kind != "f":
        limits = np.iinfo(kind)
        if not ((column >= limits.min) & (column <= limits.max)).all():
            raise Refused("it has a number that its field cannot hold")
    return column.astype(kind)


def _binary(data: bytes, header: Header, names: tuple[str, ...]) -> list[NDArray[np.generic]]:
    row = header.row
    room = (len(data) - header.start) // row.itemsize
    require_points(header.points, room)
    if room > header.points and data[header.start + header.points * row.itemsize :].strip(b"\0\r\n "):
        raise Refused(f"it announces {header.points} points and has room for {room}: its header is wrong")
    rows = np.frombuffer(data, row, header.points, header.start)
    return [rows[name][:, 0] for name in names]


def _compressed(data: bytes, header: Header, names: tuple[str, ...]) -> list[NDArray[np.generic]]:
    """Columns of compressed points, in which all values of a field stand together, one field after another."""
    sizes = np.frombuffer(data[header.start : header.start + 8].ljust(8, b"\0"), "<u4")
    packed = data[header.start + 8 : header.start + 8 + int(sizes[0])]
    row, size = header.row, int(sizes[1])
    require_points(header.points, min(size, EXPANSION * len(packed), LARGEST_BYTES) // row.itemsize)
    unpacked = expand(packed, header.points * row.itemsize)
    start, columns = 0, {}
    for (name, kind), count in zip(header.kinds.items(), header.counts, strict=True):
        values = np.frombuffer(unpacked, kind, header.points * count, start)
        columns[name] = values.reshape(header.points, count)[:, 0]
        start += values.nbytes
    return [columns[name] for name in names]


def expand(packed: bytes, size: int) -> bytes:
    """The `size` bytes that LZF packed. Raises Refused for data that is not LZF or unpacks to another size.

    A control byte n below 32 is followed by n + 1 plain bytes. Any other copies earlier output: three bits of length
    (7: the next byte is added to it) and 13 bits of distance.
    """
    out, at = bytearray(), 0
    try:
        while at < len(packed) and len(out) <= size:
            control = packed[at]
            at += 1
            if control < 32:
                out += packed[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[at]
                at += 1
            back = len(out) - ((control & 31) << 8) - packed[at] - 1
            at += 1
            if back < 0:
                raise Refused("its compressed points are damaged")
            piece = out[back : back + length + 2]
            out += (piece * (-(-(length + 2) // len(piece))))[
                : length + 2
            ]  # a copy may overlap its own output
    except IndexError:
        raise Refused("its compressed points are truncated") from None
    if len(out) != size:
        raise Refused(f"its compressed points unpack to {len(out)} bytes, not {size}: truncated or damaged")
    return bytes(out)


def _unpacked(packed: NDArray[np.generic], kind: str) -> list[NDArray[np.generic]]:
    """Red, green and blue (N,) from 0 to 255 out of packed numbers (N,) of four bytes, of whatever dtype."""
    if np.dtype(kind).itemsize != 4:
        raise Refused(f"its packed colours are of {np.dtype(kind).itemsize} bytes, not 4")
    bits = np.ascontiguousarray(packed, kind).view("<u4")
    return [(bits >> shift) & 255 for shift in (16, 8, 0)]
