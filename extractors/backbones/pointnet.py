"""PointNet as a network: a point cloud to 100 tokens. Independent of files and stages.

As H2ARN uses it: no class scores, the per-point features pooled over stretches of points instead.

Axes: N points, C channels.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from extractors.backbones.grouped import CloudNetwork, Layer, folded, point_max, pooled

COLUMNS = 9  # x y z r g b, then x y z normalised to [0, 1]
WIDTHS = (64, 128, 1024)


class PointNetFeatures(NamedTuple):
    """Tokens (100, D), and the transforms of coordinates (3, 3) and, if there is one, of features (64, 64)."""

    tokens: Tensor
    transform: Tensor
    feature_transform: Tensor | None


class PointNet(CloudNetwork):
    """A frozen PointNet with tokens of `width` numbers."""

    colours = {"conv1.weight": (3, 4, 5)}

    def __init__(self, width: int = 512, feature_transform: bool = False, columns: int = COLUMNS) -> None:
        super().__init__()
        self.stn = Transform(3)
        self.fstn = Transform(WIDTHS[0]) if feature_transform else None
        for number, (before, after) in enumerate(zip((columns, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv{number}", nn.Conv1d(before, after, 1))
            self.add_module(f"bn{number}", nn.BatchNorm1d(after))
        self.fc = nn.Linear(WIDTHS[-1], width)
        self.after = nn.ModuleList([_relu(), _relu(), nn.Identity()])

    @torch.inference_mode()
    def forward(self, points: Tensor) -> PointNetFeatures:
        """The features of one cloud, points (N, 9) in their order."""
        transform = self.stn(points[:, :3])
        features = self.layer(1)(torch.cat([points[:, :3] @ transform, points[:, 3:]], 1))
        feature_transform = None
        if self.fstn is not None:
            feature_transform = self.fstn(features)
            features = features @ feature_transform
        features, last = self.layer(2)(features), self.layer(3)
        tokens = self.fc(last.finish(pooled(features, last)))
        return PointNetFeatures(tokens, transform, feature_transform)

    def layer(self, number: int) -> Layer:
        """The layer with a number, from 1; the third has no ReLU."""
        conv, norm = (self.get_submodule(f"{part}{number}") for part in ("conv", "bn"))
        return folded(conv, norm, self.after[number - 1])

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and what follows it, in order."""
        own = [(self.get_submodule(f"bn{n}"), after) for n, after in enumerate(self.after, 1)]
        of_features = self.fstn.steps() if self.fstn is not None else []
        return [*self.stn.steps(), own[0], *of_features, *own[1:]]


class Transform(nn.Module):
    """Predicts a square matrix for the points of a cloud from the cloud itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        for number, (before, after) in enumerate(zip((channels, *WIDTHS), WIDTHS, strict=False), 1):
            self.add_module(f"conv{number}", nn.Conv1d(before, after, 1))
        widths = (WIDTHS[-1], 512, 256, channels**2)
        for number, (before, after) in enumerate(pairwise(widths), 1):
            self.add_module(f"fc{number}", nn.Linear(before, after))
        for number, width in enumerate((*WIDTHS, 512, 256), 1):
            self.add_module(f"bn{number}", nn.BatchNorm1d(width))
        self.after = nn.ModuleList([_relu() for _ in range(5)])

    def forward(self, points: Tensor) -> Tensor:
        """The matrix (C, C) for points (N, C), to be multiplied from the right."""
        overall = point_max(self.layer("conv2", 2)(self.layer("conv1", 1)(points)), self.layer("conv3", 3))
        hidden = self.layer("fc2", 5)(self.layer("fc1", 4)(overall))
        matrix = self.get_submodule("fc3")(hidden).view(self.channels, self.channels)
        return matrix + torch.eye(self.channels, device=points.device)

    def layer(self, name: str, norm: int) -> Layer:
        """A convolution or linear layer with the batch norm of a number."""
        return folded(self.get_submodule(name), self.get_submodule(f"bn{norm}"), self.after[norm - 1])

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and what follows it, in order."""
        return [(self.get_submodule(f"bn{n}"), after) for n, after in enumerate(self.after, 1)]


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)
