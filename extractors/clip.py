"""CLIP vectors of the frames of compressed videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import field_validator

from extractors.backbones import clip_configs, weights
from extractors.backbones.precision import Precision
from extractors.base import Array, FrameExtractor, WorkOptions
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PATH, SPEED, Params
from pipeline.store.fields import Field


class ClipNetworkParams(Params):
    """Which network, with which weights, computed and stored how."""

    model: Annotated[str, PATH] = (
        "ViT-B-32-quickgelu"  # open_clip's name, OpenAI's (ViT-B/32), or a JSON file
    )
    weights: Annotated[str, PATH, DIGESTED] = (
        "openai"  # an open_clip tag, a local file, or seed:N (random, for tests)
    )
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "auto"  # float16 on a GPU, float32 on a CPU
    download: Annotated[bool, SPEED] = False  # fetch the weights of a tag that is not on this machine

    @field_validator("model")
    @classmethod
    def _has_one_spelling(cls, model: str) -> str:
        return clip_configs.resolve(model)

    def decisive(self) -> dict[str, Any]:
        """Of a model's own file the digest counts, which stands beside the weights', not its place."""
        own = super().decisive()
        return own | {"model": PurePath(self.model).stem} if self.model.endswith(".json") else own


class ClipParams(ClipNetworkParams):
    """The network's image side."""

    patches: bool = False  # also the last layer's state of every patch: 77 kB a frame for ViT-B/32


class Clip(FrameExtractor[ClipParams]):
    """Frames to projected CLIP vectors (T, D), not normalised, with their times (T,) in seconds.

    With `patches` also the states (T, P, width) of the patches after the last layer and its norm.
    """

    name, version = "clip", 1
    settings = ClipParams

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """One row a frame."""
        patch = {"patch": Field(self.params.dtype, (None, None, None))} if self.params.patches else {}
        return {"frame": Field(self.params.dtype, (None, None)), "time": Field("float32", (None,)), **patch}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of the weights, and what decodes the frames."""
        return {"weights": weights.identity(self.params, known), **super().identity(known)}

    def require(self) -> None:
        """The weights."""
        weights.require(self.params)

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.clip import ClipBackbone  # torch: only a run pays for it

        super().load(options)
        p = self.params
        self.network = ClipBackbone(p.model, p.weights, options.device, p.precision)

    def prepare(self, frames: Array) -> Array:
        """Resize and crop as CLIP's own transform does, (n, 3, size, size) uint8."""
        return self.network.crops(frames)

    def encode(self, prepared: Array) -> dict[str, Array]:
        """One projected vector a frame."""
        if not self.params.patches:
            return {"frame": self.network.crop_features(prepared)}
        features, states = self.network.crop_tokens(prepared)
        return {"frame": features, "patch": states}
