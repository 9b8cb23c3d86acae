"""Shards on workers that can be killed: each worker has a thread, and a death costs one shard, which is tried again.

Workers are processes of this machine or Ray actors; a death is handled in the same way for both.
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
TRIES = 3  # attempts of a whole shard; then it is halved until the unit at fault is alone
ALONE = TRIES + 1  # number of the last attempt: one unit, after all shards, while every other worker is idle
HOPELESS = 4 * TRIES  # more workers killed than this before any shard is finished: all of them lack memory
READY_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """One reply of the worker that has a shard."""

    header: dict[str, Any]


@dataclass(frozen=True)
class Killed:
    """A unit whose worker died at every attempt, the last time while no other worker ran.

    `own_doing` is true if the worker crashed or hung, so that the unit is at fault; false if the worker was killed.
    """

    key: str
    reason: str
    own_doing: bool = False


Events = Generator[Message | Killed, None, None]
Happenings = queue.Queue[Message | Killed | BaseException | None]  # None: a worker's thread has ended


class Worker(Protocol):
    """A worker that serves one request at a time. It can be killed from any thread, and is replaced if it dies."""

    def ready(self, seconds: float) -> bool:
        """Whether the worker can take a request, after waiting for at most `seconds`."""
        ...

    def call(self, request: Mapping[str, Any], timeout_seconds: float | None = None) -> Iterator[Reply]:
        """Yield the replies as they arrive. Raises ChildDied if the worker died, or sent nothing within the limit."""
        ...

    def kill(self) -> None:
        """Kill the worker and everything it started."""
        ...


class _Line:
    """A queue of shards, and of the units that are tried alone after all shards."""

    def __init__(self, shards: Sequence[Shard], alone: Sequence[str]) -> None:
        self.todo: queue.Queue[tuple[Shard, int]] = queue.Queue()
        self.over = threading.Event()  # set when no work is left, or when the run is to stop
        self._later = [([key], ALONE) for key in alone]
        self._lock = threading.Lock()
        self._open = len(shards)  # number of shards in the queue or with a worker
        self._finished = self._deaths = 0
        for shard in shards:
            self.todo.put((shard, 1))
        self._go_on()

    def settle(self, more: Sequence[tuple[Shard, int]], death: ChildDied | None) -> None:
        """Record the end of a shard, which `more` shards replace; `death` is its worker's death, if it died.

        Raises UserError if more than HOPELESS workers were killed and none has finished a shard.
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
        """If no shard is left, queue the next unit to be tried alone; if there is none, set `over`."""
        if self._open == 0 and self._later:
            self.todo.put(self._later.pop(0))
            self._open = 1
        if self._open == 0:
            self.over.set()


def run_shards(
    workers: Sequence[Worker], shards: Sequence[Shard], request: Callable[[Shard, int, int], dict[str, Any]],
    stall_seconds: float, alone: Sequence[str] = (),
) -> Events:  # fmt: skip
    """Yield the workers' replies as they arrive, until every shard is done. Stopping early kills all workers.

    `request` makes a worker's request from a shard, the worker's number and the attempt (1 is the first). A unit is
    tried once more after all shards, while no other worker runs, if its worker died while the unit was alone in its
    shard, or if the worker reports that a program such as the decoder was killed. The units in `alone`, which earlier
    runs could not finish, are tried only in this way. An exception of a worker's code (not of a unit) is raised here,
    and UserError if workers are killed repeatedly before any shard is finished.
    """
    line = _Line(shards, alone)
    events: Happenings = queue.Queue()

    def work(number: int) -> None:
        worker = workers[number]
        try:
            while not line.over.is_set():
                if not worker.ready(
                    READY_SECONDS
                ):  # checked first, so that it takes no shard that a ready worker could take
                    continue
                try:
                    shard, attempt = line.todo.get(timeout=0.05)
                except queue.Empty:
                    continue
                spec = request(shard, number, attempt)
                more, death = _one_shard(worker, shard, attempt, spec, stall_seconds, events)
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
            while thread.is_alive():  # kill repeatedly: the worker's process may be starting at this moment
                worker.kill()
                thread.join(timeout=0.1)


def _until_all_ended(events: Happenings, running: int) -> Events:
    """Yield events until each of `running` threads has sent None; re-raise an exception."""
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
    """Have a worker process a shard; return the shards that are still to be done, and the worker's death if it died."""
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
