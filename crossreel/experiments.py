"""An experiment as an object: its stages, what a run would do, running it, its runs and its store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from crossreel.runs import Run, Runs
from crossreel.settings import Settings, as_sets
from crossreel.store import Store
from crossreel.tables import METRIC_COLUMNS, Table, metric_rows
from flows.commands.terms import all_sets
from flows.console import StageDisplay
from flows.preflight import planned, require_possible
from flows.project import FailedUnit, Project, open_project
from flows.results.wording import listed
from flows.run import RunResult, run_stages
from flows.search.index import choose_method, trained_methods
from flows.search.joint import JointHit, join, joint_methods
from flows.troubles import in_sentences
from pipeline.errors import UserError, nearest
from pipeline.run import plan as planning


@dataclass(frozen=True)
class StageInfo:
    """A stage: what it is made of, with its settings, and the outputs that it has for each item or caption."""

    name: str
    method: str
    over: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do for a stage. seconds, bytes: what to expect of the missing units, None if nobody knows."""

    name: str
    units: int
    cached: int
    missing: int
    failed: int
    seconds: float | None
    bytes: float | None
    fingerprint: str


class Plan(Sequence[PlannedStage]):
    """What a run would do, stage by stage; `problems` are sentences about what would stop it."""

    def __init__(self, stages: Sequence[PlannedStage], problems: Sequence[str]) -> None:
        self.problems = list(problems)
        self._stages = list(stages)

    def __getitem__(self, which):  # type: ignore[no-untyped-def]  # a number, a slice, or the name of a stage
        if isinstance(which, str):
            by_name = {stage.name: stage for stage in self._stages}
            if which not in by_name:
                raise UserError(f"unknown stage {which!r}; {nearest(which, by_name)}")
            return by_name[which]
        return self._stages[which]

    def __len__(self) -> int:
        return len(self._stages)

    @property
    def missing(self) -> list[str]:
        """The names of the stages that would run."""
        return [stage.name for stage in self._stages if stage.missing]

    @property
    def table(self) -> Table:
        """A row for each stage."""
        columns = ("name", "units", "cached", "missing", "failed", "seconds", "bytes", "fingerprint")
        return Table((vars(stage) for stage in self._stages), columns)

    def __repr__(self) -> str:
        return "\n".join([repr(self.table), *self.problems])


@dataclass(frozen=True)
class Outcome:
    """The result of a run. experiment: the experiment with the settings and methods of this run.

    ran: the stages that had something to do. stopped: the reason for each stage that ended with an error.
    """

    experiment: Experiment
    result: RunResult

    @property
    def ran(self) -> list[str]:
        """The stages that had anything to do."""
        return [report.stage for report in self.result.reports if report.worked]

    @property
    def stopped(self) -> dict[str, str]:
        """The reason for each stage that ended with an error; what does not need it was made."""
        return {stage.stage: stage.reason for stage in self.result.stopped}

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.result.seconds

    @property
    def report(self) -> Path | None:
        """The page with the figures, if it was made."""
        return self.result.report

    @property
    def metrics(self) -> Table:
        """A row for each method, direction and metric, with its 95 % interval and the value of chance."""
        rows = (row for each in self.result.leaderboard for row in metric_rows(each["method"], [each]))
        return Table(rows, METRIC_COLUMNS)

    @property
    def runs(self) -> dict[str, Run]:
        """The trained run of each method that this run evaluated."""
        methods = dict.fromkeys(row["method"] for row in self.result.leaderboard)
        return {method: self.experiment.runs[method] for method in methods}

    @property
    def failures(self) -> list[FailedUnit]:
        """Each item or caption that a stage could not process, with `stage`, `item` and `reason`."""
        return self.experiment.failures

    def __repr__(self) -> str:
        cached = len(self.result.reports) - len(self.ran)
        return f"<{len(self.ran)} stages ran, {cached} were cached, {len(self.failures)} failures>"


