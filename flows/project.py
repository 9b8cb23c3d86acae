"""An opened experiment: its file, corpus, store and stages together. Prefect-free; flows and commands share it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flows import graph
from flows.experiment import Experiment, load
from flows.media_sample import Sample, sample_media
from flows.programs import ChangedProgram, find_changed
from flows.repetition import Repetition, compare
from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.features.imported import imported_stages
from pipeline.run import plan
from pipeline.run.execute import OnProgress, Runner, Say
from pipeline.run.stage import Stage
from pipeline.store.imports import has_imports
from pipeline.store.store import Store
from trainers.measure.evaluated import Protocol
from trainers.recipes import Choice

OnHashed = Callable[[int, int], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedUnit:
    """An item or caption that a stage could not process, with the reason. kind: "failed" or "killed"."""

    stage: str
    item: str
    reason: str
    attempts: int = 0
    kind: str = "failed"

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass
class Project:
    """An opened experiment: settings, corpus, stages and store."""

    experiment: Experiment
    store: Store
    contents: Contents
    stages: dict[str, Stage[Any]]
    changed: Sequence[ChangedProgram] = ()  # stages that another ffmpeg or decoder made
    recipes: Mapping[str, Choice] = field(default_factory=dict)  # by method: which row gives its settings
    protocol: Mapping[str, Any] | None = None  # of the corpus, if it was imported under a published one
    about: Mapping[str, Any] = field(default_factory=dict)  # more that stages are briefed with

    def recipe_lines(self, trained: Collection[str]) -> list[str]:
        """Which recipe gives the settings of each method that stages of `trained` train, and why; equal ones in one."""
        shared: dict[str, list[str]] = {}
        for method, choice in self.recipes.items():
            if f"train-{method}" in trained:
                shared.setdefault(choice.sentence, []).append(method)
        return [f"{', '.join(methods)}: {sentence}" for sentence, methods in shared.items()]

    def beside_published(self, method: str, measured: Protocol | None = None) -> Repetition:
        """How the run of a method differs from the published experiment; measured: protocol of its evaluation."""
        corpus = self.contents.corpus.of_kind(self.stages[f"train-{method}"].kind)
        return compare(method, self.stages, corpus, self.protocol, measured)

    def of_kind(self, kind: str) -> Project:
        """The project with the items of one kind alone; itself for a corpus of one kind."""
        contents = self.contents.of_kind(kind)
        return self if contents is self.contents else replace(self, contents=contents)

    def contents_of(self, state: plan.State) -> Contents:
        """The items, with their captions, of the kinds that a stage processes."""
        if state.stage.over == "captions":
            return self.contents
        return self.contents.of_kind(state.kind)

    @functools.cached_property
    def sample(self) -> Sample:
        """What a few of the corpus's media files are like; they are opened at first use."""
        return sample_media(self.contents)

    @property
    def sampled(self) -> Sample | None:
        """`sample` if anything has asked for it."""
        return vars(self).get("sample")

    @property
    def known(self) -> RememberedDigests:
        """Digests of weights, remembered in the store's index."""
        return RememberedDigests(self.store.index)

    def survey(self, killed_before: float = 0.0) -> dict[str, plan.State]:
        """The state of every stage, read from the store now; `killed_before` as of `plan.Survey`."""
        return dict(self.states(killed_before))

    def states(self, killed_before: float = 0.0) -> plan.Survey:
        """A new survey, which reads the state of a stage from the store at first use.

        With `killed_before` 0 every stage is as the last run left it, with `math.inf` as the next run finds it. The two
        differ in the units that were killed: left out of one, missing in the other.
        """
        return plan.Survey(self.stages, self.contents, self.store, self.known, killed_before)

    def failures(self, states: Mapping[str, plan.State]) -> list[FailedUnit]:
        """What failed or was killed in each stage, and the items whose media cannot be read."""
        found = [
            FailedUnit(name, each.name, each.reason, each.attempts, each.kind)
            for name, state in states.items()
            for each in (*state.failed.values(), *state.killed.values())
        ]
        unreadable = self.contents.unreadable.items()
        return found + [FailedUnit("corpus", item, reason) for item, reason in unreadable]

    def runner(
        self, on_progress: OnProgress = lambda progress: None, say: Say = lambda sentence: None,
        states: plan.Survey | None = None, demanded: Collection[str] = (),
    ) -> Runner:  # fmt: skip
        """A runner of the stages. `states`: an earlier survey of this project, used instead of a new one.

        `demanded` stages are made even if nothing that is to be made reads them.
        """
        states = self.states() if states is None else states
        states.demand(demanded)
        about = {
            "name": self.experiment.name,
            "path": str(self.experiment.path),
            "kept": [change.sentence for change in self.changed if change.kept],
            "recipes": {method: choice.sentence for method, choice in self.recipes.items()},
            "settings": {name: stage.params.model_dump(mode="json") for name, stage in self.stages.items()},
            **self.about,
        }
        return Runner(
            self.stages,
            self.contents,
            self.store,
            self.known,
            self.experiment.run,
            on_progress,
            say,
            about,
            states,
        )


def open_project(
    path: Path, sets: Sequence[str] = (), methods: Sequence[str] = (), hashed: OnHashed = lambda n, of: None
) -> Project:
    """Read an experiment, its corpus and its store; `hashed` counts the media files read for their digest.

    Raises UserError naming the setting or file at fault, before anything is made.
    """
    experiment = load(path, sets, methods)
    corpus = Corpus.read(experiment.corpus_path)
    protocol = corpus.claimed_protocol()
    chosen = graph.choices(experiment, protocol)
    for choice in chosen.values():
        if choice.advice:
            log.warning("%s", choice.advice)
    if has_imports(experiment.store_path):
        store = Store(experiment.store_path)
        stages = _stages(experiment, corpus, imported_stages(store.index), chosen)
    else:
        stages = _stages(
            experiment, corpus, {}, chosen
        )  # before a store is made, so that an error leaves none
        store = Store(experiment.store_path)
    for kind, split in dict.fromkeys(
        (stage.kind, split) for stage in stages.values() for split in stage.splits()
    ):
        corpus.of_kind(kind).require_queries(split)
    contents = read_contents(corpus, store.index, hashed)
    changed = find_changed(stages, store, RememberedDigests(store.index), experiment.run.keep_decoded)
    return Project(experiment, store, contents, stages, changed, chosen, protocol)


def _stages(
    experiment: Experiment, corpus: Corpus, imported: plan.Stages, chosen: Mapping[str, Choice]
) -> dict[str, Stage[Any]]:
    """Build the stages. Raises UserError if one reads another kind of media than the corpus holds."""
    stages = graph.build(experiment, imported, chosen)
    for stage in stages.values():
        if stage.over == "items" and stage.kind and stage.kind not in corpus.kinds:
            raise UserError(
                f"{stage.name} reads items of the kind {stage.kind}, {corpus.path} holds {corpus.kinds[0]}; "
                "name methods and extractors that fit"
            )
    return stages
