"""DGCNN as a network: a point cloud to 100 tokens and one global vector. Independent of files and stages.

The semantic segmentation network of DGCNN up to its seventh layer, as H2ARN uses it: neighbours of the first
graph by the normalised coordinates alone, tokens by the order of the points. Computed in float32 throughout:
in fewer bits points change places among a point's neighbours.

Axes: N points, k neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from extractors.backbones.grouped import CloudNetwork, Layer, folded, grouped_max, point_max, pooled
from extractors.backbones.neighbours import by_tree, nearest

COLUMNS = 9  # x y z r g b, then x y z normalised to [0, 1]
SLOPE = 0.2
EDGE_BLOCKS = ((("conv1", 2 * COLUMNS), ("conv2", 64)), (("conv3", 128), ("conv4", 64)), (("conv5", 128),))
"""The layers of each graph with their input channels; all have 64 output channels."""
EDGE_WIDTH, GLOBAL_WIDTH, TOKEN_WIDTH = 64, 1024, 512
JOINT = EDGE_WIDTH * len(EDGE_BLOCKS)  # channels of x1, x2, x3 together


class CloudFeatures(NamedTuple):
    """The outputs for a cloud: tokens (100, 512), the global vector (1024,), and the three graphs (N, k)."""

    tokens: Tensor
    overall: Tensor
    graphs: list[Tensor]


class Dgcnn(CloudNetwork):
    """A frozen DGCNN with `k` neighbours."""

    unused = frozenset({"bn8", "conv8", "conv9"})  # layers of the segmentation head
    aliases = {f"bn{n}.": f"conv{n}.1." for n in range(1, 8)}
    colours = {"conv1.0.weight": (3, 4, 5, 12, 13, 14)}

    def __init__(self, k: int = 20) -> None:
        super().__init__()
        self.k = k
        for block in EDGE_BLOCKS:
            for name, width in block:
                conv = nn.Conv2d(width, EDGE_WIDTH, 1, bias=False)
                self.add_module(name, nn.Sequential(conv, nn.BatchNorm2d(EDGE_WIDTH), _activation()))
        for name, width, out in (
            ("conv6", JOINT, GLOBAL_WIDTH),
            ("conv7", GLOBAL_WIDTH + JOINT, TOKEN_WIDTH),
        ):
            conv1d = nn.Conv1d(width, out, 1, bias=False)
            self.add_module(name, nn.Sequential(conv1d, nn.BatchNorm1d(out), _activation()))

    @torch.inference_mode()
    def forward(self, points: Tensor, first: Tensor | None = None) -> CloudFeatures:
        """The features of one cloud, points (N, 9) in their order, N at least k and as large as memory allows.

        `k` of H2ARN's section 3.1 is 20. No form with N x N distances or N x k x 128 edges is ever in memory. `first`
        is the first graph, of `first_graph`, where it was searched before.
        """
        features = points
        graphs: list[Tensor] = []
        blocks: list[Tensor] = []
        for block in EDGE_BLOCKS:
            by = points[:, 6:COLUMNS] if not graphs else features
            graphs.append(nearest(by, self.k) if graphs or first is None else first)
            features = edge_block(features, graphs[-1], [self.layer(name) for name, _ in block])
            blocks.append(features)
        joint = torch.cat(blocks, 1)  # (N, 192)
        overall = point_max(joint, self.layer("conv6"))
        return CloudFeatures(self.tokens(joint, overall), overall, graphs)

    def first_graph(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        """The graph (N, k) that the processor searches, by the normalised coordinates of points (N, 9)."""
        return by_tree(points[:, 6:COLUMNS], self.k)

    def tokens(self, joint: Tensor, overall: Tensor) -> Tensor:
        """conv7 of [g, x1, x2, x3], pooled over stretches of points: (100, 512). g is the same for all of them."""
        last = self.layer("conv7")
        of_cloud, of_points = last.weight.split([GLOBAL_WIDTH, JOINT], 1)
        return last.finish(pooled(joint, last._replace(weight=of_points)) + of_cloud @ overall)

    def layer(self, name: str) -> Layer:
        """A convolution with its batch norm."""
        conv, norm, activation = self.get_submodule(name).children()
        return folded(conv, norm, activation)

    def steps(self) -> list[tuple[nn.Module, nn.Module]]:
        """Each batch norm and what follows it, in order."""
        names = [name for block in EDGE_BLOCKS for name, _ in block]
        parts = [tuple(self.get_submodule(name).children()) for name in [*names, "conv6", "conv7"]]
        return [(norm, activation) for _, norm, activation in parts]


def edge_block(features: Tensor, graph: Tensor, layers: list[Layer]) -> Tensor:
    """EdgeConv: the largest value of layers on [x_j - x_i, x_i] over the neighbours j of each i, (N, 64).

    features (N, C), graph (N, k). With the first matrix as [A, B] a neighbour has A x_j + (B - A) x_i, so that it
    is applied to N points instead of N k edges. x_j is taken from the cloud's mean: large coordinates that
    all points share would otherwise cost the difference its last digits.
    """
    difference, itself = layers[0].weight.chunk(2, 1)
    near = (features - features.mean(0)) @ difference.T
    return grouped_max(near, features @ itself.T - near, graph, layers)


def _activation() -> nn.Module:
    return nn.LeakyReLU(SLOPE, inplace=True)
