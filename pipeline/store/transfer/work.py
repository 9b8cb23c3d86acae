"""Threads that transfer files: they are counted, they stop together, and the outcome is collected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
Whole = TypeVar("Whole")
Content = TypeVar("Content")
OnMoved = Callable[[int, int], None]  # is called with the bytes transferred so far and the total known so far
Say = Callable[[str], None]
Selection = Mapping[str, Collection[str]]  # fingerprint -> keys of items; a stage over the corpus has one key
SECONDS_BETWEEN_LOOKS = 0.2
QUEUED = 4  # tasks per thread that are submitted ahead


@dataclass(frozen=True)
class How:
    """The options of a transfer: the number of threads, whether it is a dry run, and whether to upload all again."""

    jobs: int = 4
    dry_run: bool = False
    again: bool = False  # push: upload published files too, to replace copies that were damaged there


@dataclass
class Outcome:
    """The outcome of a transfer: complete segments and folders, files and bytes transferred, and failures."""

    segments: int = 0
    folders: int = 0
    files: int = 0
    bytes: int = 0
    already: int = 0  # segments and folders that were present already
    failed: list[tuple[str, str]] = field(default_factory=list)  # name and reason

    def count(self, kind: str) -> None:
        """Count one more complete segment or folder."""
        if kind == "segment":
            self.segments += 1
        else:
            self.folders += 1

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain data."""
        return asdict(self) | {"failed": [{"name": name, "reason": reason} for name, reason in self.failed]}


@dataclass(frozen=True)
class Moved(Generic[Whole, Content]):
    """The result for one file: its content on the other side, or the reason why it was not transferred."""

    of: Whole  # the segment or folder that the file belongs to
    name: str
    content: Content | None = None
    bytes: int = 0
    trouble: str = ""


class Stopped(Exception):
    """The transfer was interrupted; raised only in its threads."""


class Meter:
    """Counts the bytes that all threads transferred. `add` raises Stopped when the transfer is to end."""

    def __init__(self, on_moved: OnMoved) -> None:
        self.on_moved, self.total, self.moved = on_moved, 0, 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Add `count` bytes."""
        with self._lock:
            self.moved += count
        if self.stop.is_set():
            raise Stopped

    def report(self) -> None:
        """Report the progress; called by the thread that started the transfer."""
        self.on_moved(self.moved, max(self.total, self.moved))


def together(jobs: int, tasks: Iterable[Callable[[], Result]], meter: Meter) -> Iterator[Result]:
    """Yield the results of tasks done by `jobs` threads, as they arrive. An exception of a task is raised here.

    Only a few tasks are drawn ahead, so that a million of them need no memory. If the caller stops iterating or is
    interrupted, the threads stop at their next block.
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
                meter.report()
                for future in ended:
                    yield future.result()
        except BaseException:
            meter.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
