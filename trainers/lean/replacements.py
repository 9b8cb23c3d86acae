"""Published graph networks from torch-geometric in place of LEAN's layer, which show what that layer contributes.

Axes: V videos, Q captions, N nodes, K hyperedges, D hidden size, P = V Q pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainers.lean.hypergraph import Hypergraphs


class Replacement(nn.Module):
    """ReLU of a graph network's layer on the nodes (V, Q, N, D) of all pairs; hyperedges get no attention.

    "hgnn" works on the hypergraph itself; "gcn" and "gat" on the graph in which nodes that share a hyperedge are
    neighbours. There "gcn" weighs an edge by the hyperedges shared, without which all nodes would end alike.
    """

    def __init__(self, kind: str, hidden: int) -> None:
        super().__init__()
        from torch_geometric.nn import (
            GATConv,
            GCNConv,
            HypergraphConv,
        )  # slow to import, so only these layers import it

        self.kind = kind
        self.network: Any = {"hgnn": HypergraphConv, "gcn": GCNConv, "gat": GATConv}[kind](hidden, hidden)

    def forward(self, nodes: Tensor, graphs: Hypergraphs) -> Tensor:
        """The next nodes (V, Q, N, D)."""
        pairs = nodes.shape[1]
        incidence = graphs.incidence().repeat_interleave(pairs, 0)  # (P, N, K)
        rows = nodes.flatten(0, 2)
        if self.kind == "hgnn":
            out = self.network(
                rows, hyperedge_index(incidence), num_edges=incidence.shape[0] * incidence.shape[2]
            )
        else:
            index, shared = clique_expansion(incidence)
            out = self.network(rows, index, shared) if self.kind == "gcn" else self.network(rows, index)
        return out.relu().view(nodes.shape)


def hyperedge_index(incidence: Tensor) -> Tensor:
    """Pairs (2, members) of a node and a hyperedge of P disjoint graphs (P, N, K), numbered over all graphs."""
    graph, node, edge = incidence.nonzero(as_tuple=True)
    return torch.stack([graph * incidence.shape[1] + node, graph * incidence.shape[2] + edge])


def clique_expansion(incidence: Tensor) -> tuple[Tensor, Tensor]:
    """Ordered pairs (2, E) of different nodes that share hyperedges, and their numbers (E,), of P graphs (P, N, K)."""
    shared = incidence @ incidence.transpose(1, 2)
    shared = shared - torch.diag_embed(shared.diagonal(dim1=1, dim2=2))
    graph, one, other = shared.nonzero(as_tuple=True)
    first = graph * incidence.shape[1]
    return torch.stack([first + one, first + other]), shared[graph, one, other]
