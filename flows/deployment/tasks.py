"""Stages as Prefect tasks, and what the three flows share.

The store is the only cache: a stage with nothing to do ends as `Cached`, Prefect keeps no results. A
task is called, never submitted: the work happens in child processes, and an interrupt reaches the
thread that can end them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed, Failed
from prefect.tasks import Task

from flows.console import StageDisplay, sentence
from flows.deployment.artifacts import ProgressBar, publish
from flows.project import Project, open_project
from flows.run import RunResult, run_stages
from pipeline.errors import TrainingError, UserError
from pipeline.run import plan
from pipeline.run.execute import Progress, Report, placement

Words = list[str] | str | None
"""One or more words, as a form, `-p name=word` and `-p 'name=["a", "b"]'` give them."""

RETRY_DELAY_SECONDS = 10


@dataclass(frozen=True)
class Wish:
    """What a flow is asked for."""

    experiment: str
    methods: Words = None
    set: Words = None
    retry_failed: bool = False
    redo: Words = None
    retries: int = 0


@dataclass
class Caller:
    """Who called a flow in this process: where it watches, which stages it wants, what it gets back."""

    display: StageDisplay
    stages: Sequence[str] | None = None  # instead of those of the flow
    result: RunResult | None = None
    error: UserError | None = None


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def bring_up_to_date(wish: Wish, choose: Callable[[Project], list[str]]) -> State[Any]:
    """The body of every flow: the chosen stages and all they need, a task each, and the state it ends in."""
    caller = CALLER.get() or Caller(RunLog())
    try:
        project = open_project(
            Path(wish.experiment), one_or_more(wish.set, split=False), one_or_more(wish.methods)
        )
        with closing(project.store.index):
            names = list(caller.stages or choose(project))
            redo = [name for word in one_or_more(wish.redo) for name in plan.choose(project.stages, word)]
            tasks = StageTasks(project, wish.retries)
            caller.result = run_stages(
                project, names, caller.display, redo, wish.retry_failed, tasks.each, tasks.on_progress
            )
    except UserError as error:
        caller.error = error
        return Failed(message=str(error))
    publish(caller.result, project.experiment.name)
    return Completed(message=summary(caller.result))


def one_or_more(words: Words, split: bool = True) -> list[str]:
    """The words as a list; a bare one may hold several, between commas or spaces, where `split` allows it."""
    if not isinstance(words, str):
        return list(words or [])
    if split:
        return words.replace(",", " ").split()
    return [words] if words.strip() else []


def summary(result: RunResult) -> str:
    """For instance "3 stages ran, 5 cached; 2 items failed"."""
    failed = f"; {result.failed} items failed" if result.failed else ""
    return f"{result.ran} stages ran, {len(result.reports) - result.ran} cached{failed}"


class StageTasks:
    """Makes a task of each stage of a run, and shows how far it is."""

    def __init__(self, project: Project, retries: int) -> None:
        self.project, self.retries = project, retries
        self._bar: ProgressBar | None = None
        self._worked = False

    def each(self, name: str, call: Callable[[], Report]) -> Report:
        """The report of a stage, brought up to date by a task of its name. Raises what the stage raises."""
        reports: list[Report] = []

        def work() -> State[Any]:
            self._bar, self._worked = ProgressBar(self.project.experiment.name, name), False
            reports.append(call())
            self._bar.finish()
            return _outcome(reports[-1], self._worked or reports[-1].ran > 0)

        task_of_stage.with_options(tags=self._tags(name), retries=self.retries)(name, work)
        return reports[-1]

    def on_progress(self, progress: Progress) -> None:
        """Called as the stage goes on; not at all where there is nothing to do."""
        self._worked = True
        if self._bar is not None:
            self._bar.show(progress)

    def _tags(self, name: str) -> list[str]:
        """Its group, and `gpu` where it uses one: a limit on that tag holds on the whole server."""
        stage = self.project.stages[name]
        group = "extract" if stage.over != "corpus" else name.split("-", maxsplit=1)[0]
        uses_gpu = placement(stage, self.project.experiment.run)[1].startswith("cuda")
        return [group, "gpu"] if uses_gpu else [group]


def _worth_another_try(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage that raised could succeed unchanged: not if the user or the loss is at fault."""
    return not isinstance(state.result(raise_on_failure=False), (UserError, TrainingError))


@task(
    name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False,
    retry_delay_seconds=RETRY_DELAY_SECONDS, retry_condition_fn=_worth_another_try,
)  # fmt: skip
def task_of_stage(name: str, work: Callable[[], State[Any]]) -> State[Any]:
    """Bring a stage up to date; the state says what that took."""
    return work()


def _outcome(report: Report, worked: bool) -> State[Any]:
    """How the task of a stage ends."""
    said = sentence(report)
    get_run_logger().info(said)
    if not worked:
        return Completed(name="Cached", message=f"{said}; fingerprint {report.fingerprint}")
    return Completed(message=said)


class RunLog(StageDisplay):
    """Writes what a terminal would show to the log of the flow run."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.logger = get_run_logger()

    def say(self, sentence: str) -> None:
        """One line of the log."""
        self.logger.info(sentence)

    def report(self, report: Report) -> None:
        """Nothing more: the task of the stage has said it."""
