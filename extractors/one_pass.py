"""One pass over the frames: each compressed video is decoded once for all extractors that lack it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from extractors.base import FrameReader, Result, Unit, WorkOptions
from extractors.decoding import Begin, Chunk, End, Failed, Source, decode_with
from pipeline.child import Child
from pipeline.errors import ItemError, ItemKilled
from pipeline.store.segments import Damaged


@dataclass
class Reading:
    """One extractor in a pass: the keys of the units it lacks, and whether it reads the current one."""

    reader: FrameReader[Any]
    keys: Container[str]
    active: bool = False
    failed: set[str] = field(
        default_factory=set
    )  # reported already: another decoder's attempt changes nothing

    def lacks(self, unit: Unit) -> bool:
        """Whether a result of the unit is still missing."""
        return unit.key in self.keys and unit.key not in self.failed


Event = tuple[FrameReader[Any], Result | None]


def read_together(
    readings: Sequence[Reading], units: Sequence[Unit], options: WorkOptions, began: Callable[[], None]
) -> Iterator[Event]:
    """The results of each extractor's units in any order, with None now and then as a sign of life.

    `began` is called at the start of each decode: once for each unit, twice if the first decoder failed.
    """
    sources = []
    for unit in units:
        try:
            sources.append(source_of(unit))
        except Damaged as error:  # one broken file costs its item, not the run
            yield from _failed(readings, unit, ItemError(unit.name, str(error)))
    decoders = _decoders(options.decoder_bytes, options.decoders)
    for event in decode_with(decoders, sources, options.item_seconds):
        if isinstance(event, Begin):
            unit = event.unit
            began()
            for reading in readings:
                reading.active = reading.lacks(unit)
                if reading.active:
                    yield from _fed(
                        reading, unit, functools.partial(_begin, reading.reader, unit, event.decoder)
                    )
        elif isinstance(event, Failed):
            kind = ItemKilled if event.killed else ItemError
            yield from _failed(readings, event.unit, kind(event.unit.name, event.reason))
        else:
            for reading in readings:
                if reading.active:
                    yield from _fed(reading, unit, functools.partial(_given, reading.reader, event))
    for reading in readings:
        for result in reading.reader.flush():
            yield reading.reader, result


def source_of(unit: Unit) -> Source[Unit]:
    """The compressed file of a unit, with the number of its frames if that is known."""
    if "compress" not in unit.rows:  # a file outside a store, such as a video that is a query
        return Source(unit, unit.files["compress"], None)
    return Source(unit, unit.file("compress"), len(unit.inputs("compress")["time"]))


def _failed(readings: Sequence[Reading], unit: Unit, error: ItemError) -> Iterator[Event]:
    """The error as the result of every extractor that lacks the unit."""
    for reading in readings:
        if reading.lacks(unit):
            yield reading.reader, (unit, error)


def _begin(reader: FrameReader[Any], unit: Unit, decoder: str) -> Iterator[Result | None]:
    reader.begin(unit, decoder)
    return iter(())


def _given(reader: FrameReader[Any], event: Chunk | End[Unit]) -> Iterator[Result | None]:
    return reader.take(event.frames, event.times) if isinstance(event, Chunk) else reader.end()


def _fed(reading: Reading, unit: Unit, call: Callable[[], Iterator[Result | None]]) -> Iterator[Event]:
    """The results of a call; an item's error ends the unit for this extractor alone."""
    try:
        for result in call():
            yield reading.reader, result
    except ItemError as error:
        reading.active = False
        reading.failed.add(unit.key)
        yield reading.reader, (unit, error.named(unit.name))


@functools.lru_cache(maxsize=1)  # one for each worker process; its users kill it and start it anew
def _decoders(memory_bytes: int, count: int) -> list[Child]:
    return [Child("pipeline.media.video:serve_decode", memory_bytes=memory_bytes) for _ in range(count)]
