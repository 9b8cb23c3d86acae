"""Base of extractors: stages that turn one item or caption into arrays, and the filling of their batches."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from extractors.clock import Clock, Part
from pipeline.errors import ItemError, UserError, is_starved
from pipeline.media import video
from pipeline.run.stage import Digests, Stage, WorkerKind
from pipeline.settings import DIGESTED, Options, Params
from pipeline.store.segments import Segment

Array = NDArray[Any]
Arrays = dict[str, Array]
BATCHES_IN_FLIGHT = 2  # one that a device computes, and one that it can begin at once
WINDOW_SLACK = 1e-3  # seconds; decoders round the same time differently
P = TypeVar("P", bound=Params)
Encoded = TypeVar("Encoded")
Taken = TypeVar("Taken")
Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)


class WorkOptions(Options):
    """Run options of a worker on its machine, which change only speed."""

    device: str = "auto"  # "cpu", "cuda:0" ...; auto takes the accelerator of the worker's number
    batch_size: int = 32
    item_seconds: float = 300.0  # without any progress on an item, its decoder or encoder is killed
    decoder_bytes: int = 4 << 30  # address space of a decoding process
    threads: int = 1
    decoders: int = 0  # decoding processes ahead of each network; 0: chosen from measured rates


@functools.lru_cache(maxsize=8)  # a segment never changes; more than the stages that a worker reads at once
def _opened(path: Path) -> Segment:
    return Segment(path)


@dataclass(frozen=True)
class Unit:
    """One item or caption to work on: its digest and name, and the paths of its inputs."""

    key: str
    name: str
    media: Path | None = None
    text: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # upstream stage -> its file of this item
    rows: Mapping[str, tuple[Path, int]] = field(default_factory=dict)  # upstream stage -> segment, row
    window: tuple[float, float] | None = None  # seconds of a video whose frames are read; None: all

    def inside(self, times: Array) -> NDArray[np.bool_]:
        """Which of some presentation times (T,) lie in the window, both ends included."""
        if self.window is None:
            return np.ones(len(times), bool)
        start, end = self.window
        return (times >= start - WINDOW_SLACK) & (times <= end + WINDOW_SLACK)

    def inputs(self, stage: str) -> dict[str, Array]:
        """The outputs of an upstream stage for this item. Raises Damaged where they are not what was written."""
        segment, row = self._row(stage)
        segment.check(row)
        return {name: segment.rows(name, row) for name in segment.fields}

    def file(self, stage: str) -> Path:
        """The file that an upstream stage made of this item. Raises Damaged where it is another's."""
        path = self.files[stage]
        segment, row = self._row(stage)
        segment.require_file(row, path)
        return path

    def _row(self, stage: str) -> tuple[Segment, int]:
        path, row = self.rows[stage]
        segment = _opened(path)
        segment.require(row, self.key)
        return segment, row


@dataclass(frozen=True)
class Output:
    """Result of an extractor for a unit: arrays by field, a file if it makes one, and a note."""

    arrays: Mapping[str, Array]
    note: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None


Result = tuple[Unit, Output | ItemError]


class Launched(Protocol[Found_co]):
    """Results of a batch that a device may still compute."""

    def ready(self) -> bool:
        """Whether `arrays` returns without waiting."""
        ...

    def arrays(self) -> Found_co:
        """The results of each row of the batch, after waiting for them."""
        ...


@dataclass(frozen=True)
class Computed(Generic[Found]):
    """Results that are here already."""

    found: Found

    def ready(self) -> bool:
        """True."""
        return True

    def arrays(self) -> Found:
        """The results."""
        return self.found


@dataclass
class Flight(Generic[Taken, Found]):
    """A batch on its way through the network: whose rows it holds, in order, and the results of its parts."""

    taken: Taken
    parts: list[Launched[Found]]

    def ready(self) -> bool:
        """Whether the results of all parts are here."""
        return all(part.ready() for part in self.parts)

    def land(self) -> bool:
        """Wait for the results, which are then in the memory of this process; False if they were there already."""
        if all(isinstance(part, Computed) for part in self.parts):
            return False
        self.parts[:] = [Computed(part.arrays()) for part in self.parts]
        return True


