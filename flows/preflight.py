"""Problems that would stop a run, found before any work is done: weights, settings, devices, disk.

Only stages that would run are looked at, and no network is loaded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from extractors.clouds import CloudEncoder
from extractors.points import PointsParams
from flows.estimate import Expected, estimate
from flows.project import Project
from pipeline.corpus.contents import Contents
from pipeline.errors import UserError, numbered
from pipeline.run import plan
from pipeline.run.engines.machine import gpu_numbers
from pipeline.run.execute import import_lack
from pipeline.run.stage import Stage
from pipeline.settings import Params
from pipeline.store.imports import PREFIX
from trainers.config import MethodConfig, TrainingSizes
from trainers.recipes import NONE, of_corpus, protocol_name, recipes
from trainers.registry import METHODS
from trainers.stages import LEARN, Pack, Train

WEIGHTS = (
    "backbone_weights",
    "weights",
    "package",
)  # settings that name requirements of a stage on this machine
MODELS = ("model", "base_encoder")
TABLES = ("extractors.", "trainers.", "run.", "evaluate.", "store ")


@dataclass(frozen=True)
class Problem:
    """The problem that would stop a stage: one sentence that begins with the setting's full name and value."""

    stage: str
    sentence: str
    fatal: bool = False  # whether the stage cannot even be looked up in the store


def find_problems(
    project: Project, states: plan.Survey, names: Collection[str], redo: Collection[str] = (),
    retry_failed: bool = False,
) -> list[Problem]:  # fmt: skip
    """Problems that would stop a run of the named stages and of those they need, in the order of the stages.

    The states of stages that have no fatal problem upstream are read into `states`. Nothing is made or loaded.
    """
    needed = plan.ancestors(project.stages, names)
    stages = [project.stages[name] for name in plan.order(project.stages) if name in needed]
    broken = [problem for stage in stages for problem in _unidentified(project, stage)]
    lost = plan.descendants(project.stages, [problem.stage for problem in broken])
    running = [
        stage for stage in stages
        if stage.name in lost or stage.name in redo or not states[stage.name].complete
        or (retry_failed and states[stage.name].failed)
    ]  # fmt: skip
    begun = set(project.store.index.fingerprints()) if running else set()
    problems = list(broken)
    for stage in running:
        if stage.name not in {problem.stage for problem in broken}:
            known = stage.name not in lost and states[stage.name].fingerprint.hex in begun
            problems += _missing(project, stage, known)
        if stage.name not in lost:
            problems += _imported(project, stage, states)
        problems += [Problem(stage.name, sentence) for sentence in _unsuited(project, stage)]
    if not lost:
        problems += _disk(project, states, needed)
    problems += _device(project, running)
    return list({problem.sentence: problem for problem in problems}.values())


def require_possible(
    project: Project, states: plan.Survey, names: Collection[str], redo: Collection[str] = (),
    retry_failed: bool = False,
) -> list[Problem]:  # fmt: skip
    """Raise UserError with all problems of a run; with `run.anyway` return them, unless one is fatal."""
    problems = find_problems(project, states, names, redo, retry_failed)
    refused = [problem for problem in problems if problem.fatal or not project.experiment.run.anyway]
    if refused:
        raise refusal(problems)
    return problems


@dataclass(frozen=True)
class Planned:
    """What a run of every stage would find, would stop at, and would take, by stage."""

    states: dict[str, plan.State]
    problems: list[Problem]
    expected: dict[str, Expected]


def planned(project: Project) -> Planned:
    """Look at every stage as the next run would. Raises UserError where one cannot be looked up in the store."""
    survey = project.states(math.inf)
    problems = find_problems(project, survey, list(project.stages))
    if any(problem.fatal for problem in problems):
        raise refusal(problems)
    states = dict(survey)
    return Planned(states, problems, estimate(project, states))


def refusal(problems: Sequence[Problem]) -> UserError:
    """The error that lists these problems, with the way on where there is one."""
    if any(problem.fatal for problem in problems):
        return UserError(as_text(problems))
    between = "; " if len(problems) == 1 else "\n  "
    return UserError(f"{as_text(problems)}{between}--anyway begins all the same")


def as_text(problems: Sequence[Problem]) -> str:
    """The sentence of one problem, or a numbered list of several."""
    return numbered("things would stop this run:", [problem.sentence for problem in problems])


def _unidentified(project: Project, stage: Stage[Params]) -> Iterator[Problem]:
    """The problem of a stage whose fingerprint cannot be computed, because a file that decides it is missing."""
    if stage.pinned:
        return
    try:
        stage.identity(project.known)
    except UserError as error:
        yield Problem(stage.name, _named(stage, str(error)), fatal=True)


def _missing(project: Project, stage: Stage[Params], begun: bool) -> Iterator[Problem]:
    """Requirements of a stage that this machine lacks.

    Weights of a stage that has begun before under the same fingerprint were checked then: looking at a tag's weights
    again imports torch, which takes seconds.
    """
    if begun and stage.identity(project.known).get("weights"):
        return
    try:
        stage.require()
    except UserError as error:
        yield Problem(stage.name, _named(stage, str(error)))


