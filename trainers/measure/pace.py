"""Progress of an evaluation: what it does, how far it is, and the seconds left, reported at most twice a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

SECONDS_BETWEEN = 0.5

Report = Callable[[Mapping[str, Any]], None]
"""Receives `doing` (words), `done` and `total` (whole numbers) and `eta_seconds`."""


class Pace:
    """Counts the work of one phase after another, and reports it. Without a receiver it only counts."""

    def __init__(self, report: Report | None = None) -> None:
        self._report = report
        self._reported_at = float("-inf")
        self.begin("", 0)

    def begin(self, doing: str, total: int, done: int = 0) -> None:
        """Begin a phase of `total` units, of which an earlier process has done `done`; its first report comes now."""
        self.doing, self.total, self.done, self._found = doing, total, done, done
        self._began = time.monotonic()
        if total:
            self._send()

    def add(self, units: int) -> None:
        """Count units that are done."""
        self.done += units
        if time.monotonic() - self._reported_at >= SECONDS_BETWEEN or self.done == self.total:
            self._send()

    @property
    def eta_seconds(self) -> float:
        """Seconds to the end of the phase at the rate of this process; 0 before anything is done."""
        here = self.done - self._found
        left = self.total - self.done
        return left * (time.monotonic() - self._began) / here if here else 0.0

    def _send(self) -> None:
        self._reported_at = time.monotonic()
        if self._report is not None:
            self._report(
                {"doing": self.doing, "done": self.done, "total": self.total, "eta_seconds": self.eta_seconds}
            )
