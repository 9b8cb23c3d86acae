"""A point cloud as it was read, which columns of a table are its coordinates and colours, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
NAMES = ("x", "y", "z", "r", "g", "b")
AUTO = "auto"
NO_COLOUR = 0.0  # of a cloud without colours
LARGEST_BYTES = 4 << 30  # of a file, and of what is unpacked from one
SINGLE = float(np.finfo(np.float32).max)


class Refused(Exception):
    """A file is no point cloud that can be used, in one sentence."""


@dataclass(frozen=True)
class Cloud:
    """Points in the order of their file: xyz (N, 3) in its units, rgb (N, 3) in its scale or None.

    `points` counts what the file held, `dropped` those that are left out: `odd` in lines that cannot be read
    safely, the others because a coordinate or colour is no finite float32. `said` is what else is worth knowing of
    the file, in words, and `doubts` what of it may be wrong.
    """

    xyz: Doubles
    rgb: Doubles | None
    points: int
    dropped: int = 0
    odd: int = 0
    said: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def rows(self) -> Doubles:
        """x y z r g b (N, 6); without colours their constant, 0."""
        rgb = np.full_like(self.xyz, NO_COLOUR) if self.rgb is None else self.rgb
        return np.concatenate([self.xyz, rgb], axis=1)


@dataclass(frozen=True)
class Columns:
    """Where x, y, z and, if wanted, r, g, b stand in a table, counted from 0."""

    positions: tuple[int, ...]

    @property
    def coloured(self) -> bool:
        """Whether colours are wanted."""
        return len(self.positions) == len(NAMES)

    @property
    def words(self) -> str:
        """What is wanted, for a sentence."""
        return " ".join(NAMES[: len(self.positions)])


def parse_columns(text: str) -> Columns | None:
    """The columns that a setting names; None for "auto". Raises ValueError for what names none.

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
        wanted = NAMES if any(word in NAMES[3:] for word in words) else NAMES[:3]
        positions = tuple(words.index(name) for name in wanted if words.count(name) == 1)
        if len(positions) != len(wanted):
            positions = ()
    if len(positions) not in (3, 6) or len(set(positions)) != len(positions):
        raise ValueError(
            f"columns are {AUTO!r}, the names of a file's columns in their order ('x y z r g b', others are "
            f"skipped), or the positions of x y z or x y z r g b from 0, not {text!r}"
        )
    return Columns(positions)


def automatic(width: int) -> Columns:
    """The columns of a table of so many: x y z r g b in front, or x y z alone. Raises Refused for others."""
    if width >= 6:
        return Columns(tuple(range(6)))
    if width == 3:
        return Columns((0, 1, 2))
    raise Refused(
        f"it has {width} columns; x y z r g b needs 6, x y z alone 3 (the setting columns says which they are)"
    )


def require_columns(columns: Columns, width: int, where: str = "it") -> None:
    """Raise Refused where a table is narrower than its columns."""
    if max(columns.positions) >= width:
        raise Refused(f"{where} has {width} columns; {columns.words} needs {max(columns.positions) + 1}")


def require_points(count: int, most: int) -> None:
    """Raise Refused for a header that announces more points than its file can hold; nothing is allocated."""
    if count > most:
        raise Refused(f"it announces {count} points and has room for {most}: truncated or damaged")
    if count < 1:
        raise Refused("it holds no points")


def finite(rows: Doubles, said: Sequence[str] = (), doubts: Sequence[str] = (), odd: int = 0) -> Cloud:
    """The cloud of rows (N, 3 or 6) without those that are not finite in float32. Raises Refused if none is.

    `odd` counts the points of lines that were left out before.
    """
    if len(rows) == 0:
        raise Refused("it holds no points")
    kept = rows[(np.abs(rows) <= SINGLE).all(axis=1)]
    if len(kept) == 0:
        raise Refused(f"none of its {len(rows)} points is finite")
    rgb = kept[:, 3:] if kept.shape[1] > 3 else None
    points = len(rows) + odd
    return Cloud(kept[:, :3], rgb, points, points - len(kept), odd, (*said, *doubts), tuple(doubts))


def of_table(table: NDArray[np.generic], columns: Columns | None, said: Sequence[str] = ()) -> Cloud:
    """The cloud of a table (N, columns) of numbers. Raises Refused."""
    width = table.shape[1]
    columns = columns or automatic(width)
    require_columns(columns, width)
    return finite(table[:, list(columns.positions)].astype(np.float64), said)


def unit_colours(cloud: Cloud) -> Cloud:
    """The same cloud with its colours divided by 255."""
    rgb = None if cloud.rgb is None else cloud.rgb / 255.0
    return replace(cloud, rgb=rgb)
