"""Entailment cones in the Lorentz model (MERU): how wide a cone is, and how far outside its axis a point lies.

Curvature -c, c > 0; points have time and space components, (...) and (..., D), and stay in float32 or wider. What
keeps quotients and slopes finite is an argument, because methods publish different bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainers.geometry.lorentz import time_of

EPS = 1e-8
RADIUS = 0.1  # K: nearer to the origin than about 2K a cone is a half space


class Bounds(NamedTuple):
    """What keeps quotients and slopes finite: how a denominator stays off 0, and where sines and cosines are cut.

    They are cut to [cut - 1, 1 - cut], and nearer to the ends than `slope_cut` they have no gradient.
    """

    off_zero: Callable[[Tensor], Tensor]
    cut: float
    slope_cut: float


MERU = Bounds(lambda below: below + EPS, cut=EPS, slope_cut=1e-6)
"""MERU's values. Its cut is 1 in float32, where acos and asin have an infinite slope, which is not kept."""

CLAMPED = Bounds(lambda below: below.clamp_min(EPS), cut=1e-7, slope_cut=1e-7)
"""H2ARN's values. Its cut, 1 - 1e-7, is a float32 number other than 1, so that slopes stay finite."""


def half_aperture(space: Tensor, c: Tensor | float, radius: float = RADIUS, bounds: Bounds = MERU) -> Tensor:
    """Half the opening angle (...), in (0, pi/2], of the cones with apexes `space`: asin(2 K / (sqrt(c) |x|))."""
    return aperture_at(space.norm(dim=-1), c, radius, bounds)


def aperture_at(norm: Tensor, c: Tensor | float, radius: float = RADIUS, bounds: Bounds = MERU) -> Tensor:
    """Half the opening angle (...) of the cones whose apexes have space components of the length `norm` (...)."""
    return _guarded(torch.asin, 2 * radius / bounds.off_zero(norm * c**0.5), bounds)


def exterior_angle(apex_space: Tensor, space: Tensor, c: Tensor | float, bounds: Bounds = MERU) -> Tensor:
    """The angle (...), in [0, pi], between the axis of the cone at `apex_space` and the way on to `space`."""
    apex_time, time = time_of(apex_space, c).squeeze(-1), time_of(space, c).squeeze(-1)
    inner = (apex_space * space).sum(-1) - apex_time * time
    return angle_at(apex_space.norm(dim=-1), apex_time, time, inner, c, bounds)


def angle_at(
    norm: Tensor, apex_time: Tensor, time: Tensor, inner: Tensor, c: Tensor | float, bounds: Bounds = MERU
) -> Tensor:
    """The exterior angle (...) from what it depends on, so that products of many points can be one of matrices.

    MERU eq. for oxy-angle: acos((y_t + p x_t) / (|x_s| sqrt(p^2 - 1))) with p = c <x, y>. `norm` and `apex_time` are
    |x_s| and x_t, `time` is y_t, `inner` is <x, y>.
    """
    p = c * inner
    below = bounds.off_zero(norm * (p.square() - 1).clamp_min(EPS).sqrt())
    return _guarded(torch.acos, (time + p * apex_time) / below, bounds)


def _guarded(function: Callable[[Tensor], Tensor], value: Tensor, bounds: Bounds) -> Tensor:
    """The function of `value`, cut, with no gradient near the ends."""
    inside = function(value.clamp(bounds.slope_cut - 1, 1 - bounds.slope_cut))
    if bounds.slope_cut == bounds.cut:
        return inside
    exact = function(value.detach().clamp(bounds.cut - 1, 1 - bounds.cut))
    return inside + (exact - inside.detach())
