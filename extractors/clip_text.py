"""CLIP token states of captions: one contextual vector for each token, and one vector for the whole caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field as Setting
from pydantic import model_validator

from extractors.backbones import weights
from extractors.base import Arrays, Launched, TextExtractor, WorkOptions
from extractors.clip import ClipNetworkParams
from pipeline.run.stage import Digests
from pipeline.store.fields import Field

if TYPE_CHECKING:
    from extractors.backbones.clip import TextTokens


class ClipTextParams(ClipNetworkParams):
    """Settings of the network's text side; model and weights are those of `clip` unless set here."""

    max_tokens: int = Setting(77, ge=3)  # start and end token included; never more than the network's own
    pad: bool = False  # keep the states of the padding up to max_tokens too, as NeighborRetr reads them
    padding: Literal["open", "masked"] = (
        "open"  # token of the padding: zeros, or the end token as H2ARN reads it
    )

    @model_validator(mode="after")
    def _padding_is_kept(self) -> Self:
        if self.padding != "open" and not self.pad:
            raise ValueError(f"padding = {self.padding!r} is kept with pad = true alone")
        return self

    def decisive(self) -> dict[str, Any]:
        """The settings that can change a number; `padding` only if it is not the default.

        Artifacts that were made before this setting existed keep their fingerprint.
        """
        own = super().decisive()
        return own if self.padding != "open" else {key: own[key] for key in own if key != "padding"}


class ClipText(TextExtractor[ClipTextParams]):
    """Captions to token states (L, W) from start to end token, their projections (L, D), and a pooled vector (1, D).

    Padding is left out unless `pad` is set: then L is `max_tokens` for every caption, and `padding` chooses the
    padding's token: "open" for zeros as in open_clip's tokenizer, "masked" for the end token as in Hugging Face's.
    Either way the states of the padding attend to real tokens only, and the states of real tokens are the same.
    Projections lie in the space of the frames' vectors.
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
        """Raise UserError if the weights are missing or do not fit the model."""
        weights.require(self.params)

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.clip import ClipBackbone  # torch: only a run pays for it

        super().load(options)
        p = self.params
        self.network = ClipBackbone(p.model, p.weights, options.device, p.precision, texts_only=True)

    def encode(self, texts: list[str]) -> list[Arrays]:
        """The outputs of each caption."""
        return self.launch(texts).arrays()

    def launch(self, texts: list[str]) -> Launched[list[Arrays]]:
        """Start to compute them; a GPU works on them while the next captions are turned into tokens."""
        p = self.params
        return self.network.launch_texts(texts, p.max_tokens, p.pad, p.padding).then(_by_caption)


def _by_caption(outputs: TextTokens) -> list[Arrays]:
    """The arrays of each caption."""
    return [
        {"token": states, "projected": projected, "pooled": pooled[None]}
        for states, projected, pooled in zip(*outputs, strict=True)
    ]
