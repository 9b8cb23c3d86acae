"""Ctrl-C and SIGTERM while training: remembered until the step is done, then raised."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self


class Interrupts:
    """A block in which a first signal only sets `caught`; a second one raises at once.

    Signals reach the main thread alone, so in another thread the block changes nothing.
    """

    def __init__(self) -> None:
        self.caught = 0  # the signal's number
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.caught and kind is None:  # it came after the last step: the caller still has to stop
            self.stop(self.caught)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._at_once or self.caught:
            self.stop(number)
        self.caught = number

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch that may be broken off anywhere: a signal raises where it arrives."""
        self._at_once = True
        try:
            if self.caught:
                self.stop(self.caught)
            yield
        finally:
            self._at_once = False

    def stop(self, number: int) -> NoReturn:
        """Raise what ends the program with 130 for Ctrl-C and 143 for SIGTERM."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