def without_memory(stage: str, error: BaseException, batch_size: int, device: str = "") -> str:
    """The sentence of a worker that finds no memory on its device, with the settings that need less."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "cuda" in lines[0].lower() and device.startswith("cuda"):
        return (
            f"the memory of {device} does not suffice for {stage} with a batch of {batch_size} ({lines[0][:200]}); "
            "raise run.gpu_fraction, so that fewer workers share the GPU, lower run.batch_size, or choose another "
            'run.device ("cpu" works without a GPU)'
        )
    return (
        f"no memory for {stage} with a batch of {batch_size} ({lines[0][:200]}); lower run.workers, so that fewer "
        "processes share the memory, or run.batch_size"
    )


class Extractor(Stage[P]):
    """A stage whose shards run in worker processes. `load` is called once a worker, then `results`."""

    runner: ClassVar[str] = "extractors.shard:run"
    clock: Clock = Clock()  # of the worker: each shard gives its own

    def load(self, options: WorkOptions) -> None:
        """Read what the work needs (a network, a parser). Called once in each worker process."""
        self.options = options
        self.flights: deque[Flight[Any, Any]] = deque()

    def extract(self, unit: Unit, work: Path) -> Output:
        """The outputs of one unit; `work` is a folder for files in the making. Raises ItemError."""
        raise NotImplementedError

    def in_parts(self, encode: Callable[[Any], Encoded], batch: Any) -> list[Encoded]:
        """The results of `encode` for a batch of frames or texts, split into parts if memory runs out.

        Later batches are no larger than the last part. Raises UserError if there is no memory for a batch of one.
        """
        parts, out = [batch], []
        while parts:
            part = parts.pop(0)
            try:
                out.append(encode(part))
            except (MemoryError, RuntimeError) as error:
                if not is_starved(error):
                    raise
                if self.give_back():
                    parts.insert(0, part)
                    continue
                if len(part) == 1:
                    raise UserError(without_memory(self.name, error, 1, self.options.device)) from None
                half = len(part) // 2
                parts[:0] = [part[:half], part[half:]]
                self.options = self.options.model_copy(update={"batch_size": half})
        return out

    def give_back(self) -> bool:
        """Fetch the results of all batches in flight, whose memory is then free; return whether there were any."""
        return any([flight.land() for flight in self.flights])

    def arrivals(self, most: int) -> Iterator[Flight[Any, Any]]:
        """The batches whose results are here, in order, and the oldest ones until at most `most` are in flight."""
        while self.flights and (len(self.flights) > most or self.flights[0].ready()):
            yield self.flights.popleft()

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Each unit with its output or its error, in any order; None now and then as a sign of life."""
        for unit in units:
            try:
                yield unit, self.extract(unit, work)
            except ItemError as error:
                yield unit, error.named(unit.name)


