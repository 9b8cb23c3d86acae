"""Settings that every method has: its input features and its training recipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, FILLS, PACKS, PATH, UNSEEN, Params
from trainers import compiler


@dataclass(frozen=True)
class InputShape:
    """The shape that a method needs of the features of an item or caption, rows (T, D).

    rows: "any" number, "one", or the same number for all ("equal"). words: phrase for the shape in an error.
    same_width_as: name of the input that must have the same D, "" if there is none. remedy: advice on
    settings.
    """

    rows: Literal["any", "one", "equal"]
    words: str
    same_width_as: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class TrainingSizes:
    """Number of pairs (captions) and of items in the split `train`, and of processes that share a batch.

    `words` is the largest number of words of a caption of the corpus, between spaces: it has as many tokens at least.
    `device` is "cpu" or "cuda".
    """

    pairs: int
    items: int
    processes: int = 1
    words: int = 0
    device: str = "cpu"


FIGURE = ("select_by", "select_direction", "validation_captions")

Selection = Literal["SumR", "R@1", "R@5", "R@10", "R@1+5+10", "MRR", "RSUM"]
"""The figure of the validation split that chooses the epoch; RSUM is of both directions, the others of one."""


class Recipe(Params):
    """How a method is trained; a method's own config has its own defaults."""

    epochs: int = Field(100, ge=0)  # passes over the training captions; 0: keep the weights it starts from
    batch_size: int = Field(128, ge=1)  # items a step, over all processes
    accumulate: int = Field(1, ge=1)  # steps whose gradients are added before an update
    lr: float = Field(1e-4, gt=0)  # learning rate; of CLIP, where it is trained, lr x coef_lr
    clip_norm: float | None = Field(
        None, gt=0
    )  # limit of the norm of all gradients together; None: no such clipping
    seed: int = Field(0, ge=0)  # of weights, batches and dropout
    precision: Literal["fp32", "tf32", "bf16"] = (
        "fp32"  # tf32: a GPU's products of 10 bits; bf16: autocast, master weights stay float32
    )
    compile: bool = False  # losses by torch's compiler: minutes for each shape of batch; seldom pays on a CPU
    patience: int = Field(10, ge=0)  # epochs without a better validation figure before stopping
    select_by: Selection = "SumR"  # validation figure whose best epoch is kept, and that `patience` watches
    select_direction: Literal["t2v", "v2t"] = "t2v"  # the direction of that figure; RSUM is of both
    validation_captions: int = Field(
        0, ge=0
    )  # captions of the validation split, drawn once by the seed, that choose the epoch; 0: all

    @property
    def figure(self) -> str:
        """What the validation figure is called in histories and curves: "SumR", "v2t R@1", "RSUM"."""
        one_direction = self.select_direction == "v2t" and self.select_by != "RSUM"
        return f"v2t {self.select_by}" if one_direction else self.select_by

    def decisive(self) -> dict[str, Any]:
        """Also, where they are not the usual ones, `compile` and what chooses the epoch: figure, direction, captions.

        A usual one adds nothing, so that trainings from the time before these settings keep their fingerprint. Compiled
        losses round differently and draw other dropout, as other precisions do.
        """
        usual = {name: Recipe.model_fields[name].default for name in (*FIGURE, "compile")}
        if self.select_by == "RSUM":
            usual["select_direction"] = self.select_direction
        return {name: v for name, v in super().decisive().items() if name not in usual or usual[name] != v}


