"""A trained run on another corpus: the stages that make its gallery, with the settings that the run recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.project import Project
from flows.trained.changes import as_recorded
from flows.trained.recorded import place_settings, recorded_stages, run_config
from flows.trained.runs import TrainedRun
from pipeline.corpus.contents import read_contents
from pipeline.corpus.manifest import Caption, Corpus
from pipeline.errors import UserError, nearest
from pipeline.run import plan
from pipeline.run.stage import Stage
from pipeline.store.documents import complaint
from pipeline.store.fingerprint import Fingerprint, differences
from trainers.config import MethodConfig
from trainers.registry import METHODS
from trainers.stages import Apply, Evaluate, EvaluateParams, Pack

ALL = "all"  # the split that all items of a corpus are in, whatever their own is
STAND_IN = "a man holds a ball"  # the caption of every item of a gallery without captions: methods pack pairs

OnHashed = Callable[[int, int], None]
Stages = dict[str, Stage[Any]]


@dataclass(frozen=True)
class AppliedGallery:
    """The items of a corpus, or of a split of it, as the gallery of a trained run.

    project: its contents are these items, its stages those that the run needs: extraction, `packed`, the training
    itself (pinned), and `apply-<method>` if the gallery has captions. notes: sentences about what is not as it was when
    the run was trained.
    """

    project: Project
    run: TrainedRun
    split: str
    captioned: bool
    notes: tuple[str, ...] = ()

    @property
    def packed(self) -> str:
        """The name of the stage that packs the gallery."""
        return f"pack-{self.run.method}-{self.split}"

    @property
    def evaluation(self) -> str:
        """The name of the stage that measures it; "" without captions."""
        return f"apply-{self.run.method}" if self.captioned else ""

    @property
    def learned(self) -> int:
        """The number of items of the gallery that the run was trained on."""
        return len(self.run.learned_items() & self.project.contents.items().keys())


def open_gallery(
    project: Project, run: TrainedRun, manifest: Path, split: str = "", hashed: OnHashed = lambda n, of: None
) -> AppliedGallery:
    """The gallery of a manifest, of all its items or of one split, for a run in a project's store.

    Of a manifest with several kinds of items, it has those of the run's kind. Nothing is made. Raises UserError for
    items of another kind, a split without items, and extraction stages whose
    weights are not those that the run was made with.
    """
    config = run_config(run)
    whole = Corpus.read(manifest).of_kind(config.kind)
    corpus, captioned = _gallery_corpus(whole, split)
    if kinds := {item.kind for item in corpus.items} - {config.kind}:
        raise UserError(
            f"{run.name} ranks items of the kind {config.kind}, and {manifest} holds {kinds.pop()}"
        )
    split = split or ALL
    recorded = recorded_stages(run, project.stages)
    features, notes = _renewed_features(project, run, recorded, config)
    stages = features | _method_stages(project, run, recorded, split, captioned)
    contents = read_contents(corpus, project.store.index, hashed)
    if shared := len(run.learned_items() & contents.items().keys()):
        notes.append(f"{shared} of the {len(contents.items())} items are among those it was trained on")
    source = run.record.get("corpus") or "its corpus"
    words = f"{run.name}, trained on {len(run.learned_items())} items of {source}, applied to {manifest.name}"
    about = {
        "applied": "; ".join([words + (f", split {split!r}" if split != ALL else ""), *notes]),
        "protocol": whole.protocol(split),
    }
    experiment = project.experiment.model_copy(
        update={"name": f"{run.name} on {manifest.name}", "methods": [run.method]}
    )
    opened = replace(
        project, experiment=experiment, contents=contents, stages=stages, changed=(), about=about
    )
    return AppliedGallery(opened, run, split, captioned, tuple(notes))


def _gallery_corpus(whole: Corpus, split: str) -> tuple[Corpus, bool]:
    """The items of a split with their captions of it, or with "" all of both; and whether there is any caption."""
    if split and split not in whole.splits:
        raise UserError(f"{whole.path} has no split {split!r}; {nearest(split, whole.splits)}")
    items = []
    for item in whole.gallery(split) if split else whole.items:
        captions = [
            replace(caption, split=None)
            for caption in item.captions
            if not split or (caption.split or item.split) == split
        ]
        items.append(replace(item, split=split or ALL, captions=tuple(captions)))
    captioned = any(item.captions for item in items)
    if not captioned:
        items = [replace(item, captions=(Caption(f"{item.id} has no caption", STAND_IN),)) for item in items]
    return Corpus(whole.path, tuple(items)), captioned


def _method_stages(
    project: Project, run: TrainedRun, recorded: plan.Stages, split: str, captioned: bool
) -> Stages:
    """The stages of the method: packed inputs, the training as it is, and the evaluation if there are captions."""
    declared = METHODS.find(run.method)
    pack = Pack(declared, run_config(run), (split,), suffix=f"-{split}")
    stages: Stages = {pack.name: pack, run.stage: _alone(recorded[run.stage])}
    if captioned:
        usual = project.stages.get(f"evaluate-{run.method}")
        settings = usual.params.model_dump() if isinstance(usual, Evaluate) else {}
        try:
            apply = Apply(declared, EvaluateParams(**settings | {"split": split}), pack.name)
        except ValidationError as error:
            raise UserError(f"evaluate: {complaint(error)}") from None
        stages |= {
            name: _alone(recorded[name]) for name in apply.needs if name not in stages
        }  # QB-norm's bank
        stages[apply.name] = apply
    return stages


def _alone(stage: Stage[Any]) -> Stage[Any]:
    """A pinned stage that needs no other: it is finished, and what it was made from stays as it is."""
    stage = copy(stage)
    stage.needs = ()
    return stage


def _renewed_features(
    project: Project, run: TrainedRun, recorded: plan.Stages, config: MethodConfig
) -> tuple[Stages, list[str]]:
    """The extraction stages as they run on this machine with the recorded settings, and how they differ from then."""
    needed, prints = plan.ancestors(recorded, config.features()), dict[str, str]()
    stages: Stages = {}
    notes: list[str] = []
    for name, before in recorded.items():
        if name in needed and before.pinned:
            stage, components, changed = _renewed(project, run, before, prints)
            stages[name], prints[name] = stage, Fingerprint.of(components).hex
            notes += changed
    return stages, notes


def _renewed(
    project: Project, run: TrainedRun, before: Stage[Any], prints: Mapping[str, str]
) -> tuple[Stage[Any], Mapping[str, Any], list[str]]:
    """A recorded extraction stage to be run again, its components today, and sentences about what has changed.

    Its weights may lie elsewhere today: then the experiment's stage of the same name says where.
    """
    recorded = before.pinned.components if before.pinned else {}
    today = place_settings(type(before.params), project.stages.get(before.name))
    error = ""
    for settings in ({}, today):
        stage = copy(before)
        stage.pinned, stage.params = None, before.params.model_copy(update=settings)
        if project.experiment.run.keep_decoded:
            stage.kept = {program: recorded[program] for program in stage.programs}
        try:
            components = plan.components_on(
                {need: prints[need] for need in stage.needs}, stage, project.known
            )
        except UserError as missing:
            error = error or str(missing)
            continue
        changes = [
            change
            for change in differences(as_recorded(components), recorded)
            if not change[0].startswith("needs.")
        ]
        other = [what for what, _, _ in changes if what not in (*stage.programs, "version")]
        if not other:
            here = stage.identity(project.known)  # with `keep_decoded` the programs count as those of then
            changes += [
                (name, here[name], then) for name, then in stage.kept.items() if here.get(name) != then
            ]
            return stage, components, list(_sentences(before.name, changes))
        error = error or f"{', '.join(other)} of {before.name} are not those that the run was made with"
    raise UserError(
        f"{run.name} cannot be applied here: {error}; extractors.{before.name} of the experiment says where weights are"
    )


def _sentences(stage: str, changes: list[tuple[str, Any, Any]]) -> Iterator[str]:
    for what, now, before in changes:
        yield f"{stage} has {what} {now} here, and had {before} when it was trained"