def _named(stage: Stage[Params], sentence: str) -> str:
    """The sentence with the setting in front that names the missing file, unless it begins with one."""
    if sentence.startswith(TABLES):
        return sentence
    method = isinstance(stage.params, MethodConfig)
    table = f"trainers.{stage.method}" if method else f"extractors.{stage.name}"
    settings = [name for name in WEIGHTS if name in type(stage.params).model_fields]
    if sentence.startswith("unknown CLIP model"):
        settings = [name for name in MODELS if name in type(stage.params).model_fields]
    if getattr(stage.params, "backend", "") == "corenlp":
        settings = ["server"]
    if isinstance(stage.params, MethodConfig) and stage.params.weights:
        settings = ["weights"]
    if not settings:
        return f"{stage.name}: {sentence}"
    return f"{table}.{settings[0]} = {getattr(stage.params, settings[0])!r}: {sentence}"


def _imported(project: Project, stage: Stage[Params], states: plan.Survey) -> Iterator[Problem]:
    """Imported features that are not there for this corpus, or that a method cannot use.

    Only lengths and widths are read.
    """
    if not stage.runner and states[stage.name].missing:
        yield Problem(stage.name, import_lack(states[stage.name], project.contents))
    if isinstance(stage, Pack) and any(need.startswith(PREFIX) for need in stage.needs):
        for sentence in stage.misfits(project.contents.of_kind(stage.kind), states, project.store):
            yield Problem(stage.name, sentence)


def _unsuited(project: Project, stage: Stage[Params]) -> Iterator[str]:
    """Settings of a stage that do not fit this corpus or this run."""
    run, contents = project.experiment.run, project.contents.of_kind(stage.kind)
    if isinstance(stage, Train):
        learn = LEARN[0]
        sizes = TrainingSizes(
            pairs=sum(1 for _ in contents.queries(learn)),
            items=len({digest for digest, _ in contents.gallery(learn)}),
            words=max((len(text.split()) for text in _texts(contents)), default=0),
            processes=(run.processes or len(_gpus(project)) or 1) * run.nodes,
            device="cuda" if _gpus(project) else "cpu",
        )
        for setting, reason in [*stage.params.unsuited(sizes), *_misfits(project, stage, sizes)]:
            value = getattr(stage.params, setting)
            yield f"trainers.{stage.method}.{setting} = {value!r}: {reason}"
    if isinstance(stage, CloudEncoder) and "points" in project.stages:
        points = project.stages["points"].params
        if isinstance(points, PointsParams) and 0 < points.sample < stage.least_points:
            yield (
                f"extractors.points.sample = {points.sample}: {stage.name} needs {stage.least_points} points of every "
                f"cloud; raise it, or set it to 0 for all points"
            )


def _misfits(project: Project, stage: Train, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
    """Why the recipe that an experiment names does not fit its corpus, by setting: another protocol, too few items."""
    choice, config = project.recipes.get(stage.method), stage.params
    if choice is None or choice.row is None or not choice.named:
        return
    row = choice.row
    if project.protocol and not of_corpus(row, project.protocol):
        rows = recipes(stage.method, METHODS.find(stage.method).recipes)
        fit = [each.name for each in rows if of_corpus(each, project.protocol)]
        yield (
            "recipe",
            f"it is of {protocol_name(row)}, and {project.contents.corpus.path.name} was imported as "
            f"{project.protocol['sentence']}; possible: {', '.join([*fit, NONE])}",
        )
    there = sizes.items if config.batch_of == "items" else sizes.pairs
    own = project.experiment.trainers.get(stage.method, {})
    if config.epochs and "batch_size" not in own and there < config.batch_size:
        yield (
            "batch_size",
            f"the recipe {row.name!r} needs at least one whole batch, and 'train' has {there} {config.batch_of}; "
            f"set it to {there} or less",
        )


def _texts(contents: Contents) -> Iterator[str]:
    return (caption.text for caption in contents.captions().values())


def _gpus(project: Project) -> list[int]:
    try:
        return gpu_numbers(project.experiment.run.device)
    except UserError:
        return []  # `_device` reports it


def _device(project: Project, running: Sequence[Stage[Params]]) -> Iterator[Problem]:
    """A configured GPU that does not exist, or more processes than GPUs."""
    run = project.experiment.run
    for stage in running:
        if stage.worker_kind != "model":
            continue
        try:
            gpus = gpu_numbers(run.device)
        except UserError as error:
            yield Problem(stage.name, str(error))
            return
        if stage.several and gpus and run.processes > len(gpus):
            yield Problem(
                stage.name,
                f"run.processes = {run.processes}: {len(gpus)} GPUs are visible here; set it to 0 for one a GPU, or "
                'run.device = "cpu"',
            )
            return


def _disk(project: Project, states: plan.Survey, needed: Collection[str]) -> Iterator[Problem]:
    """A disk with less free space than the missing artifacts are expected to take."""
    expected = {name: e.bytes or 0.0 for name, e in estimate(project, states, needed).items()}
    total, free = sum(expected.values()), shutil.disk_usage(project.store.root).free
    if total > free:
        most = max(expected, key=lambda name: expected[name])
        yield Problem(
            most,
            f"store = {project.experiment.store!r}: {total / 1e9:.2f} GB are expected, most of it of {most}, and "
            f"{free / 1e9:.2f} GB are free; free some space, or name a folder on another disk",
        )