class MethodConfig(Recipe):
    """Base of every method's config: the stages it reads, and the settings of its inputs.

    `kind` is that of the items it ranks; `directions` are the rankings that its task measures; `v2t_rank` is the
    convention of its published item-to-text figures (`trainers.measure.group_ranks`). A setting that
    shapes the packed inputs is marked PACKS in its annotation, and one that changes only speed is marked
    SPEED (`pipeline.settings.Role`). A setting that changes the scores of trained weights but does not show
    in the weights is marked UNSEEN.
    """

    recipe: Annotated[str, FILLS] = (
        ""  # the published experiment that gives all settings which are not set; "": that of the corpus; "none"
    )
    trajectory: Annotated[Literal["release", "stable"], FILLS] = (
        "release"  # which settings of a recipe: the authors' (float16 towers), or those that we recommend instead
    )

    text_features: Annotated[str, PACKS] = "clip_text"  # the stage whose rows are the tokens of a caption

    weights: Annotated[str, PATH, DIGESTED] = (
        ""  # a folder that `crossreel import checkpoint` wrote, to start from; else random
    )

    kind: ClassVar[str] = "video"
    directions: ClassVar[tuple[str, ...]] = ("t2v", "v2t")
    v2t_rank: ClassVar[Literal["caption_groups", "all_captions"]] = "all_captions"
    batch_of: ClassVar[Literal["captions", "items"]] = "captions"  # what batch_size counts

    def inputs(self) -> dict[str, tuple[str, str]]:
        """Extraction stage and output ("": the stage's first) of each input, by the method's name for it."""
        return {"text": (self.text_features, "")}

    def shapes(self) -> dict[str, InputShape]:
        """Required shapes of inputs, by the names of `inputs`; an input without one may have any shape."""
        return {}

    @classmethod
    def completed(cls, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
        """The `given` settings with a recipe's for all others. A method leaves out those that do not go with them."""
        return {**recipe, **given}

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], there: int) -> dict[str, Any]:
        """These settings with sizes that a training split with `there` of what a batch counts can fill."""
        size = settings.get("batch_size", there)
        return {**settings, "batch_size": there} if size > there >= 1 else dict(settings)

    def packed_by(self) -> dict[str, Any]:
        """Additions to the fingerprint of packed inputs, for a change in how features are packed."""
        return {}

    @classmethod
    def reading(cls, items: str, captions: str, ragged: bool) -> dict[str, Any]:
        """Settings for reading the features of two stages; "" leaves a side at its default.

        ragged: whether the captions' arrays have different numbers of rows.
        """
        return {"text_features": captions} if captions else {}

    def features(self) -> tuple[str, ...]:
        """The extraction stages whose outputs it reads."""
        return tuple(dict.fromkeys(stage for stage, _ in self.inputs().values()))

    def wishes(self) -> dict[str, dict[str, Any]]:
        """Settings of extraction stages that its inputs need, by stage; what the experiment sets wins."""
        return {}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """Additions to the fingerprint of trained weights, such as a backbone's digest. Plain data."""
        return {}

    def require(self) -> None:
        """Raise UserError unless the initial weights of training (a backbone's) are on this machine."""

    def unsuited(self, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
        """Yield the name of each setting that the corpus or the run leaves no room for, and the reason with a remedy.

        A run asks before any work; no item is known to have failed then, so that sizes are the largest possible.
        """
        if self.epochs and self.batch_size < sizes.processes:
            yield (
                "batch_size",
                f"a batch cannot be shared by {sizes.processes} processes (run.processes times run.nodes); "
                f"raise it to {sizes.processes} at least",
            )
        if self.epochs and self.compile:
            yield from (("compile", reason) for reason in compiler.reasons(sizes.processes, sizes.device))

    def unseen_settings(self) -> dict[str, Any]:
        """The settings, as plain data, that weights must have been trained with and do not show."""
        return self.model_dump(mode="json", include=set(self.marked(UNSEEN)))

    def to_be_filled(self) -> Self:
        """The settings of a network whose weights will all be replaced by trained ones."""
        return self


class VideoMethodConfig(MethodConfig):
    """Base of the configs of methods that rank videos."""

    video_features: Annotated[str, PACKS] = "clip"  # the stage whose rows are the frames of a video

    def inputs(self) -> dict[str, tuple[str, str]]:
        """Rows of videos and of captions."""
        return {"video": (self.video_features, ""), **super().inputs()}

    @classmethod
    def reading(cls, items: str, captions: str, ragged: bool) -> dict[str, Any]:
        """Features of videos and captions."""
        return ({"video_features": items} if items else {}) | super().reading(items, captions, ragged)
