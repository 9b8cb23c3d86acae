"""Layers over points and over groups of points, which the encoders of point clouds share.

A layer is a 1x1 convolution, a batch norm with its learnt statistics, and an activation that never falls.
Scale and shift of the norm are worked into the convolution's matrix and bias. What is left behind the matrix is
monotone, whatever the sign of the norm's scale was, so that a maximum over points may be taken before bias and
activation: of all values only the greatest are ever shifted and bent.

Axes: N points, S groups, k members of a group, C and D channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from extractors.backbones.neighbours import slices

TOKENS = 100


class CloudNetwork(nn.Module):
    """A frozen encoder of point clouds, with its weights under the names of its authors."""

    unused: ClassVar[frozenset[str]] = (
        frozenset()
    )  # layers that a file may also hold, by the first part of their names
    aliases: ClassVar[Mapping[str, str]] = {}  # prefixes under which a file holds the same tensors again
    settling_points: ClassVar[int] = 256  # points of the clouds with which random weights are adjusted
    colours: ClassVar[Mapping[str, tuple[int, ...]]] = {}  # columns of the first matrices that read colours

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and the activation after it, in the order of their use."""
        raise NotImplementedError


class Layer(NamedTuple):
    """A layer: its matrix (D, C), its bias (D,), and its activation."""

    weight: Tensor
    bias: Tensor
    activation: nn.Module

    def finish(self, values: Tensor) -> Tensor:
        """Add the bias to products (..., D) and apply the activation, in place."""
        bent: Tensor = self.activation(values.add_(self.bias))
        return bent

    def __call__(self, values: Tensor) -> Tensor:
        """The layer's output (..., D) for values (..., C)."""
        return self.finish(values @ self.weight.T)


def folded(conv: nn.Module, norm: nn.Module, activation: nn.Module) -> Layer:
    """A convolution (or linear layer) and its batch norm as one matrix and one bias."""
    weight = conv.get_parameter("weight").flatten(1).double()
    scale = (
        norm.get_parameter("weight").double() / (norm.get_buffer("running_var").double() + _eps(norm)).sqrt()
    )
    centre = norm.get_buffer("running_mean").double()
    if getattr(conv, "bias", None) is not None:
        centre = centre - conv.get_parameter("bias").double()
    bias = norm.get_parameter("bias").double() - centre * scale
    return Layer((weight * scale[:, None]).float(), bias.float(), activation)


def grouped_max(near: Tensor, own: Tensor, groups: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The largest value of each group in each channel after the layers: (S, D).

    The first layer's matrix was applied to points, not to the far more members of groups: a member j of group i
    has `near[j] + own[i]`, near (N, C), own (S, C), bias not included. Groups are (S, k) indices of points. A few
    groups are worked on at a time.
    """
    width = max(layer.weight.shape[0] for layer in layers)
    parts = []
    for rows in slices(len(groups), groups.shape[1] * width, near.device):
        values = near[groups[rows]].add_(own[rows, None])  # (s, k, C)
        for layer, following in pairwise(layers):
            values = layer.finish(values) @ following.weight.T
        parts.append(layers[-1].finish(values.amax(1)))
    return torch.cat(parts)


def point_max(points: Tensor, layer: Layer) -> Tensor:
    """The largest value over points (N, C) in each channel of a layer, (D,)."""
    greatest = [
        (points[rows] @ layer.weight.T).amax(0)
        for rows in slices(len(points), layer.weight.shape[0], points.device)
    ]
    return layer.finish(torch.stack(greatest).amax(0))


def pooled(points: Tensor, layer: Layer, count: int = TOKENS) -> Tensor:
    """Tokens (count, D) from a layer's products, before its bias and activation.

    A token has the greatest values of a stretch of the points (N, C), by their order. This is adaptive max
    pooling: stretches share a point where N is no multiple of the count.
    """
    return torch.stack([(points[rows] @ layer.weight.T).amax(0) for rows in bins(len(points), count)])


def bins(points: int, count: int = TOKENS) -> Iterator[slice]:
    """The points of each token: from floor(jN / count) up to, but not including, ceil((j + 1)N / count)."""
    for token in range(count):
        yield slice(token * points // count, -(-(token + 1) * points // count))


def _eps(norm: nn.Module) -> float:
    return float(norm.eps)  # type: ignore[arg-type]  # every batch norm has one
