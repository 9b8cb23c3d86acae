"""VGG16 as a network: frames to outputs of its fully connected layers. Independent of files and stages.

Axes: N frames, H and W pixels, D features (4096 of the published network).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.backbones import caffe_vgg16, hub, seeded, torchvision_ops
from extractors.backbones import weights as weight_files
from extractors.backbones.lane import Lane, Results
from extractors.backbones.precision import Precision, autocast
from pipeline.errors import UserError

Layer = Literal["fc6", "fc7"]
Convention = Literal["torchvision", "caffe"]
AFTER_RELU: dict[Layer, int] = {
    "fc6": 2,
    "fc7": 5,
}  # number of layers of torchvision's `classifier` that are kept
NARROWED = {"vgg16": 1, "crossreel-demo": 8}  # divisor of the width of every layer
SMALLEST_PIXELS = 32  # five poolings halve a side; the adaptive one after them takes any size
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # over ImageNet, which the published weights expect
NORMALISATION: dict[Convention, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "torchvision": (MEAN, STD),  # red, green, blue in 0..1
    "caffe": (caffe_vgg16.MEANS, (1.0, 1.0, 1.0)),  # blue, green, red in 0..255
}
PICTURES, PICTURE_PIXELS = 256, 64  # pictures with which seeded weights are standardised


class Vgg16Backbone:
    """A frozen VGG16: `features` of frames after the ReLU of a fully connected layer."""

    def __init__(
        self, model: str, weights: str, layer: Layer = "fc7", device: str | torch.device = "cpu",
        precision: Precision = "auto", convention: Convention = "torchvision",
    ) -> None:  # fmt: skip
        self.device, self.precision, self.convention = torch.device(device), precision, convention
        self._mean, self._std = (torch.tensor(three).view(3, 1, 1) for three in NORMALISATION[convention])
        seed = weight_files.seed_of(weights)
        network = _build(NARROWED[model])
        unused = set(network.state_dict())
        # A seed gives one network for either layer: it is built up to fc7, whose outputs become white.
        network.classifier = network.classifier[: AFTER_RELU[layer if seed is None else "fc7"]]
        network.to_empty(device="cpu").eval()
        if seed is None:
            _load(network, hub.vgg16_file(model, weights, convention), model, unused)
        else:
            seeded.draw_once(network, ("vgg16", model, convention, seed), lambda: self._draw(network, seed))
            network.classifier = network.classifier[: AFTER_RELU[layer]]
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        self.lane = Lane(self.device)
        self.network: Any = network.to(self.device).requires_grad_(False)

    def _draw(self, network: Any, seed: int) -> None:
        """Fill a network with weights that depend on the seed alone."""
        seeded.initialise(network, seed)
        pictures = seeded.pictures(PICTURES, PICTURE_PIXELS, seed)
        seeded.standardise(_layers(network), self._normalised(torch.from_numpy(pictures)))

    def features(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (N, D), at least 0, of RGB frames (N, H, W, 3). Raises UserError if the frames are too small."""
        return self.launch(frames).arrays()["frame"]

    def launch(self, frames: NDArray[np.uint8]) -> Results:
        """Start to compute the features, as the output `frame`; on a GPU this returns before they are there."""
        height, width = frames.shape[1:3]
        if min(height, width) < SMALLEST_PIXELS:
            raise UserError(
                f"frames of {width}x{height} pixels are too small for VGG16, "
                f"which needs {SMALLEST_PIXELS}x{SMALLEST_PIXELS}"
            )
        return self.lane.launch(frames, self._features)

    def _features(self, frames: Tensor) -> dict[str, Tensor]:
        with autocast(self.precision, self.device):
            return {"frame": self.network(self._normalised(frames))}

    def _normalised(self, frames: Tensor) -> Tensor:
        """Frames (N, H, W, 3) RGB normalised for the network, (N, 3, H, W); in the order BGR for Caffe's weights."""
        values = frames.permute(0, 3, 1, 2).float()
        if self.convention == "caffe":
            return values.flip(1) - self._mean
        return (values / 255 - self._mean) / self._std


def _build(narrowed: int) -> Any:
    """torchvision's VGG16 without memory for its weights yet; the narrower one has the same layers."""
    torchvision_ops.ensure()
    from torchvision.models import vgg

    plan = [width if isinstance(width, str) else width // narrowed for width in vgg.cfgs["D"]]
    with torch.device("meta"):
        network = vgg.VGG(vgg.make_layers(plan), init_weights=False)
        if narrowed > 1:
            width = 4096 // narrowed
            network.classifier[0] = nn.Linear(512 // narrowed * 49, width)
            network.classifier[3] = nn.Linear(width, width)
    return network


def _layers(network: Any) -> nn.Sequential:
    """The network's layers one after the other."""
    return nn.Sequential(*network.features, network.avgpool, nn.Flatten(), *network.classifier)


def _load(network: nn.Module, path: Path, model: str, known: set[str]) -> None:
    """Fill a network from a file, which may also hold later layers. Raises UserError if it does not fit."""
    with weight_files.fitting(path, model):
        if path.suffix in caffe_vgg16.SUFFIXES:
            state = {name: torch.from_numpy(values) for name, values in caffe_vgg16.read(path).items()}
        else:
            state = weight_files.read_state(path)
        own = network.state_dict()
        network.load_state_dict({key: state[key] for key in state if key in own or key not in known})
    broken = [key for key in own if not state[key].isfinite().all()]
    if broken:  # torchvision's file of only the convolutions has NaN in the other layers
        raise UserError(f"the weights in {path} do not fit {model}: {broken[0]} is not finite")
