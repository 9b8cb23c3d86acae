"""Decoding ahead of the network, in a child process that can be killed: decord first, PyAV as fallback."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from numpy.typing import NDArray

from extractors.clock import Clock
from extractors.decoder_count import Rates, most_decoders
from pipeline.child import Child, ChildDied, ChildError
from pipeline.errors import ItemError
from pipeline.shared_arrays import UNREAD

DECODERS = ("decord", "pyav")  # in the order in which they are tried
KILLS = 2  # kills of the decoders of one source, before it is returned to be tried alone
CHUNKS_AHEAD = 4  # bounds memory: 4 x 32 frames of 224 x 398 are 34 MB

U = TypeVar("U")


@dataclass(frozen=True)
class Source(Generic[U]):
    """A unit to decode: its file, and the number of frames in it, if that is known."""

    unit: U
    path: Path
    frames: int | None = None


@dataclass(frozen=True)
class Begin(Generic[U]):
    """The frames of a unit follow; results of an earlier attempt are void."""

    unit: U
    decoder: str


@dataclass(frozen=True)
class Chunk:
    """Frames (n, H, W, 3) of the current unit, their times (n,), and the seconds that decoding them took."""

    frames: NDArray
    times: NDArray
    seconds: float = 0.0


@dataclass(frozen=True)
class End(Generic[U]):
    """The frames of the unit are complete."""

    unit: U


@dataclass(frozen=True)
class Failed(Generic[U]):
    """No decoder can decode the unit, or (`killed`) its decoder was killed at every attempt."""

    unit: U
    reason: str
    killed: bool = False


Event = Begin[U] | Chunk | End[U] | Failed[U]


class Decoders:
    """The decoding processes of a worker, kept from shard to shard, and what is measured of them.

    With a `fixed` number there are always that many. Otherwise there is one at first, and then as many as decode what
    the reader takes, at most as many as the worker's share of cores and memory allows.
    """

    def __init__(
        self, start: Callable[[], Child], fixed: int = 0, threads: int = 1, memory_bytes: int = 0,
        names: Sequence[str] = DECODERS,
    ) -> None:  # fmt: skip
        self.start, self.fixed, self.names = start, fixed, names
        self.threads, self.memory_bytes = threads, memory_bytes
        self.count, self.rates = max(1, fixed), Rates()
        self.children: list[Child] = []
        self.chunk_bytes = 0  # size of the largest chunk so far

    def child(self, number: int) -> Child:
        """The process of a number, made but perhaps not started."""
        while len(self.children) <= number:
            self.children.append(self.start())
        return self.children[number]

    def adapt(self, frames: int, decoding: float, reading: float) -> None:
        """Choose the number of decoders anew after a video."""
        self.rates.add(frames, decoding, reading)
        if not self.fixed:
            chunks = CHUNKS_AHEAD + UNREAD + 1
            most = most_decoders(self.threads, self.memory_bytes, self.chunk_bytes, chunks)
            self.count = self.rates.wanted(self.count, most)

    def kill(self) -> None:
        """End the processes."""
        for child in self.children:
            child.kill()

    @property
    def unshared(self) -> str:
        """Why frames come through a socket; "" where they come in shared memory."""
        return next((child.unshared for child in self.children if child.unshared), "")


class _Ahead(Generic[U]):
    """Threads that each decode the next source that no other has taken, a few chunks ahead of the caller.

    Sources are taken and read in the same order and each thread has its own room for events, so that none waits for
    another.
    """

    def __init__(self, sources: Sequence[Source[U]], limit_seconds: float, names: Sequence[str]) -> None:
        self._sources, self._limit, self._names = sources, limit_seconds, names
        self._queues: list[queue.SimpleQueue[tuple[Event[U] | BaseException, threading.Semaphore]]] = [
            queue.SimpleQueue() for _ in sources
        ]
        self._lock = threading.Lock()
        self._taken = 0
        self.wanted = 0  # number of threads that go on after their source
        self.stop = threading.Event()
        self.threads: dict[int, threading.Thread] = {}

    def start(self, number: int, decoder: Child) -> None:
        """Have a decoder take sources, unless it does so already."""
        if number in self.threads and self.threads[number].is_alive():
            return
        decoder.start()  # here: the kernel ends the child with the thread that started it
        thread = threading.Thread(target=self._read, args=(number, decoder), name="decode-ahead", daemon=True)
        self.threads[number] = thread
        thread.start()

    def events(self, number: int) -> Iterator[Event[U]]:
        """The events of a source as they come. Raises what its decoding raised."""
        while True:
            event, room = self._queues[number].get()
            room.release()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, (End, Failed)):
                return

    def left(self) -> int:
        """Number of sources that no decoder has taken."""
        with self._lock:
            return len(self._sources) - self._taken

    def _next(self, number: int) -> int | None:
        """The number of the next source; None where there is none, or where the decoder is one too many."""
        with self._lock:
            if number >= self.wanted or self._taken == len(self._sources) or self.stop.is_set():
                return None
            self._taken += 1
            return self._taken - 1

    def _read(self, number: int, decoder: Child) -> None:
        """Decode sources until none is left."""
        room = threading.Semaphore(CHUNKS_AHEAD)
        try:
            while (source := self._next(number)) is not None:
                try:
                    for event in _decode(decoder, self._sources[source], self._limit, self._names):
                        while not room.acquire(timeout=0.1):
                            if self.stop.is_set():
                                return
                        if self.stop.is_set():
                            return
                        self._queues[source].put((event, room))
                except BaseException as error:  # raised again by the caller's thread
                    self._queues[source].put((error, room))
                    return
        finally:
            if decoder.owner is threading.current_thread():
                decoder.kill()  # a successor started here would be ended by the kernel at some later moment


def decode_with(
    decoders: Decoders, sources: Sequence[Source[U]], limit_seconds: float, clock: Clock | None = None
) -> Generator[Event[U], None, None]:
    """The frames of each source in turn, from decoders that each work ahead on a source of its own.

    The events and their order are those of one decoder, whatever the number, which may change on the way. Stopping
    early ends the decoders at once. The clock gets the seconds of decoding, and of waiting for frames.
    """
    ahead = _Ahead(sources, limit_seconds, decoders.names)
    clock = Clock() if clock is None else clock

    def arrange() -> None:
        ahead.wanted = decoders.count
        for number in range(min(decoders.count, ahead.left())):
            ahead.start(number, decoders.child(number))

    ended = False
    try:
        for number in range(len(sources)):
            arrange()
            frames, decoding, reading = 0, 0.0, 0.0
            events = ahead.events(number)
            while True:
                with clock.part("wait"):
                    event = next(events, None)
                if event is None:
                    break
                if isinstance(event, Chunk):
                    frames, decoding = frames + len(event.frames), decoding + event.seconds
                    decoders.chunk_bytes = max(decoders.chunk_bytes, event.frames.nbytes)
                    clock.add("decode", event.seconds)
                given = time.perf_counter()
                yield event
                reading += time.perf_counter() - given
            decoders.adapt(frames, decoding, reading)
        ended = True
    finally:
        ahead.stop.set()
        for number in ahead.threads if not ended else ():
            decoders.child(number).kill()  # its process may hang on a file, and the thread with it
        for thread in ahead.threads.values():
            thread.join()


def _decode(
    decoder: Child, source: Source[U], limit_seconds: float, names: Sequence[str]
) -> Iterator[Event[U]]:
    """The frames of a source from the first of the named decoders that gives the expected number.

    A decoder that was killed is started once more, because the next decoder gives other pixels and the file may not be
    at fault.
    """
    reasons: list[str] = []
    attempts, kills = list(names), 0
    while attempts:
        name = attempts.pop(0)
        yield Begin(source.unit, name)
        frames = 0
        try:
            for header, arrays in decoder.call({"path": str(source.path), "decoder": name}, limit_seconds):
                frames += len(arrays["frames"])
                yield Chunk(arrays["frames"], arrays["times"], header.get("seconds", 0.0))
        except ItemError as error:
            reasons.append(error.reason)
        except (ChildDied, ChildError) as error:
            reason = f"{name} failed: {str(error).strip().splitlines()[-1]}"
            if isinstance(error, ChildDied) and not error.own_doing:
                kills += 1
                if kills == KILLS:
                    yield Failed(source.unit, reason, killed=True)
                    return
                attempts.insert(0, name)
                continue
            reasons.append(reason)
        else:
            if frames and frames == (source.frames or frames):
                yield End(source.unit)
                return
            count = f"{frames} frames of {source.frames}" if frames else "no frame"
            reasons.append(f"{name} finds {count}")
    yield Failed(source.unit, "; ".join(reasons))
