"""The whole pipeline on one page: a table of extractors, a table of methods, and how they are chained.

    videos -> compress -> clip, frames, keyframes -> vgg16 -\\
    point clouds -> points -> dgcnn, pointnet, pointnet2 --->
    captions -> clip_text, bert, triples ------------------> pack-<method> -> train-<method> -> evaluate-<method>
                                                                                                 -> report

A new extractor is one line in EXTRACTORS, a new method one line in `trainers.registry`, whose table METHODS shows
here; installed packages add theirs by entry points, and are imported when an experiment names them. Importing this
page imports neither torch nor Prefect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from extractors.base import Extractor
from extractors.bert import Bert
from extractors.clip import Clip
from extractors.clip_text import ClipText
from extractors.compress import Compress
from extractors.dgcnn import Dgcnn
from extractors.frames import Frames
from extractors.keyframes import Keyframes
from extractors.pointnet import Pointnet
from extractors.pointnet2 import Pointnet2
from extractors.points import Points
from extractors.triples import Triples
from extractors.vgg16 import Vgg16
from flows.experiment import Experiment
from flows.reporting import Report
from pipeline import plugins
from pipeline.errors import UserError, nearest
from pipeline.run.plan import Stages, ancestors
from pipeline.run.stage import Stage
from pipeline.settings import Faults, Params, fill, located
from trainers.config import MethodConfig
from trainers.recipes import PRESETS, STABLE, Choice, choose, find
from trainers.registry import METHODS
from trainers.stages import EvaluateParams, stages_of

EXTRACTORS: tuple[type[Extractor[Any]], ...] = (
    Compress,
    Clip,
    Frames,
    Keyframes,
    Vgg16,
    Points,
    Dgcnn,
    Pointnet,
    Pointnet2,
    ClipText,
    Bert,
    Triples,
)

INHERITS = {
    "clip_text": ("clip", ("model", "weights", "dtype", "precision", "download"))
}  # settings taken over unless set


def _problem(found: Any, name: str) -> str:
    """The fault of an extractor that a package offers under a name; "" if there is none."""
    if not (isinstance(found, type) and issubclass(found, Extractor)):
        return f"it is a {type(found).__name__}, not a subclass of extractors.base.Extractor"
    if not (isinstance(getattr(found, "settings", None), type) and issubclass(found.settings, Params)):
        return "its settings are not a subclass of pipeline.settings.Params"
    return plugins.wrong_name(found, name) or plugins.wrong_version(found)


EVERY_EXTRACTOR: plugins.Catalogue[type[Extractor[Any]]] = plugins.Catalogue(
    "extractor", plugins.EXTRACTORS, {kind.name: kind for kind in EXTRACTORS}, _problem
)
"""Every extractor that an experiment can name."""


def choices(experiment: Experiment, protocol: Mapping[str, Any] | None = None) -> dict[str, Choice]:
    """The published recipe of each method of an experiment; protocol: that of its corpus (`Corpus.protocol`), if any.

    Raises UserError for a method or recipe that does not exist.
    """
    _require_known(experiment)
    return {
        name: choose(name, experiment.trainers.get(name, {}), protocol, METHODS.find(name).recipes)
        for name in experiment.methods
    }


def build(
    experiment: Experiment, imported: Stages, chosen: Mapping[str, Choice] | None = None
) -> dict[str, Stage[Any]]:
    """Every stage of an experiment by name, with its settings, in order: what its methods need and no more.

    `imported` are the features that were imported into its store, `chosen` the recipes of the methods; without them,
    those that the experiment names. Raises UserError for a setting that is unknown or impossible.
    """
    _require_known(experiment)
    chosen = choices(experiment) if chosen is None else chosen
    faults, configs = Faults(), dict[str, MethodConfig]()
    for name in experiment.methods:
        with faults:
            configs[name] = _config(name, experiment, chosen[name])
    wishes = {} if faults.sentences else _wishes(configs, experiment, chosen)
    everything: dict[str, Stage[Any]] = {}
    for kind in _extractors(configs, experiment):
        with faults:
            everything[kind.name] = kind(_params(kind, experiment, wishes.get(kind.name, {})))
    with faults:
        evaluate = fill(EvaluateParams, experiment.evaluate, "evaluate")
    faults.require_none()
    everything |= imported
    requested = list(experiment.extract)
    for name, config in configs.items():
        for feature in config.features():
            if feature not in everything:
                known = {*everything, *EVERY_EXTRACTOR.names()}
                raise UserError(f"trainers.{name} reads the features {feature!r}; {nearest(feature, known)}")
        stages = stages_of(METHODS.find(name), config, evaluate)
        everything |= {stage.name: stage for stage in stages}
        requested += [stage.name for stage in stages]
    if experiment.methods:
        everything["report"] = Report(experiment.methods)
        requested.append("report")
    needed = ancestors(everything, requested)
    return {name: stage for name, stage in everything.items() if name in needed}


def _config(name: str, experiment: Experiment, choice: Choice) -> MethodConfig:
    """The settings of a method: the experiment's own, then those of its recipe, which it names."""
    model = METHODS.find(name).config
    own = located(experiment.trainers.get(name, {}), model, experiment.path.parent)
    tree = model.completed(own, choice.settings)
    if choice.row:
        tree["recipe"] = choice.row.name
        if name in PRESETS:  # of any other method it is an unknown setting
            tree.pop("preset", None)
    return fill(model, tree, f"trainers.{name}")


