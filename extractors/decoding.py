"""Decoding ahead of the network, in a child process that can be killed: decord first, PyAV as fallback."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from numpy.typing import NDArray

from pipeline.child import Child, ChildDied, ChildError
from pipeline.errors import ItemError

DECODERS = ("decord", "pyav")
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
    """Frames (n, H, W, 3) of the current unit, and their times (n,)."""

    frames: NDArray
    times: NDArray


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


def decode_ahead(
    decoder: Child, sources: Sequence[Source[U]], limit_seconds: float
) -> Generator[Event[U], None, None]:
    """The frames of each source in turn, decoded a few chunks ahead of the caller.

    A thread requests them from the child; stopping early ends both at once.
    """
    events: queue.Queue[Event[U] | BaseException | None] = queue.Queue(CHUNKS_AHEAD)
    stop = threading.Event()

    def give(event: Event[U] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return events.put(event, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for source in sources:
                for event in _decode(decoder, source, limit_seconds):
                    if stop.is_set():
                        return
                    give(event)
            give(None)
        except BaseException as error:  # raised again by the caller's thread
            give(error)
        finally:
            if decoder.owner is threading.current_thread():
                decoder.kill()  # a successor started here would be ended by the kernel at some later moment

    thread = threading.Thread(target=read, name="decode-ahead", daemon=True)
    decoder.start()  # here: the kernel ends the child with the thread that started it
    thread.start()
    ended = False
    try:
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
        ended = True
    finally:
        stop.set()
        if not ended:
            decoder.kill()  # its process may hang on a file, and the thread with it
        thread.join()


def decode_with(
    decoders: Sequence[Child], sources: Sequence[Source[U]], limit_seconds: float
) -> Iterator[Event[U]]:
    """The frames of each source in turn, from several decoders that each work ahead on a source of its own.

    The events and their order are the same as with one decoder.
    """
    with contextlib.ExitStack() as ends:
        streams = []
        for number, decoder in enumerate(decoders):
            stream = decode_ahead(decoder, sources[number :: len(decoders)], limit_seconds)
            ends.enter_context(contextlib.closing(stream))
            first = next(stream, None)  # starts its thread
            streams.append(itertools.chain(() if first is None else (first,), stream))
        for number, _ in enumerate(sources):
            for event in streams[number % len(streams)]:
                yield event
                if isinstance(event, (End, Failed)):
                    break
        for rest in streams:
            next(rest, None)  # reaches its end; closing it earlier would kill its decoder


def _decode(decoder: Child, source: Source[U], limit_seconds: float) -> Iterator[Event[U]]:
    """The frames of a source from the first decoder that gives the expected number.

    A decoder that was killed is started once more, because the next decoder gives other pixels and the file may not be
    at fault.
    """
    reasons: list[str] = []
    attempts, kills = list(DECODERS), 0
    while attempts:
        name = attempts.pop(0)
        yield Begin(source.unit, name)
        frames = 0
        try:
            for _, arrays in decoder.call({"path": str(source.path), "decoder": name}, limit_seconds):
                frames += len(arrays["frames"])
                yield Chunk(arrays["frames"], arrays["times"])
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
