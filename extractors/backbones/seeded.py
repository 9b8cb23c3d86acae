"""Weights drawn from a seed: networks for tests and the demo, untrained, yet able to tell inputs apart."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PICTURES = 1024
FLOOR = 0.03  # of the largest standard deviation: directions that vary less are not blown up to full size


def initialise(network: nn.Module, seed: int) -> None:
    """Fill a network with random weights that depend on nothing but the seed and each weight's name.

    Matrices keep the variance of what passes through them; biases are zero, and what starts as a
    constant (norms, scales) stays as it is.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2 or name.endswith("class_embedding"):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(values * _spread(name, parameter))


@torch.no_grad()
def whiten(visual: Any, mean: Tensor, std: Tensor, seed: int) -> None:
    """Change an image tower's last bias and projection so that its features of random pictures are white.

    What a random tower says of two pictures differs little: on the demo's frames the mean cosine is
    0.83 and five of 256 directions hold nearly all of the variance, so that a method trained on the
    features as they are learns little more than chance. The features F (n, D) become
    (F - mean F) C^-1/2, C their covariance with a floor under its eigenvalues.
    """
    pixels = torch.from_numpy(pictures(PICTURES, visual.image_size[0], seed)).permute(0, 3, 1, 2)
    projection, visual.proj = visual.proj, None
    try:
        pooled = visual((pixels.float() / 255 - mean) / std).double()  # (n, width)
    finally:
        visual.proj = projection
    centre = pooled.mean(dim=0)
    features = (pooled - centre) @ projection.double()
    variances, axes = torch.linalg.eigh(features.T @ features / len(features))
    scales = (variances.clamp(min=0) + FLOOR**2 * variances.max()).rsqrt()
    visual.ln_post.bias -= centre.float()  # pooling is a mean: what moves each patch moves the pooled vector
    # Turned back into the old axes, the result does not depend on the signs that eigh happens to choose.
    projection.copy_((projection.double() @ axes * scales @ axes.T).float())


@torch.no_grad()
def standardise(network: nn.Sequential, inputs: Tensor) -> None:
    """Give every layer's outputs mean 0 a channel and deviation 1 over the inputs, (n, ...), by bias and scale.

    Under ReLU, which cuts all means off below, random layers bring what they are given nearer and nearer
    to one direction: after the fifteen of the demo's VGG16 the mean cosine of two random pictures'
    features is 0.88 to 0.95, and 0.4 to 0.6 this way. Layers without weights pass their inputs on as they do in use.
    """
    for layer in network:
        inputs = layer(inputs)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            centre = inputs.transpose(0, 1).flatten(1).mean(dim=1)  # (channels,)
            inputs = inputs - centre.view(1, -1, *[1] * (inputs.ndim - 2))
            scale = inputs.std()
            inputs /= scale
            layer.weight /= scale
            layer.get_parameter("bias").sub_(centre).div_(scale)


def pictures(count: int, size_pixels: int, seed: int) -> NDArray[np.uint8]:
    """Random pictures (n, size, size, 3): one to three rectangles of any colour on a plain, darker ground."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, size_pixels, size_pixels, 3), np.uint8)
    for picture in out:
        picture[:] = rng.integers(0, 110, 3)
        for _ in range(rng.integers(1, 4)):
            height, width = rng.integers(size_pixels // 8, size_pixels // 2, 2)
            top, left = rng.integers(0, size_pixels - height), rng.integers(0, size_pixels - width)
            picture[top : top + height, left : left + width] = rng.integers(0, 256, 3)
    return out


def _spread(name: str, parameter: Tensor) -> float:
    """The standard deviation of a random weight."""
    if name.endswith(("positional_embedding", "position_embeddings.weight", "token_type_embeddings.weight")):
        return 0.3  # of the content's, which has to stay in sight where positions are averaged
    if "embedding" in name:
        return 1.0
    if name.endswith(("proj", "projection")):  # stored as (in, out)
        return parameter.shape[0] ** -0.5
    return parameter[0].numel() ** -0.5