class Experiment:
    """An opened experiment. It belongs to the thread that opened it; `close` or a `with` block ends it."""

    def __init__(self, path: Path, sets: Sequence[str], methods: Sequence[str], quiet: bool) -> None:
        self._sets, self._methods, self._quiet = list(sets), list(methods), quiet
        self._current: Project | None = open_project(path, self._sets, self._methods)
        self.path = self._current.experiment.path
        self._others: list[
            Experiment
        ] = []  # those of runs with other settings, which are closed with this one
        self.runs, self.store = Runs(self._project), Store(self._project)

    def _project(self) -> Project:
        if self._current is None:
            raise UserError(f"the experiment {self.path} is closed; open it again")
        return self._current

    @property
    def name(self) -> str:
        """The name, which is that of the file if it gives none."""
        return self._project().experiment.name

    @property
    def methods(self) -> list[str]:
        """The methods that are trained, evaluated and compared."""
        return list(self._project().experiment.methods)

    @property
    def splits(self) -> list[str]:
        """The splits of its corpus."""
        return list(self._project().contents.corpus.splits)

    @property
    def stages(self) -> dict[str, StageInfo]:
        """Every stage by name, in order."""
        stages = self._project().stages
        return {
            name: StageInfo(
                name, stages[name].method, stages[name].over, tuple(stages[name].needs),
                stages[name].params.model_dump(mode="json"), tuple(stages[name].fields),
            )
            for name in planning.order(stages)
        }  # fmt: skip

    @property
    def failures(self) -> list[FailedUnit]:
        """Each item or caption that a stage could not process, and each item whose media cannot be read."""
        project = self._project()
        with in_sentences():
            return project.failures(project.states(math.inf))

    @in_sentences()
    def plan(self) -> Plan:
        """What a run would do: cached and missing artifacts, the time and disk to expect, and what would stop it.

        Raises Error where a stage cannot even be looked up, for instance because a file of weights is not there.
        """
        project = self._project()
        found = planned(project)
        stages = [
            PlannedStage(
                name, len(state.keys), state.done, len(state.missing), len(state.failed) + len(state.blocked),
                found.expected[name].seconds, found.expected[name].bytes, state.fingerprint.hex,
            )
            for name, state in found.states.items()
        ]  # fmt: skip
        return Plan(stages, [problem.sentence for problem in found.problems])

    @in_sentences()
    def run(
        self, stages: str | Sequence[str] = (), *, methods: str | Sequence[str] = (), set: Settings = (),
        redo: str | Sequence[str] = (), retry_failed: bool = False, anyway: bool = False,
        quiet: bool | None = None,
    ) -> Outcome:  # fmt: skip
        """Make what is missing, in processes of this machine and without Prefect.

        stages: only these, and those they need; a name or a group such as "evaluate". methods, set: in place of those
        of the file, for this run; the outcome's `experiment` has them. redo: stages that are made again. anyway: begin
        although a problem is known. Items that fail are listed in the outcome; raises Error for what stops everything.
        """
        sets = all_sets([*self._sets, *as_sets(set)], anyway)
        fresh = Experiment(
            self._project().experiment.path, sets, _names(methods) or self._methods, self._quiet
        )
        if sets == self._sets and not _names(methods):
            fresh = self._refreshed(fresh)
        else:
            self._others.append(fresh)
        project, survey = fresh._project(), fresh._project().states(math.inf)
        names = [name for word in _names(stages) for name in planning.choose(project.stages, word)]
        names = names or list(project.stages)
        redone = [name for word in _names(redo) for name in planning.choose(project.stages, word)]
        with StageDisplay(quiet=self._quiet if quiet is None else quiet) as display:
            for problem in require_possible(project, survey, names, redone, retry_failed):
                display.say(f"WARNING: {problem.sentence}")
            result = run_stages(project, names, display, redone, retry_failed, states=survey)
        return Outcome(fresh, result)

    @in_sentences()
    def search(
        self, text: str, top: int = 10, split: str = "", *, methods: str | Sequence[str] = ()
    ) -> list[JointHit]:
        """The items that match a sentence best, of videos and point clouds in one list where the corpus has both.

        Each result has `method`, `kind`, the `hit` of that method's own ranking, and `standard`, by which results are
        ordered, because scores of different methods cannot be compared. methods: one for each kind of items; with ()
        those of the experiment, if no two of them rank items of one kind, without a kind that the split has not.
        `runs[method].search` asks one method alone, in the units of its score.
        """
        project, named = self._project(), _names(methods)
        kinds = joint_methods(project.stages, named, project.contents.corpus, split)
        if not kinds:
            trained = trained_methods(project.stages)
            if len(trained) > 1 and not named:
                raise UserError(
                    f"several methods of the experiment rank items of one kind; give methods= one of "
                    f"{listed(trained)}, or one for each kind of items"
                )
            method = choose_method(project.stages, named[0] if named else "")
            kinds = {method: project.stages[f"train-{method}"].kind}
        runs = {method: self.runs[method] for method in kinds}
        for run in runs.values():  # before the networks of any of them are loaded
            run.require(split)
        found = {method: (run.search(text, top, split), run.calibrate(split)) for method, run in runs.items()}
        return join(found, kinds, top)

    def _refreshed(self, fresh: Experiment) -> Experiment:
        """This experiment, with the file and corpus as they are now."""
        self._project().store.index.close()
        self._current = fresh._current
        return self

    def close(self) -> None:
        """Close the store, and end the processes of searches; what is asked for afterwards raises Error."""
        if self._current is not None:
            for other in self._others:
                other.close()
            self.runs.close()
            self._current.store.index.close()
            self._current = None

    def __enter__(self) -> Experiment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[StageInfo]:
        return iter(self.stages.values())

    def __repr__(self) -> str:
        if self._current is None:
            return f"<experiment {self.path}, closed>"
        return f"<experiment {self.name}: {', '.join(self.methods or self.stages)}>"


def _names(words: str | Sequence[str]) -> list[str]:
    """Names that are given as a list, or as one text with commas. Raises UserError for anything else."""
    if isinstance(words, str):
        return words.replace(",", " ").split()
    names = list(words) if isinstance(words, Iterable) else [words]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"names are a list of texts, or one text with commas, and not {words!r}")
    return names


@in_sentences()
def open(
    path: str | Path = "experiment.toml", *, set: Settings = (), methods: str | Sequence[str] = (),
    quiet: bool = False,
) -> Experiment:  # fmt: skip
    """An experiment file, opened: its corpus and its store are read, and nothing is made.

    set: settings in place of those of the file, `{"trainers.gare.lr": 1e-4}` or `["trainers.gare.lr=1e-4"]`. methods:
    in place of those of the file. quiet: show no progress. Raises Error naming what is wrong and what is possible.
    """
    return Experiment(Path(path), as_sets(set), _names(methods), quiet)
