"""Packed arrays of a method: for each item or caption, rows that lie in the store's segments or in the pack's folder.

A pack copies no stored row. `arrays.json` of its folder names the blocks of each array, and `<name>.npy` has for each
unit the block, the first row and the number of rows. What packing computes itself lies in segments too, which later
packs use again (`trainers.packing`). Values are exactly those that a copy in the array's dtype would have.

Axes: N units (items or captions), L rows of a unit, T slots of a batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
MOST_MAPPED = 30_000  # blocks that are mapped at a time; Linux allows a process 65,530 mappings

Array = NDArray[Any]


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

    def or_else(self, other: Placed) -> Placed:
        """These rows, and for units without any those of `other`."""
        theirs = other.table.copy()
        theirs[:, 0] += len(self.blocks)
        table = np.where(self.lengths[:, None] > 0, self.table, theirs)
        return Placed([*self.blocks, *other.blocks], table)


class Files:
    """The files that placed rows lie in, mapped to memory.

    `open` maps the blocks of an array beforehand, so that they stay readable when another run makes a segment again
    and removes this one. If there are more than MOST_MAPPED, the others are mapped when a row of them is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: dict[Block, Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_mapped": {}}  # another process maps the files itself

    def path(self, name: str) -> Path:
        """The file of a block: a segment of the store that the folder lies in, or a file of the folder."""
        if "/" not in name:
            return self.folder / name
        if not IN_STORE.fullmatch(name):
            raise UserError(f"{self.folder / ARRAYS} is damaged: it names {name!r}, which is no segment")
        return self.folder.absolute().parents[2] / name

    def open(self, placed: Placed) -> None:
        """Map the blocks of an array. Raises UserError for a file that is gone or shorter."""
        for block in placed.blocks[: MOST_MAPPED - len(self._mapped)]:
            self.values(block)

    def values(self, block: Block) -> Array:
        """All rows of a block, a view of the mapped file. Raises UserError for a file that is gone or shorter."""
        found = self._mapped.get(block)
        if found is None:
            if len(self._mapped) >= MOST_MAPPED:
                del self._mapped[next(iter(self._mapped))]
            found = self._mapped[block] = self._map(block)
        return found

    def _map(self, block: Block) -> Array:
        path = self.path(block.path)
        try:
            mapped = np.memmap(path, block.dtype, "r", block.offset, block.shape)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} of the packed inputs {self.folder} cannot be read ({error}); the next run packs them again"
            ) from None
        return mapped.view(np.ndarray)  # slices of the subclass take three times as long

    def rows(self, placed: Placed, unit: int) -> Array:
        """The rows of a unit, a view of the mapped file."""
        block, start, count = placed.table[unit].tolist()
        return self.values(placed.blocks[block])[start : start + count]


class Ragged:
    """Arrays of different lengths, of one dtype: `[i]` is that of unit i, (L_i, ...).

    Of the rows that are placed, those at the positions `take` are meant where a unit has any, and each is divided
    by its number in `divide` where there is one, in that number's precision.
    """

    def __init__(
        self, files: Files, rows: Placed, dtype: str, take: Placed | None = None, divide: Placed | None = None
    ) -> None:  # fmt: skip
        self._files, self._rows, self._take, self._divide = files, rows, take, divide
        for placed in filter(None, (rows, take, divide)):
            files.open(placed)
        self.dtype = np.dtype(dtype)
        self.row_shape: tuple[int, ...] = tuple(rows.blocks[0].shape[1:])
        taken = 0 if take is None else take.lengths
        self.lengths: NDArray[np.int64] = np.where(np.asarray(taken) > 0, taken, rows.lengths)
        # one dtype for all rows: a batch is gathered as it is stored, and converted as a whole
        kinds = {block.dtype for block in rows.blocks}
        self._stored = np.dtype(kinds.pop()) if len(kinds) == 1 else None
        by = {block.dtype for block in divide.blocks} if divide is not None else set()
        self._whole = self._stored is not None and by <= {self.dtype.str}

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
        found = self._raw(unit)
        by = self._divisors(unit)
        if by is None:
            return found if found.dtype == self.dtype else found.astype(self.dtype)
        return (found.astype(self.dtype) / by[:, None]).astype(self.dtype, copy=False)

    def _raw(self, unit: int) -> Array:
        """The rows of a unit as they are stored."""
        found = self._files.rows(self._rows, unit)
        if self._take is not None and self._take.table[unit, 2]:
            return found[self._files.rows(self._take, unit)]
        return found

    def _divisors(self, unit: int) -> Array | None:
        if self._divide is None or not self._divide.table[unit, 2]:
            return None
        return self._files.rows(self._divide, unit)

    def padded(self, units: Sequence[int] | NDArray[np.int64], slots: int | None = None) -> Tensor:
        """The arrays of some units (N, T, ...), zero behind their rows; T is `slots`, or the longest array's rows.

        Rows beyond `slots` are left out.
        """
        units = [int(unit) for unit in units]
        slots = max(int(self.lengths[unit]) for unit in units) if slots is None else slots
        if self._whole:
            return self._gathered(units, slots)
        out = torch.zeros((len(units), slots, *self.row_shape), dtype=_torch_dtype(self.dtype))
        for place, unit in zip(out, units, strict=True):
            self._fill(place, unit)
        return out

    def _gathered(self, units: Sequence[int], slots: int) -> Tensor:
        """The same where all rows have one dtype. NumPy's own conversion from float16 takes ten times torch's."""
        gathered = np.zeros((len(units), slots, *self.row_shape), self._stored)
        for place, unit in zip(gathered, units, strict=True):
            found = self._raw(unit)[:slots]
            place[: len(found)] = found
        out = torch.from_numpy(gathered).to(_torch_dtype(self.dtype))
        if self._divide is not None:
            by = np.ones((len(units), slots), self.dtype)
            for one, unit in zip(by, units, strict=True):
                found = self._divisors(unit)
                if found is not None:
                    one[: len(found)] = found[:slots]
            out /= torch.from_numpy(by).view(len(units), slots, *[1] * len(self.row_shape))
        return out

    def _fill(self, place: Tensor, unit: int) -> None:
        """Write one array into (T, ...); a copy of its rows stays in the processor's cache."""
        found = torch.from_numpy(self._raw(unit)[: len(place)].copy())
        by = self._divisors(unit)
        if by is not None:
            divisors = torch.from_numpy(by[: len(place)].copy())
            found = found.to(place.dtype).to(divisors.dtype)
            found /= divisors.view(-1, *[1] * len(self.row_shape))
        place[: len(found)] = found


def _listed(folder: Path) -> dict[str, Any]:
    """The arrays of a packed folder by name; none where all are copies."""
    path = folder / ARRAYS
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
