"""Whether a run repeats the published experiment of its corpus, and every reason why it does not. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from extractors.backbones import clip_configs, weights
from pipeline.corpus.importers.published import MISSING, VALIDATED_ON_TEST
from pipeline.corpus.manifest import Corpus
from pipeline.run.plan import Stages, ancestors
from pipeline.settings import DIGESTED, FILLS, SPEED
from pipeline.store.imports import PREFIX
from trainers.config import MethodConfig, Recipe
from trainers.layers.pair_config import ClipPairConfig
from trainers.measure.evaluated import Protocol
from trainers.recipes import NONE, PublishedRecipe, Size, find, fitting, of_corpus, recipes
from trainers.registry import METHODS

SEED = "seed"  # another one is a repetition too
# Parts of what an importer says of videos, objects and splits that it left out.
NOTABLE = (MISSING, "skipped", "dropped", "imported: ")
MODES = {"frozen": "CLIP is frozen", "finetune": "CLIP is fine-tuned"}


def toml(value: Any) -> str:
    """A setting as an experiment file spells it."""
    return json.dumps(value, ensure_ascii=False)


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Difference:
    """A setting that is not the published one, or where the source says nothing of it, not the method's default."""

    setting: str
    here: Any
    published: Any
    stated: bool = True

    def __str__(self) -> str:
        if self.setting == "mode":
            return f"{MODES.get(self.here, self.here)} (published: {toml(self.published)})"
        word = "published" if self.stated else "usual"
        return f"{self.setting} is {toml(self.here)} ({word}: {toml(self.published)})"


@dataclass(frozen=True)
class Repetition:
    """A run of a method beside the published experiment of its corpus; row: None where there is none.

    `settings` are compared with the row's under the trajectory `release`, which is what was published, or with the
    method's defaults where there is no row. `reasons` are all others why the run is not that experiment.
    """

    method: str
    corpus: str
    row: PublishedRecipe | None
    settings: tuple[Difference, ...]
    reasons: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing is known in which the run differs from a published experiment."""
        return self.row is not None and not self.settings and not self.reasons

    @property
    def every_reason(self) -> tuple[str, ...]:
        """The reasons why it is not the published experiment, those of settings too; none where there is no row."""
        return (*self.reasons, *map(str, self.settings)) if self.row else ()

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.row is None:
            of = self.corpus or "this corpus"
            return f"{self.method}: nobody published its settings for {of}"
        name = f"the published experiment {self.method}/{self.row.name} ({self.row.source})"
        if self.exact:
            return f"{self.method} is a repetition of {name}: nothing is known in which it differs"
        return f"{self.method} is not {name}: {_number(len(self.every_reason), 'difference')}"

    def as_json(self) -> dict[str, Any]:
        """Plain data, as the report's brief and `--json` have it."""
        return {
            "recipe": self.row.name if self.row else "",
            "source": self.row.source if self.row else "",
            "status": self.row.status if self.row else "none",
            "repetition": self.exact,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "differences": [asdict(difference) for difference in self.settings],
        }


def compare(
    method: str, stages: Stages, corpus: Corpus, protocol: Mapping[str, Any] | None,
    measured: Protocol | None = None,
) -> Repetition:  # fmt: skip
    """A method of an experiment beside the published experiment of its corpus; protocol: `Corpus.claimed_protocol`.

    `measured` is the protocol of its evaluation, where there is one: what failed on the way shows there, and of the
    corpus it quotes what was checked to the last caption.
    """
    if measured is not None:
        protocol = measured.corpus.as_json() if measured.corpus else None
    config: MethodConfig = stages[f"train-{method}"].params
    row = _row(method, config, protocol)
    reasons: list[str] = []
    if row is not None and protocol is not None:
        reasons += _of_recipe(row, config)
        reasons += _of_corpus(row, corpus, str(protocol.get("sentence", "")), config)
        reasons += _of_networks(method, row, stages, config)
        reasons += _of_evaluation(measured)
        reasons += row.free
    name = str(protocol.get("name", "")) if protocol else ""
    settings = [*_settings(config, row), *(_of_stages(method, row, stages, config) if row else ())]
    return Repetition(method, name, row, tuple(settings), tuple(dict.fromkeys(reasons)))


