"""The hypergraph of each pair of a caption and a video (eq. 4-7), by kind of node.

Nodes stand in the order V, I_1..I_m, w_1..w_n; hyperedges in the order global, visual, text, cross_1..cross_n.
V and the top frames are members of the same hyperedges, and so are all other frames among themselves. A graph of
1 + m + n nodes therefore has 2 + n kinds of nodes, and values that depend only on incidence are computed once for each
kind.

Axes: V videos, Q captions that have the same number n of triples, N = 1 + m + n nodes, R = 2 + n kinds
(salient visual, other visual, each triple), K = 3 + n hyperedges, D any size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

EDGES = ("global", "visual", "text", "cross")


@dataclass(frozen=True)
class Hypergraphs:
    """The hypergraphs of all pairs of V videos with captions of n triples; they depend on the video only.

    salient: (V, 1 + m) bool, V and the top frames. kinds: (R, K), 1 if nodes of a kind are members of a hyperedge.
    edges: (K,) bool, the hyperedges that are not left out by the setting `without`.
    """

    salient: Tensor
    kinds: Tensor
    edges: Tensor

    @property
    def visual(self) -> int:
        """Number of visual nodes of a graph, 1 + m."""
        return self.salient.shape[1]

    @property
    def triples(self) -> int:
        """Number of text nodes of a graph, n."""
        return len(self.kinds) - 2

    @property
    def counts(self) -> Tensor:
        """Number of nodes of each kind (V, R)."""
        top = self.salient.sum(1, keepdim=True)
        ones = top.new_ones(1, 1).expand(len(top), self.triples)
        return torch.cat([top, self.visual - top, ones], 1).to(self.kinds.dtype)

    @property
    def degrees(self) -> Tensor:
        """Number of members of each hyperedge (V, K); 1 for one that is left out, because it is a divisor."""
        return (self.counts @ self.kinds).clamp_min(1)

    def incidence(self) -> Tensor:
        """Incidence (V, N, K): 1 if a node is a member of a hyperedge."""
        return self.spread(self.kinds.expand(len(self.salient), 1, *self.kinds.shape)).squeeze(1)

    def sums(self, x: Tensor) -> Tensor:
        """Sums (V, Q, R, D) over the nodes (V, Q, N, D) of each kind."""
        select = torch.stack([self.salient, ~self.salient], 1).to(x.dtype)[:, None]  # (V, 1, 2, 1 + m)
        return torch.cat([select @ x[:, :, : self.visual], x[:, :, self.visual :]], 2)

    def spread(self, kinds: Tensor) -> Tensor:
        """Values (V, Q, N, D) of the nodes, each with the value of its kind (V, Q, R, D)."""
        visual = torch.where(self.salient[:, None, :, None], kinds[:, :, :1], kinds[:, :, 1:2])
        return torch.cat([visual, kinds[:, :, 2:]], 2)

    def propagation(self, alpha: Tensor) -> Tensor:
        """D_d^-1/2 H W D_e^-1 H^T D_d^-1/2 (V, Q, R, R) between kinds, W = diag(alpha (V, Q, K)).

        Entry (i, j) is the factor with which a node of kind i receives the sum over the nodes of kind j. The paper
        prints D_e^-1/2; ours is D_e^-1 of the hypergraph convolution that it cites.
        """
        degree = alpha @ self.kinds.T  # (V, Q, R)
        scale = degree.clamp_min(1e-12).rsqrt()  # attention can round to 0 for all hyperedges of a kind
        weights = self.kinds * (alpha / self.degrees[:, None])[:, :, None]  # (V, Q, R, K)
        return scale[..., None] * (weights @ self.kinds.T) * scale[:, :, None]


def hypergraphs(
    top: Tensor, frames: int, triples: int, dtype: torch.dtype, without: Collection[str] = ()
) -> Hypergraphs:
    """The hypergraphs of videos with top frames `top` (V, k), positions among m frames, which may repeat."""
    salient = torch.zeros(len(top), 1 + frames, dtype=torch.bool, device=top.device)
    salient[:, 0] = True
    salient.scatter_(1, top + 1, True)
    kinds, edges = _kinds(triples, frozenset(without), top.device, dtype)
    return Hypergraphs(salient, kinds, edges)


@lru_cache(maxsize=256)
def _kinds(
    triples: int, without: frozenset[str], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Incidence (R, K) of kinds, and mask (K,) of the hyperedges that are not left out."""
    with torch.inference_mode(False):  # a cached inference tensor could not take part in training later
        kinds = torch.zeros(2 + triples, 3 + triples)
        kinds[:, 0] = 1
        kinds[0, 1] = 1
        kinds[2:, 2] = 1
        kinds[:2, 3:] = 1
        kinds[2:, 3:] = torch.eye(triples)
        edges = torch.tensor([EDGES[min(k, 3)] not in without for k in range(3 + triples)])
        return (kinds * edges).to(device, dtype), edges.to(device)
