"""One run: stages in order, each brought up to date, with a record of it in the store. Prefect-free.

Prefect's flows pass `each`, which makes a task of every stage; a plain call runs the same loop without.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.console import StageDisplay
from flows.project import Project
from flows.results.leaderboard import leaderboard
from pipeline.child import is_interrupt
from pipeline.run import plan
from pipeline.run.execute import Progress, Report, Runner, summary

Each = Callable[[str, Callable[[], Report]], Report]
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class RunResult:
    """What a run did, stage by stage, and what it could not do."""

    run: str
    reports: list[Report]
    seconds: float
    unreadable: dict[str, str] = field(default_factory=dict)  # item -> why its media cannot be read
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    report: Path | None = None

    @property
    def failed(self) -> int:
        """Items and captions that some stage could not process or was killed over, and items that cannot be read."""
        return sum(report.failed + report.killed for report in self.reports) + len(self.unreadable)

    @property
    def ran(self) -> int:
        """Stages that did anything."""
        return sum(report.ran > 0 for report in self.reports)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "run": self.run,
            "seconds": self.seconds,
            "stages_ran": self.ran,
            "stages": [report.as_json() for report in self.reports],
            "unreadable": self.unreadable,
            "leaderboard": self.leaderboard,
            "report": str(self.report) if self.report else None,
        }


def run_stages(
    project: Project,
    names: Sequence[str],
    display: StageDisplay,
    redo: Collection[str] = (),
    retry_failed: bool = False,
    each: Each = lambda name, call: call(),
    on_progress: Callable[[Progress], None] = lambda progress: None,
    states: plan.Survey | None = None,
) -> RunResult:
    """Bring stages, and everything they need, up to date in order; record the run in the store.

    `redo` names stages that are made again, `states` is a survey of the project to go on with, if there is
    one already. Raises what a stage's own code raises; what was finished by then is kept.
    """

    def show(progress: Progress) -> None:
        display.progress(progress)
        on_progress(progress)

    started, run = time.monotonic(), uuid.uuid4().hex[:12]
    runner = project.runner(show, display.say, states)
    index, alive = project.store.index, contextlib.ExitStack()
    alive.enter_context(project.store.run(run))  # before the index names it: nobody should take it for dead
    index.start_run(run, project.experiment.name)
    project.store.sweep()
    reports: list[Report] = []
    status = "failed"
    try:
        needed = plan.ancestors(project.stages, names)
        for name in plan.order(project.stages):
            if name in needed:
                along = [other for other in needed if (other in redo) == (name in redo)]
                reports.append(each(name, _call(runner, name, name in redo, retry_failed, along)))
                display.report(reports[-1])
        status = "done"
    except BaseException as error:
        status = "interrupted" if is_interrupt(error) else "failed"
        raise
    finally:
        runner.close()
        index.end_run(run, status, summary(reports) | {"reports": [report.as_json() for report in reports]})
        alive.close()
    seconds, ended = time.monotonic() - started, runner.states
    ended.refresh()
    unreadable = dict(project.contents.unreadable)
    return RunResult(
        run, reports, seconds, unreadable, leaderboard(project, ended), report_path(project, ended)
    )


def _call(
    runner: Runner, name: str, redo: bool, retry_failed: bool, along: Collection[str]
) -> Callable[[], Report]:
    return lambda: runner.bring_up_to_date(name, redo, retry_failed, along)


def nothing_to_do(states: plan.Survey, names: Sequence[str], retry_failed: bool) -> bool:
    """Whether a run of these stages would find everything made already."""
    needed = plan.ancestors(states.stages, names)
    return all(states[n].complete and not (retry_failed and states[n].failed) for n in needed)


def report_path(project: Project, states: Mapping[str, plan.State]) -> Path | None:
    """Where the report is, if it was made."""
    state = states.get("report")
    if state is None or not state.complete:
        return None
    return project.store.run_folder("report", state.fingerprint.hex) / REPORT_FILE
