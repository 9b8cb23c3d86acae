"""The vertices of a .ply file, ascii or binary of either byte order, with their colours in the file's scale."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import Cloud, Columns, Doubles, Refused, finite, require_points
from pipeline.media.clouds.text import numbers, require_width, separated, widths

LONGEST_HEADER = 1 << 16  # bytes
NUMBERS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
COORDINATES = ("x", "y", "z")
COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))


@dataclass
class Element:
    """A kind of row: the number of rows, and the type of each property, None for a list."""

    name: str
    count: int
    properties: dict[str, str | None] = field(default_factory=dict)

    @property
    def smallest(self) -> int:
        """Bytes of a row whose lists are empty; as text, a digit and a separator for each property."""
        return sum(np.dtype(kind or "u1").itemsize for kind in self.properties.values())


@dataclass
class Header:
    """The header of a .ply file; its rows begin at byte `start`."""

    order: str
    elements: list[Element]
    start: int

    @property
    def faces(self) -> int:
        """Number of faces announced."""
        return sum(element.count for element in self.elements if element.name == "face")


def read_header(data: bytes) -> Header:
    """The header of a .ply file. Raises Refused if it is malformed, or announces more than the file can hold."""
    end = re.search(rb"\bend_header[ \t]*(\r\n|\n|\r)", data[:LONGEST_HEADER])
    if not data.startswith(b"ply") or not end:
        raise Refused(
            "it is no .ply file: its header does not end" if data[:3] == b"ply" else "it is no .ply file"
        )
    order, elements = None, []
    for line in data[: end.start()].decode("ascii", "replace").splitlines():
        match line.split():
            case ["format", word, *_] if word in ORDERS:
                order = ORDERS[word]
            case ["element", name, count] if count.isdecimal():
                elements.append(Element(name, int(count[:18])))
            case ["property", "list", *_, name] if elements:
                elements[-1].properties[name] = None
            case ["property", kind, name] if elements and kind in NUMBERS:
                elements[-1].properties[name] = NUMBERS[kind]
            case ["element" | "property" | "format", *_]:
                raise Refused(f"its header has the line {line[:60]!r}, which is not possible")
    if order is None:
        raise Refused(f"its header names no format; possible: {', '.join(ORDERS)}")
    header = Header(order, elements, end.end())
    _require_room(header, len(data) - header.start)
    return header


def _require_room(header: Header, size: int) -> None:
    """Raise Refused if the announced rows do not fit into `size` bytes."""
    for element in header.elements:
        row = 2 * len(element.properties) if header.order == "" else element.smallest
        most = (size + 1) // max(1, row)
        if element.name == "vertex":
            require_points(element.count, most)
        elif element.count > most:
            raise Refused(f"it announces {element.count} x {element.name}: truncated or damaged")


def require_no_more(data: bytes, header: Header) -> None:
    """Raise Refused if a file holds more rows than its header announces: the rest would be lost."""
    announced = sum(element.count for element in header.elements)
    points = next((element.count for element in header.elements if element.name == "vertex"), 0)
    body = data[header.start :]
    if header.order == "":
        counts, _ = widths(separated(body if b"\n" in body else body.replace(b"\r", b"\n")))
        rows = int((counts > 0).sum())
        if rows > announced:
            more = f", and {announced - points} other rows" if announced > points else ""
            raise Refused(f"it announces {points} points{more}, and has {rows} rows: its header is wrong")
    elif not any(kind is None for element in header.elements for kind in element.properties.values()):
        size = sum(element.count * element.smallest for element in header.elements)
        row = max((element.smallest for element in header.elements), default=1)
        if len(body) - size >= max(1, row) and body[size:].strip(b"\0\r\n "):
            raise Refused(
                f"it announces {points} points, {size} bytes, and has {len(body)} bytes: its header is wrong"
            )


def read_ply(data: bytes, header: Header, coloured: bool | None) -> Cloud:
    """The vertices as a cloud; `coloured`: required (True), left out (False), or read if present (None).

    Raises Refused.
    """
    place = next((n for n, element in enumerate(header.elements) if element.name == "vertex"), None)
    if place is None:
        raise Refused("it has no vertices")
    before, vertex = header.elements[:place], header.elements[place]
    names = (*COORDINATES, *named_colours(list(vertex.properties), coloured))
    for name in names:
        if vertex.properties.get(name) is None:
            raise Refused(f"its vertices have no number {name!r}")
    return finite((_ascii if header.order == "" else _binary)(data, header, before, vertex, names))


def named_colours(fields: list[str], coloured: bool | None) -> tuple[str, ...]:
    """Names of the colour fields among `fields`; () if there are none, or colours are left out (False).

    Raises Refused if colours are required (True) and there are none.
    """
    colours = next((names for names in COLOURS if set(names) <= set(fields)), ())
    if coloured and not colours:
        raise Refused(f"it has no colours; its columns: {' '.join(fields)}")
    return () if coloured is False else colours


def _ascii(
    data: bytes, header: Header, before: list[Element], vertex: Element, names: tuple[str, ...]
) -> Doubles:
    if any(kind is None for kind in list(vertex.properties.values())[:-1]):
        raise Refused("its vertices have a list, after which no number can be found")
    body = separated(data[header.start :])
    skipped = sum(element.count for element in before)
    body = body.split(b"\n", skipped)[-1]
    positions = Columns(tuple(list(vertex.properties).index(name) for name in names))
    if None not in vertex.properties.values():
        first = data.count(b"\n", 0, header.start) + skipped + 1
        require_width(body, len(vertex.properties), first, vertex.count)
    rows = numbers(body, positions, data.count(b"\n", 0, header.start) + skipped + 1, vertex.count)
    require_points(vertex.count, len(rows))
    return rows


def _binary(
    data: bytes, header: Header, before: list[Element], vertex: Element, names: tuple[str, ...]
) -> Doubles:
    kinds = [(element, _row(element, header.order)) for element in (*before, vertex)]
    start = header.start + sum(element.count * kind.itemsize for element, kind in kinds[:-1])
    kind = kinds[-1][1]
    require_points(vertex.count, (len(data) - start) // kind.itemsize)
    rows: NDArray[np.void] = np.frombuffer(data, kind, vertex.count, start)
    with np.errstate(invalid="ignore"):  # converting a signalling NaN warns; `finite` drops it like any other
        return np.stack([rows[name].astype(np.float64) for name in names], axis=1)


def _row(element: Element, order: str) -> np.dtype[np.void]:
    """The dtype of a row. Raises Refused for an element with lists, whose rows differ in length."""
    fields = []
    for name, kind in element.properties.items():
        if kind is None:
            raise Refused(f"a list ({element.name} {name}) stands before or among its vertices")
        fields.append((name, order + kind))
    return np.dtype(fields)
