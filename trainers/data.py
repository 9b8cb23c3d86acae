"""Contiguous, memory-mapped inputs of a method, built once from the store: rows, offsets and who owns them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Ragged:
    """Arrays of different lengths end to end in one file: `[i]` is the i-th, (rows_i, ...), a view."""

    def __init__(self, values: NDArray, offsets: NDArray[np.int64]) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def open(cls, folder: Path, name: str) -> Ragged:
        """Map `<name>.npy` of a folder; nothing is read until it is used."""
        values = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return cls(values, np.load(folder / f"{name}.offsets.npy", allow_pickle=False))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Rows of each array, (n,)."""
        return np.diff(self.offsets)


def write_ragged(
    folder: Path, name: str, arrays: Iterable[NDArray], lengths: Sequence[int], dtype: DTypeLike = np.float32
) -> None:
    """Write arrays (rows_i, ...) end to end; the lengths are known beforehand, so memory holds one array."""
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)
    out: np.memmap | None = None
    for index, array in enumerate(arrays):
        if len(array) != lengths[index]:
            raise ValueError(f"{name}[{index}] has {len(array)} rows, {lengths[index]} were announced")
        if out is None:
            shape = (int(offsets[-1]), *array.shape[1:])
            out = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        out[offsets[index] : offsets[index + 1]] = array
    if out is None:
        raise ValueError(f"nothing to write for {name}")
    out.flush()
    np.save(folder / f"{name}.offsets.npy", offsets)


@dataclass(frozen=True)
class SplitIndex:
    """Who is in a split: gallery items, captions in query order, and the item each caption belongs to.

    `item_rows` and `caption_rows` say which array of the packed rows is whose; a caption's item is
    a position in `items`.
    """

    items: list[str]
    item_rows: list[int]
    captions: list[str]
    caption_rows: list[int]
    caption_item: list[int]
    texts: list[str]

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> SplitIndex:
        """Load what `write` saved."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
