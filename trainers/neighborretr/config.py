"""Settings of NeighborRetr. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.settings import UNSEEN
from trainers.config import TrainingSizes
from trainers.layers.pair_config import ClipPairConfig
from trainers.recipes import from_preset

Ratios = tuple[float, float]

BESIDES = 3  # a batch holds a pair, its neighbours and two others at least: their spread is the unit of N


class NeighborRetrConfig(ClipPairConfig):
    """NeighborRetr's settings, with the defaults of MSR-VTT; recipes.toml has those of each published data set."""

    text_output: ClassVar[str] = "projected"  # states of the tokens in the space of the frames

    max_words: int = Field(24, ge=3)  # tokens with start and end; more are cut
    max_frames: int = Field(12, ge=3)
    augment: bool = True  # RandAugment m7-n4-mstd0.5-inc1 of the training frames

    temporal_layers: int = Field(4, ge=0)  # blocks that mix the frames in time
    train_token_embedding: bool = True  # meant to be frozen in the release, but trained

    text_ratios: Annotated[Ratios, UNSEEN] = (1 / 6, 1 / 4)  # clusters a token, of both stages
    video_ratios: Annotated[Ratios, UNSEEN] = (1 / 4, 1 / 3)  # clusters a frame, of both stages
    knn: Annotated[int, UNSEEN] = Field(
        3, ge=1, validate_default=True
    )  # nearest tokens that make a token's density
    cluster_heads: Annotated[int, UNSEEN] = Field(8, ge=1)  # attention heads between clusters and tokens
    density_noise: bool = True  # U(0, 1e-6), which alone orders the clusters of two equally dense tokens
    mask_mode: Annotated[Literal["zero", "neg_inf"], UNSEEN] = (
        "zero"  # score of padding in the maxima; published: zero
    )
    global_similarity: Literal["dot", "cosine"] = "dot"  # published: dot, which lets U dominate at the start
    unused_nets: bool = False  # carry the nets that the release creates and that change no score

    centrality_scale: float = 0.3  # of the centrality in the weights of the loss
    beta: float = Field(0.7, ge=0, le=1)  # share of the transport plan in the targets of U
    ot_scale: float = Field(3.0, gt=0)  # temperature of U; the release uses `temperature` here
    temperature: float = Field(3.0, gt=0)  # temperature of the neighbours' weights
    num_neighbors: int = Field(
        20, ge=1, validate_default=True
    )  # nearest of the batch that a pair is drawn to
    sinkhorn_iters: int = Field(50, ge=1)  # iterations of the transport plan
    centrality_weight: float = Field(1.0, ge=0)  # of the loss weighted by centrality
    uniform_weight: float = Field(1.0, ge=0)  # of the loss towards the transport plan
    neighbor_weight: float = Field(1.0, ge=0)  # of the loss of the nearest neighbours
    kl_weight: float = Field(1.0, ge=0)  # of the divergence of token-wise from global scores

    bank_size: int = Field(480, ge=1)  # published: 15 batches of one process
    carry_over: bool = True  # keep the bank between epochs; the release empties it and encodes it anew
    gather_grad: Literal["sum", "local"] = (
        "sum"  # local: CLIP's gradient divided by the processes, as released
    )

    epochs: int = Field(5, ge=0)
    lr: float = Field(1e-4, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)  # share of all updates in which the rate rises

    @model_validator(mode="before")
    @classmethod
    def _read_preset(cls, data: Any) -> Any:
        return from_preset("neighborretr", data)

    def decisive(self) -> dict[str, Any]:
        """With the preset that every fingerprint had once, so that what was trained by it need not be trained again."""
        return super().decisive() | {"preset": "msrvtt"}

    @field_validator("text_ratios", "video_ratios")
    @classmethod
    def _are_shares(cls, value: Ratios) -> Ratios:
        if not all(0 < share <= 1 for share in value):
            raise ValueError(f"both shares must be over 0 and at most 1, not {value}")
        return value

    @field_validator("knn")
    @classmethod
    def _has_that_many_tokens(cls, value: int, info: ValidationInfo) -> int:
        for name in ("max_words", "max_frames"):
            if value > info.data.get(name, value):
                raise ValueError(
                    f"clustering {info.data[name]} tokens cannot take {value} nearest ones; "
                    f"raise {name} to {value} or lower knn to {info.data[name]}"
                )
        return value

    @field_validator("num_neighbors")
    @classmethod
    def _leaves_others_in_the_batch(cls, value: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch_size", value + BESIDES)
        if batch < value + BESIDES:
            raise ValueError(
                f"a batch of {batch} pairs is too small for {value} neighbours: "
                f"raise batch_size to {value + BESIDES} or lower num_neighbors to {max(batch - BESIDES, 0)}"
            )
        return value

    @classmethod
    def fitted(cls, settings: Mapping[str, Any], there: int) -> dict[str, Any]:
        """Also fewer neighbours than the pairs of a batch."""
        out = super().fitted(settings, there)
        return out | {"num_neighbors": max(1, min(out["num_neighbors"], out["batch_size"] - BESIDES))}

    def unsuited(self, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
        """Also more neighbours than the pairs of a batch: the split may have fewer pairs than `batch_size`."""
        yield from super().unsuited(sizes)
        pairs = min(self.batch_size, sizes.pairs)
        if not self.epochs or pairs >= self.num_neighbors + BESIDES:
            return
        remedy = f"lower it to {pairs - BESIDES}" if pairs > BESIDES else f"one needs {1 + BESIDES} pairs"
        yield (
            "num_neighbors",
            f"a batch of {pairs} pairs is too small for it, which takes {self.num_neighbors + BESIDES} "
            f"(trainers.neighborretr.batch_size = {self.batch_size}, 'train' has {sizes.pairs} pairs); {remedy}",
        )

    def _word_slots(self, sizes: TrainingSizes) -> int:
        """Every batch of captions has `max_words` slots, as the bank needs them."""
        return self.max_words
