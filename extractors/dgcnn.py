"""DGCNN features of point clouds: the tokens of H2ARN, and a vector of the whole cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field as Bounded

from extractors.clouds import CloudEncoder, CloudParams
from pipeline.run.stage import Digests
from pipeline.store.fields import Field

if TYPE_CHECKING:
    import torch

    from extractors.backbones.dgcnn import Dgcnn as Network

NEIGHBOURS = "tree in float64 for 3 channels, centred products in float32 for more"
"""Which neighbours a point has where several are equally far: another rule that can choose others needs other words."""


class DgcnnParams(CloudParams):
    """How many neighbours a point has, besides."""

    k: int = Bounded(20, ge=1)  # H2ARN


class Dgcnn(CloudEncoder[DgcnnParams]):
    """Prepared points (N, 9) to tokens (100, 512) and a vector of the whole (1, 1024), which knows no order.

    Each token speaks of a hundredth of the points, in their order.
    """

    name, version = "dgcnn", 1
    settings = DgcnnParams

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """Tokens, and one vector."""
        return {**super().fields, "global": Field(self.params.dtype, (None, None))}

    @property
    def least_points(self) -> int:  # type: ignore[override]  # each point needs its neighbours
        """As many as neighbours: a point is its own first one."""
        return self.params.k

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The weights, and how neighbours are found."""
        return {**super().identity(known), "neighbours": NEIGHBOURS}

    def build(self) -> Network:
        """The network, without weights."""
        from extractors.backbones.dgcnn import Dgcnn as Network  # torch: only a run pays for it

        return Network(self.params.k)

    def encode(self, network: Network, points: torch.Tensor, key: str) -> dict[str, torch.Tensor]:
        """Tokens and global vector."""
        found = network(points)
        return {"token": found.tokens, "global": found.overall[None]}
