"""The stages that a trained run was made by, with the settings and fingerprints that the store recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.graph import EVERY_EXTRACTOR
from flows.trained.runs import EVALUATE, Made, TrainedRun, made_with
from pipeline.errors import UserError
from pipeline.features.imported import Imported
from pipeline.run import plan
from pipeline.run.stage import Stage
from pipeline.settings import DIGESTED, SPEED, Params
from pipeline.store.documents import complaint
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.imports import PREFIX, ImportedParams
from trainers.config import MethodConfig
from trainers.registry import METHODS
from trainers.stages import LEARN, Evaluate, EvaluateParams, Pack, Train

S = TypeVar("S", bound=Stage[Any])


def recorded_stages(run: TrainedRun, today: plan.Stages) -> dict[str, Stage[Any]]:
    """The extraction stages, packed inputs and training of a run, each pinned to the fingerprint that the run read.

    today: the stages of an experiment, which say where weights are if the run's record does not. Raises UserError if
    the store no longer knows what a stage was made with.
    """
    declared, config = METHODS.find(run.method), run_config(run)
    features = {stage.name: stage for stage in _features(run, today)}
    learned, train = Pack(declared, config, LEARN), Train(declared, config)
    _, fp = run.packed
    return {
        **features,
        learned.name: pinned(learned, fp, _known(run).get(fp, {})),
        train.name: pinned(train, run.fingerprint, run.components),
    }


def prints_of(run: TrainedRun, today: plan.Stages) -> set[str]:
    """The fingerprints of everything that a run was made from, and of its evaluations and indexes."""
    found = [*made_with(run, EVALUATE), *made_with(run, "index-")]
    prints = {stage.pinned.hex for stage in recorded_stages(run, today).values() if stage.pinned}
    return prints | {made.fingerprint for made in found} | {made.packed[1] for made in found}


def recorded_pack(run: TrainedRun, packed: tuple[str, str], split: str) -> Pack:
    """The stage of the packed inputs of a split that a run was evaluated or searched on, pinned."""
    name, fp = packed
    suffix = name.removeprefix(f"pack-{run.method}")
    pack = Pack(METHODS.find(run.method), run_config(run), (split,) if suffix else LEARN, suffix)
    return pinned(pack, fp, _known(run).get(fp, {}))


def run_config(run: TrainedRun) -> MethodConfig:
    """The settings that a run was trained with."""
    config: MethodConfig = run.folder.config(METHODS.find(run.method).config)
    return config


def recorded_evaluation(run: TrainedRun, made: Made) -> Evaluate:
    """The stage of a finished evaluation of a run, pinned; it needs no stage, as its inputs may be gone."""
    params = EvaluateParams(**made.components["params"])
    stage = Evaluate(METHODS.find(run.method), params, made.packed[0])
    stage.needs = ()
    return pinned(stage, made.fingerprint, made.components)


def pinned(stage: S, fp: str, components: Mapping[str, Any]) -> S:
    """A copy of the stage that stands for what the store has under this fingerprint."""
    stage = copy(stage)
    stage.pinned = Fingerprint(fp, dict(components))
    return stage


def _known(run: TrainedRun) -> dict[str, Mapping[str, Any]]:
    """Components by fingerprint: those in the store's index, and those in the record of the run."""
    of_record = {made["fingerprint"]: made["components"] for made in run.record.get("made_from", {}).values()}
    return of_record | {fp: components for fp, (_, components) in run.store.index.fingerprints().items()}


def _features(run: TrainedRun, today: plan.Stages) -> Iterator[Stage[Any]]:
    """Yield the extraction stages that a run read, each after those that it needs."""
    known, seen = _known(run), set[str]()

    def visit(name: str, fp: str) -> Iterator[Stage[Any]]:
        if fp not in known:
            raise UserError(
                f"the store {run.store.root} no longer knows what {name} {fp} of the run {run.name} was made with"
            )
        for need, below in known[fp]["needs"].items():
            yield from visit(need, below)
        if name not in seen:
            seen.add(name)
            yield _extraction(run, name, Fingerprint(fp, known[fp]), today)

    pack, fp = run.packed
    if fp not in known:
        raise UserError(
            f"the store {run.store.root} no longer knows which features {pack} {fp} of the run {run.name} holds"
        )
    for name, of in known[fp]["needs"].items():
        yield from visit(name, of)


def _extraction(run: TrainedRun, name: str, recorded: Fingerprint, today: plan.Stages) -> Stage[Any]:
    """An extraction stage with its recorded settings; where it has its weights from, the record or today's say."""
    own: Mapping[str, Any] = recorded.components["params"]
    if name.startswith(PREFIX):
        return pinned(Imported(name, ImportedParams(**own)), recorded.hex, recorded.components)
    kind = EVERY_EXTRACTOR.find(name)
    if (made := run.record.get("made_from", {}).get(name)) is not None:
        settings = dict(made["settings"])
    else:
        settings = place_settings(kind.settings, today.get(name)) | dict(own)
    try:
        stage = kind(kind.settings(**settings))
    except ValidationError as error:
        raise UserError(
            f"the settings of {name} that the run {run.name} was made with are none of this version: {complaint(error)}"
        ) from None
    return pinned(stage, recorded.hex, recorded.components)


def place_settings(model: type[Params], today: Stage[Any] | None) -> dict[str, Any]:
    """The settings of today's stage that enter no fingerprint: where weights are, and what changes only speed."""
    if today is None or not isinstance(today.params, model):
        return {}
    return today.params.model_dump(mode="json", include=set(model.marked(SPEED, DIGESTED)))
