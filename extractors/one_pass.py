"""One pass over the frames: each compressed video is decoded once for all extractors that lack it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from extractors.base import FrameReader, Result, Unit, WorkOptions
from extractors.clock import Clock
from extractors.decoding import Begin, Chunk, Decoders, End, Failed, Source, decode_with
from pipeline.child import Child
from pipeline.errors import ItemError, ItemKilled
from pipeline.run.engines.machine import available_memory, cores
from pipeline.store.segments import Damaged

TORCH_BYTES = 16 << 30  # address space that the libraries of a torch with CUDA take, hardly any of it memory


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
    readings: Sequence[Reading], units: Sequence[Unit], options: WorkOptions, began: Callable[[], None],
    clock: Clock | None = None,
) -> Iterator[Event]:  # fmt: skip
    """The results of each extractor's units in any order, with None now and then as a sign of life.

    `began` is called at the start of each decode: once for each unit, twice if the first decoder failed. The clock gets
    the seconds of decoding, of waiting for frames, and of what the readers do.
    """
    clock = Clock() if clock is None else clock
    sources = []
    for unit in units:
        try:
            sources.append(source_of(unit))
        except ItemError as error:
            yield from _failed(readings, unit, error)
        except Damaged as error:  # one broken file costs its item, not the run
            yield from _failed(readings, unit, ItemError(unit.name, str(error)))
    decoders = decoders_of(options, readings[0].reader.first_decoder)
    for event in decode_with(decoders, sources, options.item_seconds, clock):
        if isinstance(event, Begin):
            unit = event.unit
            began()
            for reading in readings:
                reading.active = reading.lacks(unit)
                if reading.active:
                    yield from _fed(
                        reading, unit, functools.partial(_begin, reading.reader, unit, event.decoder), clock
                    )
        elif isinstance(event, Failed):
            kind = ItemKilled if event.killed else ItemError
            yield from _failed(readings, event.unit, kind(event.unit.name, event.reason))
        elif (given := _in_window(unit, event)) is not None:
            for reading in readings:
                if reading.active:
                    yield from _fed(reading, unit, functools.partial(_given, reading.reader, given), clock)
    with clock.part("preprocess"):
        for reading in readings:
            for result in reading.reader.flush():
                yield reading.reader, result


def source_of(unit: Unit) -> Source[Unit]:
    """The compressed file of a unit, with the number of its frames if that is known.

    Raises ItemError if none of its frames lies in the unit's window.
    """
    if "compress" not in unit.rows:  # a file outside a store, such as a video that is a query
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


def _fed(
    reading: Reading, unit: Unit, call: Callable[[], Iterator[Result | None]], clock: Clock
) -> Iterator[Event]:
    """The results of a call; an item's error ends the unit for this extractor alone.

    What the reader itself does, outside of the parts that it measures, counts as preprocessing.
    """
    try:
        with clock.part("preprocess"):
            for result in call():
                yield reading.reader, result
    except ItemError as error:
        reading.active = False
        reading.failed.add(unit.key)
        yield reading.reader, (unit, error.named(unit.name))


def decoders_of(options: WorkOptions, decoder: str) -> Decoders:
    """The decoders of this worker process, whose number is chosen for its share of the machine."""
    fixed = options.decoders
    if not fixed and options.device == "cpu":
        fixed = 1  # the network computes on the cores that more decoders would need
    return _decoders(options.decoder_bytes, fixed, options.threads, decoder)


@functools.lru_cache(
    maxsize=1
)  # one for each worker process; its users kill its children and start them anew
def _decoders(decoder_bytes: int, fixed: int, threads: int, decoder: str) -> Decoders:
    share = int(available_memory() * min(1.0, threads / cores()) / 2)  # the other half is for the workers
    space = decoder_bytes + (TORCH_BYTES if decoder == "torchcodec" else 0)
    start = functools.partial(Child, "pipeline.media.video:serve_decode", memory_bytes=space)
    return Decoders(start, fixed, threads, share, (decoder, "pyav"))
