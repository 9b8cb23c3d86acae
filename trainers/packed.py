"""Packed arrays of a method: for each item or caption, rows that lie in the store's segments or in the pack's folder.

A pack copies no stored row. `arrays.json` of its folder names the blocks of each array, and `<name>.npy` has for each
unit the block, the first row and the number of rows. What packing computes itself lies in segments too, which later
packs use again (`trainers.packing`). Values are exactly those that a copy in the array's dtype would have.

Axes: N units (items or captions), L rows of a unit, T slots of a batch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError

ARRAYS = "arrays.json"
IN_STORE = re.compile(
    r"segments/[a-z0-9_-]+/[0-9a-f]+/[0-9a-f]+\.h5", re.ASCII
)  # a pack that was pulled from elsewhere can lead to nothing else
CACHED_BYTES = 256 << 10  # of rows that are gathered before they are converted
MOST_MAPPED = 10_000  # blocks of an array that stay mapped; Linux allows a process 65,530 mappings

Array = NDArray[Any]
Units = Sequence[int] | NDArray[np.int64]


@dataclass(
    frozen=True, eq=False
)  # compared by identity: a hash of the values takes longer than reading a row
class Block:
    """Rows of one dtype and shape, end to end in a file: its path, the offset in bytes, and the array's shape."""

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """The place of each unit's rows: `table` (N, 3) int64 with the block, the first row and the number of rows.

    A unit without rows of its own has 0 rows.
    """

    blocks: Sequence[Block]
    table: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each unit, (N,)."""
        return self.table[:, 2]

    def cut(self, most: int, unless: Placed | None = None) -> Placed:
        """The first `most` rows of each unit; all rows of those that have rows in `unless`."""
        table = self.table.copy()
        cut = slice(None) if unless is None else unless.lengths == 0
        table[cut, 2] = table[cut, 2].clip(max=most)
        return Placed(self.blocks, table)


class Files:
    """The files that placed rows lie in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a block: a segment of the store that the folder lies in, or a file of the folder."""
        if "/" not in name:
            return self.folder / name
        if not IN_STORE.fullmatch(name):
            raise UserError(f"{self.folder / ARRAYS} is damaged: it names {name!r}, which is no segment")
        return self.folder.absolute().parents[2] / name

    def values(self, block: Block) -> Array:
        """All rows of a block, a view of the mapped file. Raises UserError for a file that is gone or shorter."""
        path = self.path(block.path)
        try:
            mapped = np.memmap(path, block.dtype, "r", block.offset, block.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} of the packed inputs {self.folder} cannot be read ({error}); the next run packs them again"
            ) from None
        return mapped.view(np.ndarray)  # slices of the subclass take three times as long


class MappedRows:
    """Placed rows, mapped to memory: `[i]` is a view of those of unit i.

    Blocks are mapped beforehand, so that they stay readable when another run makes a segment again and removes this
    one. Of more than MOST_MAPPED, the others are mapped when a row of them is read.
    """

    def __init__(self, files: Files, placed: Placed) -> None:
        self.placed, self._files = placed, files
        self._arrays: list[Array | None] = [None] * len(placed.blocks)
        self._map()

    def _map(self) -> None:
        for number, block in enumerate(self.placed.blocks[:MOST_MAPPED]):
            self._arrays[number] = self._files.values(block)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": [None] * len(self._arrays)}  # pickled, an array would be a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __getitem__(self, unit: int) -> Array:
        return next(iter(self.of([unit])))

    def of(self, units: Units) -> Iterator[Array]:
        """Yield the rows of each unit."""
        for block, start, count in self.placed.table[units].tolist():
            yield self.block(block)[start : start + count]

    def block(self, number: int) -> Array:
        """All rows of a block."""
        values = self._arrays[number]
        return self._files.values(self.placed.blocks[number]) if values is None else values


class Ragged:
    """Arrays of different lengths, of one dtype: `[i]` is that of unit i, (L_i, ...).

    Of the rows that are placed, those at the positions `take` are meant where a unit has any, and each is divided
    by its number in `divide` where there is one, in that number's precision.
    """

    def __init__(
        self, files: Files, rows: Placed, dtype: str, take: Placed | None = None, divide: Placed | None = None
    ) -> None:  # fmt: skip
        self._rows = MappedRows(files, rows)
        self._take = None if take is None else MappedRows(files, take)
        self._divide = None if divide is None else MappedRows(files, divide)
        self.dtype = np.dtype(dtype)
        self.row_shape: tuple[int, ...] = tuple(rows.blocks[0].shape[1:])
        taken = 0 if take is None else take.lengths
        self.lengths: NDArray[np.int64] = np.where(np.asarray(taken) > 0, taken, rows.lengths)
        # one dtype for all rows: a batch is gathered as it is stored, and converted as a whole
        kinds = {block.dtype for block in rows.blocks}
        by = [block.dtype for block in divide.blocks] if divide is not None else [self.dtype.str]
        self._whole = len(kinds) == 1 and by == [self.dtype.str]
        self._stored = np.dtype(rows.blocks[0].dtype)

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """An array of a packed folder; nothing of it is read until it is used."""
        arrays = _listed(folder)
        return cls._placed(folder, arrays[name]) if name in arrays else cls._copied(folder, name)

    @staticmethod
    def there(folder: Path, name: str) -> bool:
        """Whether a packed folder has an array."""
        return name in _listed(folder) or (folder / f"{name}.npy").is_file()

    @classmethod
    def _placed(cls, folder: Path, about: dict[str, Any]) -> Ragged:
        placed = {
            part: Placed(
                [Block(path, offset, dtype, tuple(shape)) for path, offset, dtype, shape in told["blocks"]],
                np.load(folder / told["table"], allow_pickle=False),
            )
            for part, told in about["parts"].items()
        }
        return cls(Files(folder), dtype=about["dtype"], **placed)

    @classmethod
    def _copied(cls, folder: Path, name: str) -> Ragged:
        """An array that `write_ragged` copied, as all packed arrays were once."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        offsets = np.load(folder / f"{name}.offsets.npy", allow_pickle=False)
        table = np.stack([np.zeros(len(offsets) - 1, np.int64), offsets[:-1], np.diff(offsets)], axis=1)
        block = Block(f"{name}.npy", int(values.offset), values.dtype.str, values.shape)
        return cls(Files(folder), Placed([block], table), values.dtype.str)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, unit: int) -> Array:
        found = self._rows[unit]
        if self._take is not None and len(positions := self._take[unit]):
            found = found[positions]
        by = None if self._divide is None else self._divide[unit]
        if by is None or not len(by):
            return found if found.dtype == self.dtype else found.astype(self.dtype)
        return (found.astype(self.dtype) / by[:, None]).astype(self.dtype, copy=False)

    def padded(self, units: Units, slots: int | None = None) -> Tensor:
        """The arrays of some units (N, T, ...), zero behind their rows; T is `slots`, or the longest array's rows.

        Rows beyond `slots` are left out.
        """
        units = np.asarray(units, np.int64)
        slots = int(self.lengths[units].max()) if slots is None else slots
        out = torch.empty((len(units), slots, *self.row_shape), dtype=_torch_dtype(self.dtype))
        if not self._whole:
            out.zero_()
            for place, unit in zip(out, units.tolist(), strict=True):
                array = torch.from_numpy(np.array(self[unit][:slots]))
                place[: len(array)] = array
            return out
        if self._stored == self.dtype and self._divide is None:
            self._gather(units, out.numpy())
            return out
        size = slots * math.prod(self.row_shape) * self._stored.itemsize
        step = max(1, min(len(units), CACHED_BYTES // max(1, size)))
        gathered = np.empty((step, slots, *self.row_shape), self._stored)
        for first in range(0, len(units), step):
            part, place = units[first : first + step], out[first : first + step]
            self._gather(part, gathered)
            # NumPy's own conversion from float16 takes ten times torch's; a few units at a time stay in the cache
            place.copy_(torch.from_numpy(gathered[: len(part)]))
            if self._divide is not None:
                place /= self._divisors(self._divide, part, slots)
        return out

    def _gather(self, units: NDArray[np.int64], out: Array) -> None:
        """Write the stored rows of units into (N, T, ...)."""
        slots = out.shape[1]
        none: Iterator[Array] = repeat(np.empty(0, np.int32))
        taken = none if self._take is None else self._take.of(units)
        for place, found, positions in zip(out, self._rows.of(units), taken, strict=False):
            count = min(len(positions) or len(found), slots)
            if len(positions):  # mode "clip": "raise" would make a copy between
                np.take(found, positions[:slots], axis=0, out=place[:count], mode="clip")
            else:
                place[:count] = found[:slots]
            place[count:] = 0

    def _divisors(self, divide: MappedRows, units: NDArray[np.int64], slots: int) -> Tensor:
        """The divisors of units (N, T, 1, ...), 1 where there is none."""
        places = divide.placed.table[units]
        slot = np.arange(slots)
        values = divide.block(0)  # `PackWriter.write` puts them together
        by = values[(places[:, 1:2] + slot).clip(max=len(values) - 1)]
        by[slot >= places[:, 2:]] = 1
        return torch.from_numpy(by).view(len(units), slots, *[1] * len(self.row_shape))


def _listed(folder: Path) -> dict[str, Any]:
    """The arrays of a packed folder by name; none where all are copies."""
    path = folder / ARRAYS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