def _row(method: str, config: MethodConfig, protocol: Mapping[str, Any] | None) -> PublishedRecipe | None:
    """The row that the settings are from, if it is one of this corpus, else the one that they are most like."""
    extra = METHODS.find(method).recipes
    named = find(method, config.recipe, extra)
    if named is not None and named.published and of_corpus(named, protocol):
        return named
    return fitting(recipes(method, extra), protocol, config.model_dump(mode="json"))


def _settings(config: MethodConfig, row: PublishedRecipe | None) -> Iterator[Difference]:
    """Settings that are not those published; what changes only speed is none, nor is a seed.

    Where the weights of a backbone are is compared with the networks.
    """
    left_out = config.marked(SPEED, FILLS) | (config.marked(DIGESTED) - {"weights"}) | {SEED}
    if row is not None and not row.trained and config.epochs == 0:
        left_out |= set(Recipe.model_fields)  # how nothing is trained
    stated = row.filled("release") if row else {}
    usual = _published(config, row).model_dump(mode="json")
    for name, value in config.model_dump(mode="json").items():
        if name not in left_out and not _alike(name, value, usual[name]):
            yield Difference(name, value, usual[name], name in stated)


def _published(config: MethodConfig, row: PublishedRecipe | None) -> MethodConfig:
    """The method's settings as they were published, its defaults where nothing is said."""
    return type(config)(**type(config).completed({}, row.filled("release") if row else {}))


def _of_stages(
    method: str, row: PublishedRecipe, stages: Stages, config: MethodConfig
) -> Iterator[Difference]:
    """Settings of extraction stages, set by the experiment, that are not those which the published run needs.

    What follows from a setting of the method is told as that setting; networks and weights are compared apart.
    """
    needed, own = _published(config, row).wishes(), config.wishes()
    for name in _extraction(method, stages):
        params = stages[name].params
        if name.startswith(PREFIX):
            continue
        left_out = params.marked(SPEED, DIGESTED) | {SEED, "model", *row.networks.get(name, {})}
        stated = {**needed.get(name, {}), **row.extractors.get(name, {})}
        usual = type(params)().model_dump(mode="json") | stated
        for key, here in params.model_dump(mode="json").items():
            if key not in left_out and here != usual[key] and own.get(name, {}).get(key) != here:
                yield Difference(f"{name}.{key}", here, usual[key], key in stated)


def _extraction(method: str, stages: Stages) -> list[str]:
    """The extraction stages that a method rests on, those of imported features too."""
    needed = sorted(ancestors(stages, [f"train-{method}"]))
    return [name for name in needed if not name.startswith(("pack-", "train-"))]


def _alike(name: str, here: Any, published: Any) -> bool:
    if name in ("base_encoder", "model") and isinstance(here, str) and isinstance(published, str):
        return clip_configs.resolve(here) == clip_configs.resolve(published)
    return bool(here == published)


def _of_recipe(row: PublishedRecipe, config: MethodConfig) -> Iterator[str]:
    """A recipe of another experiment, and settings that we recommend instead of the authors'."""
    if config.recipe not in ("", NONE, row.name):
        yield f"its settings are those of the recipe {config.recipe}"
    elif config.recipe == row.name and config.trajectory == "stable" and row.release != row.stable:
        yield "trained on the trajectory stable, which we recommend, not as the authors ran it"


