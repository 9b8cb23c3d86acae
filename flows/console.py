"""The display of running stages: a progress bar with ETA in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from flows.terminal import Terminal, escaped, is_quiet
from pipeline.run.execute import Progress, Report
from trainers.measure.metric_table import printed_figure

SECONDS_BETWEEN_LINES = 5.0  # longest silence in a log while a stage runs

SHOWN_WAITING = 0.01  # least share of a training's time, in which steps wait for data, that is shown

log = logging.getLogger(__name__)
progress_log = logging.getLogger("crossreel.progress")  # what --log-file holds of a display


class StageDisplay:
    """Shows the progress of one stage after another on standard error."""

    def __init__(self, quiet: bool = False) -> None:
        quiet = quiet or is_quiet()
        self.console = Terminal(stderr=True, quiet=quiet, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        self._quiet = quiet
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._latest: Progress | None = None
        self._line_at = 0.0
        self._guard = threading.RLock()  # of what the thread that repeats a silent stage's line reads
        self._ended = threading.Event()
        self._repeater: threading.Thread | None = None

    def __enter__(self) -> StageDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.idle()
        self._ended.set()

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""
        with self._guard:
            self._line_at = time.monotonic()
            self.console.print(sentence, highlight=False, markup=False)
        progress_log.info("%s", escaped(sentence.strip()))

    def progress(self, progress: Progress) -> None:
        """Move the bar, or print a line when it is time for one, or when the stage does something else."""
        with self._guard:
            new = progress.stage != self._stage
            doing = "" if new or self._latest is None else self._latest.doing
            self._latest = progress
            if new:
                self._end_bar()
                self._stage, self._line_at = progress.stage, time.monotonic()
                if self.live:
                    self._begin_bar(progress)
            if self._bars is not None and self._task is not None:
                done, total = position(progress)
                self._bars.update(self._task, completed=done, total=total, detail=describe(progress))
            elif progress.doing != doing and progress.doing:
                self.say(line(progress))
            else:
                self._say_if_silent()
            if not (self.live or self._quiet or self._repeater):
                self._repeater = threading.Thread(target=self._repeat, name="silence", daemon=True)
                self._repeater.start()

    def _say_if_silent(self) -> None:
        """Print how far the stage is, if nothing was printed for a while."""
        with self._guard:
            if self._latest is not None and time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES:
                self.say(line(self._latest))

    def _repeat(self) -> None:
        """Print how far a stage is while it reports nothing, as over one long video."""
        while not self._ended.wait(SECONDS_BETWEEN_LINES / 10):
            self._say_if_silent()

    def report(self, report: Report) -> None:
        """Print the report of a stage as one line."""
        self.idle()
        self.say(sentence(report))

    def idle(self) -> None:
        """No stage runs: end its bar, and repeat its line no more."""
        with self._guard:
            self._end_bar()
            self._stage, self._latest = "", None

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
    """Numbers of units done and in total: of steps for a training, of what an evaluation counts at the moment."""
    d = progress.detail
    if d.get("steps"):
        return (d["epoch"] - 1) * d["steps"] + d["step"], d["epochs"] * d["steps"]
    return (d["done"], d["total"]) if d.get("total") else (progress.done, progress.total)


def line(progress: Progress) -> str:
    """How far a stage is, for instance "  clip: 3 of 12  loading networks"."""
    done, total = position(progress)
    return f"  {progress.stage}: {done} of {total}  {describe(progress)}".rstrip()


def describe(progress: Progress) -> str:
    """What a stage does, how long it takes, or a training's epoch, loss and figures, in a few words."""
    detail = progress.detail
    if not detail:
        return progress.doing
    if not detail.get("steps"):
        return f"{detail['doing']}  {detail['eta_seconds']:.0f} s left"
    words = [f"epoch {detail['epoch']}/{detail['epochs']}", f"loss {detail['loss']:.3f}"]
    words += [
        f"val {name} {printed_figure(name, value)}"
        for name, value in list(detail.get("validation", {}).items())[:1]  # the one that chooses the epoch
    ]
    if detail.get("waiting", 0.0) >= SHOWN_WAITING:
        words.append(f"waits for data {detail['waiting']:.0%}")
    if work := detail.get("validating"):
        share = work["done"] / max(1, work["total"])
        words.append(f"validating: {work['doing']} {share:.0%}, {work['eta_seconds']:.0f} s left, then")
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
