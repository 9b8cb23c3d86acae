"""What an extractor is: a stage that turns one item or caption into arrays, and how its batches fill."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from extractors.decoding import Begin, Chunk, End, Failed, decode_ahead
from pipeline.child import Child
from pipeline.errors import ItemError
from pipeline.segments import Segment
from pipeline.settings import Options, Params
from pipeline.stage import Stage

Array = NDArray[Any]
P = TypeVar("P", bound=Params)


class WorkOptions(Options):
    """What a worker may do with its machine; changes speed alone."""

    device: str = "auto"  # "cpu", "cuda:0" ...; auto takes the accelerator of the worker's number
    batch_size: int = 32
    item_seconds: float = 300.0  # without any progress on an item, its decoder or encoder is killed
    decoder_bytes: int = 4 << 30  # address space of a decoding process
    threads: int = 1


@dataclass(frozen=True)
class Unit:
    """One item or caption to work on: its digest and name, and where what it is made of lies."""

    key: str
    name: str
    media: Path | None = None
    text: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # upstream stage -> its file of this item
    rows: Mapping[str, tuple[Path, int]] = field(default_factory=dict)  # upstream stage -> segment, row

    def inputs(self, stage: str) -> dict[str, Array]:
        """The outputs of an upstream stage for this item."""
        path, row = self.rows[stage]
        segment = Segment(path)
        segment.check(row)
        return {name: segment.rows(name, row) for name in segment.fields}


@dataclass(frozen=True)
class Output:
    """What an extractor made of a unit: arrays by field, a file if it makes one, and what to note."""

    arrays: Mapping[str, Array]
    note: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None


Result = tuple[Unit, Output | ItemError]


class Extractor(Stage[P]):
    """A stage whose shards run in worker processes. `load` is called once a worker, then `results`."""

    runner: ClassVar[str] = "extractors.shard:run"

    def load(self, options: WorkOptions) -> None:
        """Read what the work needs (a network, a parser). Called once in each worker process."""
        self.options = options

    def extract(self, unit: Unit, work: Path) -> Output:
        """The outputs of one unit; `work` is a folder for files in the making. Raises ItemError."""
        raise NotImplementedError

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Each unit with its output or its error, in any order; None now and then as a sign of life."""
        for unit in units:
            try:
                yield unit, self.extract(unit, work)
            except ItemError as error:
                yield unit, ItemError(unit.name, error.reason)


class TextExtractor(Extractor[P]):
    """Captions to arrays, in batches."""

    over = "captions"
    worker_kind = "model"
    shard_items = 2048

    def encode(self, texts: list[str]) -> list[dict[str, Array]]:
        """The outputs of each text."""
        raise NotImplementedError

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Texts of similar length share a batch, so that little of it is padding."""
        ordered = sorted(units, key=lambda unit: (len(unit.text or ""), unit.key))
        for start in range(0, len(ordered), self.options.batch_size):
            batch = ordered[start : start + self.options.batch_size]
            encoded = self.encode([unit.text or "" for unit in batch])
            for unit, arrays in zip(batch, encoded, strict=True):
                yield unit, Output(arrays)


@dataclass
class _Rows:
    """The frames of one item on their way through the network."""

    unit: Unit
    decoder: str
    parts: list[dict[str, Array]] = field(default_factory=list)
    times: list[Array] = field(default_factory=list)
    expected: int | None = None  # known once the item is decoded

    @property
    def encoded(self) -> int:
        return sum(len(next(iter(part.values()))) for part in self.parts)

    def output(self) -> Output:
        arrays = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        time = np.concatenate(self.times).astype(np.float32)
        return Output(arrays | {"time": time}, {"decoder": self.decoder})


class FrameExtractor(Extractor[P]):
    """Frames of a compressed video to one row each. Batches fill across videos; decoding runs ahead."""

    needs = ("compress",)
    worker_kind = "model"
    shard_items = 32

    def load(self, options: WorkOptions) -> None:
        """Also start the process that decodes."""
        super().load(options)
        self.decoder = Child("pipeline.video:serve_decode", memory_bytes=options.decoder_bytes)
        self.decoder.start()

    def prepare(self, frames: Array) -> Array:
        """Frames (n, H, W, 3) uint8 as the network wants them, all of one shape whatever H and W."""
        raise NotImplementedError

    def encode(self, prepared: Array) -> dict[str, Array]:
        """One row an output for each prepared frame."""
        raise NotImplementedError

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Encode full batches, whichever videos their frames come from."""
        pending: list[tuple[_Rows, Array]] = []
        waiting = 0
        rows: _Rows | None = None
        sources = [(unit, unit.files["compress"]) for unit in units]
        for event in decode_ahead(self.decoder, sources, self.options.item_seconds):
            if isinstance(event, Begin):  # the second one of an item starts it anew, with another decoder
                rows = _Rows(event.unit, event.decoder)
            elif isinstance(event, Chunk) and rows is not None:
                rows.times.append(event.times)
                pending.append((rows, self.prepare(event.frames)))
                waiting += len(event.frames)
            elif isinstance(event, Failed):
                yield event.unit, ItemError(event.unit.name, event.reason)
            elif isinstance(event, End) and rows is not None:
                rows.expected = sum(len(part) for part in rows.times)
                yield from self._finished([rows])  # its last frames may be encoded already
            while waiting >= self.options.batch_size:
                yield from self._finished(self._encode(pending, self.options.batch_size))
                waiting -= self.options.batch_size
                yield None
        while pending:
            yield from self._finished(self._encode(pending, self.options.batch_size))

    def _encode(self, pending: list[tuple[_Rows, Array]], most: int) -> list[_Rows]:
        """Take up to `most` frames off the list, encode them, and give each item its rows."""
        taken: list[tuple[_Rows, Array]] = []
        count = 0
        while pending and count < most:
            rows, frames = pending.pop(0)
            room = most - count
            if len(frames) > room:
                pending.insert(0, (rows, frames[room:]))
                frames = frames[:room]
            taken.append((rows, frames))
            count += len(frames)
        encoded = self.encode(np.concatenate([frames for _, frames in taken]))
        start = 0
        for rows, frames in taken:
            rows.parts.append({name: array[start : start + len(frames)] for name, array in encoded.items()})
            start += len(frames)
        return list({id(rows): rows for rows, _ in taken}.values())

    def _finished(self, candidates: list[_Rows]) -> Iterator[Result]:
        for rows in candidates:
            if rows.expected is not None and rows.parts and rows.encoded == rows.expected:
                rows.expected = None  # reported once
                yield rows.unit, rows.output()
