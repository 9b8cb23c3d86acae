"""Searchers that are opened when first needed, with a bound on the number of searches at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from flows.search.searcher import Searcher

MOST_OPEN = (
    3  # searchers held open, and the number of threads: so one searcher is always idle and can be closed
)
MOST_WAITING = 400  # largest number of searches that are not answered yet
LIMIT_SECONDS = 120.0  # limit of one search with its waiting: 200 clients at 0.3 s each, or loading networks
RETRY_SECONDS = 5  # sent as Retry-After to a client when MOST_WAITING is reached

Answer = TypeVar("Answer")
Name = tuple[str, str]
"""A method and a split."""


class Busy(Exception):
    """Too many searches are waiting."""


class TooSlow(Exception):
    """A search took longer than its limit."""


class _Opened:
    """A searcher, None until it is open, and the number of calls that use it."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.searcher: Searcher | None = None


class Searchers:
    """Runs calls with the searcher of a method and split, in threads of its own.

    `make` gives an opened searcher; it is called in the thread that first needs it. Beyond `most` of them the one that
    was not used for longest is closed. waiting: how many calls were asked for and have not ended.
    """

    def __init__(self, make: Callable[[str, str], Searcher], most: int = MOST_OPEN) -> None:
        self._make, self._most = make, most
        self._lock, self._ending = threading.Lock(), False
        self._opened: OrderedDict[Name, _Opened] = OrderedDict()
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

    def _ended(self, work: Future[Answer]) -> None:
        with self._counting:
            self.waiting -= 1

    def _called(self, name: Name, call: Callable[[Searcher], Answer]) -> Answer:
        with self._lent(name) as searcher:
            return call(searcher)

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
                    opened.searcher = self._make(*name)
            if self._ending:  # it was opened while all were closed
                opened.searcher.close()
                raise Busy
            yield opened.searcher
        finally:
            with self._lock:
                opened.users -= 1

    def _without_room(self) -> Searcher | None:
        """Make room for one more; returns the idle searcher to close, if any. With `most` threads, one is idle."""
        if len(self._opened) < self._most:
            return None
        idle = next(name for name, opened in self._opened.items() if opened.users == 0)
        return self._opened.pop(idle).searcher

    def close(self) -> None:
        """End all searchers; calls that run end with an error."""
        with self._lock:
            self._ending, opened = True, list(self._opened.values())
        for one in opened:
            if one.searcher is not None:
                one.searcher.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