def _of_corpus(row: PublishedRecipe, corpus: Corpus, sentence: str, config: MethodConfig) -> Iterator[str]:
    """Videos held out or missing, and another split or figure that the epoch is chosen by."""
    parts = sentence.split("; ")
    held = next((part for part in parts if "held out" in part), "")
    if held and config.epochs:
        yield held
    yield from (part for part in parts if any(word in part for word in NOTABLE))
    kept = sum(int(word) for word in held.split()[:3] if word.isdecimal())
    for split, size in (("train", row.train), ("val", row.val), ("test", row.test)):
        if split == "train" and not row.trained:
            continue
        yield from _sizes(split, size, corpus, kept if split == "train" else 0)
    if not config.epochs or not row.selection.split:
        return
    on_test = any(VALIDATED_ON_TEST in part for part in parts)
    if row.selection.split == "test" and not on_test:
        yield "the epoch is chosen on the split val; the authors chose it on the test split"
    if row.selection.split == "val" and on_test:
        yield "the epoch is chosen on the test split; the authors chose it on validation videos"
    chosen_by = config.select_by
    if row.selection.figure and row.selection.figure != chosen_by:
        yield f"the epoch is chosen by {chosen_by}; the authors chose it by {row.selection.figure}"


def _sizes(split: str, size: Size, corpus: Corpus, held: int) -> Iterator[str]:
    """Fewer or more items or captions than published; `held` of the items are said to be held out already."""
    items, captions = len(corpus.gallery(split)), sum(1 for _ in corpus.captions(split))
    if size.items is None and split != "val":
        yield f"{_number(items, 'item')} of {split}; its source states no number"
    if size.items is not None and items + held != size.items:
        yield f"{_number(items, 'item')} of {split}; published: {size.items:,}"
    if size.captions is not None and not held and captions != size.captions:
        yield f"{_number(captions, 'caption')} of {split}; published: {size.captions:,}"


def _of_networks(method: str, row: PublishedRecipe, stages: Stages, config: MethodConfig) -> Iterator[str]:
    """Features that are not those of the experiment, random weights, and other networks than the authors'."""
    features = [name for name in config.features() if name in stages]
    if row.imported and (own := [name for name in features if not name.startswith(PREFIX)]):
        yield f"reads {' and '.join(own)} instead of what the authors read: {row.backbone}"
    if config.weights:
        yield "starts from imported weights"
    used = _networks_used(method, stages, config)
    for stage, found in used.items():
        if weights.seed_of(str(found.get("weights", ""))) is not None:
            yield f"random weights of {stage} ({found['weights']})"
            continue
        for key, published in row.networks.get(stage, {}).items():
            here = found.get(key)
            if here is None or _alike(key, here, published):
                continue
            if key == "weights" and weights.is_path(str(here)):
                yield f"whether the weights of {stage} in the file {here} are {published!r} is not checked"
            else:
                yield f"{stage} has {key} = {toml(here)} (published: {toml(published)})"


def _networks_used(method: str, stages: Stages, config: MethodConfig) -> dict[str, dict[str, Any]]:
    """By stage, the settings that name the networks which a method rests on, with the CLIP that it fine-tunes."""
    used: dict[str, dict[str, Any]] = {
        name: stages[name].params.model_dump(mode="json") for name in _extraction(method, stages)
    }
    if isinstance(config, ClipPairConfig) and config.mode == "finetune":
        used["clip"] = {"model": config.base_encoder, "weights": config.backbone_weights}
    return used


def random_networks(method: str, stages: Stages, config: MethodConfig) -> list[str]:
    """The stages that a method rests on whose network has random weights."""
    used = _networks_used(method, stages, config)
    return [
        stage for stage, found in used.items() if weights.seed_of(str(found.get("weights", ""))) is not None
    ]


def _of_evaluation(measured: Protocol | None) -> Iterator[str]:
    if measured is None:
        return
    if measured.split != "test":
        yield f"measured on the split {measured.split}"
    if measured.dropped:
        yield f"{_number(measured.dropped, 'caption')} dropped, because items or captions failed"
    if measured.rerank:
        yield measured.rerank


def in_lines(found: Sequence[Repetition]) -> Iterator[str]:
    """For a plan: the verdict on each method of a published experiment, with the reasons."""
    for one in found:
        if one.row is not None:
            yield "; ".join([one.verdict, *one.every_reason])
