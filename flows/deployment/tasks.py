"""Stages as Prefect tasks, and what the three flows share.

The store is the only cache: a stage with nothing to do ends as `Cached`, Prefect keeps no results. A
task is called, never submitted: the work happens in child processes, and an interrupt reaches the
thread that can end them.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import Flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import MissingContextError, TerminationSignal
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from flows.console import StageDisplay, sentence
from flows.deployment.artifacts import ProgressBar, attempt, publish
from flows.deployment.naming import tag_run
from flows.deployment.parameters import FlowRequest, one_or_more
from flows.preflight import require_possible
from flows.project import Project, open_project
from flows.run import RunResult, run_stages
from pipeline.errors import TrainingError, UserError
from pipeline.run import plan
from pipeline.run.execute import Progress, Report, placement

RETRY_DELAY_SECONDS = 10
INTERRUPTS = (KeyboardInterrupt, SystemExit, TerminationSignal)


def run_request(request: FlowRequest, choose: Callable[[Project], list[str]]) -> State[Any]:
    """Run the chosen stages of an experiment, and all they need, a task each; return the state the flow ends in.

    This is the body of every flow of a deployment, where the parameters are all there is.
    """
    display = RunLog()
    try:
        project = open_project(Path(request.experiment), request.sets, one_or_more(request.methods))
        with closing(project.store.index):
            redo = [name for word in one_or_more(request.redo) for name in plan.choose(project.stages, word)]
            names, states = choose(project), project.states(math.inf)
            for problem in require_possible(project, states, names, redo, request.retry_failed):
                display.say(f"WARNING: {problem.sentence}")
            result = run_as_tasks(
                project, names, display, redo, request.retry_failed, request.retries, states
            )
    except UserError as error:
        return Failed(message=str(error))
    return _end_of(result)


def run_opened(
    flow: Flow[..., State[Any]], request: FlowRequest, run: Callable[[], RunResult], display: StageDisplay
) -> RunResult:
    """Make a run of `flow` in this process, whose body is `run` on what is opened already; return its result.

    The server sees a run of the flow with the parameters of `request`, which cannot carry objects of ours.
    So a copy of the flow gets another body, as Prefect itself does it for flows that are methods. The result
    is not taken from the flow's final state, which is lost where the server does not answer any more at the
    end. Raises what `run` raises.
    """
    ended: RunResult | UserError | KeyboardInterrupt | SystemExit | None = None

    @functools.wraps(flow.fn)
    def body(*parameters: Any, **others: Any) -> State[Any]:
        nonlocal ended
        ended = None
        try:
            ended = run()
        except UserError as error:  # its sentence is all: Prefect would log a traceback
            ended = error
            return Failed(message=str(error))
        except (KeyboardInterrupt, SystemExit) as stop:  # raised again below: here it would read as a crash
            ended = stop
            return Cancelled(message="interrupted; the same command goes on where it was")
        return _end_of(ended)

    opened = copy.copy(flow)
    opened.fn = body
    opened.should_validate_parameters = False  # Prefect would look up the types' names in this module
    try:
        state = opened(**asdict(request), return_state=True)
    except Exception as error:
        if ended is None:
            raise
        display.say(f"the Prefect server could not record how the run ended: {error}")
    if isinstance(ended, RunResult):
        return ended
    if ended is not None:
        raise ended
    state.result()  # raises what ended the flow
    raise RuntimeError(f"the flow {flow.name} ended as {state.name}")


def run_as_tasks(
    project: Project, names: Sequence[str], display: StageDisplay, redo: Sequence[str], retry_failed: bool,
    retries: int, states: plan.Survey | None = None,
) -> RunResult:  # fmt: skip
    """Run stages inside a flow, a task each, and publish the result as artifacts."""
    attempt(lambda: tag_run(project))
    tasks = StageTasks(project, retries, states)
    result = run_stages(project, names, display, redo, retry_failed, tasks.each, tasks.on_progress, states)
    publish(result, project.experiment.name)
    return result


def run_sentence(result: RunResult) -> str:
    """For instance "3 stages ran, 5 cached; 2 items failed; train-gare stopped: the loss is not finite"."""
    failed = f"; {result.failed} items failed" if result.failed else ""
    stopped = "".join(f"; {stage.stage} stopped: {stage.reason}" for stage in result.stopped)
    return f"{result.ran} stages ran, {len(result.reports) - result.ran} cached{failed}{stopped}"


def _end_of(result: RunResult) -> State[Any]:
    """The state that a flow ends in: Failed where a stage stopped, though the others were made."""
    return (Failed if result.stopped else Completed)(message=run_sentence(result))


class StageTasks:
    """Makes a task of each stage of a run, and shows how far it is."""

    def __init__(self, project: Project, retries: int, states: plan.Survey | None = None) -> None:
        self.project, self.retries, self.states = project, retries, states
        self._bar: ProgressBar | None = None
        self._worked = False
        self._ended: dict[str, State[Any]] = {}  # final states, from which the server draws the edges

    def each(self, name: str, call: Callable[[], Report]) -> Report:
        """The report of a stage, brought up to date by a task of its name. Raises what the stage raises.

        The task waits for those of the stages that it needs, which have ended already: so the server knows the edges.
        """
        reports: list[Report] = []
        stopped: list[BaseException] = []

        def work() -> State[Any]:
            self._bar, self._worked = ProgressBar(self.project.experiment.name, name), False
            if self.states is not None and not self.states[name].complete:
                self._bar.begin(f"{name}: starting")
            try:
                reports.append(call())
            except INTERRUPTS as signal:  # raised again below: inside of the task it would read as a crash
                stopped.append(signal)
                return Cancelled(message=f"{name} was interrupted; the next run goes on where it was")
            self._bar.finish()
            return _outcome(reports[-1], self._worked or reports[-1].worked)

        needs = [self._ended[need] for need in self.project.stages[name].needs if need in self._ended]
        task = task_of_stage.with_options(tags=self._tags(name), retries=self.retries)
        state = task(name, work, wait_for=needs, return_state=True)
        if stopped:
            raise stopped[0]
        state.result()  # raises what ended the stage
        self._ended[name] = state
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
    """The final state of the task of a stage."""
    message = sentence(report)  # Prefect writes it to the log of the task, as part of the final state
    if not worked:
        return Completed(name="Cached", message=f"{message}; fingerprint {report.fingerprint}")
    return Completed(message=message)


class RunLog(StageDisplay):
    """Writes what a terminal would show to the log of the flow run."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.of_flow = get_run_logger()

    def say(self, sentence: str) -> None:
        """Write a line to the log of the task under way, or between tasks of the flow."""
        try:
            get_run_logger().info(sentence)
        except MissingContextError:  # a thread of ours
            self.of_flow.info(sentence)

    def report(self, report: Report) -> None:
        """Do nothing: the task of the stage has logged its report."""
