"""Settings of GARE. Importing it imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.settings import UNSEEN
from trainers.config import TrainingSizes
from trainers.layers.pair_config import ClipPairConfig

BETA = {"event": 1e-4, "dim": 0.07}  # published with either way of reducing the divergence


class GareConfig(ClipPairConfig):
    """GARE's settings, with the defaults of MSR-VTT; recipes.toml has the published ones.

    Names are those of the release; settings that it does not have are under "ours".
    """

    text_output: ClassVar[str] = "pooled"  # the vector of the whole caption

    agg_module: Literal["seqTransf", "seqLSTM", "None"] = (
        "seqTransf"  # what mixes the frames in time; None: nothing does
    )
    num_hidden_layers: int = Field(4, ge=1)  # layers of seqTransf
    psi_dropout: float = Field(0.3, ge=0, lt=1)  # in the network of the increment
    increment: Annotated[Literal["text", "video"], UNSEEN] = (
        "text"  # the side that is corrected; video: with the words as context, the paper's ActivityNet
    )

    temp: Annotated[float, UNSEEN] = Field(
        3.0, gt=0
    )  # temperature of the pooling over frames; the default of the authors' command line is 5
    alpha: float = Field(2.0, gt=0)  # sharpness of the direction term
    kl_reduction: Literal["event", "dim"] = (
        "event"  # sum or mean over dimensions; releases before 2026-05: dim
    )
    beta: float = Field(BETA["event"], ge=0)  # filled from kl_reduction if it is not set
    lambda_dir: float = Field(0.01, ge=0)  # weight of the direction term
    lambda_epsilon: float = Field(0.01, ge=0)  # weight of the norm term
    lambda_lower: float = 0.5  # the norm term counts while the variance is at most this

    epochs: int = Field(5, ge=0)
    lr: float = Field(1e-4, gt=0)
    warmup_proportion: float = Field(0.1, ge=0, lt=1)  # share of all updates in which the rate rises

    # ours
    gap_detach_text: bool = False  # the release of 2025-12: no gradient through the text in the gap
    mask_padding: Annotated[bool, UNSEEN] = (
        False  # published: padded frames take part in mean, pooling and attention
    )
    encoder_grad_scale: float = Field(1.0, gt=0)  # 1 / processes for the gradient of the release
    t_total_epochs: float | None = Field(
        None, gt=0
    )  # epochs of the schedule; the release: 5 whatever epochs is

    def decisive(self) -> dict[str, Any]:
        """What was trained before there was a choice of the side keeps its fingerprint."""
        own = super().decisive()
        return own if self.increment == "video" else {key: own[key] for key in own if key != "increment"}

    def read_output(self) -> str:
        """Where the words are the context of the increment, the states of all of them."""
        return "projected" if self.increment == "video" else super().read_output()

    @model_validator(mode="after")
    def _gap_of_its_side(self) -> GareConfig:
        if self.increment == "video" and self.gap_detach_text:
            raise ValueError("gap_detach_text belongs to increment = 'text'; set one of the two otherwise")
        return self

    @classmethod
    def completed(cls, given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's beta is left out where another reduction of the divergence is given."""
        own = super().completed(given, recipe)
        if "beta" not in given and own.get("kl_reduction") != recipe.get("kl_reduction"):
            own.pop("beta", None)
        return own

    @model_validator(mode="before")
    @classmethod
    def _fill_beta(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        usual = BETA.get(str(data.get("kl_reduction", "event")), BETA["event"])
        return {"beta": usual, **data}

    @model_validator(mode="after")
    def _beta_is_of_its_reduction(self) -> GareConfig:
        other = "dim" if self.kl_reduction == "event" else "event"
        if self.beta == BETA[other]:
            raise ValueError(
                f"beta = {self.beta:g} was published with kl_reduction = {other!r}; with {self.kl_reduction!r} the "
                f"divergence would weigh hundreds of times {'more' if other == 'dim' else 'less'}: set "
                f"kl_reduction to {other!r}, or beta to about {BETA[self.kl_reduction]:g}"
            )
        return self

    def unsuited(self, sizes: TrainingSizes) -> Iterator[tuple[str, str]]:
        """Also more frames than the CLIP network has positions for."""
        yield from super().unsuited(sizes)
        if self.agg_module == "seqTransf":
            yield from self._too_many_frames()
