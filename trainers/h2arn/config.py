"""Settings of H2ARN. Importing it imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.settings import PACKS, SPEED, UNSEEN
from trainers.config import InputShape, MethodConfig

TOKENS = 77  # positions of a caption, of CLIP and of BERT, with the special ones


class H2arnConfig(MethodConfig):
    """H2ARN's settings; recipes.toml has the published ones.

    Names are those of the release; settings that it does not have are under "ours".
    """

    kind: ClassVar[str] = "pointcloud"

    cloud_features: Annotated[str, PACKS] = (
        "dgcnn"  # the stage whose rows are the tokens of a cloud: pointnet, pointnet2, import-...
    )

    d_model: int = Field(512, ge=1)  # width of the attention blocks
    nhead: Annotated[int, UNSEEN] = Field(64, ge=1, validate_default=True)  # attention heads of a block
    num_layers: int = Field(6, ge=1)  # attention blocks of each side
    dropout: float = Field(0.1, ge=0, lt=1)  # in the attention blocks
    hyperbolic_c: float = Field(1.0, gt=0)  # initial value of c; the value in use is clamped to [0.1, 10]
    loss_temp: float = Field(0.07, gt=0)  # temperature of the contrastive loss, not learned
    loss_lambda: float = Field(0.2, ge=0)  # weight of the entailment; 0: ablation without it
    K: float = Field(0.1, gt=0)  # a caption nearer to the origin than about 2K has a half space for a cone
    warmup_ratio: float = Field(0.1, ge=0, lt=1)  # share of all updates; the rate then falls in a line to 0

    epochs: int = Field(100, ge=0)
    batch_size: int = Field(256, ge=1)  # captions a step, each with its cloud
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)  # on every parameter, scalars and norms too, as released
    clip_norm: float | None = Field(1.0, gt=0)  # limit of the norm of all gradients together
    patience: int = Field(100, ge=0)  # all epochs are trained, and the best one is kept

    # ours
    geometry: Annotated[Literal["lorentz", "euclidean"], UNSEEN] = (
        "lorentz"  # euclidean: ablation, cosines instead of Lorentz products
    )
    lift: Annotated[Literal["time", "exponential"], UNSEEN] = (
        "time"  # released, or the paper's map at the origin
    )
    similarity: Annotated[Literal["inner", "distance"], UNSEEN] = (
        "inner"  # released, or the paper's negative distance
    )
    aggregation: Annotated[Literal["contribution", "mean"], UNSEEN] = "contribution"  # mean: ablation
    temperature: Annotated[Literal["learnable", "none"], UNSEEN] = (
        "learnable"  # temperature of the aggregation; learnable: as released, none: as the paper prints it
    )
    mask_padding: Annotated[bool, PACKS, UNSEEN] = (
        False  # released: the padding of a caption takes part in everything
    )
    eval_batch: Annotated[int, SPEED] = Field(64, ge=1)  # captions or clouds encoded at a time in evaluation

    def inputs(self) -> dict[str, tuple[str, str]]:
        """Tokens of clouds and of captions."""
        return {"cloud": (self.cloud_features, ""), **super().inputs()}

    def shapes(self) -> dict[str, InputShape]:
        """As many tokens for every cloud, and for every caption unless padding is masked."""
        clouds = InputShape("equal", "(P, D) with as many rows P for every cloud")
        if self.mask_padding:
            return {"cloud": clouds}
        words = f"(L, D) with as many rows L for every caption, {TOKENS} in the release"
        remedy = "trainers.h2arn.mask_padding = true takes captions of different lengths"
        return {"cloud": clouds, "text": InputShape("equal", words, remedy=remedy)}

    @classmethod
    def reading(cls, items: str, captions: str, ragged: bool) -> dict[str, Any]:
        """Features of clouds and captions, padding masked where captions have different lengths."""
        masked = {"mask_padding": True} if ragged else {}
        clouds = {"cloud_features": items} if items else {}
        return clouds | super().reading(items, captions, ragged) | masked

    def wishes(self) -> dict[str, dict[str, Any]]:
        """Captions of 77 positions with their padding, which CLIP masks; only the real ones if padding is masked."""
        pad = not self.mask_padding
        if self.text_features == "clip_text":
            masked = {"padding": "masked"} if pad else {}
            return {"clip_text": {"pad": pad, "max_tokens": TOKENS, **masked}}
        if self.text_features == "bert":
            return {"bert": {"pad": pad, "max_tokens": TOKENS}}
        return {}

    @field_validator("nhead")
    @classmethod
    def _divides_the_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("d_model", 0)
        if width % value:
            raise ValueError(f"d_model, {width}, must be divisible by it")
        return value

    @field_validator("geometry")
    @classmethod
    def _has_cones(cls, value: str, info: ValidationInfo) -> str:
        if value == "euclidean" and info.data.get("loss_lambda", 0) > 0:
            raise ValueError(
                "there are no cones of entailment without hyperbolic space: set loss_lambda to 0"
            )
        return value

    @field_validator("similarity", "lift")
    @classmethod
    def _is_of_the_geometry(cls, value: str, info: ValidationInfo) -> str:
        usual = cls.model_fields[str(info.field_name)].default
        if info.data.get("geometry") == "euclidean" and value != usual:
            raise ValueError(f"it is a choice of geometry = 'lorentz' alone; possible here: {usual!r}")
        return value
