"""The three stages of a method: pack its inputs, train it, evaluate it. Declarations only, no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from extractors.backbones import clip_configs
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption
from pipeline.errors import UserError
from pipeline.run.plan import State, left_out
from pipeline.run.stage import Briefing, Digests, Stage
from pipeline.settings import PACKS, SPEED, Params
from pipeline.store.fingerprint import METHOD_VERSION, Fingerprint
from pipeline.store.imports import PREFIX
from pipeline.store.places import Units, place_table
from pipeline.store.store import Store
from trainers.config import MethodConfig
from trainers.contract import RetrievalMethod
from trainers.data import split_columns
from trainers.loop.trained import TrainedFolder

LEARN = ("train", "val")
KEPT = "packed-"  # and a method: the name of the rows that packing computed, in the store
ROW = "row"  # the one output of imported features
CLIP = (
    "clip",
    "clip_text",
)  # methods on frozen features read outputs of these stages that are as wide as the network's embedding

log = logging.getLogger(__name__)

Declared = RetrievalMethod[Any]

PostProcessing = Literal["dual_softmax", "qb_norm", "sinkhorn"]


class DualSoftmaxParams(Params):
    """Settings of dual softmax: the prior by which scores are multiplied."""

    beta: float = Field(100.0, gt=0)  # CLIP's logit scale, on cosines; other scores may need another


class QbNormParams(Params):
    """Settings of QB-norm, the dynamic inverted softmax."""

    beta: float = Field(20.0, gt=0)  # inverse temperature (Bogolin et al., for all models but one)
    k: int = Field(1, ge=1)  # first places of a bank query whose members are active (Bogolin et al.)


class SinkhornParams(Params):
    """Settings of the row and column normalisations of Sinkhorn."""

    beta: float = Field(100.0, gt=0)  # the default of the dual softmax
    iterations: int = Field(10, ge=1)  # iterations of both normalisations, each a pass over all scores


class EvaluateParams(Params):
    """Settings of an evaluation: the split, and what is measured on it."""

    split: str = "test"  # the split that is measured
    directions: Literal["auto", "t2v", "v2t", "both"] = "auto"  # auto: those of the method's task
    seed: int = Field(0, ge=0)  # seed of the bootstrap
    v2t_rank: Literal["auto", "caption_groups", "all_captions"] = "auto"  # auto: as the method's paper ranks
    rerank: int = Field(0, ge=0)  # items of a caption that are truly scored, chosen by cheap scores; 0: all
    memory_mb: Annotated[int, SPEED] = Field(1024, ge=16)  # bounds the blocks of scores; changes no number
    post_processing: tuple[
        PostProcessing, ...
    ] = ()  # re-ranking of the scores, reported beside the metrics of the raw scores
    dual_softmax: DualSoftmaxParams = DualSoftmaxParams()  # its settings, where post_processing names it
    qb_norm: QbNormParams = QbNormParams()  # the same of QB-norm
    sinkhorn: SinkhornParams = SinkhornParams()  # the same of Sinkhorn

    @field_validator("post_processing")
    @classmethod
    def _once_each(cls, names: tuple[PostProcessing, ...]) -> tuple[PostProcessing, ...]:
        return tuple(sorted(set(names)))

    @model_validator(mode="after")
    def _post_processing_fits(self) -> Self:
        if self.split == "train" and "qb_norm" in self.post_processing:
            raise ValueError("the bank of qb_norm is the split 'train', so that it cannot be measured on it")
        if self.rerank and self.post_processing:
            raise ValueError(
                "post_processing needs all scores, and rerank leaves most pairs without a true one"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """Options that differ from their defaults, so that older evaluations keep their fingerprint."""
        options = {*get_args(PostProcessing)} - {*self.post_processing}
        if not self.post_processing:
            options.add("post_processing")
        return {key: value for key, value in super().decisive().items() if key not in options}


class Pack(Stage[MethodConfig]):
    """A method's inputs of some splits as contiguous arrays, read from the store once."""

    over = "corpus"
    runner = "trainers.workers:pack"
    on_demand = True  # `store gc --packs` drops it

    def __init__(
        self, method: Declared, config: MethodConfig, splits: tuple[str, ...], suffix: str = ""
    ) -> None:
        super().__init__(config)
        self.name, self.method, self.declared = f"pack-{method.name}{suffix}", method.name, method
        self.kind, self.needs, self._splits = method.config.kind, config.features(), splits

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The version of the method."""
        return _version(self.declared)

    def splits(self) -> tuple[str, ...]:
        """The splits it packs."""
        return self._splits

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Members of each split, and the segment and row of each feature."""
        contents = briefing.contents
        for sentence in self.misfits(contents, briefing.states, briefing.store):
            raise UserError(sentence)
        out = left_out(briefing.states[need] for need in self.needs)
        splits: dict[str, dict[str, Any]] = {}
        for split in self._splits:
            contents.corpus.require_queries(split)
            items = {digest for digest, _ in contents.gallery(split)} - out
            order = [digest for digest, _ in contents.gallery(split) if digest in items]
            splits[split] = split_columns(order, (
                (caption.digest, caption.text, digest, _also(contents, caption, items))
                for digest, _, caption in contents.queries(split)
                if digest in items and caption.digest not in out
            ))  # fmt: skip
            if not splits[split]["captions"]:
                raise UserError(
                    f"no caption of the split {split!r} is left: every item or caption of it failed; "
                    "`crossreel status` lists them with their reasons"
                )
        keys = {
            "items": [key for split in splits.values() for key in split["items"]],
            "captions": [key for split in splits.values() for key in split["captions"]],
        }  # other units of the corpus would double the request of a small split
        over = {
            need: "captions" if briefing.states[need].stage.over == "captions" else "items"
            for need in self.needs
        }
        rows = {need: briefing.table(need, keys[over[need]]) for need in self.needs}
        return {"splits": splits, "rows": rows, "keeping": self._keeping(briefing, chain(*keys.values()))}

    def keeps(self, fingerprint: Fingerprint) -> tuple[str, Fingerprint]:
        """What packing computes of single items and captions, which does not depend on the splits they are in."""
        name = f"{KEPT}{self.method}"
        parts = {k: v for k, v in fingerprint.components.items() if k not in ("corpus", "left_out")}
        return name, Fingerprint.of(parts | {"stage": name})

    def _keeping(self, briefing: Briefing, keys: Iterable[str]) -> dict[str, Any]:
        """Where that is kept, and which rows of these units are there."""
        name, kept = self.keeps(briefing.states[self.name].fingerprint)
        units = Units(dict.fromkeys(keys))
        places = briefing.store.places_of(name, kept.hex, units)
        table = place_table(
            places, units, lambda segment: briefing.store.segment_path(name, kept.hex, segment)
        )
        return {"stage": name, "fingerprint": kept.hex, "components": dict(kept.components), **table}

    def misfits(self, contents: Contents, states: Mapping[str, State], store: Store) -> Iterator[str]:
        """Sentences about imported features that the method cannot use, each with the shape that it needs.

        Only lengths and widths are read, so that a plan can say it before anything is made.
        """
        inputs = self.params.inputs()
        for name, shape in self.params.shapes().items():
            stage = inputs[name][0]
            setting = f"trainers.{self.method}.{_setting(self.params, stage)} = {stage!r}"
            rows = row_counts(contents, states, store, stage, self._splits)
            odd = _odd(rows, shape.rows)
            if odd:
                yield f"{setting}: {self.method} needs {shape.words}; {odd}" + (
                    f"; {shape.remedy}" if shape.remedy else ""
                )
            widths = [_width(states, each) for each in (stage, inputs.get(shape.same_width_as, ("",))[0])]
            if 0 not in widths and widths[0] != widths[1]:
                yield (
                    f"{setting}: {self.method} needs {shape.words}, as wide as the rows of {shape.same_width_as}; D is "
                    f"{widths[0]} here and {widths[1]} there"
                )

    def decisive(self) -> Mapping[str, Any]:
        """Only the settings that shape the arrays: another learning rate packs nothing again."""
        packs = self.params.marked(PACKS)
        own = {name: value for name, value in super().decisive().items() if name in packs}
        return own | self.params.packed_by()


