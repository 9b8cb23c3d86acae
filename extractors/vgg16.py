"""VGG16 features of key frames: the visual nodes of LEAN (eq. 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from extractors.backbones import hub, weights
from extractors.backbones.precision import Precision
from extractors.base import (
    BATCHES_IN_FLIGHT,
    Array,
    Arrays,
    Extractor,
    Flight,
    Launched,
    Output,
    Result,
    Unit,
    WorkOptions,
)
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PATH, SPEED, Params
from pipeline.store.fields import Field


class Vgg16Params(Params):
    """The network, its weights, the layer that is read, and the stored dtype."""

    model: Literal["vgg16", "crossreel-demo"] = "vgg16"  # crossreel-demo: every layer an eighth as wide
    weights: Annotated[str, PATH, DIGESTED] = (
        "IMAGENET1K_V1"  # torchvision's name, a local file, or seed:N (random, for tests)
    )
    convention: Literal["torchvision", "caffe"] = (
        "torchvision"  # LEAN: caffe, from a file (.npy, .h5, state dict)
    )
    layer: Literal["fc7", "fc6"] = "fc7"  # LEAN: "the second fully connected layer"
    dtype: Literal["float16", "float32"] = "float16"  # of the stored features
    precision: Precision = "auto"  # float16 on a GPU, float32 on a CPU
    download: Annotated[bool, SPEED] = False  # fetch published weights that are not on this machine

    def decisive(self) -> dict[str, Any]:
        """The settings that can change a number; `convention` only if it is not the default.

        Artifacts that were made before this setting existed keep their fingerprint.
        """
        own = super().decisive()
        return (
            own if self.convention != "torchvision" else {key: own[key] for key in own if key != "convention"}
        )


class Vgg16(Extractor[Vgg16Params]):
    """Key frames (m, H, W, 3) uint8 RGB to vectors (m, D) of the layer after its ReLU, so never negative.

    D is 4096, or 512 for the demo's network.
    """

    name, version = "vgg16", 1
    needs = ("keyframes",)
    worker_kind = "model"
    shard_items = 32
    settings = Vgg16Params

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """One row for each key frame."""
        return {"frame": Field(self.params.dtype, (None, None))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digest of the weights."""
        return hub.vgg16_identity(self.params, known)

    def require(self) -> None:
        """Raise UserError if the weights are not on this machine."""
        if weights.seed_of(self.params.weights) is None:
            hub.vgg16_file(self.params.model, self.params.weights, self.params.convention)

    def load(self, options: WorkOptions) -> None:
        """Read the network's weights."""
        from extractors.backbones.vgg16 import Vgg16Backbone  # torch: only a run pays for it

        super().load(options)
        p = self.params
        self.network = Vgg16Backbone(p.model, p.weights, p.layer, options.device, p.precision, p.convention)

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Each video with its features; videos share a batch while it has room, a longer video takes several.

        While a GPU computes, the frames of the next videos are read.
        """
        self.flights.clear()
        waiting: list[tuple[Unit, Array]] = []
        for unit in units:
            frames = unit.inputs("keyframes")["rgb"]
            if waiting and sum(len(rows) for _, rows in waiting) + len(frames) > self.options.batch_size:
                yield from self._encoded(waiting)
                waiting = []
            waiting.append((unit, frames))
        if waiting:
            yield from self._encoded(waiting)
        yield from self._landed(0)

    def _encoded(self, videos: list[tuple[Unit, Array]]) -> Iterator[Result | None]:
        """Start to encode videos together; yield those that are ready, and None after every batch as a sign of life."""
        yield from self._landed(BATCHES_IN_FLIGHT - 1)
        frames = np.concatenate([rows for _, rows in videos])
        parts: list[Launched[Arrays]] = []
        self.flights.append(Flight(videos, parts))
        start = 0
        while start < len(frames):
            batch = frames[start : start + self.options.batch_size]
            parts += self.in_parts(self.network.launch, batch)
            start += len(batch)
            yield None
        yield from self._landed(BATCHES_IN_FLIGHT)

    def _landed(self, most: int) -> Iterator[Result]:
        """The videos whose features are ready, and the oldest ones until those of `most` calls are in flight."""
        for flight in self.arrivals(most):
            features = np.concatenate([part.arrays()["frame"] for part in flight.parts])
            ends = np.cumsum([len(rows) for _, rows in flight.taken])[:-1]
            for (unit, _), rows in zip(flight.taken, np.split(features, ends), strict=True):
                yield unit, Output({"frame": rows})
