"""Batch norms of seeded encoders of point clouds, set so that the networks distinguish clouds.

With norms that change nothing, what a random network says of two clouds is nearly the same: each maximum over
neighbours and points, and each ReLU, adds to all clouds what they have in common. Here a norm's statistics are
those of what reaches it, behind the maximum where there is one, on made clouds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.backbones.grouped import CloudNetwork

CLOUDS = 8
PASSES = 2  # in the first pass the statistics of later layers are unknown
FLOOR = 0.01  # share of the mean variance: a channel that hardly varies is not scaled to full size
BRIGHTEST = 255.0  # colours of files; the matrices are drawn for numbers of the size of coordinates


@dataclass
class Statistics:
    """Mean and variance of each channel over all values so far."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """Add values (..., C)."""
        rows = values.reshape(-1, values.shape[-1]).double()
        self.count += len(rows)
        self.total, self.squares = self.total + rows.sum(0), self.squares + rows.square().sum(0)

    def both(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and variance (C,), the latter with a floor."""
        mean = torch.as_tensor(self.total) / self.count
        variance = torch.as_tensor(self.squares) / self.count - mean**2
        return mean.float(), variance.clamp(min=FLOOR * variance.mean() + 1e-6).float()


@dataclass
class Watched:
    """A batch norm that is still the identity, and the statistics of values that reach its activation."""

    norm: nn.Module
    before: Statistics = field(default_factory=Statistics)  # statistics of an earlier pass
    now: Statistics = field(default_factory=Statistics)

    def standardised(self, _module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        """The values after the norm, by the statistics known so far."""
        self.now.add(inputs[0])
        mean, variance = (self.before if self.before.count else self.now).both()
        return (inputs[0] - mean) / variance.sqrt()

    def keep(self) -> None:
        """Set the norm's mean and variance to the statistics."""
        mean, variance = self.now.both()
        self.norm.get_buffer("running_mean").copy_(mean)
        self.norm.get_buffer("running_var").copy_(variance)


@torch.no_grad()
def settle(network: CloudNetwork, seed: int, run: Callable[[Tensor], Any]) -> None:
    """Set the statistics of a network's batch norms; `run` gives it a cloud (N, 9)."""
    for name, columns in network.colours.items():
        network.get_parameter(name)[:, list(columns)] /= BRIGHTEST
    steps = [(Watched(norm), activation) for norm, activation in network.steps()]
    handles = [activation.register_forward_pre_hook(step.standardised) for step, activation in steps]
    try:
        for _ in range(PASSES):
            for step, _ in steps:
                step.before, step.now = step.now, Statistics()
            for cloud in clouds(seed, network.settling_points):
                run(torch.from_numpy(cloud))
    finally:
        for handle in handles:
            handle.remove()
    for step, _ in steps:
        step.keep()


def clouds(seed: int, count: int) -> Iterator[NDArray[np.float32]]:
    """Random clouds (count, 9) with coordinates within a unit ball: one to four boxes or ellipsoids of any colour."""
    rng = np.random.default_rng(seed)
    for _ in range(CLOUDS):
        parts = rng.integers(1, 5)
        points = rng.normal(size=(count, 3))
        of = rng.integers(0, parts, count)
        length = np.where(rng.random(parts)[of] < 0.5, np.abs(points).max(1), np.linalg.norm(points, axis=1))
        xyz = points / length[:, None] * rng.uniform(0.1, 0.6, (parts, 3))[of]
        xyz += rng.uniform(-0.5, 0.5, (parts, 3))[of]
        xyz = (xyz - xyz.mean(0)) / np.linalg.norm(xyz - xyz.mean(0), axis=1).max()
        colour = np.clip(rng.uniform(0, 255, (parts, 3))[of] + rng.normal(0, 20, (count, 3)), 0, 255)
        unit = (xyz - xyz.min(0)) / np.ptp(xyz, axis=0)
        yield np.concatenate([xyz, colour, unit], 1).astype(np.float32)
