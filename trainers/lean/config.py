"""Settings of LEAN. Importing it imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipeline.settings import PACKS, SPEED, UNSEEN
from trainers.config import VideoMethodConfig

Nodes = Literal["triples", "entities", "sentence"]
Edge = Literal["global", "visual", "text", "cross"]

IMPORTED = "import-"  # how the stages of imported features are called


class LeanConfig(VideoMethodConfig):
    """LEAN's settings. The defaults are the paper's, or chosen where it is silent: docs/methods/lean.md."""

    v2t_rank: ClassVar[Literal["caption_groups", "all_captions"]] = "caption_groups"

    video_features: str = Field("vgg16", validate_default=True)  # one row a key frame
    text_features: str = Field("bert", validate_default=True)  # one row a token, and the tokens' places
    keyframes: Annotated[str, PACKS] = Field(
        "keyframes", validate_default=True
    )  # names the top frames; "": the rows tell them
    triples: Annotated[str, PACKS] = "triples"  # the stage that says which tokens belong to a triple

    nodes: Annotated[Nodes, PACKS, UNSEEN] = Field(
        "triples", validate_default=True
    )  # figure 3: triples are best
    frames: Annotated[int, PACKS] = Field(10, ge=1)  # m; figure 4 is flat beyond
    top: Annotated[int, PACKS] = Field(3, ge=1)  # frames of the visual hyperedge
    max_triples: Annotated[int, PACKS] = Field(8, ge=1)  # text nodes kept of a caption
    standardise: Annotated[bool, UNSEEN] = (
        False  # each dimension of both inputs, by the training split; the paper names nothing
    )

    hidden: int = Field(512, ge=1)  # width of the nodes
    latent: int = Field(512, ge=1)  # size of a node's distribution
    attention_hidden: int = Field(64, ge=1)  # width h of the attention over hyperedges
    layers: int = Field(2, ge=1)  # searched 1 to 10
    layer: Literal["lean", "hgnn", "gcn", "gat"] = "lean"  # others: the networks that LEAN's layer replaces
    gamma: float = 0.1  # at the start

    hypergraph: Annotated[bool, UNSEEN] = True  # ablations, table 3
    variational: Annotated[bool, UNSEEN] = True  # false: nodes are points, not distributions (ablation)
    without: Annotated[tuple[Edge, ...], UNSEEN] = ()  # kinds of hyperedges that are removed (ablation)

    v2t_weight: float = Field(0.5, ge=0)  # of the loss in which videos choose captions
    t2v_weight: float = Field(0.5, ge=0)  # of that in which captions choose videos
    kl_weight: float = Field(0.6, ge=0)  # of the divergence of the nodes from a normal distribution

    epochs: int = Field(30, ge=0)
    batch_size: int = Field(16, ge=1)  # pairs a step; every caption of the batch meets every video
    lr: float = Field(3e-5, gt=0)  # searched 1e-5 to 6e-5
    weight_decay: float = Field(0.01, ge=0)  # of AdamW
    patience: int = Field(30, ge=0)  # all epochs are trained, and the best one is tested
    validation_captions: int = Field(
        500, ge=0
    )  # all pairs of a large split would cost more than the epoch; 0, the paper's: all captions
    item_batch: Annotated[int, SPEED] = Field(256, ge=1)  # videos or captions encoded at a time in evaluation

    def inputs(self) -> dict[str, tuple[str, str]]:
        """Rows of frames and tokens; under some settings also top frames, token places and triple spans."""
        inputs_by_name = {"frame": (self.video_features, ""), "token": (self.text_features, "")}
        if self.keyframes:
            inputs_by_name["top"] = (self.keyframes, "top")
        if not self.text_features.startswith(IMPORTED):
            inputs_by_name["offset"] = (self.text_features, "offset")
        if self.nodes != "sentence":
            inputs_by_name["span"] = (self.triples, "span")
        return inputs_by_name

    @classmethod
    def reading(cls, items: str, captions: str, ragged: bool) -> dict[str, Any]:
        """Imported frames are their own key frames, imported tokens have no places to find triples by."""
        frames = {"keyframes": ""} if items.startswith(IMPORTED) else {}
        nodes = {"nodes": "sentence"} if captions.startswith(IMPORTED) else {}
        return super().reading(items, captions, ragged) | frames | nodes

    def wishes(self) -> dict[str, dict[str, Any]]:
        """As many key frames as it takes."""
        return {self.keyframes: {"count": self.frames, "top": self.top}} if self.keyframes else {}

    @field_validator("keyframes")
    @classmethod
    def _tells_of_the_features(cls, value: str, info: ValidationInfo) -> str:
        features = info.data.get("video_features", "")
        if value and features.startswith(IMPORTED):
            raise ValueError(
                f"the rows of {features!r} are no key frames of ours; "
                'with keyframes = "" the rows themselves tell which frames are salient'
            )
        return value

    @field_validator("nodes")
    @classmethod
    def _finds_its_words(cls, value: Nodes, info: ValidationInfo) -> Nodes:
        features = info.data.get("text_features", "")
        if value != "sentence" and features.startswith(IMPORTED):
            raise ValueError(
                f"the tokens of {features!r} have no places in the caption, so its words cannot be found; "
                'possible: "sentence"'
            )
        return value

    @field_validator("without")
    @classmethod
    def _leaves_neighbours(cls, value: tuple[Edge, ...]) -> tuple[Edge, ...]:
        if "global" in value and {"text", "cross"} & set(value):
            raise ValueError(
                "without global hyperedges, text and cross edges must stay: "
                "equation 8 lets every node be every other's neighbour"
            )
        return value
