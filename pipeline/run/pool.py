"""Shards over killable workers: one thread a worker, one death costs one shard, which is tried again.

Workers are processes of this machine or Ray actors; what follows a death is the same for both.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.child import ChildDied, Reply
from pipeline.errors import UserError

Shard = list[str]
TRIES = 3  # of a whole shard; then it is halved until the unit at fault is by itself
ALONE = TRIES + 1  # the last attempt: of one unit, after all shards, with every other worker idle
HOPELESS = 4 * TRIES  # workers killed before anything was finished: then all of them lack memory
READY_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """One reply of the worker that has a shard."""

    header: dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """A unit whose worker died each time, at the end with no other worker beside it.

    `own_doing` is true where the worker crashed or hung over it: the unit is at fault. Otherwise it was killed.
    """

    key: str
    reason: str
    own_doing: bool = False


Events = Generator[Message | Killed, None, None]
Happenings = queue.Queue[Message | Killed | BaseException | None]  # None: a worker's thread has ended


class Worker(Protocol):
    """Something that works on a request at a time, can be killed from any thread, and is replaced if it dies."""

    def ready(self, seconds: float) -> bool:
        """Whether it can take a request; where that takes waiting for, no longer than this."""
        ...

    def call(self, request: Mapping[str, Any], timeout_seconds: float | None = None) -> Iterator[Reply]:
        """Its replies, as they come. Raises ChildDied where it died, or was silent for longer than the limit."""
        ...

    def kill(self) -> None:
        """End it and everything it started, at once."""
        ...


class _Line:
    """The shards that wait for a worker, and the units that wait to be tried alone when no shard is left."""

    def __init__(self, shards: Sequence[Shard], alone: Sequence[str]) -> None:
        self.todo: queue.Queue[tuple[Shard, int]] = queue.Queue()
        self.over = threading.Event()  # nothing is left to do, or nothing more should be done
        self._later = [([key], ALONE) for key in alone]
        self._lock = threading.Lock()
        self._open = len(shards)  # in the queue or with a worker
        self._finished = self._deaths = 0
        for shard in shards:
            self.todo.put((shard, 1))
        self._go_on()

    def settle(self, more: Sequence[tuple[Shard, int]], death: ChildDied | None) -> None:
        """One shard is over, with its worker's death or without; `more` take its place.

        Raises UserError where workers were killed HOPELESS times and none has finished a shard.
        """
        with self._lock:
            self._finished += death is None
            self._deaths += death is not None and not death.own_doing
            if not self._finished and self._deaths > HOPELESS:
                raise UserError(
                    f"{self._deaths} workers were killed ({death}) and none has finished anything; "
                    "lower run.workers, so that fewer share the memory, or run.batch_size"
                )
            self._open -= 1
            for shard, attempt in more:
                if attempt == ALONE:
                    self._later.append((shard, attempt))
                else:
                    self.todo.put((shard, attempt))
                    self._open += 1
            self._go_on()

    def _go_on(self) -> None:
        """When no shard is left, put the next unit that is to be tried alone; when there is none, end."""
        if self._open == 0 and self._later:
            self.todo.put(self._later.pop(0))
            self._open = 1
        if self._open == 0:
            self.over.set()


def run_shards(
    workers: Sequence[Worker], shards: Sequence[Shard], request: Callable[[Shard, int, int], dict[str, Any]],
    stall_seconds: float, alone: Sequence[str] = (),
) -> Events:  # fmt: skip
    """Yield what the workers reply, as it comes, until every shard is done. Stopping early kills them all.

    `request` makes a worker's request from a shard, the worker's number and the attempt (1 is the first). A unit whose
    worker died with it alone in its shard, or of which a worker says that its decoder or the like was killed, is tried
    once more after all shards, one at a time; those of `alone` are tried only so, because earlier runs could not finish
    them. An exception of a worker's code (not of a unit) is raised here, and UserError where workers are killed
    again and again and nothing is finished.
    """
    line = _Line(shards, alone)
    events: Happenings = queue.Queue()

    def work(number: int) -> None:
        worker = workers[number]
        try:
            while not line.over.is_set():
                if not worker.ready(READY_SECONDS):  # before it takes a shard that another could have
                    continue
                try:
                    shard, attempt = line.todo.get(timeout=0.05)
                except queue.Empty:
                    continue
                asked = request(shard, number, attempt)
                more, death = _one_shard(worker, shard, attempt, asked, stall_seconds, events)
                line.settle(more, death)
        except BaseException as error:  # raised again by the caller's thread
            events.put(error)
            line.over.set()
        finally:
            worker.kill()
            events.put(None)

    threads = [
        threading.Thread(target=work, args=(n,), name=f"worker-{n}", daemon=True) for n in range(len(workers))
    ]
    for thread in threads:
        thread.start()
    try:
        yield from _until_all_ended(events, len(threads))
    finally:
        line.over.set()
        for worker, thread in zip(workers, threads, strict=True):
            while thread.is_alive():  # again: it may be starting just now
                worker.kill()
                thread.join(timeout=0.1)


def _until_all_ended(events: Happenings, running: int) -> Events:
    """What so many threads put, until each has put None; an exception among it is raised."""
    while running:
        event = events.get()
        if event is None:
            running -= 1
        elif isinstance(event, BaseException):
            raise event
        else:
            yield event


def _one_shard(
    worker: Worker, shard: Shard, attempt: int, request: dict[str, Any], stall_seconds: float,
    events: Happenings,
) -> tuple[list[tuple[Shard, int]], ChildDied | None]:  # fmt: skip
    """Work through a shard; returns what is still to be done of it, and the death of the worker if it died."""
    killed: dict[str, None] = {}
    try:
        for header, _ in worker.call(request, stall_seconds):
            if header.get("killed") and attempt < ALONE:
                killed[header["failed"]] = None
            else:
                events.put(Message(header))
    except ChildDied as death:
        if attempt < TRIES:
            return [(shard, attempt + 1)], death
        if len(shard) > 1:
            half = len(shard) // 2
            return [(shard[:half], TRIES), (shard[half:], TRIES)], death
        if attempt < ALONE:
            return [(shard, ALONE)], death
        words = "crashed or hung" if death.own_doing else "was killed"
        reason = f"its worker process {words} each time, at last with no other beside it: {death}"
        events.put(Killed(shard[0], reason, death.own_doing))
        return [], death
    return [([key], ALONE) for key in killed], None
