"""CLIP vectors of the frames of compressed videos."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from numpy.typing import DTypeLike
from pydantic import field_validator

from extractors.backbones import clip_configs, weights
from extractors.backbones.precision import Precision
from extractors.base import Array, Arrays, FrameExtractor, FrameParams, Launched, WorkOptions
from extractors.clock import Part
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PATH, SPEED, Params
from pipeline.store.fields import Field


class ClipNetworkParams(Params):
    """The network, its weights, the precision of the computation and the stored dtype."""

    model: Annotated[str, PATH] = (
        "ViT-B-32-quickgelu"  # open_clip's name, OpenAI's (ViT-B/32), or a JSON file
    )
    weights: Annotated[str, PATH, DIGESTED] = (
        "openai"  # an open_clip tag, a local file, or seed:N (random, for tests)
    )
    dtype: Literal["float16", "float32"] = "float16"  # of the stored features
    precision: Precision = "auto"  # float16 on a GPU, float32 on a CPU
    download: Annotated[bool, SPEED] = False  # fetch the weights of a tag that is not on this machine

    @field_validator("model")
    @classmethod
    def _has_one_spelling(cls, model: str) -> str:
        return clip_configs.resolve(model)

    def decisive(self) -> dict[str, Any]:
        """The settings that can change a number; of a model given as a JSON file only its name.

        The digest of that file enters the fingerprint with that of the weights, so that its folder does not matter.
        """
        own = super().decisive()
        return own | {"model": PurePath(self.model).stem} if self.model.endswith(".json") else own


class ClipParams(ClipNetworkParams, FrameParams):
    """Settings of the network's image side."""

    patches: bool = False  # also store the last layer's state of every patch: 77 kB a frame for ViT-B/32


class Clip(FrameExtractor[ClipParams]):
    """Frames to projected CLIP vectors (T, D), not normalised, with their times (T,) in seconds.

    With `patches` also the states (T, P, width) of the patches after the last layer and its norm.
    """

    name, version = "clip", 1
    settings = ClipParams
    parallel_prepare = True

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """One row for each frame."""
        patch = {"patch": Field(self.params.dtype, (None, None, None))} if self.params.patches else {}
        return {"frame": Field(self.params.dtype, (None, None)), "time": Field("float32", (None,)), **patch}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of the weights, and the decoder of the frames."""
        return {"weights": weights.identity(self.params, known), **super().identity(known)}

    def require(self) -> None:
        """Raise UserError if the weights are missing or do not fit the model, or if the decoder is missing."""
        weights.require(self.params)
        super().require()

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.clip import ClipBackbone  # torch: only a run pays for it

        super().load(options)
        p = self.params
        self.network = ClipBackbone(p.model, p.weights, options.device, p.precision)

    def prepare(self, frames: Array) -> Array:
        """Frames resized and cropped by CLIP's own transform, (n, 3, size, size) uint8."""
        return self.network.crops(frames)

    def encode(self, prepared: Array) -> Arrays:
        """One projected vector for each frame, and with `patches` the states of its patches."""
        return self.launch(prepared).arrays()

    def launch(self, prepared: Array) -> Launched[Arrays]:
        """Start to compute them; a GPU works on them while the next batch is decoded and prepared."""
        return self.network.launch(prepared, self.params.patches)

    def room(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Memory for a batch: pinned, if the device is a GPU."""
        return self.network.lane.room(shape, dtype)

    def device_seconds(self) -> Mapping[Part, float]:
        """Seconds of copies to and from the device and of the network, since the last call."""
        copy, network = self.network.lane.taken_seconds()
        return {"copy": copy, "network": network}
