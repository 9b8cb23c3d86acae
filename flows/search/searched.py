"""What is searched: a trained method, the split, and the finished artifacts that answer, today's or those of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.project import Project
from flows.search.index import Index, choose_method, evaluated_split, with_index
from flows.trained.changes import why_stale
from flows.trained.finished import first_missing, note_of, usual_run
from flows.trained.gallery import AppliedGallery, open_gallery
from flows.trained.naming import named_digest
from flows.trained.recorded import pinned, recorded_pack, recorded_stages
from flows.trained.runs import TrainedRun, evaluations, find_run, last_run, made_with
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.run.execute import OnProgress, Say
from pipeline.run.stage import Stage
from pipeline.store.store import Store
from trainers.registry import METHODS
from trainers.stages import LEARN, EvaluateParams


@dataclass(frozen=True)
class Searched:
    """A trained method and the split that is searched with it.

    project: has the index among its stages. note: where another run answers than today's settings would make, one
    sentence that says which, what it was made from, and why it is stale; else "". captioned: whether the gallery has
    captions, of which a media file could find some.
    """

    project: Project
    method: str
    split: str
    states: plan.Survey
    note: str = ""
    captioned: bool = True

    @property
    def index(self) -> str:
        """The name of the stage that makes the index."""
        return f"index-{self.method}"

    @property
    def indexed(self) -> bool:
        """Whether the index is made."""
        return self.states[self.index].complete

    @property
    def kind(self) -> str:
        """The kind of the items that are searched."""
        return self.project.stages[f"train-{self.method}"].kind

    @property
    def run(self) -> str:
        """The fingerprint of the training."""
        return self.states[f"train-{self.method}"].fingerprint.hex

    @property
    def folder(self) -> Path:
        """The folder of the index."""
        return self.project.store.run_folder(self.index, self.states[self.index].fingerprint.hex)

    def in_store(self, store: Store) -> Searched:
        """The same, read through another connection to the store: one belongs to the thread that opened it."""
        project = replace(self.project, store=store)
        return replace(self, project=project, states=project.states())

    def make_index(self, say: Say, on_progress: OnProgress = lambda progress: None) -> None:
        """Encode the split where that was not done yet; inputs that are not packed are packed first."""
        packs = [need for need in self.project.stages[self.index].needs if need.startswith("pack-")]
        self.states.demand(packs)  # a search reads sizes and captions from them
        if self.indexed and all(
            self.states[pack].complete or self.project.stages[pack].pinned for pack in packs
        ):
            return
        if not self.indexed:
            say(f"making the index of the split {self.split!r} for {self.method}: once, then it is kept")
        with closing(self.project.runner(on_progress, say, self.states)) as runner:
            runner.killed_before = 0.0  # the index is made from what the last run left
            for stage in (*packs, self.index):
                runner.bring_up_to_date(stage)


def find_searched(
    project: Project, method: str = "", split: str = "", run: str = "", states: plan.Survey | None = None
) -> Searched:
    """What a search of an experiment reads: what today's settings make where that is finished, else its last run.

    method: "" stands for the experiment's only one; split: "" for the evaluated one; run: the digest of a run that is
    asked for; states: a survey of the experiment, whose reading of the store is used again. Raises UserError where
    nothing is finished that could answer.
    """
    states = project.states() if states is None else states
    chosen = find_run(project.store, method, run) if run else None
    method = chosen.method if chosen else choose_method(project.stages, method)
    project = project.of_kind(METHODS.find(method).config.kind)
    if chosen and chosen.stage not in project.stages:
        return _of_run(project, chosen, split or EvaluateParams().split, states)
    split = split or evaluated_split(project.stages, method)
    needed = plan.ancestors(project.stages, [f"train-{method}"])
    ready = all(states[name].complete for name in needed)
    queried = next(project.contents.corpus.captions(split), None) is not None
    today = states[f"train-{method}"].fingerprint.hex
    if queried and ready and today.startswith(run):
        stages = with_index(project.stages, method, split)
        return Searched(replace(project, stages=stages), method, split, states.of_stages(stages))
    chosen = chosen or last_run(project.store, project.experiment.name, method)
    if chosen is not None:
        return _of_run(project, chosen, split, states)
    project.contents.corpus.require_queries(split)
    first = first_missing(project.stages, states, f"train-{method}")
    raise UserError(f"{first} is not done yet; run `crossreel run {project.experiment.path}` first")


def searched_gallery(gallery: AppliedGallery) -> Searched:
    """What a search of the gallery of a run on another corpus reads."""
    project, method = gallery.project, gallery.run.method
    index = Index(method, gallery.split, gallery.packed)
    project = replace(project, stages={**project.stages, index.name: index})
    note = str(project.about["applied"])
    return Searched(project, method, gallery.split, project.states(), note, gallery.captioned)


def chosen_gallery(
    project: Project,
    method: str,
    split: str,
    run: str,
    corpus: Path | None,
    states: plan.Survey | None = None,
) -> Searched:
    """What is searched by the options of a verb: METHOD@DIGEST or DIGEST as `run`, and another corpus, or None.

    Raises UserError where nothing is finished that could answer.
    """
    method, digest = named_digest(run, method) if run else (method, "")
    if digest:
        method = find_run(project.store, method, digest).method
    if corpus is None:
        return find_searched(project, method, split, digest, states)
    method = method if digest else choose_method(project.stages, method)
    named = find_run(project.store, method, digest) if digest else usual_run(project, method, states)
    searched = searched_gallery(open_gallery(project, named, corpus, split))
    words = f"{project.experiment.path}:{named.name} {corpus}" + (f" --split {split}" if split else "")
    if not searched.indexed:  # extracting a corpus is asked for by `apply` alone
        raise UserError(
            f"{named.name} was not applied to {corpus} yet, or the corpus has changed; run `crossreel apply {words}`"
        )
    return searched


def _of_run(project: Project, run: TrainedRun, split: str, states: plan.Survey) -> Searched:
    """What a run left of a split: its index, or the packed inputs that the index is made from."""
    recorded = recorded_stages(run, project.stages)
    stages = recorded | {stage.name: stage for stage in _index_stages(run, split)}
    own, index = states.of_stages(stages), f"index-{run.method}"
    if index not in stages or not all(own[need].complete for need in stages[index].needs):
        project.contents.corpus.require_queries(split)
        raise UserError(
            f"the run {run.name} left neither an index nor packed inputs of the split {split!r}; "
            f"`crossreel apply {project.experiment.path}:{run.name} {project.contents.corpus.path} --split {split}` "
            "encodes it"
        )
    changes = why_stale(run, stages, states)
    if not changes and f"train-{run.method}" in states:
        changes = _lacking(project, states, run.stage)
    note = note_of(run, changes, "it is stale" if changes else "")
    return Searched(replace(project, stages=stages), run.method, split, own, note)


def _lacking(project: Project, states: plan.Survey, stage: str) -> str:
    """What has come into the corpus since a run whose own inputs are as they were; "" if nothing is missing today."""
    needed = plan.ancestors(project.stages, [stage])
    if all(states[name].complete for name in needed):
        return ""
    first = first_missing(project.stages, states, stage)
    return f"{first} lacks {len(states[first].missing)} {states[first].stage.over} of today's corpus"


def _index_stages(run: TrainedRun, split: str) -> Iterator[Stage[Any]]:
    """Yield the packed inputs of a split and its index, both pinned to what a run left; nothing if it left neither."""
    indexes = [made for made in made_with(run, "index-") if made.split == split]
    packs = [made.packed for made in (*indexes, *evaluations(run)) if made.split == split]
    packs += [run.packed] if split in LEARN else []
    if not packs:
        return
    if packs[0] != run.packed:
        yield recorded_pack(run, packs[0], split)
    index = Index(run.method, split, packs[0][0])
    yield pinned(index, indexes[0].fingerprint, indexes[0].components) if indexes else index
