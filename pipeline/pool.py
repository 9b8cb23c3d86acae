"""Shards over killable worker processes: one thread a worker, one death costs one shard, which is tried again."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.child import Child, ChildDied

Shard = list[str]
TRIES = 2  # of a whole shard; then it is halved until the unit at fault stands alone


@dataclass(frozen=True)
class Message:
    """One reply of the worker that has a shard."""

    header: dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """A unit whose worker died each time, alone at the end: the unit is at fault."""

    key: str
    reason: str


def run_shards(
    entry: str, shards: Sequence[Shard], request: Callable[[Shard, int], dict[str, Any]], workers: int,
    stall_seconds: float, env: dict[str, str],
) -> Iterator[Message | Killed]:  # fmt: skip
    """What the workers reply, as it comes, until every shard is done. Stopping early kills them all.

    `request` makes what a worker is asked from a shard and the worker's number. An exception of a
    worker's code (not of a unit) is raised here.
    """
    todo: queue.Queue[tuple[Shard, int]] = queue.Queue()
    for shard in shards:
        todo.put((shard, 1))
    events: queue.Queue[Message | Killed | BaseException | None] = queue.Queue()
    open_shards = len(shards)
    lock = threading.Lock()
    stop = threading.Event()
    children = [Child(entry, env=env) for _ in range(min(workers, len(shards)))]

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
        child = children[number]
        try:
            while not stop.is_set():
                try:
                    shard, attempt = todo.get(timeout=0.05)
                except queue.Empty:
                    continue
                settle(_one_shard(child, shard, attempt, request(shard, number), stall_seconds, events))
        except BaseException as error:  # raised again by the caller's thread
            events.put(error)
            stop.set()
        finally:
            child.kill()
            events.put(None)

    threads = [
        threading.Thread(target=work, args=(n,), name=f"worker-{n}", daemon=True)
        for n in range(len(children))
    ]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            event = events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        stop.set()
        for child, thread in zip(children, threads, strict=True):
            while thread.is_alive():  # again: it may be starting its child just now
                child.kill()
                thread.join(timeout=0.1)


def _one_shard(
    child: Child, shard: Shard, attempt: int, request: dict[str, Any], stall_seconds: float,
    events: queue.Queue[Message | Killed | BaseException | None],
) -> list[tuple[Shard, int]]:  # fmt: skip
    """Work through a shard; what to do instead, if the worker died."""
    try:
        for header, _ in child.call(request, stall_seconds):
            events.put(Message(header))
    except ChildDied as death:
        if attempt < TRIES:
            return [(shard, attempt + 1)]
        if len(shard) > 1:
            half = len(shard) // 2
            return [(shard[:half], TRIES), (shard[half:], TRIES)]
        events.put(Killed(shard[0], f"its worker process died {attempt} times: {death}"))
    return []
