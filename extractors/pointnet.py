"""PointNet features of point clouds, as H2ARN's predecessor used them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field as Bounded

from extractors.clouds import CloudEncoder, CloudParams

if TYPE_CHECKING:
    import torch

    from extractors.backbones.pointnet import PointNet as Network


class PointnetParams(CloudParams):
    """Which form of the network, besides."""

    d_pcd: int = Bounded(512, ge=1)  # numbers of a token
    feature_transform: bool = False  # a second transform, of the first layer's 64 channels


class Pointnet(CloudEncoder[PointnetParams]):
    """Prepared points (N, 9) to tokens (100, d_pcd), each of a hundredth of the points in their order."""

    name, version = "pointnet", 1
    settings = PointnetParams

    def build(self) -> Network:
        """The network, without weights."""
        from extractors.backbones.pointnet import PointNet as Network  # torch: only a run pays for it

        return Network(self.params.d_pcd, self.params.feature_transform)

    def encode(self, network: Network, points: torch.Tensor, key: str) -> dict[str, torch.Tensor]:
        """Tokens."""
        return {"token": network(points).tokens}
