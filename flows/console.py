"""The display of running stages: a progress bar with ETA in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from flows.terminal import Terminal
from pipeline.run.execute import Progress, Report

SECONDS_BETWEEN_LINES = 15.0

log = logging.getLogger(__name__)


class StageDisplay:
    """Shows the progress of one stage after another on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Terminal(stderr=True, quiet=quiet, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._line_at = 0.0

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""
        self.console.print(sentence, highlight=False, markup=False)

    def progress(self, progress: Progress) -> None:
        """Update the bar, or without a terminal print a line now and then."""
        if progress.stage != self._stage:
            self._end_bar()
            self._stage, self._line_at = progress.stage, time.monotonic()
            if self.live:
                self._begin_bar(progress)
        detail = describe(progress.detail)
        if self._bars is not None and self._task is not None:
            done, total = position(progress)
            self._bars.update(self._task, completed=done, total=total, detail=detail)
        elif time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = time.monotonic()
            done, total = position(progress)
            self.say(f"  {progress.stage}: {done} of {total}  {detail}".rstrip())

    def report(self, report: Report) -> None:
        """Print the report of a stage as one line."""
        self._end_bar()
        self._stage = ""
        self.say(sentence(report))

    def _begin_bar(self, progress: Progress) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[detail]}"), console=self.console, transient=True,
        )  # fmt: skip
        self._bars.start()
        self._task = self._bars.add_task(progress.stage, total=progress.total, detail="")

    def _end_bar(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars, self._task = None, None


def position(progress: Progress) -> tuple[int, int]:
    """Numbers of units done and in total; of steps for a training."""
    d = progress.detail
    if d.get("steps"):
        return (d["epoch"] - 1) * d["steps"] + d["step"], d["epochs"] * d["steps"]
    return progress.done, progress.total


def describe(detail: Mapping[str, Any]) -> str:
    """A training's epoch, loss and figures in a few words."""
    if not detail:
        return ""
    words = [f"epoch {detail['epoch']}/{detail['epochs']}", f"loss {detail['loss']:.3f}"]
    words += [f"val {name} {value:.1f}" for name, value in detail.get("validation", {}).items()]
    words.append(f"at most {detail['eta_seconds']:.0f} s left")
    return "  ".join(words)


def sentence(report: Report) -> str:
    """The report of a stage in words, for instance "clip: 118 made, 2 failed (41.2 s)"."""
    words = []
    if report.ran:
        words.append(f"{report.ran} made" if report.total > 1 else "made")
    if report.cached:
        words.append(f"{report.cached} cached" if report.total > 1 else "cached")
    if report.failed:
        words.append(f"{report.failed} failed")
    if report.killed:
        words.append(f"{report.killed} killed (the next run tries again)")
    if report.blocked:
        words.append(f"{report.blocked} left out (failed upstream)")
    took = f" ({report.seconds:.1f} s)" if report.ran else ""
    if report.shared_with:
        took = f" (in the pass of {report.shared_with})"
    return f"{report.stage}: {', '.join(words) or 'nothing to do'}{took}"
