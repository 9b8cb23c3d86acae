"""The Lorentz model of hyperbolic space: points, lifts, maps at the origin, midpoints.

Curvature is -c with c > 0: a point x satisfies <x, x> = -1/c and has its time component first, (..., 1 + D). A function
that takes only space components, (..., D), has `space` in the parameter's name. `c` is a number or a tensor that
broadcasts. Lower bounds keep the gradient of a square root finite at the origin; they are arguments, because methods
publish different ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SINH = math.asinh(2**15)  # MERU: the sinh of a larger tangent norm exceeds half precision
MIN_NORM = 1e-8
MIN_EXCESS = 1e-7  # lower bound of -c <x, y> - 1, because acosh has an infinite slope at 1


def pairwise_inner(x: Tensor, y: Tensor) -> Tensor:
    """Lorentz products <x_i, y_j> = -x_t y_t + x_s . y_s of points (..., N, 1+D) and (..., M, 1+D): (..., N, M)."""
    return flip_time(x) @ y.transpose(-1, -2)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Lorentz products <x, y> (...) of points (..., 1+D), element by element.

    Space and time parts are rounded before their difference is taken, which keeps most digits of float32 for points
    near each other. `pairwise_inner` gives the products of all pairs.
    """
    return (x[..., 1:] * y[..., 1:]).sum(-1) - x[..., 0] * y[..., 0]


def distance(product: Tensor, c: Tensor | float, min_excess: float = MIN_EXCESS) -> Tensor:
    """Geodesic distances (...) of points with Lorentz products (...), at most -1/c: acosh(-c <x, y>) / sqrt(c).

    -c <x, y> is bounded from below by 1 + `min_excess`; at a smaller value the gradient is 0.
    """
    return torch.acosh((-c * product).clamp_min(1 + min_excess)) / c**0.5


def flip_time(x: Tensor) -> Tensor:
    """Points (..., 1+D) with the time component's sign flipped, so that a plain product is the Lorentz product."""
    return torch.cat([-x[..., :1], x[..., 1:]], dim=-1)


def time_of(space: Tensor, c: Tensor | float) -> Tensor:
    """The time component (..., 1) that puts space components (..., D) on the hyperboloid."""
    return (1 / c + space.square().sum(-1, keepdim=True)).sqrt()


def lift(space: Tensor, c: Tensor | float) -> Tensor:
    """Points (..., 1+D), time first, of space components (..., D)."""
    return torch.cat([time_of(space, c), space], dim=-1)


def exp_origin(
    tangent_space: Tensor, c: Tensor | float, min_norm: float = MIN_NORM, max_norm: float = MAX_SINH
) -> Tensor:
    """Space components (..., D) of the exponential map at the origin: sinh(r) / r * v with r = sqrt(c) |v|.

    r is bounded from below by `min_norm`, and from above by `max_norm` in sinh only.
    """
    r = (c * tangent_space.square().sum(-1, keepdim=True)).clamp_min(min_norm**2).sqrt()
    return torch.sinh(r.clamp_max(max_norm)) / r * tangent_space


def log_origin(points: Tensor, min_square: float = 1e-9) -> Tensor:
    """Tangent vectors (..., D) at the origin of points (..., 1+D) for c = 1: acosh(t) / sqrt(t^2 - 1) * x_s.

    The length of the result follows from the time component only. This matters for points off the hyperboloid, which
    HLFormer makes when it joins attention heads. t^2 - 1 is bounded from below by `min_square`.
    """
    time = points[..., :1]
    root = (time.square() - 1).clamp_min(min_square).sqrt()
    return torch.log(time + root) / root * points[..., 1:]


def midpoint(weights: Tensor, points: Tensor, min_square: float = 1e-8) -> Tensor:
    """Lorentz centroids (..., N, 1+D) for c = 1 of points (..., M, 1+D) under weights (..., N, M): a / sqrt|<a, a>|."""
    mean = weights @ points
    square = mean[..., :1].square() - mean[..., 1:].square().sum(-1, keepdim=True)
    return mean / square.abs().clamp_min(min_square).sqrt()
