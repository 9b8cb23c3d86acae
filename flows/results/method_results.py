"""The results of a method in an experiment: the folders of its training and evaluation, and their records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.project import Project
from flows.trained.finished import finished_evaluations
from flows.trained.recorded import recorded_stages
from flows.trained.runs import TrainedRun
from pipeline.errors import UserError, nearest
from pipeline.run.plan import State, Survey
from trainers.loop.trained import TrainedFolder
from trainers.measure.evaluated import EvaluatedFolder


@dataclass(frozen=True)
class MethodResults:
    """A method with the folders of its training and its evaluation. Files are read at first use."""

    project: Project
    method: str
    states: Mapping[str, State]
    note: str = ""  # which run these are of and why it is stale, where today's settings would make another

    @property
    def training(self) -> State:
        """The stage that trained it."""
        return self.states[f"train-{self.method}"]

    @property
    def evaluation(self) -> State:
        """The stage that measured it."""
        return self.states[f"evaluate-{self.method}"]

    @cached_property
    def trained(self) -> TrainedFolder:
        """The folder of its training."""
        return trained_folder(self.project, self.training)

    @cached_property
    def evaluated(self) -> EvaluatedFolder:
        """The folder of its evaluation."""
        return evaluated_folder(self.project, self.evaluation)

    def record(self, state: State) -> dict[str, Any]:
        """The store's record of a stage's run: when it was made, and in how many seconds."""
        return self.project.store.run_record(state.stage.name, state.fingerprint.hex)

    @property
    def item_ids(self) -> list[str]:
        """The gallery by the ids of the corpus: of items with the same bytes the first, else the digest."""
        items = self.project.contents.items()
        return [items[digest].id if digest in items else digest for digest in self.evaluated.queries.items]

    @property
    def caption_ids(self) -> list[str]:
        """The queries by the ids of the corpus: one text may stand there several times, even of one item.

        A caption that left the corpus has its digest.
        """
        ids: dict[tuple[str, str], list[str]] = defaultdict(list)
        for item, _, caption in self.project.contents.queries(self.evaluated.metrics.protocol.split):
            ids[item, caption.digest].append(caption.id)
        queries = self.evaluated.queries
        owned = zip(queries.captions, queries.caption_item, strict=True)
        left = ((ids[queries.items[item], digest], digest) for digest, item in owned)
        return [known.pop(0) if known else digest for known, digest in left]


def trained_folder(project: Project, state: State) -> TrainedFolder:
    """The folder of a training stage that is done."""
    return TrainedFolder(_folder(project, state))


def evaluated_folder(project: Project, state: State) -> EvaluatedFolder:
    """The folder of an evaluation stage that is done."""
    return EvaluatedFolder(_folder(project, state))


def _folder(project: Project, state: State) -> Path:
    return project.store.run_folder(state.stage.name, state.fingerprint.hex)


def method_results(project: Project, method: str, states: Survey | None = None) -> MethodResults:
    """A method of an experiment: as today's settings make it, if that is done, else its last evaluated run.

    states: a survey so far, which several methods share. Raises UserError for an unknown one, and where it was never
    evaluated.
    """
    known, path = project.experiment.methods, project.experiment.path
    if method not in known:
        raise UserError(f"{path} does not train {method!r}; {nearest(method, known)}")
    finished = finished_evaluations(project, [method], states=states)
    finished.require(method)
    project = project.of_kind(finished.states[f"evaluate-{method}"].kind)
    if method not in finished.notes:
        return MethodResults(project, method, finished.states)
    stages = finished.project.stages
    run = TrainedRun(project.store, method, finished.states[f"train-{method}"].fingerprint.hex)
    stages = {**stages, **recorded_stages(run, stages)}
    project = replace(project, stages=stages)
    return MethodResults(project, method, finished.states.of_stages(stages), finished.notes[method])


def all_results(project: Project) -> list[MethodResults]:
    """Every method of an experiment. Raises UserError where one was never evaluated, or there is none."""
    if not project.experiment.methods:
        raise UserError(f"{project.experiment.path} names no methods, so there is nothing to export")
    states = project.states()
    return [method_results(project, method, states) for method in project.experiment.methods]
