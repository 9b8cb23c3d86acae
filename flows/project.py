"""An opened experiment: its file, corpus, store and stages together. Prefect-free; flows and commands share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import graph
from flows.experiment import Experiment, load
from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.features.imported import imported_stages
from pipeline.run import plan
from pipeline.run.execute import OnProgress, Runner, Say
from pipeline.run.stage import Stage
from pipeline.store.imports import has_imports
from pipeline.store.store import Store

OnHashed = Callable[[int, int], None]


@dataclass
class Project:
    """Everything a verb needs of an experiment."""

    experiment: Experiment
    store: Store
    contents: Contents
    stages: dict[str, Stage[Any]]

    @property
    def known(self) -> RememberedDigests:
        """Digests of weights, remembered in the store's index."""
        return RememberedDigests(self.store.index)

    def survey(self, killed_before: float = 0.0) -> dict[str, plan.State]:
        """The state of every stage as the last run left it; with `math.inf` as the next run finds it.

        The two differ in the units that were killed: left out of one, missing in the other.
        """
        return plan.survey(self.stages, self.contents, self.store, self.known, killed_before)

    def runner(
        self, on_progress: OnProgress = lambda progress: None, say: Say = lambda sentence: None
    ) -> Runner:
        """What brings the stages up to date."""
        about = {
            "name": self.experiment.name,
            "path": str(self.experiment.path),
            "settings": {name: stage.params.model_dump(mode="json") for name, stage in self.stages.items()},
        }
        options = self.experiment.run
        return Runner(self.stages, self.contents, self.store, self.known, options, on_progress, say, about)


def open_project(
    path: Path, sets: Sequence[str] = (), methods: Sequence[str] = (), hashed: OnHashed = lambda n, of: None
) -> Project:
    """Read an experiment, its corpus and its store; `hashed` counts the media files read for their digest.

    Raises UserError naming what is wrong, before anything is made.
    """
    experiment = load(path, sets, methods)
    corpus = Corpus.read(experiment.corpus_path)
    fresh = not has_imports(experiment.store_path)
    if fresh:
        _require_kind(corpus, graph.build(experiment, {}))  # complain before a store is made
    store = Store(experiment.store_path)
    stages = graph.build(experiment, imported_stages(store.index))
    _require_kind(corpus, stages)
    for split in dict.fromkeys(split for stage in stages.values() for split in stage.splits()):
        corpus.require_queries(split)
    return Project(experiment, store, read_contents(corpus, store.index, hashed), stages)


def _require_kind(corpus: Corpus, stages: Mapping[str, Stage[Any]]) -> None:
    """Raise UserError for stages that read media of another kind than the corpus holds."""
    kinds = {item.kind for item in corpus.items}
    for stage in stages.values():
        if stage.kind and stage.kind not in kinds:
            raise UserError(
                f"{stage.name} reads items of the kind {stage.kind}, {corpus.path} holds {next(iter(kinds))}; "
                "name methods and extractors that fit"
            )
