"""Writing packed inputs: arrays that refer to stored rows, and rows computed once for each item or caption.

What a method computes of one item or caption (`PackWriter.make`) is kept in segments of the store, under a fingerprint
of its own that no split enters: a later pack computes only what is new, and one split's pack uses another's. With a
plain table of functions instead of a store's inputs, as for a query, everything is copied into the folder.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from pipeline.child import Send
from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.segments import Segment, SegmentWriter
from trainers.data import Rows
from trainers.packed import ARRAYS, Array, Block, Files, MappedRows, Placed

SEGMENT_BYTES = 64 << 20  # of computed rows in a segment: what a killed packing computes again at most
TOLD_SECONDS = 0.5  # between two reports of progress

Make = Callable[[str], Mapping[str, Array]]
"""Arrays by name of an item or caption, by its key; an empty array is left out."""

READ = "read"  # array of a unit of which nothing else is kept: its stored rows were read and are as they should be


class StoredRows:
    """One output of a stage by key, as it is stored, and where its rows lie."""

    def __init__(self, source: Source, field: str) -> None:
        self._source, self._field = source, field

    def __call__(self, key: str) -> Array:
        """The rows of an item or caption. Raises Damaged if they have not the checksum they were written with."""
        return self._source.read(key, self._field)

    def placed(self, keys: Iterable[str]) -> Placed:
        """The places of these units' rows."""
        return self._source.placed(keys, self._field)


class Source:
    """The outputs of a stage. The checksum of an item or caption is verified when it is read first."""

    def __init__(self, stage: str, field: str, where: Mapping[str, tuple[str, int]]) -> None:
        self.stage, self._first, self.where = stage, field, where
        self._open: dict[str, Segment] = {}
        self._checked: set[str] = set()

    def rows(self, output: str) -> StoredRows:
        """One output; "" is the stage's first."""
        return StoredRows(self, output or self._first)

    def segment(self, path: str) -> Segment:
        """The segment at a path, opened once."""
        if path not in self._open:
            self._open[path] = Segment(Path(path))
        return self._open[path]

    def read(self, key: str, field: str) -> Array:
        """The rows of an item or caption. Raises Damaged for a wrong checksum, or those of another item."""
        path, row = self.where[key]
        segment = self.segment(path)
        if key not in self._checked:
            segment.require(row, key)
            segment.check(row)
            self._checked.add(key)
        if field not in segment.fields:
            raise UserError(
                f"stage {segment.stage} has no output {field!r}; it has {', '.join(segment.fields)}"
            )
        return segment.rows(field, row)

    def origin(self, key: str) -> list[Any]:
        """The segment and row of an item or caption: rows that are made again have another."""
        path, row = self.where[key]
        return [Path(path).stem, row]

    def placed(self, keys: Iterable[str], field: str) -> Placed:
        """The places of rows of an output; units whose segment lacks the output have none."""
        keys = list(keys)
        numbers: dict[str, int] = {}
        blocks: list[Block] = []
        table = np.zeros((len(keys), 3), np.int64)
        for unit, key in enumerate(keys):
            if key not in self.where:
                continue
            path, row = self.where[key]
            segment = self.segment(path)
            segment.require(row, key)
            if field not in segment.fields:
                continue
            if path not in numbers:
                numbers[path] = len(blocks)
                blocks.append(Block("/".join(Path(path).parts[-4:]), *segment.block(field)))
            table[unit] = numbers[path], *segment.span(field, row)
        return Placed(blocks, table)


@dataclass(frozen=True)
class Keeping:
    """Where computed rows are kept: the store, the stage's name and fingerprint, and the rows that are there."""

    store: Path
    stage: str
    fingerprint: str
    components: Mapping[str, Any]
    where: Mapping[str, tuple[str, int]]


