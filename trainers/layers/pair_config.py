"""Settings of methods that learn from pairs of a caption and a video, with CLIP fine-tuned or frozen. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from extractors.backbones import clip_configs, weights
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PACKS, PATH, SPEED
from trainers.config import InputShape, TrainingSizes, VideoMethodConfig

CLIP_TEXT = "clip_text"  # the one stage that can store states of padding
USUAL_PIXELS = 224  # side of the pictures, if a network's file does not give it
USUAL_POSITIONS = 77  # token positions, if a network's file does not give them


@dataclass(frozen=True)
class Backbone:
    """The settings that choose CLIP's weights."""

    model: str
    weights: str
    download: bool


class ClipPairConfig(VideoMethodConfig):
    """Settings that CLIP4Clip, GARE and NeighborRetr share; names are those of their releases.

    Mode `finetune` trains CLIP's towers from the pictures of the stage `frames`; mode `frozen` trains what stands
    behind them on the stored features of `clip` and `clip_text`: minutes on a CPU instead of hours on GPUs.
    """

    v2t_rank: ClassVar[Literal["caption_groups", "all_captions"]] = "caption_groups"
    text_output: ClassVar[str]  # the output of `clip_text` that mode frozen reads

    mode: Annotated[Literal["finetune", "frozen"], PACKS] = (
        "finetune"  # finetune: CLIP is trained from pictures; frozen: a head on stored features of `clip`, `clip_text`
    )

    base_encoder: Annotated[str, PATH] = (
        "ViT-B/32"  # OpenAI's name, or any model of open_clip with its own activation
    )
    backbone_weights: Annotated[str, PATH, DIGESTED] = (
        "openai"  # a tag, a file, or seed:N; published: openai. Its digest counts
    )
    backbone_download: Annotated[bool, SPEED] = False  # whether a tag's file may be fetched
    precision: Literal["fp32", "tf32", "bf16", "fp16-legacy"] = "fp32"  # type: ignore[assignment]  # tf32: a GPU's products of 10 bits; bf16: autocast; fp16-legacy: CLIP in float16, as released

    max_words: Annotated[int, PACKS] = Field(32, ge=3)  # tokens with start and end; more are cut
    max_frames: Annotated[int, PACKS] = Field(12, ge=1)  # of a video; a short one has fewer
    video_framerate: Annotated[int, PACKS] = Field(
        1, ge=1
    )  # candidates a second, before max_frames of them are taken
    frame_select: Annotated[Literal["uniform", "head"], PACKS] = "uniform"  # head: the first ones
    augment: bool = True  # RandAugment m7-n4-mstd0.5-inc1 of the training frames, in mode finetune

    batch_size: int = Field(128, ge=2)  # pairs
    batch_size_val: Annotated[int, SPEED] = Field(
        128, ge=1
    )  # captions or videos encoded at a time in evaluation
    coef_lr: float = Field(
        1e-3, gt=0
    )  # CLIP's learning rate as a share of lr; see the page before fp32 or bf16
    weight_decay: float = Field(0.2, ge=0)  # on everything but biases: norms and positions too, as released
    max_grad_norm: float = Field(
        1.0, ge=0
    )  # limit for each tensor by itself, after the global clipping; 0: none
    clip_norm: float = Field(1.0, gt=0)  # limit for all gradients together
    seed: int = Field(42, ge=0)

    @property
    def clip_model(self) -> str:
        """The name of the CLIP network in open_clip."""
        return clip_configs.resolve(self.base_encoder)

    @property
    def backbone(self) -> Backbone:
        """The CLIP network that is fine-tuned."""
        return Backbone(self.clip_model, self.backbone_weights, self.backbone_download)

    def inputs(self) -> dict[str, tuple[str, str]]:
        """Frames as pictures, whose captions it tokenises itself; stored features of both in mode frozen."""
        if self.mode == "finetune":
            return {"video": ("frames", "rgb")}
        times = {"time": (self.video_features, "time")} if self.video_features == "clip" else {}
        text = self.read_output() if self.text_features == CLIP_TEXT else ""
        return {"video": (self.video_features, ""), "text": (self.text_features, text), **times}

    def read_output(self) -> str:
        """The output of `clip_text` that mode frozen reads."""
        return self.text_output

    def shapes(self) -> dict[str, InputShape]:
        """Frames and words of one width, since both lie in the space of one CLIP network.

        A method that reads the one vector of a caption takes no several rows: nothing says which of them it is.
        """
        if self.mode == "finetune":
            return {}
        if self.read_output() == "pooled":
            return {"text": InputShape("one", "(1, D), one vector a caption", same_width_as="video")}
        return {"text": InputShape("any", "(L, D), a row a token", same_width_as="video")}

    def packed_by(self) -> dict[str, Any]:
        """In mode frozen, that the rows of a caption's array are its words; one pooled row never was more."""
        if self.mode == "finetune" or (self.text_features == CLIP_TEXT and self.read_output() == "pooled"):
            return {}
        return {"words": "rows of the array"}

    @classmethod
    def reading(cls, items: str, captions: str, ragged: bool) -> dict[str, Any]:
        """Imported features are read in mode frozen."""
        return {"mode": "frozen", **super().reading(items, captions, ragged)}

    def wishes(self) -> dict[str, dict[str, Any]]:
        """The method's frames, at the size that the CLIP network reads."""
        if self.mode == "frozen":
            return {}
        size = clip_configs.read(self.clip_model)["vision_cfg"].get("image_size", USUAL_PIXELS)
        chosen = {"rate": self.video_framerate, "select": self.frame_select, "count": self.max_frames}
        return {"frames": {**chosen, "size": size}}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of CLIP's weights where they are the start of what is trained."""
        return {"backbone": weights.identity(self.backbone, known)} if self._starts_from_clip else {}

    def require(self) -> None:
        """CLIP's weights."""
        if self._starts_from_clip:
            weights.require(self.backbone)

    def unsuited(self, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
        """Also a split without two pairs, and more words than the CLIP network has positions for."""
        yield from super().unsuited(sizes)
        if self.epochs and sizes.pairs < 2:
            yield (
                "batch_size",
                f"it learns from pairs, and the split 'train' has {sizes.pairs}; two are needed",
            )
        if self.mode == "finetune" and self._word_slots(sizes) > (most := self.positions):
            yield "max_words", f"{self.base_encoder} has positions for {most} tokens; lower it to {most}"

    def _word_slots(self, sizes: TrainingSizes) -> int:
        """The fewest slots of the longest batch of captions: a token for each word, with start and end."""
        return min(self.max_words, sizes.words + 2)

    @property
    def positions(self) -> int:
        """Number of positions of the text tower of the CLIP network, which frames share where they have positions."""
        text = clip_configs.read(self.clip_model)["text_cfg"]
        return int(text.get("context_length", USUAL_POSITIONS))

    def _too_many_frames(self) -> Iterator[tuple[str, str]]:
        """The frames of a head with positions, where CLIP is trained and has fewer."""
        if self.mode == "finetune" and self.max_frames > (most := self.positions):
            yield "max_frames", f"{self.base_encoder} has positions for {most}; lower it to {most}"

    def unseen_settings(self) -> dict[str, Any]:
        """Also the network where it is trained: its activation shows in no weight."""
        own = super().unseen_settings()
        return own | ({"base_encoder": self.clip_model} if self.mode == "finetune" else {})

    def to_be_filled(self) -> Self:
        """With a backbone of any weights, since all of them will be replaced: none need be on this machine."""
        return self.model_copy(update={"backbone_weights": "seed:0"})

    @property
    def _starts_from_clip(self) -> bool:
        return self.mode == "finetune" and not self.weights
