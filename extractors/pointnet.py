"""PointNet features of point clouds, as H2ARN's predecessor used them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field as Bounded

from extractors.clouds import CloudEncoder, CloudParams

if TYPE_CHECKING:
    import torch

    from extractors.backbones.pointnet import PointNet as Network


class PointnetParams(CloudParams):
    """Weights and dtype, and the form of the network."""

    d_pcd: int = Bounded(512, ge=1)  # size of a token
    feature_transform: bool = False  # add a second transform, on the first layer's 64 channels


class Pointnet(CloudEncoder[PointnetParams]):
    """Prepared points (N, 9) to tokens (100, d_pcd); each token pools a hundredth of the points, in their order."""

    name, version = "pointnet", 1
    settings = PointnetParams

    def build(self) -> Network:
        """The network, without weights."""
        from extractors.backbones.pointnet import PointNet as Network  # torch: only a run pays for it

        return Network(self.params.d_pcd, self.params.feature_transform)

    def encode(
        self, network: Network, points: torch.Tensor, *searched: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Tokens."""
        return {"token": network(points).tokens}
