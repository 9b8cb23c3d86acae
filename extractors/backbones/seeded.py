"""Weights drawn from a seed: untrained networks for tests and the demo that still distinguish inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

PICTURES = 1024
FLOOR = 0.03  # share of the largest standard deviation: directions that vary less are not scaled to full size
LINEAR_FLOOR = 0.1  # the same share after convolutions, whose borders weigh differently in larger pictures
REMEMBERED_BYTES = 64 << 20  # networks up to this size are remembered, REMEMBERED of them
REMEMBERED = 4
AROUND = 0.2  # factor of a convolution's weights beside its middle, which blur and spread borders


_drawn: dict[Hashable, dict[str, Tensor]] = {}


def draw_once(network: nn.Module, key: Hashable, draw: Callable[[], None]) -> None:
    """Fill a network by calling `draw`, or with the weights that `draw` gave in this process under an equal key.

    Whitening passes a thousand pictures through the network, 3 CPU seconds for the demo's CLIP, and a process that
    trains and evaluates several methods builds it many times. Large networks are drawn each time.
    """
    if key in _drawn:
        network.load_state_dict(_drawn[key])
        return
    draw()
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    if sum(tensor.nbytes for tensor in state.values()) <= REMEMBERED_BYTES:
        while len(_drawn) >= REMEMBERED:
            del _drawn[next(iter(_drawn))]
        _drawn[key] = state


def initialise(network: nn.Module, seed: int) -> None:
    """Fill a network with random weights that depend only on the seed and each weight's name.

    Matrices keep the variance of what passes through them; biases are zero, and what starts as a
    constant (norms, scales) stays as it is.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim >= 2 or name.endswith("class_embedding"):
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            values = torch.randn(parameter.shape, generator=generator, device="cpu")
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
    visual.ln_post.bias -= (
        centre.float()
    )  # pooling is a mean, so a shift of all patches shifts the pooled vector
    # Rotated back into the old axes, so that the result does not depend on the signs that eigh chooses.
    projection.copy_((projection.double() @ axes * scales @ axes.T).float())


@torch.no_grad()
def standardise(network: nn.Sequential, inputs: Tensor) -> None:
    """Keep a random network nearly linear, and make its last layer's outputs white over the inputs, (n, ...).

    Random layers under ReLU bring what they are given nearer and nearer to one direction, and lose what is faint:
    of fifteen that only have mean 0 and deviation 1, a linear probe finds a background's pattern and tone in the
    demo's key frames with AUC 0.61 and 0.84; this way with 0.83 and 1.00. Convolutions look mostly at their middle;
    outputs get deviation 1 and a mean of 1 a channel, so that ReLU cuts off few; the last layer's get mean 0. Layers
    without weights pass their inputs on as they do in use. The last layer with weights is a linear one.
    """
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            _look_at_the_middle(layer.weight)
        inputs = layer(inputs)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bias = layer.get_parameter("bias")
            centre = inputs.transpose(0, 1).flatten(1).mean(dim=1)  # (channels,)
            inputs = inputs - centre.view(1, -1, *[1] * (inputs.ndim - 2))
            bias.sub_(centre)
            if layer is layers[-1]:
                inputs = _whiten_rows(layer, inputs)
            scale, mean = inputs.std(), float(layer is not layers[-1])
            inputs = inputs / scale + mean
            layer.weight /= scale
            bias.div_(scale).add_(mean)


def _look_at_the_middle(weight: Tensor) -> None:
    """Reduce all of a convolution's weights (out, in, h, w) except those of its middle."""
    height, width = (size // 2 for size in weight.shape[2:])
    middle = weight[:, :, height, width].clone()
    weight *= AROUND
    weight[:, :, height, width] = middle


def _whiten_rows(layer: nn.Module, rows: Tensor) -> Tensor:
    """Change a linear layer so that its outputs, (n, channels) of mean 0, are white; return the new outputs.

    There may be more channels than rows: directions in which nothing varies are treated as those under the floor.
    """
    _, spread, axes = torch.linalg.svd(rows.double() / len(rows) ** 0.5, full_matrices=False)
    floor = LINEAR_FLOOR * spread[0]
    scales = (spread**2 + floor**2).rsqrt() * floor  # 1 where nothing varies

    def whitened(columns: Tensor) -> Tensor:
        """Columns (channels, ...) scaled in whitened axes and rotated back into the old ones."""
        return columns + (axes.T * (scales - 1) @ (axes @ columns.double())).to(columns.dtype)

    for name in ("weight", "bias"):
        parameter = layer.get_parameter(name)
        parameter.copy_(whitened(parameter))
    return whitened(rows.T).T


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
        return 0.3  # share of the content's size, which must not vanish where positions are averaged
    if "embedding" in name:
        return 1.0
    if name.endswith(("proj", "projection")):  # stored as (in, out)
        return parameter.shape[0] ** -0.5
    return parameter[0].numel() ** -0.5
