"""CLIP token states of captions: contextual vectors, one a token, and the vector of the whole caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field as Setting
from pydantic import model_validator

from extractors.backbones import weights
from extractors.base import Array, TextExtractor, WorkOptions
from extractors.clip import ClipNetworkParams
from pipeline.run.stage import Digests
from pipeline.store.fields import Field


class ClipTextParams(ClipNetworkParams):
    """The network's text side; model and weights are those of `clip` unless set here."""

    max_tokens: int = Setting(77, ge=3)  # start and end token included; never more than the network's own
    pad: bool = False  # keep the states of the padding up to max_tokens too, as NeighborRetr reads them
    padding: Literal["open", "masked"] = "open"  # with pad: zeros, or the end token as H2ARN reads it

    @model_validator(mode="after")
    def _padding_is_kept(self) -> Self:
        if self.padding != "open" and not self.pad:
            raise ValueError(f"padding = {self.padding!r} is kept with pad = true alone")
        return self

    def decisive(self) -> dict[str, Any]:
        """What was made before `padding` existed keeps its fingerprint."""
        own = super().decisive()
        return own if self.padding != "open" else {key: own[key] for key in own if key != "padding"}


class ClipText(TextExtractor[ClipTextParams]):
    """Captions to token states (L, W), start to end token, the same projected (L, D), and a pooled vector (1, D).

    Padding is left out; with `pad`, L is `max_tokens` for every caption, and `padding` says what stands there:
    "open" zeros as open_clip's tokenizer has them, "masked" the end token as Hugging Face's has it. Either way
    the states behind the end see the real tokens alone, and those up to it are the same. Projected states
    live in the space of the frames' vectors.
    """

    name, version = "clip_text", 2
    settings = ClipTextParams

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """Token states, before and after the projection, and the pooled vector."""
        kind = Field(self.params.dtype, (None, None))
        return {"token": kind, "projected": kind, "pooled": kind}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of the weights."""
        return {"weights": weights.identity(self.params, known)}

    def require(self) -> None:
        """The weights."""
        weights.require(self.params)

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.clip import ClipBackbone  # torch: only a run pays for it

        super().load(options)
        p = self.params
        self.network = ClipBackbone(p.model, p.weights, options.device, p.precision)

    def encode(self, texts: list[str]) -> list[dict[str, Array]]:
        """The outputs of each caption."""
        found = self.network.text_tokens(texts, self.params.max_tokens, self.params.pad, self.params.padding)
        return [
            {"token": states, "projected": projected, "pooled": pooled[None]}
            for states, projected, pooled in zip(*found, strict=True)
        ]
