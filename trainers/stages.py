"""The three stages of a method: pack its inputs, train it, evaluate it. Declarations only, no torch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Caption
from pipeline.errors import UserError
from pipeline.run.plan import left_out
from pipeline.run.stage import Briefing, Digests, Stage
from pipeline.settings import PACKS, SPEED, Params
from pipeline.store.fingerprint import METHOD_VERSION
from trainers.config import MethodConfig
from trainers.contract import RetrievalMethod
from trainers.loop.trained import TrainedFolder

LEARN = ("train", "val")

log = logging.getLogger(__name__)

Declared = RetrievalMethod[Any]

PostProcessing = Literal["dual_softmax", "qb_norm", "sinkhorn"]


class DualSoftmaxParams(Params):
    """Of the prior that scores are multiplied by."""

    beta: float = Field(100.0, gt=0)  # CLIP's logit scale, on cosines; other scores may need another


class QbNormParams(Params):
    """Of the dynamic inverted softmax."""

    beta: float = Field(20.0, gt=0)  # inverse temperature (Bogolin et al., for all models but one)
    k: int = Field(1, ge=1)  # first places of a bank query whose members are active (Bogolin et al.)


class SinkhornParams(Params):
    """Of the row and column normalisations."""

    beta: float = Field(100.0, gt=0)  # as for the dual softmax
    iterations: int = Field(10, ge=1)  # of both normalisations; a pass over all scores each


class EvaluateParams(Params):
    """What is measured, on which split."""

    split: str = "test"
    directions: Literal["auto", "t2v", "v2t", "both"] = "auto"  # auto: those of the method's task
    seed: int = Field(0, ge=0)  # of the bootstrap
    rerank: int = Field(0, ge=0)  # items of a caption that are truly scored, chosen by cheap scores; 0: all
    memory_mb: Annotated[int, SPEED] = Field(1024, ge=16)  # bounds the blocks of scores; changes no number
    post_processing: tuple[PostProcessing, ...] = ()  # of the scores, reported beside the raw figures
    dual_softmax: DualSoftmaxParams = DualSoftmaxParams()
    qb_norm: QbNormParams = QbNormParams()
    sinkhorn: SinkhornParams = SinkhornParams()

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
        """Only options that are asked for count: what was made before there were any keeps its fingerprint."""
        options = {*get_args(PostProcessing)} - {*self.post_processing}
        if not self.post_processing:
            options.add("post_processing")
        return {key: value for key, value in super().decisive().items() if key not in options}


class Pack(Stage[MethodConfig]):
    """A method's inputs of some splits as contiguous arrays, read from the store once."""

    over = "corpus"
    runner = "trainers.workers:pack"

    def __init__(
        self, method: Declared, config: MethodConfig, splits: tuple[str, ...], suffix: str = ""
    ) -> None:
        super().__init__(config)
        self.name, self.method, self.declared = f"pack-{method.name}{suffix}", method.name, method
        self.needs, self._splits = config.features(), splits

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The version of the method."""
        return _version(self.declared)

    def splits(self) -> tuple[str, ...]:
        """The splits it packs."""
        return self._splits

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Who is in each split, and in which row of which segment each feature is."""
        contents = briefing.contents
        out = left_out(briefing.states[need] for need in self.needs)
        splits = {}
        for split in self._splits:
            contents.corpus.require_queries(split)
            items = {digest for digest, _ in contents.gallery(split)} - out
            captions = [
                {
                    "key": caption.digest,
                    "item": digest,
                    "text": caption.text,
                    "also": _also(contents, caption, items),
                }
                for digest, _, caption in contents.queries(split)
                if digest in items and caption.digest not in out
            ]
            if not captions:
                raise UserError(
                    f"no caption of the split {split!r} is left: every item or caption of it failed; "
                    "`crossreel status` lists them with their reasons"
                )
            order = [digest for digest, _ in contents.gallery(split) if digest in items]
            splits[split] = {"items": list(dict.fromkeys(order)), "captions": captions}
        return {"splits": splits, "rows": {need: briefing.where(need) for need in self.needs}}

    def decisive(self) -> Mapping[str, Any]:
        """Only the settings that shape the arrays: another learning rate packs nothing again."""
        packs = self.params.marked(PACKS)
        return {name: value for name, value in super().decisive().items() if name in packs}


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
        self.needs = (f"pack-{method.name}",)

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The method's version, the digest of the weights it starts from, and what the method's config adds.

        Raises UserError if these weights are evaluated as they are, with settings that make another network of them.
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
            for name, (trained, wanted) in self._differences().items():
                raise UserError(
                    f"trainers.{self.method}.{name} = {wanted!r}, and {self.params.weights} was trained with "
                    f"{trained!r}: no weight shows it, and every score would be of another network"
                )
        return own | {"start": known.file(path)}

    def require(self) -> None:
        """What training starts from. Weights that were trained with other settings are one warning each."""
        self.params.require()
        for name, (trained, wanted) in self._differences().items():
            log.warning(
                "trainers.%s.%s = %r, and %s was trained with %r",
                self.method, name, wanted, self.params.weights, trained,
            )  # fmt: skip

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        """What the weights it starts from were trained with and what is set, of what no weight shows."""
        folder = TrainedFolder(Path(self.params.weights))
        if not self.params.weights or not folder.finished:
            return {}
        saved, kind = folder.settings.config, type(self.params)
        trained = kind(**{name: value for name, value in saved.items() if name in kind.model_fields})
        before, now = trained.unseen_settings(), self.params.unseen_settings()
        return {name: (before[name], now[name]) for name in now if before.get(name, now[name]) != now[name]}


class Evaluate(Stage[EvaluateParams]):
    """Metrics with intervals, protocol and rankings of a trained method on a split it has not seen.

    It needs what the method learned from, too, where QB-norm makes a bank of it.
    """

    version = 2  # it stores what carried the matches of every method
    over = "corpus"
    runner = "trainers.workers:evaluate"
    worker_kind = "model"
    settings = EvaluateParams

    def __init__(self, method: Declared, params: EvaluateParams, packed: str) -> None:
        super().__init__(params)
        self.name, self.method, self.declared = f"evaluate-{method.name}", method.name, method
        bank = (f"pack-{method.name}",) if "qb_norm" in params.post_processing else ()
        self.needs = tuple(dict.fromkeys((f"train-{method.name}", packed, *bank)))

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The version of the method."""
        return _version(self.declared)

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """What the protocol quotes: the kind of items, the captions before any failed, the published protocol.

        It is no part of the fingerprint: the splits' content is.
        """
        corpus, split = briefing.contents.corpus, self.params.split
        told = {"kind": corpus.kind(split), "queries": sum(1 for _ in corpus.captions(split))}
        protocol = corpus.protocol(split)
        return told | ({"corpus": protocol} if protocol else {})


def _version(method: Declared) -> dict[str, int]:
    """What the version of a method adds to the fingerprint of each of its stages.

    Version 1 adds nothing: methods had no version once, and what was made then keeps its fingerprint.
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
