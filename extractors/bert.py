"""Token states of captions from a Hugging Face encoder, each with the place of its token in the caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field as Bounded
from pydantic import model_validator

from extractors.backbones import hub
from extractors.backbones.precision import Precision
from extractors.base import Arrays, Launched, TextExtractor, WorkOptions
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PATH, SPEED, Params
from pipeline.store.fields import Field

if TYPE_CHECKING:
    from extractors.backbones.bert import Tokens


class BertParams(Params):
    """The network, the layers whose states are averaged, and the stored dtype."""

    model: Annotated[str, PATH, DIGESTED] = (
        "bert-base-uncased"  # any encoder's or CLIP's name on the hub, a folder, or crossreel-demo
    )
    weights: Annotated[str, DIGESTED] = "pretrained"  # the model's own, or seed:N (random, for tests)
    layers: tuple[int, ...] = Bounded(
        (-1,), min_length=1
    )  # averaged; 0 is the embeddings, -1 the last (LEAN)
    max_tokens: int = Bounded(77, ge=3)  # special tokens included; H2ARN: 77
    special_tokens: bool = True  # keep the states of [CLS] and [SEP]
    pad: bool = False  # keep the states of the padding up to max_tokens too, as H2ARN reads them
    precision: Precision = "auto"  # float16 on a GPU, float32 on a CPU
    dtype: Literal["float16", "float32"] = "float16"  # of the stored features
    download: Annotated[bool, SPEED] = False  # fetch a model that is not on this machine

    @model_validator(mode="after")
    def _padding_is_special(self) -> Self:
        if self.pad and not self.special_tokens:
            raise ValueError("pad = true keeps special tokens; leave special_tokens true")
        return self


class Bert(TextExtractor[BertParams]):
    """Captions to token states (L, D) and the characters [start, end) of each token in the caption, (L, 2).

    Positions count in the caption as given; the space before a word is not part of its token. A token without
    characters ([CLS], [SEP], padding) has the position (0, 0). With `pad`, L is `max_tokens` for every caption. A CLIP
    model gives the states of its text side after the final norm, before the projection.
    """

    name, version = "bert", 1
    settings = BertParams

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """Token states and positions."""
        return {"token": Field(self.params.dtype, (None, None)), "offset": Field("int32", (None, 2))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digests of the weights and of the files that describe the network and its tokenizer."""
        return hub.identity(self.params, known)

    def require(self) -> None:
        """Raise UserError if the model is not on this machine."""
        hub.require(self.params)

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.bert import BertBackbone  # torch: only a run pays for it

        super().load(options)
        self.network = BertBackbone(
            self.params, self.params.layers, self.params.max_tokens, self.params.pad, options.device,
            self.params.precision,
        )  # fmt: skip

    def encode(self, texts: list[str]) -> list[Arrays]:
        """Token states and positions of each caption."""
        return self.launch(texts).arrays()

    def launch(self, texts: list[str]) -> Launched[list[Arrays]]:
        """Start to compute them; a GPU works on them while the next captions are turned into tokens."""
        return self.network.launch(texts).then(self._by_caption)

    def _by_caption(self, captions: list[Tokens]) -> list[Arrays]:
        """The arrays of each caption."""
        kept = (tokens if self.params.special_tokens else tokens.words() for tokens in captions)
        return [{"token": tokens.states, "offset": tokens.offsets} for tokens in kept]
