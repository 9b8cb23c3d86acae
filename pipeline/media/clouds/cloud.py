"""A point cloud in memory, the columns of a table that hold its coordinates and colours, and checks on both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
NAMES = ("x", "y", "z", "r", "g", "b")
AUTO = "auto"
NO_COLOUR = 0.0  # red, green and blue of every point in a cloud without colours
LARGEST_BYTES = 4 << 30  # limit on the size of a file, and on the size of an array unpacked from one
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Refused(Exception):
    """A file cannot be used as a point cloud; the message gives the reason in one sentence."""


@dataclass(frozen=True)
class Cloud:
    """Points in the order of their file: xyz (N, 3) in its units, rgb (N, 3) in its scale or None.

    `points` is the number of points in the file and `dropped` the number left out: `odd` of them because their line
    cannot be read safely, the others because a coordinate or colour is not a finite float32. `remarks` are sentences
    about the file, for example that a header line was skipped; `doubts` are those remarks that may mean a fault.
    """

    xyz: Doubles
    rgb: Doubles | None
    points: int
    dropped: int = 0
    odd: int = 0
    remarks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def rows(self) -> Doubles:
        """x y z r g b (N, 6); r g b are 0 if the cloud has no colours."""
        rgb = np.full_like(self.xyz, NO_COLOUR) if self.rgb is None else self.rgb
        return np.concatenate([self.xyz, rgb], axis=1)


@dataclass(frozen=True)
class Columns:
    """Positions of x, y, z and, if colours are read, r, g, b in a table, counted from 0."""

    positions: tuple[int, ...]

    @property
    def coloured(self) -> bool:
        """Whether the columns include colours."""
        return len(self.positions) == len(NAMES)

    @property
    def words(self) -> str:
        """Names of the columns, for an error message: "x y z" or "x y z r g b"."""
        return " ".join(NAMES[: len(self.positions)])


def parse_columns(text: str) -> Columns | None:
    """The columns that a setting names; None for "auto". Raises ValueError for any other text.

    >>> parse_columns("x y z label r g b").positions
    (0, 1, 2, 4, 5, 6)
    >>> parse_columns("2 0 1").positions
    (2, 0, 1)
    """
    words = [word for word in re.split(r"[\s,]+", text.strip()) if word]
    if words == [AUTO]:
        return None
    if words and all(word.isdecimal() for word in words):
        positions = tuple(int(word) for word in words)
    else:
        expected = NAMES if any(word in NAMES[3:] for word in words) else NAMES[:3]
        positions = tuple(words.index(name) for name in expected if words.count(name) == 1)
        if len(positions) != len(expected):
            positions = ()
    if len(positions) not in (3, 6) or len(set(positions)) != len(positions):
        raise ValueError(
            f"columns are {AUTO!r}, the names of a file's columns in their order ('x y z r g b', others are "
            f"skipped), or the positions of x y z or x y z r g b from 0, not {text!r}"
        )
    return Columns(positions)


def automatic(width: int) -> Columns:
    """Columns of a table with `width` columns: x y z r g b come first, or x y z alone. Raises Refused otherwise."""
    if width >= 6:
        return Columns(tuple(range(6)))
    if width == 3:
        return Columns((0, 1, 2))
    raise Refused(
        f"it has {width} columns; x y z r g b needs 6, x y z alone 3 (the setting columns says which they are)"
    )


def require_columns(columns: Columns, width: int, where: str = "it") -> None:
    """Raise Refused if a table with `width` columns lacks one of the positions."""
    if max(columns.positions) >= width:
        raise Refused(f"{where} has {width} columns; {columns.words} needs {max(columns.positions) + 1}")


def require_points(count: int, most: int) -> None:
    """Raise Refused if a header announces no points, or more than its file has room for (`most`).

    Called before memory is allocated, so that a damaged header cannot exhaust it.
    """
    if count > most:
        raise Refused(f"it announces {count} points and has room for {most}: truncated or damaged")
    if count < 1:
        raise Refused("it holds no points")


def finite(rows: Doubles, remarks: Sequence[str] = (), doubts: Sequence[str] = (), odd: int = 0) -> Cloud:
    """A cloud of those rows (N, 3 or 6) that are finite in float32. Raises Refused if there are none.

    `odd` is the number of points that were already left out because of their lines.
    """
    if len(rows) == 0:
        raise Refused("it holds no points")
    kept = rows[(np.abs(rows) <= LARGEST_FLOAT32).all(axis=1)]  # False for NaN too
    if len(kept) == 0:
        raise Refused(f"none of its {len(rows)} points is finite")
    rgb = kept[:, 3:] if kept.shape[1] > 3 else None
    points = len(rows) + odd
    return Cloud(kept[:, :3], rgb, points, points - len(kept), odd, (*remarks, *doubts), tuple(doubts))


def from_table(table: NDArray[np.generic], columns: Columns | None) -> Cloud:
    """A cloud from a table (N, columns) of numbers. Raises Refused."""
    width = table.shape[1]
    columns = columns or automatic(width)
    require_columns(columns, width)
    return finite(table[:, list(columns.positions)].astype(np.float64))


def unit_colours(cloud: Cloud) -> Cloud:
    """A copy of the cloud with colours divided by 255."""
    rgb = None if cloud.rgb is None else cloud.rgb / 255.0
    return replace(cloud, rgb=rgb)
