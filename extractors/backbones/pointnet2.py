"""PointNet++ with multi-scale grouping as a network: a point cloud to 100 tokens. Independent of files and stages.

Four levels, each of which samples points, and describes the points around each sample at two scales.

Axes: N points of a level, S samples of it, C channels, k members of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.backbones.grouped import TOKENS, CloudNetwork, Layer, folded, grouped_max
from extractors.backbones.neighbours import ball
from pipeline.media.clouds.sampling import farthest_points

COLUMNS = 9  # x y z r g b, then x y z normalised to [0, 1]
SAMPLES = (2048, 512, 256, TOKENS)
RADII = ((0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8))  # radii of each level, in the units of the file
MEMBERS = (16, 32)
WIDTHS = (
    ((16, 16, 32), (32, 32, 64)),
    ((64, 64, 128), (64, 96, 128)),
    ((128, 196, 256), (128, 196, 256)),
    ((256, 256, 256), (256, 256, 256)),
)


class Sampled(NamedTuple):
    """A level: coordinates (S, 3), features (S, C), sampled points (S,), and for each scale the groups (S, k)."""

    xyz: Tensor
    features: Tensor
    samples: Tensor
    groups: list[Tensor]


class PointNet2(CloudNetwork):
    """A frozen PointNet++."""

    settling_points = SAMPLES[0]  # with fewer points the first level would repeat one
    colours = {f"sa1.conv_blocks.{scale}.0.weight": (3, 4, 5) for scale in range(len(MEMBERS))}

    def __init__(self, columns: int = COLUMNS) -> None:
        super().__init__()
        width = columns
        for level, (count, radii, widths) in enumerate(zip(SAMPLES, RADII, WIDTHS, strict=True), 1):
            self.add_module(f"sa{level}", SetAbstraction(count, radii, width, widths))
            width = sum(scale[-1] for scale in widths)

    @torch.inference_mode()
    def forward(self, points: Tensor, starts: Sequence[int]) -> list[Sampled]:
        """The levels of one cloud, points (N, 9); the features of the last are its tokens (100, 512).

        `starts` has the index of the point that each level samples first. The authors draw them at random;
        `starts_of` draws them so that they are the same again.
        """
        found = self.neighbourhoods(points[:, :3].cpu().numpy(), starts)
        return self.described(points, *(torch.from_numpy(index).to(points.device) for index in found))

    def neighbourhoods(self, xyz: NDArray[np.float32], starts: Sequence[int]) -> list[NDArray[np.int64]]:
        """What the processor searches, by coordinates (N, 3) alone: of each level the sampled points and the groups."""
        out = []
        for level, start in zip(self.levels(), starts, strict=True):
            samples, *groups = level.neighbourhoods(xyz, start)
            out += [samples, *groups]
            xyz = xyz[samples]
        return out

    @torch.inference_mode()
    def described(self, points: Tensor, *found: Tensor) -> list[Sampled]:
        """The levels of one cloud, points (N, 9), from what `neighbourhoods` found."""
        levels, xyz, features = [], points[:, :3], points
        each = 1 + len(MEMBERS)  # indices of a level
        for number, level in enumerate(self.levels()):
            samples, *groups = found[number * each : (number + 1) * each]
            levels.append(level(xyz, features, samples, groups))
            xyz, features = levels[-1].xyz, levels[-1].features
        return levels

    def levels(self) -> list[SetAbstraction]:
        """The levels, in order."""
        return list(self.children())  # type: ignore[arg-type]  # it has no others

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and what follows it, in order."""
        return [step for level in self.levels() for step in level.steps()]


class SetAbstraction(nn.Module):
    """A level: `count` samples of its input points, each with the largest features in its neighbourhood."""

    def __init__(
        self, count: int, radii: Sequence[float], width: int, widths: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.count, self.radii = count, radii
        sizes = [list(zip((width + 3, *scale), scale, strict=False)) for scale in widths]
        self.conv_blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in scale) for scale in sizes
        )
        self.bn_blocks = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(after) for _, after in scale) for scale in sizes
        )
        self.after_blocks = nn.ModuleList(
            nn.ModuleList(nn.ReLU(inplace=True) for _ in scale) for scale in sizes
        )

    def neighbourhoods(self, xyz: NDArray[np.float32], start: int) -> list[NDArray[np.int64]]:
        """The samples (S,) of points (N, 3), the first at `start`, and for each scale the groups (S, k) around them."""
        samples = farthest_points(xyz, self.count, start)
        scales = zip(self.radii, MEMBERS, strict=True)
        return [samples, *(ball(xyz, xyz[samples], radius, members) for radius, members in scales)]

    def forward(self, xyz: Tensor, features: Tensor, samples: Tensor, groups: Sequence[Tensor]) -> Sampled:
        """The level of points xyz (N, 3) with features (N, C), from its samples and groups.

        A member j of the group of i is [features_j, xyz_j - xyz_i]; its first layer is applied to points.
        """
        centres = xyz[samples]
        middle = xyz.mean(0)  # subtracted, so that coordinates far from the origin keep their digits
        scales = []
        for scale, group in enumerate(groups):
            layers = self.layers(scale)
            by_feature, by_place = layers[0].weight.split([features.shape[1], 3], 1)
            near = features @ by_feature.T + (xyz - middle) @ by_place.T
            own = (middle - centres) @ by_place.T
            scales.append(grouped_max(near, own, group, layers))
        return Sampled(centres, torch.cat(scales, 1), samples, list(groups))

    def layers(self, scale: int) -> list[Layer]:
        """The layers of a scale."""
        return [folded(*parts) for parts in self._parts(scale)]

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and what follows it, in order."""
        return [(norm, after) for scale in range(len(self.radii)) for _, norm, after in self._parts(scale)]

    def _parts(self, scale: int) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        blocks = (self.conv_blocks, self.bn_blocks, self.after_blocks)
        return list(zip(*(block[scale].children() for block in blocks), strict=True))


def starts_of(points: int, seed: int, key: str) -> list[int]:
    """The first sample of each level for a cloud of `points` points, from a seed and the cloud's digest."""
    sizes = (points, *SAMPLES[:-1])
    digests = (hashlib.sha256(f"{seed} {key} {level}".encode()).digest() for level in range(len(sizes)))
    return [int.from_bytes(digest[:8], "big") % size for digest, size in zip(digests, sizes, strict=True)]
