"""The results of a method in an experiment: the folders of its training and evaluation, and their records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.project import Project
from pipeline.errors import UserError, nearest
from pipeline.run.plan import State
from trainers.loop.trained import TrainedFolder
from trainers.measure.evaluated import EvaluatedFolder


@dataclass(frozen=True)
class MethodResults:
    """A method with the folders of its training and its evaluation. Files are read at first use."""

    project: Project
    method: str
    states: Mapping[str, State]

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
        """The gallery by the ids of the corpus; of items with the same bytes, the first."""
        items = self.project.contents.items()
        return [items[digest].id for digest in self.evaluated.queries.items]

    @property
    def caption_ids(self) -> list[str]:
        """The queries by the ids of the corpus: one text may stand there several times, even of one item."""
        ids: dict[tuple[str, str], list[str]] = defaultdict(list)
        for item, _, caption in self.project.contents.queries(self.evaluated.metrics.protocol.split):
            ids[item, caption.digest].append(caption.id)
        queries = self.evaluated.queries
        owned = zip(queries.captions, queries.caption_item, strict=True)
        return [ids[queries.items[item], digest].pop(0) for digest, item in owned]


def trained_folder(project: Project, state: State) -> TrainedFolder:
    """The folder of a training stage that is done."""
    return TrainedFolder(_folder(project, state))


def evaluated_folder(project: Project, state: State) -> EvaluatedFolder:
    """The folder of an evaluation stage that is done."""
    return EvaluatedFolder(_folder(project, state))


def _folder(project: Project, state: State) -> Path:
    return project.store.run_folder(state.stage.name, state.fingerprint.hex)


def method_results(project: Project, method: str) -> MethodResults:
    """A method of an experiment. Raises UserError for an unknown one, and where it is not evaluated yet."""
    known, path = project.experiment.methods, project.experiment.path
    if method not in known:
        raise UserError(f"{path} does not train {method!r}; {nearest(method, known)}")
    states = project.survey()
    if not states[f"evaluate-{method}"].complete:
        raise UserError(
            f"evaluate-{method} is not done yet; run `crossreel stage evaluate-{method} {path}` first"
        )
    return MethodResults(project, method, states)


def all_results(project: Project) -> list[MethodResults]:
    """Every method of an experiment. Raises UserError where one is not evaluated yet, or there is none."""
    if not project.experiment.methods:
        raise UserError(f"{project.experiment.path} names no methods, so there is nothing to export")
    return [method_results(project, method) for method in project.experiment.methods]