class TextExtractor(Extractor[P]):
    """Captions to arrays, in batches.

    Where `launch` returns before its results are there, as on a GPU, the next captions are made ready meanwhile; up to
    BATCHES_IN_FLIGHT batches are on the device.
    """

    over = "captions"
    worker_kind: ClassVar[WorkerKind] = (
        "model"  # a base declares what a subclass may change, or its type is fixed
    )
    shard_items = 2048

    def encode(self, texts: list[str]) -> list[Arrays]:
        """The outputs of each text."""
        raise NotImplementedError

    def launch(self, texts: list[str]) -> Launched[list[Arrays]]:
        """Start to compute the outputs of each text. Here `encode` computes them at once."""
        return Computed(self.encode(texts))

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Each text with its arrays; texts of similar length share a batch, so that little of it is padding."""
        ordered = sorted(units, key=lambda unit: (len(unit.text or ""), unit.key))
        self.flights.clear()
        while ordered:
            batch, ordered = ordered[: self.options.batch_size], ordered[self.options.batch_size :]
            yield from self._landed(BATCHES_IN_FLIGHT - 1)
            parts = self.in_parts(self.launch, [unit.text or "" for unit in batch])
            self.flights.append(Flight(batch, parts))
            yield from self._landed(BATCHES_IN_FLIGHT)
        yield from self._landed(0)

    def _landed(self, most: int) -> Iterator[Result]:
        """The texts of batches that are ready, and of the oldest ones until `most` are in flight."""
        for flight in self.arrivals(most):
            try:
                parts = [part.arrays() for part in flight.parts]
            except (MemoryError, RuntimeError) as error:  # the rows are brought into their form only now
                if not is_starved(error):
                    raise
                texts = [unit.text or "" for unit in flight.taken]
                parts = self.in_parts(lambda part: self.launch(part).arrays(), texts)
            encoded = [arrays for part in parts for arrays in part]
            for unit, arrays in zip(flight.taken, encoded, strict=True):
                yield unit, Output(arrays)


class FrameParams(Params):
    """The setting of all stages that read frames of videos."""

    decoder: Annotated[video.Decoder, DIGESTED] = "decord"  # its name and version enter the fingerprint


class FrameReader(Extractor[P]):
    """Reads the frames of compressed videos as they are decoded. All readers of a run share one pass.

    For each unit `begin` is called, then `take` with one chunk of frames at a time, then `end`; after the last unit
    `flush` is called. A second `begin` of a unit starts it anew, with another decoder. The results that `take` and
    `end` yield, or an ItemError that they raise, are the result of that unit.
    """

    needs: tuple[str, ...] = ("compress",)
    kind = "video"
    programs = ("decoder",)
    one_pass = True
    shard_items = 32

    @property
    def first_decoder(self) -> video.Decoder:
        """The decoder that is tried first; decord, if the stage has no such setting."""
        return self.params.decoder if isinstance(self.params, FrameParams) else "decord"

    @property
    def pass_key(self) -> tuple[Any, ...]:
        """Readers with one decoder share a pass."""
        return (*super().pass_key, self.first_decoder)

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The decoder of the frames; its name alone too if it was chosen, so that it is not taken for a new version."""
        chosen = {} if self.first_decoder == "decord" else {"decoder_name": self.first_decoder}
        return {"decoder": video.decoder_identity(self.first_decoder), **chosen}

    def require(self) -> None:
        """Raise UserError if a decoder was chosen that this machine lacks."""
        if self.first_decoder != "decord":
            video.require_decoder(self.first_decoder)

    def begin(self, unit: Unit, decoder: str) -> None:
        """Start a unit: its frames follow, and results of an earlier attempt are void."""
        raise NotImplementedError

    def take(self, frames: Array, times: Array) -> Iterator[Result | None]:
        """Receive frames (n, H, W, 3) uint8 RGB of the current unit, and their times (n,) in seconds."""
        raise NotImplementedError

    def end(self) -> Iterator[Result | None]:
        """End a unit: all its frames were received."""
        raise NotImplementedError

    def flush(self) -> Iterator[Result | None]:
        """End the pass: all units were received."""
        yield from ()


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


