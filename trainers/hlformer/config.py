"""Settings of HLFormer. Importing it imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.settings import PACKS, SPEED, UNSEEN
from trainers.config import VideoMethodConfig
from trainers.recipes import from_preset


class HLFormerConfig(VideoMethodConfig):
    """HLFormer's settings, with the defaults of TVR; recipes.toml has those of each published data set."""

    directions: ClassVar[tuple[str, ...]] = ("t2v",)  # the task asks which video holds a moment
    batch_of: ClassVar[Literal["captions", "items"]] = "items"  # a video with all its captions

    map_size: Annotated[int, PACKS] = Field(32, ge=2)  # clips a video is pooled to
    max_ctx_l: Annotated[int, PACKS] = Field(
        128, ge=2, validate_default=True
    )  # frames: more are pooled to it, fewer padded
    max_desc_l: Annotated[int, PACKS] = Field(30, ge=1)  # tokens kept of a caption

    hidden_size: int = Field(384, ge=1)  # width of all blocks
    heads: Annotated[int, UNSEEN] = Field(4, ge=1, validate_default=True)  # attention heads of a block
    lorentz_dim: int = Field(
        127, ge=1, validate_default=True
    )  # points have one coordinate more, shared by the heads
    blocks: int = Field(8, ge=2)  # half of them Euclidean, half Lorentz; a published act run had 6
    window: Annotated[Literal["multiply", "additive"], UNSEEN] = (
        "multiply"  # additive: log-window added, which is local
    )
    tau: Annotated[float, UNSEEN] = Field(0.09, gt=0)  # temperature of the aggregation of blocks
    input_dropout: float = Field(0.20, ge=0, lt=1)  # of the features
    dropout: float = Field(0.20, ge=0, lt=1)  # in the blocks
    init_std: float = Field(0.02, gt=0)  # of the initial weights
    curvature: float = Field(1.0, gt=0)  # c of the partial-order loss at the start; kept within 10x of it
    learn_curvature: bool = True  # whether c is trained

    clip_nce_weight: float = Field(0.05, ge=0)  # of the contrastive loss of clips
    frame_nce_weight: float = Field(0.04, ge=0)  # of the contrastive loss of whole videos
    diversity_weight: float = Field(8e-5, ge=0)  # of the loss that pushes captions of one video apart
    partial_order_weight: float = Field(
        1e-3, ge=0
    )  # of the loss by which a caption lies in the cone of its video
    margin: float = Field(0.1, ge=0)  # of the triplet losses
    mu: float = 0.15  # captions of one video are pushed apart above a cosine of -mu
    diversity_scale: float = Field(32.0, gt=0)  # steepness of the diversity loss
    diversity_power: float = Field(1.0, ge=0)  # exponent of the diversity loss
    hard_from_epoch: int = Field(20, ge=0)  # from which hard negatives are drawn
    hard_pool_size: int = Field(20, ge=1)  # best-scoring negative videos from which a hard one is drawn

    clip_weight: float = Field(0.7, ge=0)  # shares of the clip and the frame score in evaluation
    frame_weight: float = Field(0.3, ge=0)  # share of the frame score in evaluation
    item_batch: Annotated[int, SPEED] = Field(
        100, ge=1
    )  # videos and captions encoded at a time in evaluation
    text_batch: Annotated[int, SPEED] = Field(50, ge=1)  # captions encoded at a time in evaluation

    lr: float = Field(3e-4, gt=0)
    schedule: Literal["linear", "cosine"] = "linear"  # how the rate falls after the warm-up
    warmup: float = Field(0.01, ge=0, lt=1)  # share of all updates: one epoch of the published 100
    weight_decay: float = Field(0.01, ge=0)  # not on biases and LayerNorm.weight, but on norm1 and norm2
    max_grad_norm: float = Field(1.0, ge=0)  # limit of the gradient norm of each tensor; 0: no clipping

    @model_validator(mode="before")
    @classmethod
    def _read_preset(cls, data: Any) -> Any:
        return from_preset("hlformer", data)

    def decisive(self) -> dict[str, Any]:
        """With the preset that every fingerprint had once, so that what was trained by it need not be trained again."""
        return super().decisive() | {"preset": "tvr"}

    @field_validator("max_ctx_l")
    @classmethod
    def _holds_the_clips(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("map_size", 0):
            raise ValueError(f"it must be at least map_size, {info.data['map_size']}: they share positions")
        return value

    @field_validator("heads")
    @classmethod
    def _divides_the_hidden_size(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("hidden_size", 0) % value:
            raise ValueError(f"hidden_size, {info.data['hidden_size']}, must be divisible by it")
        return value

    @field_validator("lorentz_dim")
    @classmethod
    def _divides_among_heads(cls, value: int, info: ValidationInfo) -> int:
        heads = info.data.get("heads", 1)
        if (value + 1) % heads or value + 1 < 2 * heads:
            raise ValueError(
                f"one more than it must be divisible by heads, {heads}, with two or more coordinates each"
            )
        return value

    @field_validator("blocks")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it must be even: half Euclidean, half Lorentz")
        return value
