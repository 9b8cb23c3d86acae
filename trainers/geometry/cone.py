"""Entailment cones in the Lorentz model (MERU): how wide a cone is, and how far outside its axis a point lies.

Curvature -c, c > 0; both functions take space components, (..., D), and work in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainers.geometry.lorentz import time_of

EPS = 1e-8
GRADIENT_LIMIT = 1e-6  # acos and asin have an infinite slope at 1; float32 cannot tell 1 - 1e-8 from 1


def half_aperture(space: Tensor, c: Tensor | float, radius: float = 0.1) -> Tensor:
    """Half the opening angle (...), in (0, pi/2], of the cones with apexes `space`: asin(2 K / (sqrt(c) |x|)).

    `radius` is K: nearer to the origin than about 2K a cone is a half space.
    """
    norm = space.norm(dim=-1)
    return _guarded(torch.asin, 2 * radius / (norm * c**0.5 + EPS))


def exterior_angle(apex_space: Tensor, space: Tensor, c: Tensor | float) -> Tensor:
    """The angle (...), in [0, pi], between the axis of the cone at `apex_space` and the way on to `space`.

    MERU eq. for oxy-angle: acos((y_t + p x_t) / (|x_s| sqrt(p^2 - 1))) with p = c <x, y>.
    """
    apex_time, time = time_of(apex_space, c).squeeze(-1), time_of(space, c).squeeze(-1)
    p = c * ((apex_space * space).sum(-1) - apex_time * time)
    below = apex_space.norm(dim=-1) * (p.square() - 1).clamp_min(EPS).sqrt() + EPS
    return _guarded(torch.acos, (time + p * apex_time) / below)


def _guarded(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The function of `value` cut to [-1, 1], with the gradient cut off within 1e-6 of the ends.

    MERU cuts at 1 - 1e-8, which is 1 in float32: its forward values are kept, its infinite slope is not.
    """
    inside = function(value.clamp(GRADIENT_LIMIT - 1, 1 - GRADIENT_LIMIT))
    exact = function(value.detach().clamp(EPS - 1, 1 - EPS))
    return inside + (exact - inside.detach())
