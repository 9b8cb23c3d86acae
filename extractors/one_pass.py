"""One decode for all: the frames of each compressed video once, to every extractor that lacks it."""

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
    """One extractor in a pass: the keys of the units it lacks, and whether it still wants the current one."""

    reader: FrameReader[Any]
    keys: Container[str]
    wants: bool = False
    failed: set[str] = field(default_factory=set)  # told already: another decoder's attempt changes nothing

    def lacks(self, unit: Unit) -> bool:
        """Whether it still has to answer for a unit."""
        return unit.key in self.keys and unit.key not in self.failed


Event = tuple[FrameReader[Any], Result | None]


def read_together(
    readings: Sequence[Reading], units: Sequence[Unit], options: WorkOptions, began: Callable[[], None]
) -> Iterator[Event]:
    """What each extractor makes of its units, or None as a sign of life, in any order.

    `began` is called for each decode that is begun: one a unit, two where the first decoder failed.
    """
    sources = []
    for unit in units:
        try:
            sources.append(source_of(unit))
        except (Damaged, ItemError) as error:  # one broken file costs its item, not the run
            reason = error.reason if isinstance(error, ItemError) else str(error)
            for reading in readings:
                if reading.lacks(unit):
                    yield reading.reader, (unit, ItemError(unit.name, reason))
    decoders = _decoders(options.decoder_bytes, options.decoders)
    for event in decode_with(decoders, sources, options.item_seconds):
        if isinstance(event, Begin):
            unit = event.unit
            began()
            for reading in readings:
                reading.wants = reading.lacks(unit)
                if reading.wants:
                    yield from _fed(
                        reading, unit, functools.partial(_begin, reading.reader, unit, event.decoder)
                    )
        elif isinstance(event, Failed):
            for reading in readings:
                if reading.lacks(event.unit):
                    kind = ItemKilled if event.killed else ItemError
                    yield reading.reader, (event.unit, kind(event.unit.name, event.reason))
        elif (given := _in_window(unit, event)) is not None:
            for reading in readings:
                if reading.wants:
                    yield from _fed(reading, unit, functools.partial(_given, reading.reader, given))
    for reading in readings:
        for result in reading.reader.flush():
            yield reading.reader, result


def source_of(unit: Unit) -> Source[Unit]:
    """The compressed file of a unit, with the number of its frames where that is known.

    Raises ItemError if none of its frames lies in the unit's window.
    """
    if "compress" not in unit.rows:  # a file of no store
        return Source(unit, unit.files["compress"], None)
    times = unit.inputs("compress")["time"]
    if unit.window and not unit.inside(times).any():
        start, end = unit.window
        raise ItemError(
            unit.name,
            f"none of its frames lies in its window, {start:g} s to {end:g} s; it ends at {times[-1]:.1f} s",
        )
    return Source(unit, unit.file("compress"), len(times))


def _in_window(unit: Unit, event: Chunk | End[Unit]) -> Chunk | End[Unit] | None:
    """The event with only the frames in the unit's window; None for a chunk without any."""
    if unit.window is None or isinstance(event, End):
        return event
    inside = unit.inside(event.times)
    return Chunk(event.frames[inside], event.times[inside]) if inside.any() else None


def _begin(reader: FrameReader[Any], unit: Unit, decoder: str) -> Iterator[Result | None]:
    reader.begin(unit, decoder)
    return iter(())


def _given(reader: FrameReader[Any], event: Chunk | End[Unit]) -> Iterator[Result | None]:
    return reader.take(event.frames, event.times) if isinstance(event, Chunk) else reader.end()


def _fed(reading: Reading, unit: Unit, call: Callable[[], Iterator[Result | None]]) -> Iterator[Event]:
    """What comes of a call; an item's error ends the unit for this extractor alone."""
    try:
        for result in call():
            yield reading.reader, result
    except ItemError as error:
        reading.wants = False
        reading.failed.add(unit.key)
        yield reading.reader, (unit, error.named(unit.name))


@functools.lru_cache(maxsize=1)  # one a worker process; it is killed and started anew by those who use it
def _decoders(memory_bytes: int, count: int) -> list[Child]:
    return [Child("pipeline.media.video:serve_decode", memory_bytes=memory_bytes) for _ in range(count)]
