"""Entailment cones in the Lorentz model (MERU): the aperture of a cone, and the angle between its axis and a point.

Curvature -c, c > 0; points have time and space components, (...) and (..., D), in float32 or wider: the angles are
differences of large products that cancel, so half precision would lose them. The bounds that keep quotients and slopes
finite are an argument, because methods publish different ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainers.geometry.lorentz import time_of

EPS = 1e-8
RADIUS = 0.1  # K: the cone of an apex nearer to the origin than about 2K is a half space


class Bounds(NamedTuple):
    """Bounds that keep quotients and slopes finite.

    off_zero: moves a denominator away from 0. cut: sines and cosines are limited to [cut - 1, 1 - cut]. slope_cut:
    nearer than this to -1 or 1 they have no gradient, because asin and acos have an infinite slope at the ends.
    """

    off_zero: Callable[[Tensor], Tensor]
    cut: float
    slope_cut: float


MERU = Bounds(lambda below: below + EPS, cut=EPS, slope_cut=1e-6)
"""MERU's values. 1 - 1e-8 rounds to 1 in float32, where the slope is infinite: `slope_cut` leaves it out."""

CLAMPED = Bounds(lambda below: below.clamp_min(EPS), cut=1e-7, slope_cut=1e-7)
"""H2ARN's values. 1 - 1e-7 rounds to a float32 number below 1, so slopes stay finite without a further bound."""


def half_aperture(space: Tensor, c: Tensor | float, radius: float = RADIUS, bounds: Bounds = MERU) -> Tensor:
    """Half the opening angle (...), in (0, pi/2], of the cones with apexes `space`: asin(2 K / (sqrt(c) |x|))."""
    return aperture_at(space.norm(dim=-1), c, radius, bounds)


def aperture_at(norm: Tensor, c: Tensor | float, radius: float = RADIUS, bounds: Bounds = MERU) -> Tensor:
    """Half the opening angle (...) of cones, from the lengths `norm` (...) of their apexes' space components."""
    return _guarded(torch.asin, 2 * radius / bounds.off_zero(norm * c**0.5), bounds)


def exterior_angle(apex_space: Tensor, space: Tensor, c: Tensor | float, bounds: Bounds = MERU) -> Tensor:
    """The angle (...), in [0, pi], between the axis of the cone at `apex_space` and the geodesic to `space`."""
    apex_time, time = time_of(apex_space, c).squeeze(-1), time_of(space, c).squeeze(-1)
    inner = (apex_space * space).sum(-1) - apex_time * time
    return angle_at(apex_space.norm(dim=-1), apex_time, time, inner, c, bounds)


def angle_at(
    norm: Tensor, apex_time: Tensor, time: Tensor, inner: Tensor, c: Tensor | float, bounds: Bounds = MERU
) -> Tensor:
    """The exterior angle (...) from precomputed parts, so that callers can get all products from one matrix product.

    MERU eq. for oxy-angle: acos((y_t + p x_t) / (|x_s| sqrt(p^2 - 1))) with p = c <x, y>. `norm` and `apex_time` are
    |x_s| and x_t, `time` is y_t, `inner` is <x, y>.
    """
    p = c * inner  # at most -1; p^2 - 1 is 0 for equal points and can round to less
    below = bounds.off_zero(norm * (p.square() - 1).clamp_min(EPS).sqrt())
    return _guarded(torch.acos, (time + p * apex_time) / below, bounds)


def _guarded(function: Callable[[Tensor], Tensor], value: Tensor, bounds: Bounds) -> Tensor:
    """The function of `value` within the bounds, with no gradient near the ends."""
    inside = function(value.clamp(bounds.slope_cut - 1, 1 - bounds.slope_cut))
    if bounds.slope_cut == bounds.cut:
        return inside
    exact = function(value.detach().clamp(bounds.cut - 1, 1 - bounds.cut))
    return inside + (exact - inside.detach())  # the value of `exact` with the gradient of `inside`
