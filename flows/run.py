"""One run: stages in order, each brought up to date, with a record of it in the store. Prefect-free.

Prefect's flows pass `each`, which makes a task of every stage; a plain call runs the same loop without.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.console import StageDisplay
from flows.program import release
from flows.project import Project
from flows.reporting import REPORT, Stopped, report_of
from flows.results.judged import judged_leaderboard
from flows.results.tensorboards import link_curves
from flows.results.verdict import Verdict
from pipeline.child import ChildDied, ChildError, is_interrupt
from pipeline.errors import ItemError, TrainingError, UserError, is_full
from pipeline.run import plan
from pipeline.run.execute import Progress, Report, Runner, summary

Each = Callable[[str, Callable[[], Report]], Report]
REPORT_FILE = "report.html"
STAGE_ERRORS = (UserError, ItemError, TrainingError, ChildDied, ChildError)
# errors of one stage, after which the stages that do not need it can still be made

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run: the report of each stage, and the stages that stopped."""

    run: str
    reports: list[Report]
    seconds: float
    unreadable: dict[str, str] = field(default_factory=dict)  # item -> why its media cannot be read
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    verdict: Verdict | None = None  # who is ahead among the evaluated methods; None where there are none
    report: Path | None = None
    curves: Path | None = None  # the folder that TensorBoard shows; None where no method was trained
    stopped: list[Stopped] = field(default_factory=list)  # stages that ended with an error
    recipes: dict[str, str] = field(
        default_factory=dict
    )  # of each method, which recipe gave its settings, and why

    @property
    def failed(self) -> int:
        """Items and captions that some stage could not process or was killed over, and items that cannot be read."""
        return sum(report.failed + report.killed for report in self.reports) + len(self.unreadable)

    @property
    def ran(self) -> int:
        """Stages that did anything, which are those that a plan calls missing."""
        return sum(report.worked for report in self.reports)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "run": self.run,
            "seconds": self.seconds,
            "stages_ran": self.ran,
            "stages": [report.as_json() for report in self.reports],
            "unreadable": self.unreadable,
            "stopped": [asdict(stage) for stage in self.stopped],
            "leaderboard": self.leaderboard,
            "verdict": self.verdict.model_dump(mode="json") if self.verdict else None,
            "report": str(self.report) if self.report else None,
            "curves": str(self.curves) if self.curves else None,
            "recipes": self.recipes,
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

    `redo` names stages that are made again, `states` is an earlier survey of the project, if there is one. If a stage
    ends with an error, the stages that need it are left out and the others are made; the report then covers the methods
    that were evaluated. Raises the first stage's error if it leaves out all requested stages, and any error that would
    stop every other stage too (a full disk); stages that were finished by then are kept.
    """

    def show(progress: Progress) -> None:
        display.progress(progress)
        on_progress(progress)

    for line in project.recipe_lines(plan.ancestors(project.stages, names)):
        display.say(line)
    started, run = time.monotonic(), uuid.uuid4().hex[:12]
    runner = project.runner(show, display.say, states, demanded=_demanded(project.stages, names, redo))
    index, alive = project.store.index, contextlib.ExitStack()
    alive.callback(display.idle)
    alive.enter_context(project.store.run(run))  # before the index names it: nobody should take it for dead
    index.start_run(run, project.experiment.name)
    project.store.sweep()
    reports: list[Report] = []
    errors: dict[str, Exception] = {}
    stopped: list[Stopped] = []
    drawn, status = project, "failed"
    try:
        needed = plan.ancestors(project.stages, names)
        for name in plan.order(project.stages):
            if name not in needed or name in plan.descendants(project.stages, errors):
                continue
            along = [n for n in needed if (n in redo) == (name in redo) and n not in errors]
            try:
                reports.append(each(name, _call(runner, name, name in redo, retry_failed, along)))
            except STAGE_ERRORS as error:
                if is_full(error):
                    raise
                errors[name] = error
                display.say(f"{name} stopped: {reason(error)}")
                continue
            display.report(reports[-1])
        stopped = _stopped(project, names, errors)
        lost = plan.descendants(project.stages, errors)
        methods = [m for m in project.experiment.methods if f"evaluate-{m}" not in lost]
        if methods and REPORT in needed & (lost - errors.keys()):
            drawn = replace(project, stages=report_of(project.stages, methods))
            reports.append(each(REPORT, lambda: _partial_report(drawn, runner, stopped, show, display)))
            display.report(reports[-1])
        status = "incomplete" if stopped else "done"
    except BaseException as error:
        status = "interrupted" if is_interrupt(error) else "failed"
        raise
    finally:
        runner.close()
        about = {"crossreel": release(), "reports": [r.as_json() for r in reports],
                 "stopped": [asdict(stage) for stage in stopped]}  # fmt: skip
        index.end_run(run, status, summary(reports) | about)
        alive.close()
    seconds, ended = time.monotonic() - started, runner.states if drawn is project else drawn.states()
    ended.refresh()
    verdict, rows = judged_leaderboard(drawn, ended)
    return RunResult(
        run, reports, seconds, dict(project.contents.unreadable), rows, verdict, report_path(drawn, ended),
        link_curves(drawn, ended), stopped,
        {method: choice.sentence for method, choice in project.recipes.items()},
    )  # fmt: skip


def _demanded(stages: plan.Stages, names: Collection[str], redo: Collection[str]) -> set[str]:
    """The stages that a run asks for by name, and those that a stage which is made again will read."""
    return plan.ends(stages, names) | {need for name in redo for need in stages[name].needs}


def _stopped(project: Project, names: Sequence[str], errors: Mapping[str, Exception]) -> list[Stopped]:
    """The stages that ended with an error, each with the stages that were left out because of it.

    Raises the first error if all requested stages (`names`) were left out. An error that is no UserError is logged with
    its traceback.
    """
    needed = plan.ancestors(project.stages, names)
    stages = {name: project.stages[name] for name in plan.order(project.stages) if name in needed}
    ends = set(stages) - {need for name, stage in stages.items() if name != REPORT for need in stage.needs}
    if errors and (errors.keys() >= set(names) or not ends - {REPORT} - plan.descendants(stages, errors)):
        raise next(iter(errors.values()))
    for error in errors.values():
        if isinstance(error, ChildError):
            log.error("%s", error)
    return [
        Stopped(name, reason(error), tuple(n for n in stages if n in plan.descendants(stages, [name]) - {name}))
        for name, error in errors.items()
    ]  # fmt: skip


def reason(error: Exception) -> str:
    """The reason why a stage stopped, as one line: the last line of a traceback."""
    if isinstance(error, ItemError):
        return f"{error.item}: {error.reason}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if isinstance(error, ChildError) else " ".join(lines)


def _partial_report(
    project: Project, before: Runner, stopped: Sequence[Stopped], show: Callable[[Progress], None],
    display: StageDisplay,
) -> Report:  # fmt: skip
    """Draw the report of some methods, which says what stopped.

    It is drawn anew each time, because the reasons are not part of its fingerprint.
    """
    with contextlib.closing(project.runner(show, display.say)) as runner:
        runner.killed_before = before.killed_before
        runner.reports += before.reports
        runner.about = {**runner.about, "stopped": [asdict(stage) for stage in stopped]}
        return runner.bring_up_to_date(REPORT, redo=True)


def _call(
    runner: Runner, name: str, redo: bool, retry_failed: bool, along: Collection[str]
) -> Callable[[], Report]:
    return lambda: runner.bring_up_to_date(name, redo, retry_failed, along)


def nothing_to_do(states: plan.Survey, names: Sequence[str], retry_failed: bool) -> bool:
    """Whether a run of these stages would find everything made already."""
    states.demand(plan.ends(states.stages, names))
    needed = plan.ancestors(states.stages, names)
    return all(states[n].complete and not (retry_failed and states[n].failed) for n in needed)


def report_path(project: Project, states: Mapping[str, plan.State]) -> Path | None:
    """The path of the report, if it was made."""
    state = states.get(REPORT)
    if state is None or not state.complete:
        return None
    return project.store.run_folder(REPORT, state.fingerprint.hex) / REPORT_FILE
