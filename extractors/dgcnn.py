"""DGCNN features of point clouds: the tokens of H2ARN, and one vector for the whole cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field as Bounded

from extractors.base import Array
from extractors.clouds import CloudEncoder, CloudParams
from pipeline.run.stage import Digests
from pipeline.store.fields import Field

if TYPE_CHECKING:
    import torch

    from extractors.backbones.dgcnn import Dgcnn as Network

NEIGHBOURS = "tree in float64 for 3 channels, centred products in float32 for more"
"""Tie-breaking rule of neighbours. Part of the fingerprint: change this text when the rule changes."""


class DgcnnParams(CloudParams):
    """Weights and dtype, and the number of neighbours."""

    k: int = Bounded(20, ge=1)  # neighbours of each point, itself included (H2ARN)


class Dgcnn(CloudEncoder[DgcnnParams]):
    """Prepared points (N, 9) to tokens (100, 512), and a vector (1, 1024) of the whole cloud.

    Each token pools a hundredth of the points, in their order; the vector does not depend on the order.
    """

    name, version = "dgcnn", 1
    settings = DgcnnParams

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """Tokens, and the vector of the whole cloud."""
        return {**super().fields, "global": Field(self.params.dtype, (None, None))}

    @property
    def least_points(self) -> int:  # type: ignore[override]  # each point needs its neighbours
        """The number of neighbours, because a point is its own first neighbour."""
        return self.params.k

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The weights, and the tie-breaking rule of neighbours."""
        return {**super().identity(known), "neighbours": NEIGHBOURS}

    def build(self) -> Network:
        """The network, without weights."""
        from extractors.backbones.dgcnn import Dgcnn as Network  # torch: only a run pays for it

        return Network(self.params.k)

    def searched(self, network: Network, points: Array, key: str) -> Sequence[Array]:
        """The first graph, by the normalised coordinates."""
        return (network.first_graph(points),)

    def encode(
        self, network: Network, points: torch.Tensor, *searched: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Tokens, and the vector of the whole cloud."""
        encoded = network(points, *searched)
        return {"token": encoded.tokens, "global": encoded.overall[None]}