def _setting(config: MethodConfig, stage: str) -> str:
    """The setting that names a stage of features."""
    return next(
        name
        for name in type(config).model_fields
        if name.endswith("_features") and getattr(config, name) == stage
    )


def row_counts(
    contents: Contents, states: Mapping[str, State], store: Store, stage: str, splits: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Id and number of rows of every item or caption of some splits that has imported features; else nothing."""
    if not stage.startswith(PREFIX) or stage not in states:
        return
    state = states[stage]
    reader = store.reader(stage, state.fingerprint.hex)
    for split in splits:
        if state.stage.over == "captions":
            named = [(caption.id, caption.digest) for _, _, caption in contents.queries(split)]
        else:
            named = [(item.id, digest) for digest, item in contents.gallery(split)]
        for name, key in named:
            if key in state.places and key in reader:
                yield name, reader.length(key, ROW)


def _odd(rows: Iterator[tuple[str, int]], needed: str) -> str:
    """Sentence that names the first item or caption with a wrong number of rows; "" if there is none."""
    first: tuple[str, int] | None = None
    for name, count in rows:
        first = first or (name, count)
        if needed == "one" and count != 1:
            return f"{name!r} has {count} rows"
        if needed == "equal" and count != first[1]:
            return f"{name!r} has {count} rows, {first[0]!r} has {first[1]}"
    return ""


def _width(states: Mapping[str, State], stage: str) -> int:
    """The width D of imported features, and of ours in the space of a CLIP network; 0 where it is not known."""
    if stage not in states:
        return 0
    params = states[stage].stage.params
    if stage.startswith(PREFIX):
        return int(params.dims)
    return int(clip_configs.read(params.model)["embed_dim"]) if stage in CLIP else 0


def _also(contents: Contents, caption: Caption, items: Collection[str]) -> list[str]:
    """The digests of a caption's other right items, of those that are in the gallery."""
    return [key for item in caption.also if (key := contents.digests.get(item, "")) in items]


class Train(Stage[MethodConfig]):
    """A trained method: its best weights, its history, its settings."""

    over = "corpus"
    runner = "trainers.workers:train"
    worker_kind = "model"
    several = True

    def __init__(self, method: Declared, config: MethodConfig) -> None:
        super().__init__(config)
        self.name, self.method, self.declared = f"train-{method.name}", method.name, method
        self.kind = method.config.kind
        self.needs = (f"pack-{method.name}",)

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The method's version, the digest of its initial weights, and what the method's config adds.

        Raises UserError if these weights are evaluated without training, under settings that change the
        network.
        """
        own = {**_version(self.declared), **self.params.identity(known)}
        if not self.params.weights:
            return own
        path = TrainedFolder(Path(self.params.weights)).weights
        if not path.is_file():
            raise UserError(
                f"trainers.{self.method}.weights: there is no {path}; `crossreel import checkpoint` writes it"
            )
        if self.params.epochs == 0:
            for name, (trained, configured) in self._differences().items():
                raise UserError(
                    f"trainers.{self.method}.{name} = {configured!r}, and {self.params.weights} was trained with "
                    f"{trained!r}: no weight shows it, and every score would be of another network"
                )
        return own | {"start": known.file(path)}

    def require(self) -> None:
        """Raise UserError unless a backbone's weights are here; warn of settings unlike those of training."""
        self.params.require()
        for name, (trained, current) in self._differences().items():
            log.warning(
                "trainers.%s.%s = %r, and %s was trained with %r",
                self.method, name, current, self.params.weights, trained,
            )  # fmt: skip

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """Settings that do not show in the initial weights: values in training and present values."""
        folder = TrainedFolder(Path(self.params.weights))
        if not self.params.weights or not folder.finished:
            return {}
        saved, kind = folder.settings.config, type(self.params)
        trained = kind(**{name: value for name, value in saved.items() if name in kind.model_fields})
        before, now = trained.unseen_settings(), self.params.unseen_settings()
        return {name: (before[name], now[name]) for name in now if before.get(name, now[name]) != now[name]}


class Evaluate(Stage[EvaluateParams]):
    """Metrics with intervals, protocol and rankings of a trained method on a split it was not trained on.

    For QB-norm it also needs the training split, whose captions are the query bank.
    """

    version = 4  # items rank groups of captions where the method's paper has them do so
    over = "corpus"
    runner = "trainers.workers:evaluate"
    worker_kind = "model"
    settings = EvaluateParams

    def __init__(self, method: Declared, params: EvaluateParams, packed: str) -> None:
        super().__init__(params)
        self.name, self.method, self.declared = f"evaluate-{method.name}", method.name, method
        self.kind = method.config.kind
        bank = (f"pack-{method.name}",) if "qb_norm" in params.post_processing else ()
        self.needs = tuple(dict.fromkeys((f"train-{method.name}", packed, *bank)))

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The version of the method."""
        return _version(self.declared)

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Facts for the protocol: kind of items, number of captions before failures, published protocol.

        They are not part of the fingerprint, which has the content of the splits.
        """
        corpus, split = briefing.contents.corpus, self.params.split
        facts = {"kind": corpus.kind(split), "queries": sum(1 for _ in corpus.captions(split))}
        protocol = corpus.protocol(split)
        kept = list(briefing.about.get("kept", ()))
        return facts | ({"corpus": protocol} if protocol else {}) | ({"kept": kept} if kept else {})


class Apply(Evaluate):
    """The same of a split of another corpus than the method was trained on.

    A stage of its own, so that its results are never taken for those of the trained corpus.
    """

    def __init__(self, method: Declared, params: EvaluateParams, packed: str) -> None:
        super().__init__(method, params, packed)
        self.name = f"apply-{method.name}"

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Facts for the protocol, with the sentence that says what was applied to what.

        The corpus here has only the items of the split, so that the whole one says which protocol was published.
        """
        protocol = briefing.about.get("protocol")
        told = super().brief(briefing) | {"applied": briefing.about["applied"]}
        return told | ({"corpus": protocol} if protocol else {})


def _version(method: Declared) -> dict[str, int]:
    """Components that the version of a method adds to the fingerprint of each of its stages.

    Version 1 adds none, so that results from the time before methods had versions keep their fingerprint.
    """
    return {METHOD_VERSION: method.version} if method.version > 1 else {}


def stages_of(method: Declared, config: MethodConfig, evaluate: EvaluateParams) -> list[Stage[Any]]:
    """The stages of a method, from packed inputs to metrics."""
    learn = Pack(method, config, LEARN)
    stages: list[Stage[Any]] = [learn]
    packed = learn
    if evaluate.split not in LEARN:
        packed = Pack(method, config, (evaluate.split,), suffix=f"-{evaluate.split}")
        stages.append(packed)
    return [*stages, Train(method, config), Evaluate(method, evaluate, packed.name)]
