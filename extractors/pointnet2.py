"""PointNet++ features of point clouds, as H2ARN's predecessor used them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field as Bounded

from extractors.base import Array
from extractors.clouds import CloudEncoder, CloudParams

if TYPE_CHECKING:
    import torch

    from extractors.backbones.pointnet2 import PointNet2 as Network


class Pointnet2Params(CloudParams):
    """Weights and dtype, and the seed of the sampling."""

    # Decides, with a cloud's digest, the first sample of each level, which H2ARN draws anew at every run.
    seed: int = Bounded(0, ge=0)  # of the points that sampling starts from


class Pointnet2(CloudEncoder[Pointnet2Params]):
    """Prepared points (N, 9) to tokens (100, 512); each token pools the neighbourhood of a sampled point."""

    name, version = "pointnet2", 1
    settings = Pointnet2Params

    def build(self) -> Network:
        """The network, without weights."""
        from extractors.backbones.pointnet2 import PointNet2 as Network  # torch: only a run pays for it

        return Network()

    def searched(self, network: Network, points: Array, key: str) -> Sequence[Array]:
        """Samples and groups of each level; sampling starts at the same points whenever a cloud is encoded."""
        from extractors.backbones.pointnet2 import starts_of

        return network.neighbourhoods(points[:, :3], starts_of(len(points), self.params.seed, key))

    def encode(
        self, network: Network, points: torch.Tensor, *searched: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Tokens."""
        return {"token": network.described(points, *searched)[-1].features}
