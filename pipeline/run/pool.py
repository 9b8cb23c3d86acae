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

Shard = list[str]
TRIES = 3  # of a whole shard; then it is halved until the unit at fault stands alone
READY_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """One reply of the worker that has a shard."""

    header: dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """A unit whose worker died each time, alone at the end: the unit is at fault."""

    key: str
    reason: str


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


def run_shards(
    workers: Sequence[Worker], shards: Sequence[Shard], request: Callable[[Shard, int], dict[str, Any]],
    stall_seconds: float,
) -> Events:  # fmt: skip
    """What the workers reply, as it comes, until every shard is done. Stopping early kills them all.

    `request` makes what a worker is asked from a shard and the worker's number. An exception of a
    worker's code (not of a unit) is raised here.
    """
    todo: queue.Queue[tuple[Shard, int]] = queue.Queue()
    for shard in shards:
        todo.put((shard, 1))
    events: Happenings = queue.Queue()
    open_shards = len(shards)
    lock = threading.Lock()
    stop = threading.Event()

    def settle(more: list[tuple[Shard, int]]) -> None:
        """One shard is over; `more` take its place."""
        nonlocal open_shards
        with lock:
            open_shards += len(more) - 1
            for entry_ in more:
                todo.put(entry_)
            if open_shards == 0:
                stop.set()

    def work(number: int) -> None:
        worker = workers[number]
        try:
            while not stop.is_set():
                if not worker.ready(READY_SECONDS):  # before it takes a shard that another could have
                    continue
                try:
                    shard, attempt = todo.get(timeout=0.05)
                except queue.Empty:
                    continue
                settle(_one_shard(worker, shard, attempt, request(shard, number), stall_seconds, events))
        except BaseException as error:  # raised again by the caller's thread
            events.put(error)
            stop.set()
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
        stop.set()
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
) -> list[tuple[Shard, int]]:  # fmt: skip
    """Work through a shard; what to do instead, if the worker died."""
    try:
        for header, _ in worker.call(request, stall_seconds):
            events.put(Message(header))
    except ChildDied as death:
        if attempt < TRIES:
            return [(shard, attempt + 1)]
        if len(shard) > 1:
            half = len(shard) // 2
            return [(shard[:half], TRIES), (shard[half:], TRIES)]
        events.put(Killed(shard[0], f"its worker process died {attempt} times: {death}"))
    return []