class StoreInputs(Mapping[str, Rows]):
    """A method's inputs in a store, with the place where computed rows are kept."""

    def __init__(
        self, sources: Mapping[str, Source], inputs: Mapping[str, tuple[str, str]], keeping: Keeping, send: Send
    ) -> None:  # fmt: skip
        self._rows = {name: sources[stage].rows(output) for name, (stage, output) in inputs.items()}
        self.sources, self.keeping, self.send = sources, keeping, send

    def __getitem__(self, name: str) -> Rows:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class PackWriter:
    """Writes the arrays of a packed folder; the list of them is written at the end of the block."""

    def __init__(self, folder: Path, read: Mapping[str, Rows]) -> None:
        self.folder, self._read = folder, read
        self._arrays: dict[str, Any] = {}

    def __enter__(self) -> PackWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if kind is None:
            (self.folder / ARRAYS).write_text(json.dumps(self._arrays), encoding="utf-8")

    def stored(self, name: str, keys: Iterable[str]) -> Placed:
        """The places of the rows of an input, which are copied as they are where it is a plain function."""
        rows = self._read[name]
        if isinstance(rows, StoredRows):
            return rows.placed(keys)
        copies = _Copies(self.folder, f"{name}.rows")
        for key in keys:
            copies.append({"": np.asarray(rows(key))})
        return copies.close().get("", Placed([], np.zeros((0, 3), np.int64)))

    def make(self, name: str, keys: Sequence[str], make: Make) -> dict[str, Placed]:
        """Places of the arrays that `make` computes of each unit, by their names; only what is not kept is computed.

        Units without an array of a name have 0 rows there. Raises what `make` raises.
        """
        if isinstance(self._read, StoreInputs):
            return _kept(self._read, name, keys, make)
        copies = _Copies(self.folder, name)
        for key in keys:
            copies.append(make(key))
        return copies.close()

    def values(self, placed: Placed) -> Array:
        """The rows of all units, end to end."""
        return np.concatenate(list(MappedRows(Files(self.folder), placed).of(range(len(placed.table)))))

    def write(
        self, name: str, rows: Placed, dtype: DTypeLike, take: Placed | None = None, divide: Placed | None = None
    ) -> None:  # fmt: skip
        """Add an array of the placed rows, for `take` and `divide` see `Ragged`. Raises UserError for unlike rows."""
        shapes = {block.shape[1:] for block in rows.blocks}
        if len(shapes) != 1:
            raise UserError(
                f"the rows of {name} have {len(shapes)} different shapes ({', '.join(map(str, sorted(shapes)))}); "
                "all items, and all captions, need rows of one width"
                if shapes
                else f"nothing to write for {name}"
            )
        parts = {"rows": rows}
        if take is not None:
            parts["rows"], parts["take"] = self._without_stretches(rows, take)
        if divide is not None:
            parts["divide"] = self._together(f"{name}.divisors", divide)
        told = {}
        for part, placed in parts.items():
            table = f"{name}.{part}.npy"
            np.save(self.folder / table, placed.table)
            told[part] = {"blocks": [astuple(block) for block in placed.blocks], "table": table}
        self._arrays[name] = {"dtype": np.dtype(dtype).str, "parts": told}

    def _together(self, name: str, placed: Placed) -> Placed:
        """The same rows in one file of the folder: a few bytes a row, of which a batch needs many."""
        values = self.values(placed)
        values.tofile(self.folder / name)
        starts = np.cumsum(placed.lengths) - placed.lengths
        table = np.stack([np.zeros_like(starts), starts, placed.lengths], axis=1)
        return Placed([Block(name, 0, values.dtype.str, values.shape)], table)

    def _without_stretches(self, rows: Placed, take: Placed) -> tuple[Placed, Placed]:
        """The same rows, with stretches of consecutive rows in the places themselves, which are read faster."""
        taken = MappedRows(Files(self.folder), take)
        table, left = rows.table.copy(), take.table.copy()
        for unit in np.flatnonzero(take.lengths).tolist():
            positions = taken[unit]
            first, count = int(positions[0]), len(positions)
            if int(positions[-1]) - first == count - 1 and (np.diff(positions) == 1).all():
                table[unit, 1:] = table[unit, 1] + first, count
                left[unit] = 0
        return Placed(rows.blocks, table), Placed(take.blocks, left)


def referred(folder: Path) -> dict[str, int]:
    """The segments that a packed folder refers to: path in the store -> bytes. Raises UserError if one is gone."""
    files, names = Files(folder), set[str]()
    path = folder / ARRAYS
    arrays = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for array in arrays.values():
        for part in array["parts"].values():
            names |= {block[0] for block in part["blocks"] if "/" in block[0]}
    try:
        return {name: files.path(name).stat().st_size for name in sorted(names)}
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename} was removed by another run while it was packed; the same command packs again"
        ) from None


def _kept(inputs: StoreInputs, name: str, keys: Sequence[str], make: Make) -> dict[str, Placed]:
    """Places of computed arrays in the store; those that are missing are computed and written."""
    keeping = inputs.keeping
    kept = Source(keeping.stage, "", {})
    origin = functools.partial(_origin, inputs.sources)
    where = {
        key: place for key in keys
        if (place := keeping.where.get(key)) is not None and _is_current(kept, key, place, origin(key))
    }  # fmt: skip
    with _Segments(inputs, len(keys) - len(where)) as out:
        for number, key in enumerate(key for key in keys if key not in where):
            out.append(key, make(key), origin(key))
            out.tell(name, number + 1)
    kept.where = where | out.where
    paths = {path for path, _ in kept.where.values()}
    fields = {field for path in paths for field in kept.segment(path).fields}
    return {field: kept.placed(keys, field) for field in sorted(fields)}