class FrameExtractor(FrameReader[P]):
    """Frames of a compressed video to one row each. Batches fill across videos.

    Where `launch` returns before its results are there, as on a GPU, the next batches are decoded and prepared
    meanwhile; up to BATCHES_IN_FLIGHT are on the device.
    """

    worker_kind: ClassVar[WorkerKind] = "model"
    parallel_prepare: ClassVar[bool] = False  # whether threads may call `prepare` at the same time

    def load(self, options: WorkOptions) -> None:
        """Also make room for frames that wait for a batch."""
        super().load(options)
        self._pending: list[tuple[_Rows, Array]] = []
        self._waiting = 0
        threads = options.threads if self.parallel_prepare and options.device.startswith("cuda") else 1
        self._threads = ThreadPoolExecutor(threads, "prepare") if threads > 1 else None
        self._parts = threads

    def prepare(self, frames: Array) -> Array:
        """Frames (n, H, W, 3) uint8 prepared for the network, all of one shape whatever H and W."""
        raise NotImplementedError

    def encode(self, prepared: Array) -> Arrays:
        """One row of each output for each prepared frame."""
        raise NotImplementedError

    def launch(self, prepared: Array) -> Launched[Arrays]:
        """Start to compute one row of each output for each prepared frame. Here `encode` computes them at once."""
        with self.clock.part("network"):
            return Computed(self.encode(prepared))

    def device_seconds(self) -> Mapping[Part, float]:
        """Seconds of `copy` and `network` on the device since the last call, if `launch` does not measure them."""
        return {}

    def room(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Memory for a batch of prepared frames."""
        return np.empty(shape, dtype)

    def begin(self, unit: Unit, decoder: str) -> None:
        """Rows of an earlier beginning are encoded with their batch and dropped."""
        self._rows = _Rows(unit, decoder)

    def take(self, frames: Array, times: Array) -> Iterator[Result | None]:
        """Encode full batches, whichever videos their frames come from."""
        prepared = self._prepared(frames)
        self._rows.times.append(times)
        self._pending += [(self._rows, part) for part in prepared]
        self._waiting += len(frames)
        while self._waiting >= self.options.batch_size:
            yield from self._landed(BATCHES_IN_FLIGHT - 1)
            self._launch(self.options.batch_size)
            yield from self._landed(BATCHES_IN_FLIGHT)
            yield None

    def end(self) -> Iterator[Result | None]:
        """The number of the unit's frames is known now; they may all be encoded already."""
        self._rows.expected = sum(len(part) for part in self._rows.times)
        yield from self._finished([self._rows])

    def flush(self) -> Iterator[Result | None]:
        """Encode the last batch."""
        while self._pending:
            yield from self._landed(BATCHES_IN_FLIGHT - 1)
            self._launch(self.options.batch_size)
        yield from self._landed(0)

    def _prepared(self, frames: Array) -> list[Array]:
        """The prepared frames, in order, in as many arrays as threads prepared them."""
        if self._threads is None:
            return [self.prepare(frames)]
        return list(self._threads.map(self.prepare, np.array_split(frames, min(self._parts, len(frames)))))

    def _launch(self, most: int) -> None:
        """Take up to `most` frames off the waiting ones, and start to encode them."""
        taken: list[tuple[_Rows, Array]] = []
        count = 0
        while self._pending and count < most:
            rows, frames = self._pending.pop(0)
            room = most - count
            if len(frames) > room:
                self._pending.insert(0, (rows, frames[room:]))
                frames = frames[:room]
            taken.append((rows, frames))
            count += len(frames)
        self._waiting -= count
        with self.clock.part("copy"):
            first = taken[0][1]
            batch = np.concatenate(
                [frames for _, frames in taken], out=self.room((count, *first.shape[1:]), first.dtype)
            )
        with self.clock.part("device"):
            parts = self.in_parts(self.launch, batch)
        self.flights.append(Flight([(rows, len(frames)) for rows, frames in taken], parts))

    def _landed(self, most: int) -> Iterator[Result]:
        """Give the items the rows of batches that are ready, and of the oldest ones until `most` are in flight."""
        for flight in self.arrivals(most):
            with self.clock.part("device"):
                parts = [part.arrays() for part in flight.parts]
            for part, seconds in self.device_seconds().items():
                self.clock.add(part, seconds)
            encoded = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            start = 0
            for rows, count in flight.taken:
                rows.parts.append({name: array[start : start + count] for name, array in encoded.items()})
                start += count
            yield from self._finished(list({id(rows): rows for rows, _ in flight.taken}.values()))

    def _finished(self, candidates: list[_Rows]) -> Iterator[Result]:
        for rows in candidates:
            if rows.expected is not None and rows.parts and rows.encoded == rows.expected:
                rows.expected = None  # reported once
                yield rows.unit, rows.output()