def _extractors(
    configs: Mapping[str, MethodConfig], experiment: Experiment
) -> Iterator[type[Extractor[Any]]]:
    """The extractors that are built in, and those of installed packages that something names or needs.

    Each comes after those it needs. Raises UserError for one that needs a stage that is not there, or itself.
    """
    yield from EXTRACTORS
    offered, seen = set(EVERY_EXTRACTOR.names()) - {kind.name for kind in EXTRACTORS}, set[str]()

    def visit(name: str, path: tuple[str, ...]) -> Iterator[type[Extractor[Any]]]:
        if name in path:
            raise UserError(f"the extractor {name!r} needs itself: {' <- '.join([*path, name])}")
        if name not in offered or name in seen:
            return
        kind = EVERY_EXTRACTOR.find(name)
        for need in kind.needs:
            if need not in EVERY_EXTRACTOR.names():
                possible = nearest(need, EVERY_EXTRACTOR.names())
                raise UserError(
                    f"the extractor {name!r} needs a stage {need!r}, which is not there; {possible}"
                )
            yield from visit(need, (*path, name))
        seen.add(name)
        yield kind

    features = [feature for config in configs.values() for feature in config.features()]
    for name in (*experiment.extract, *experiment.extractors, *features):
        yield from visit(name, ())


def _wishes(
    configs: Mapping[str, MethodConfig], experiment: Experiment, chosen: Mapping[str, Choice]
) -> dict[str, dict[str, Any]]:
    """Settings of extractors that the methods and their recipes need, unless the experiment gives them.

    Raises UserError where two methods want different things of one stage.
    """
    wishes: dict[str, dict[str, Any]] = {}
    wisher: dict[tuple[str, str], str] = {}
    for method, config in configs.items():
        wanted = {stage: dict(own) for stage, own in chosen[method].extractors.items()}
        for stage, own in config.wishes().items():
            wanted.setdefault(stage, {}).update(own)
        for stage, settings in wanted.items():
            for key, value in settings.items():
                if key in experiment.extractors.get(stage, {}):
                    continue
                before = wisher.setdefault((stage, key), method)
                if wishes.setdefault(stage, {}).setdefault(key, value) != value:
                    both = {name: configs[name] for name in (before, method)}
                    raise UserError(
                        f"{before} and {method} need different extractors.{stage}.{key}, {wishes[stage][key]!r} and "
                        f"{value!r}; {_advice(stage, key, both, experiment)}train them in two experiments on "
                        f"one store, or set extractors.{stage}.{key} for both"
                    )
    return wishes


def _advice(stage: str, key: str, configs: Mapping[str, MethodConfig], experiment: Experiment) -> str:
    """The trajectory under which two methods need the same setting of a stage, as advice; "" if they do not there."""
    needed = []
    for method, config in configs.items():
        row = find(method, config.recipe, METHODS.find(method).recipes)
        own = experiment.trainers.get(method, {})
        filled = {name: value for name, value in row.filled(STABLE).items() if name not in own} if row else {}
        needed.append(config.model_copy(update=filled).wishes().get(stage, {}).get(key))
    if needed[0] != needed[1]:
        return ""
    lines = (f'trainers.{method}.trajectory = "{STABLE}"' for method in configs)
    return f"set {' and '.join(lines)}, "


def _params(kind: type[Extractor[Any]], experiment: Experiment, wishes: Mapping[str, Any]) -> Params:
    """The settings of an extractor: its own, then those its methods need, then those it takes over from another."""
    own = {**wishes, **experiment.extractors.get(kind.name, {})}
    if kind.name in INHERITS:
        source, keys = INHERITS[kind.name]
        given = experiment.extractors.get(source, {})
        own = {key: given[key] for key in keys if key in given} | own
    return fill(kind.settings, located(own, kind.settings, experiment.path.parent), f"extractors.{kind.name}")


def _require_known(experiment: Experiment) -> None:
    """Raise UserError for a method or extractor that does not exist, naming the nearest."""
    extractors, methods = EVERY_EXTRACTOR.names(), METHODS.names()
    for where, names, known in (
        ("methods", experiment.methods, methods),
        ("trainers", experiment.trainers, methods),
        ("extract", experiment.extract, extractors),
        ("extractors", experiment.extractors, extractors),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"unknown name {name!r} in {where}; {nearest(name, known)}")
    if not experiment.methods and not experiment.extract:
        raise UserError(f"{experiment.path}: neither methods nor extract names anything to do")