def _origin(sources: Mapping[str, Source], key: str) -> dict[str, list[Any]]:
    return {stage: source.origin(key) for stage, source in sources.items() if key in source.where}


def _is_current(kept: Source, key: str, place: tuple[str, int], origin: Mapping[str, list[Any]]) -> bool:
    """Whether computed rows are whole, and of the rows that are stored now."""
    path, row = place
    try:
        segment = kept.segment(path)
        segment.require(row, key)
    except UserError:
        return False
    return bool(json.loads(segment.notes[row]).get("of") == origin)


class _Segments:
    """Segments of computed rows, one open for each set of arrays; those of a stopped packing are kept."""

    def __init__(self, inputs: StoreInputs, total: int) -> None:
        self._keeping, self._send, self._total = inputs.keeping, inputs.send, total
        self._open: dict[tuple[str, ...], tuple[SegmentWriter, list[int]]] = {}
        self.where: dict[str, tuple[str, int]] = {}
        self._told_at = 0.0

    def __enter__(self) -> _Segments:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for names in list(self._open):
            self._finish(names)

    def append(self, key: str, arrays: Mapping[str, Array], origin: Mapping[str, Any]) -> None:
        """Add the arrays of a unit, without empty ones."""
        arrays = {name: array for name, array in arrays.items() if len(array)}
        arrays = arrays or {READ: np.ones((1, 1), np.uint8)}
        names = tuple(sorted(arrays))
        if names not in self._open:
            fields = {n: Field(a.dtype.name, (None, *a.shape[1:])) for n, a in arrays.items()}
            self._open[names] = (self._writer(fields), [0])
        writer, size = self._open[names]
        writer.append(key, key, arrays, {"of": origin})
        size[0] += sum(array.nbytes for array in arrays.values())
        if size[0] >= SEGMENT_BYTES:
            self._finish(names)

    def _writer(self, fields: Mapping[str, Field]) -> SegmentWriter:
        kept = self._keeping
        folder = kept.store / "segments" / kept.stage / kept.fingerprint
        return SegmentWriter(
            folder, kept.store / "work", kept.stage, kept.fingerprint, kept.components, fields
        )

    def _finish(self, names: tuple[str, ...]) -> None:
        writer, _ = self._open.pop(names)
        path = writer.finish()
        if path is not None:
            items = dict.fromkeys(writer.items)
            place = str(path)  # one text for all of them
            self.where |= {key: (place, row) for row, key in enumerate(items)}
            kept = {"segment": writer.id, "bytes": path.stat().st_size, "items": items}
            self._send({"kept": kept}, {})

    def tell(self, name: str, done: int) -> None:
        """Report how many units are computed, now and then."""
        if time.monotonic() - self._told_at >= TOLD_SECONDS:
            self._told_at = time.monotonic()
            self._send({"units": [done, self._total], "doing": f"packing {name}"}, {})


class _Copies:
    """Arrays of units in files of a folder, one for each name, dtype and shape of a row."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._open: dict[tuple[str, str, tuple[int, ...]], BinaryIO] = {}
        self._rows: dict[tuple[str, str, tuple[int, ...]], int] = {}
        self._tables: dict[str, dict[int, tuple[tuple[str, str, tuple[int, ...]], int, int]]] = {}
        self._units = 0

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Add the arrays of the next unit."""
        for name, array in arrays.items():
            if len(array):
                kind = (name, array.dtype.str, array.shape[1:])
                if kind not in self._open:
                    self._open[kind] = (self._folder / self._file(kind)).open("wb")
                start = self._rows.get(kind, 0)
                np.ascontiguousarray(array).tofile(self._open[kind])
                self._rows[kind] = start + len(array)
                self._tables.setdefault(name, {})[self._units] = (kind, start, len(array))
        self._units += 1

    def _file(self, kind: tuple[str, str, tuple[int, ...]]) -> str:
        name = f"{self._name}.{kind[0]}".rstrip(".")
        return f"{name}.{'x'.join(map(str, kind[2])) or '1'}.{np.dtype(kind[1]).name}"

    def close(self) -> dict[str, Placed]:
        """The places of the arrays by name."""
        for file in self._open.values():
            file.close()
        return {name: self._placed(rows) for name, rows in self._tables.items()}

    def _placed(self, rows: Mapping[int, tuple[tuple[str, str, tuple[int, ...]], int, int]]) -> Placed:
        kinds = list(dict.fromkeys(kind for kind, _, _ in rows.values()))
        blocks = [Block(self._file(kind), 0, kind[1], (self._rows[kind], *kind[2])) for kind in kinds]
        table = np.zeros((self._units, 3), np.int64)
        for unit, (kind, start, count) in rows.items():
            table[unit] = kinds.index(kind), start, count
        return Placed(blocks, table)
