"""Searchers that are opened when first needed, as many as memory allows, with a bound on the searches at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from flows.search.searcher import Searcher
from flows.serve.memory import FIRST_GUESS_BYTES, MARGIN, available_bytes, resident_bytes
from pipeline.child import ChildDied
from pipeline.errors import UserError

MOST_OPEN = (
    16  # searchers held open, and the number of threads: so one searcher is always idle and can be closed
)
MOST_WAITING = 400  # largest number of searches that are not answered yet
LIMIT_SECONDS = 120.0  # limit of one search with its waiting: 200 clients at 0.3 s each, or loading networks
RETRY_SECONDS = 5  # sent as Retry-After to a client when MOST_WAITING is reached

Answer = TypeVar("Answer")
Name = tuple[str, str]
"""A method, or a run of one, and a split."""


class Busy(Exception):
    """Too many searches are waiting."""


class TooSlow(Exception):
    """A search took longer than its limit."""


@dataclass(frozen=True)
class Loading:
    """The state of a searcher: "closed", "loading" or "ready".

    seconds: since its loading began, while it loads. usual: seconds that loading took the last time, 0 if never.
    says: the last sentence about what it is doing.
    """

    state: str
    seconds: float = 0.0
    usual: float = 0.0
    says: str = ""


class _Opened:
    """A searcher, None until it is open, and the number of calls that use it."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.searcher: Searcher | None = None
        self.ready, self.since, self.says = False, time.monotonic(), ""


class Searchers:
    """Runs calls with the searcher of a method and split, in threads of its own.

    `make` gives an opened searcher; it is called in the thread that first needs it, with a function that hears what
    takes long. A searcher is kept until memory for another one is short, or there are `most`: then the one that was not
    used for longest is closed. free: gives the bytes that are available. waiting: how many calls were asked for and
    have not ended.
    """

    def __init__(
        self, make: Callable[[str, str, Callable[[str], None]], Searcher], most: int = MOST_OPEN,
        free: Callable[[], int] = available_bytes,
    ) -> None:  # fmt: skip
        self._make, self._most, self._free = make, most, free
        self._lock, self._ending = threading.Lock(), False
        self._opened: OrderedDict[Name, _Opened] = OrderedDict()
        self._took: dict[Name, float] = {}
        self._largest = 0  # bytes of the largest searching process that was seen
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="searching")
        self._counting, self.waiting = threading.Lock(), 0

    async def ask(
        self, name: Name, call: Callable[[Searcher], Answer], seconds: float = LIMIT_SECONDS
    ) -> Answer:
        """The result of `call`. Raises Busy, TooSlow, and what the call raises.

        A call that exceeds its limit goes on in its thread, and counts as waiting until it ends.
        """
        if self.waiting >= MOST_WAITING:
            raise Busy
        with self._counting:
            self.waiting += 1
        work = self._threads.submit(self._called, name, call)
        work.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), seconds)  # cancels what was not begun
        except TimeoutError:
            raise TooSlow from None

    def start(self, name: Name) -> None:
        """Begin to load a searcher, so that its first search finds it ready; errors wait for that search."""

        def load() -> None:
            with suppress(UserError, ChildDied, Busy), self._lent(name):
                pass

        self._threads.submit(load)

    def loading(self, name: Name) -> Loading:
        """The state of the searcher of a method and split."""
        with self._lock:
            opened, usual = self._opened.get(name), self._took.get(name, 0.0)
            if opened is None:
                return Loading("closed", usual=usual)
            if opened.ready:
                return Loading("ready", usual=usual)
            return Loading("loading", time.monotonic() - opened.since, usual, opened.says)

    def room(self) -> tuple[int, int]:
        """Number of searchers that are kept now, and of those that fit into memory together."""
        with self._lock:
            kept = sum(opened.ready for opened in self._opened.values())
            more = self._free() // self._needed
        return kept, max(kept, min(self._most, kept + more), 1)

    @property
    def _needed(self) -> int:
        """Bytes that must be free before another searcher is opened."""
        return int(MARGIN * (self._largest or FIRST_GUESS_BYTES))

    def _ended(self, work: Future[Answer]) -> None:
        with self._counting:
            self.waiting -= 1

    def _called(self, name: Name, call: Callable[[Searcher], Answer]) -> Answer:
        with self._lent(name) as searcher:
            answer = call(searcher)
            with self._lock:
                self._largest = max(self._largest, resident_bytes(searcher.pid))
            return answer

    @contextmanager
    def _lent(self, name: Name) -> Iterator[Searcher]:
        """Yield the searcher, which is not closed while it is in use."""
        with self._lock:
            closing = self._without_room() if name not in self._opened else None
            opened = self._opened.setdefault(name, _Opened())
            self._opened.move_to_end(name)
            opened.users += 1
        try:
            if closing is not None:
                closing.close()
            with opened.lock:
                if opened.searcher is None:
                    self._open(name, opened)
            if self._ending and opened.searcher is not None:  # it was opened while all were closed
                opened.searcher.close()
                raise Busy
            assert opened.searcher is not None
            yield opened.searcher
        finally:
            with self._lock:
                opened.users -= 1
                if (
                    opened.searcher is None and not opened.users
                ):  # it did not open: not to be listed as loading
                    self._opened.pop(name, None)

    def _open(self, name: Name, opened: _Opened) -> None:
        """Open a searcher and load its networks; how long that takes is remembered for the next time."""
        opened.since = time.monotonic()

        def say(sentence: str) -> None:
            opened.says = sentence

        searcher = self._make(*name, say)
        try:
            searcher.warm()
        except BaseException:
            searcher.close()
            raise
        opened.searcher = searcher
        with self._lock:
            opened.ready = True
            self._took[name] = time.monotonic() - opened.since
            self._largest = max(self._largest, resident_bytes(searcher.pid))

    def _without_room(self) -> Searcher | None:
        """Make room for one more; returns the idle searcher to close, if any. With `most` threads, one is idle."""
        if not self._opened:
            return None
        if len(self._opened) < self._most and self._free() >= self._needed:
            return None
        idle = next((name for name, one in self._opened.items() if one.users == 0 and one.searcher), None)
        return self._opened.pop(idle).searcher if idle else None

    def close(self) -> None:
        """End all searchers; calls that run end with an error."""
        with self._lock:
            self._ending, opened = True, list(self._opened.values())
        for one in opened:
            if one.searcher is not None:
                one.searcher.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
