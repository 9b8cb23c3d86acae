"""Many files moved at once by threads, counted, and stopped together; and what became of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")
OnMoved = Callable[[int, int], None]  # bytes so far, of all that are known to be moved
Say = Callable[[str], None]
SECONDS_BETWEEN_LOOKS = 0.2
QUEUED = 4  # tasks a thread that are told ahead


@dataclass(frozen=True)
class How:
    """How a transfer is done: with how many threads, only looked at, or everything once more."""

    jobs: int = 4
    dry_run: bool = False
    again: bool = False  # push: upload even what is there, which mends what was damaged there


@dataclass
class Outcome:
    """What a transfer did: whole segments and folders, files and bytes that went over, and what failed."""

    segments: int = 0
    folders: int = 0
    files: int = 0
    bytes: int = 0
    already: int = 0  # segments and folders that nothing was to do for
    failed: list[tuple[str, str]] = field(default_factory=list)  # what, and why

    def count(self, kind: str) -> None:
        """One more segment or folder is whole."""
        if kind == "segment":
            self.segments += 1
        else:
            self.folders += 1

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"failed": [{"name": name, "reason": reason} for name, reason in self.failed]}


class Stopped(Exception):
    """The transfer was interrupted; raised in its threads alone."""


class Meter:
    """Bytes that all threads moved. `add` raises Stopped once the transfer is to end."""

    def __init__(self, on_moved: OnMoved) -> None:
        self.on_moved, self.total, self.moved = on_moved, 0, 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more were moved."""
        with self._lock:
            self.moved += count
        if self.stop.is_set():
            raise Stopped

    def tell(self) -> None:
        """Show how far it is; called by the thread that started the transfer."""
        self.on_moved(self.moved, max(self.total, self.moved))


def together(jobs: int, tasks: Iterable[Callable[[], Result]], meter: Meter) -> Iterator[Result]:
    """The results of tasks done by `jobs` threads, as they come. What a task raises is raised here.

    Tasks are drawn a few ahead, so that a million of them need no memory; whoever stops listening, or
    is interrupted, stops the threads at their next block.
    """
    source, running = iter(tasks), set[Future[Result]]()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                while len(running) < QUEUED * jobs and (task := next(source, None)) is not None:
                    running.add(pool.submit(task))
                if not running:
                    return
                ended, running = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
                meter.tell()
                for future in ended:
                    yield future.result()
        except BaseException:
            meter.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
