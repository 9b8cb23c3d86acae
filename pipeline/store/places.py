"""The segment and row of each unit's output, kept as NumPy arrays so that millions of units fit in memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store.fingerprint import CONTENT_BYTES, batched

NOWHERE = -1
NO_FILE = -1
ROWS = 20_000
DIGITS = 2 * CONTENT_BYTES
HEX = re.compile("[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an item's output: a row of a segment, and the size of the item's file if it has one."""

    segment: str
    row: int
    file_bytes: int | None = None


def place_table(
    places: Mapping[str, Place], keys: Iterable[str], path: Callable[[str], object]
) -> dict[str, Any]:
    """Places of those of the keys that have one, as columns for JSON: {"segments": [path], "keys", "segment", "row"}.

    `segment` has the position of a unit's segment in `segments`: its path, 100 letters, stands there once and not
    beside each unit. `path` gives it by the id. Columns, because a list for each unit takes three times the memory.
    """
    numbers: dict[str, int] = {}
    columns: dict[str, list[Any]] = {"keys": [], "segment": [], "row": []}
    for key in dict.fromkeys(keys):
        if (place := places.get(key)) is not None:
            columns["keys"].append(key)
            columns["segment"].append(numbers.setdefault(place.segment, len(numbers)))
            columns["row"].append(place.row)
    return {"segments": [str(path(segment)) for segment in numbers], **columns}


class TablePlaces(Mapping[str, tuple[str, int]]):
    """Path of the segment and row of each key in a table of `place_table`."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self._units, self._paths = Units(table["keys"]), table["segments"]
        self._segment, self._row = (np.array(table[name], np.int32) for name in ("segment", "row"))

    def __getitem__(self, key: str) -> tuple[str, int]:
        at = self._units.position[key]
        return self._paths[self._segment[at]], int(self._row[at])

    def __contains__(self, key: object) -> bool:
        return key in self._units

    def __iter__(self) -> Iterator[str]:
        return iter(self._units)

    def __len__(self) -> int:
        return len(self._units)


class Units(Sequence[str]):
    """The keys of all items, or captions, of a corpus, in order, with the position of each."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = list(keys)

    @functools.cached_property
    def position(self) -> dict[str, int]:
        """The position of each key."""
        return {key: number for number, key in enumerate(self._keys)}

    def positions(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Return the positions (n,) of these keys; NOWHERE for a key that is not among the units."""
        numbers = _as_numbers(keys)
        if numbers is None or self._sorted is None or not len(self):
            return np.array([self.position.get(key, NOWHERE) for key in keys], np.int64)
        first, second, order = self._sorted
        at = np.searchsorted(first, numbers[:, 0]).clip(max=len(first) - 1)
        alike = first[at] == numbers[:, 0]
        same = alike & (second[at] == numbers[:, 1])
        positions = np.where(same, order[at], NOWHERE)
        for number in np.flatnonzero(alike & ~same):  # the first halves are equal by chance
            positions[number] = self.position.get(keys[int(number)], NOWHERE)
        return positions

    @functools.cached_property
    def _sorted(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]] | None:
        """Both halves of the digests in ascending order, and the position of each; None if the keys are no digests.

        A search in these arrays is five times as fast as in a dict, whose keys are scattered over the memory.
        """
        numbers = _as_numbers(self._keys)
        if numbers is None:
            return None
        order = np.lexsort((numbers[:, 1], numbers[:, 0]))
        return numbers[order, 0], numbers[order, 1], order

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # numbers and slices, as for a list
        return self._keys[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self.position

    def chosen(self, mask: NDArray[np.bool_]) -> list[str]:
        """Return the keys where the mask (n,) is set."""
        return [self._keys[number] for number in np.flatnonzero(mask)]


def _as_numbers(keys: Sequence[str]) -> NDArray[np.uint64] | None:
    """Return each digest as two numbers, (n, 2); None if any key is not 32 hex digits."""
    joined = "".join(keys)
    if any(len(key) != DIGITS for key in keys) or not HEX.fullmatch(joined):
        return None
    return np.frombuffer(bytes.fromhex(joined), ">u8").astype(np.uint64).reshape(-1, 2)


class Places(Mapping[str, Place]):
    """The places of the units that have an output, by key. They are kept as arrays."""

    def __init__(
        self, units: Units, segments: Sequence[str], segment: NDArray[np.int32], row: NDArray[np.int32],
        file_bytes: NDArray[np.int64],
    ) -> None:  # fmt: skip
        self.units, self._segments = units, segments
        self._segment, self._row, self._file_bytes = segment, row, file_bytes

    @classmethod
    def of(cls, units: Units, rows: Iterable[tuple[str, str, int, int | None]]) -> Places:
        """Return the places from rows (key, segment, row, bytes of the item's file or None); ignore unknown keys."""
        names: dict[str, int] = {}
        segment = np.full(len(units), NOWHERE, np.int32)
        row = np.zeros(len(units), np.int32)
        file_bytes = np.full(len(units), NO_FILE, np.int64)
        for part in batched(rows, ROWS):  # in batches this is three times as fast as row by row
            keys, of_segments, numbers, sizes = zip(*part, strict=True)
            at = units.positions(keys)
            for name in dict.fromkeys(of_segments):
                names.setdefault(name, len(names))
            ours = at != NOWHERE
            segment[at[ours]] = np.array([names[name] for name in of_segments], np.int32)[ours]
            row[at[ours]] = np.array(numbers, np.int32)[ours]
            known = [NO_FILE if size is None else size for size in sizes]
            file_bytes[at[ours]] = np.array(known, np.int64)[ours]
        return cls(units, list(names), segment, row, file_bytes)

    @property
    def there(self) -> NDArray[np.bool_]:
        """Mask (n,) of the units that have a place."""
        return np.asarray(self._segment != NOWHERE)

    @property
    def segments(self) -> Sequence[str]:
        """The ids of the segments that the places refer to."""
        return self._segments

    def without(self, segments: Iterable[str]) -> Places:
        """Return the places that are in none of these segments."""
        bad = [number for number, name in enumerate(self._segments) if name in set(segments)]
        return self._where(~np.isin(self._segment, bad))

    def with_files(self, size: Callable[[str], int | None]) -> Places:
        """Return the places whose file has its recorded size; `size` returns the size of a key's file."""
        good = np.zeros(len(self.units), bool)
        for number in np.flatnonzero(self.there):
            recorded = self._file_bytes[number]
            good[number] = size(self.units[number]) == (None if recorded == NO_FILE else recorded)
        return self._where(good)

    def _where(self, kept: NDArray[np.bool_]) -> Places:
        segment = np.where(kept, self._segment, NOWHERE).astype(np.int32)
        return Places(self.units, self._segments, segment, self._row, self._file_bytes)

    def __getitem__(self, key: str) -> Place:
        at = self.units.position[key]
        if self._segment[at] == NOWHERE:
            raise KeyError(key)
        size = int(self._file_bytes[at])
        return Place(self._segments[self._segment[at]], int(self._row[at]), None if size == NO_FILE else size)

    def __contains__(self, key: object) -> bool:
        at = self.units.position.get(key)  # type: ignore[call-overload]  # `in` accepts any object
        return at is not None and bool(self._segment[at] != NOWHERE)

    def __iter__(self) -> Iterator[str]:
        return iter(self.units.chosen(self.there))

    def __len__(self) -> int:
        return int(self.there.sum())
