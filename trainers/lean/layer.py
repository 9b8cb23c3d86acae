"""LEAN's hypergraph layer (eq. 8-13), for all pairs of some videos and captions at once.

The paper leaves several operators open; ours are listed in docs/methods/lean.md. Parameters carry the names
of that page. Axes: V videos, Q captions of n triples each, N = 1 + m + n nodes, R = 2 + n kinds of nodes,
K = 3 + n hyperedges, D hidden size, H hidden size of the attention.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.lean.hypergraph import Hypergraphs

SLOPE = 0.2  # negative slope of every LeakyReLU
MOST_REFINEMENT = 10.0  # bound of the exponent of eq. 13
ATTENTION_FLOATS = 2**19  # 2 MB of node pairs at a time: 7 times faster than in main memory


class Edged(NamedTuple):
    """Outputs of a layer for a block of pairs: nodes (V, Q, N, D), attention (V, Q, K) of the hyperedges, and the
    hyperedges (V, Q, K, D) for the next layer (eq. 13), None after the last layer."""

    nodes: Tensor
    alpha: Tensor
    edges: Tensor | None


class Weight(nn.Module):
    """A parameter without a bias under the name `weight`."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        bound = shape[-1] ** -0.5  # the initial range of nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)


class LeanLayer(nn.Module):
    """One layer: nodes from their neighbours, hyperedges from their members, attention, nodes from hyperedges."""

    def __init__(
        self, hidden: int, attention: int, frames: int, triples: int, gamma: float, last: bool
    ) -> None:
        super().__init__()
        self.neighbour, self.self = Weight(hidden, hidden), Weight(hidden, hidden)
        self.edge_global = Weight(hidden, (1 + frames + triples) * hidden)
        self.edge_visual = Weight(hidden, (1 + frames) * hidden)
        self.edge_text = Weight(hidden, triples * hidden)
        self.attn_left, self.attn_right = Weight(attention, hidden), Weight(attention, hidden)
        self.attn_out = Weight(attention)
        if not last:
            self.edge_refine = Weight(hidden, hidden)
            self.gamma = nn.Parameter(torch.tensor(gamma))
        self.last = last

    def forward(self, nodes: Tensor, before: Tensor | None, graphs: Hypergraphs) -> Edged:
        """The layer after another: nodes (V, Q, N, D) and that one's hyperedges."""
        return self.edged(self.update(nodes), before, graphs)

    def first(self, visual: Tensor, textual: Tensor, graphs: Hypergraphs) -> Edged:
        """The first layer: start values of visual nodes (V, 1 + m, D) and of triples (Q, n, D)."""
        return self.edged(self.update_items(visual, textual), None, graphs)

    def update(self, nodes: Tensor) -> Tensor:
        """Eq. 8: all other nodes are neighbours of a node, through the global hyperedge or a cross edge."""
        own, others = self._split(nodes.shape[2])
        return (F.linear(nodes, own) + F.linear(nodes.sum(2, keepdim=True), others)).relu_()

    def update_items(self, visual: Tensor, textual: Tensor) -> Tensor:
        """Eq. 8 of start values; products are computed once for each item, and only sums for each pair."""
        own, others = self._split(visual.shape[1] + textual.shape[1])
        total_v, total_t = (F.linear(side.sum(1), others) for side in (visual, textual))
        base_v = F.linear(visual, own) + total_v[:, None]
        base_t = F.linear(textual, own) + total_t[:, None]
        pairs = base_v[:, None] + total_t[None, :, None], base_t[None] + total_v[:, None, None]
        return torch.cat(pairs, 2).relu_()

    def _split(self, nodes: int) -> tuple[Tensor, Tensor]:
        """Weights for a node and for the sum of all nodes, which includes it: one product for each node, not two."""
        others = self.neighbour.weight / (nodes - 1)
        return self.self.weight - others, others

    def edged(self, x: Tensor, before: Tensor | None, graphs: Hypergraphs) -> Edged:
        """Eq. 9-13 from the nodes that eq. 8 gave."""
        edges = self.start(x, graphs)
        if before is not None:
            edges = edges + before
        logits = self.logits(x, graphs)
        x = x + graphs.spread(messages(edges, logits, graphs))
        refined = None if self.last else self.refined(x, graphs)
        return Edged(x, logits.softmax(-1), refined)

    def start(self, x: Tensor, graphs: Hypergraphs) -> Tensor:
        """Eq. 9-10, the hyperedges (V, Q, K, D): members are concatenated at fixed positions, absent ones are zero."""
        width, flat = x.shape[-1], x.flatten(0, 1).flatten(1)  # (V Q, N D)
        split = graphs.visual * width
        whole = F.linear(flat, self.edge_global.weight[:, : flat.shape[1]])
        text = F.linear(flat[:, split:], self.edge_text.weight[:, : flat.shape[1] - split])
        shape = (*x.shape[:2], 1, width)
        joined = torch.cat([whole.view(shape), self.visual_edge(x, graphs), text.view(shape)], 2)
        return torch.cat([F.leaky_relu_(joined, SLOPE), cross_edges(x, graphs.visual)], 2)

    def visual_edge(self, x: Tensor, graphs: Hypergraphs) -> Tensor:
        """The visual hyperedge (V, Q, 1, D) before its LeakyReLU: V and the top frames at their own places.

        Gathering each video's own part of the weights instead of multiplying zeros gains at most 4 %.
        """
        kept = x[:, :, : graphs.visual] * graphs.salient[:, None, :, None].to(x.dtype)
        return F.linear(kept.flatten(2), self.edge_visual.weight)[:, :, None]

    def logits(self, x: Tensor, graphs: Hypergraphs) -> Tensor:
        """Attention logits (V, Q, K) of eq. 11: the mean over ordered pairs of members, including (i, i)."""
        both = F.linear(x, torch.cat([self.attn_left.weight, self.attn_right.weight]))
        left, right = both.chunk(2, -1)
        pairs = node_attention(left, right, self.attn_out.weight)  # (V, Q, N, N)
        between = graphs.sums(graphs.sums(pairs).transpose(2, 3))  # (V, Q, R, R), transposed
        rows = graphs.kinds.T @ between  # (V, Q, K, R)
        means = (rows * graphs.kinds.T).sum(-1) / graphs.degrees[:, None].square()
        return means.masked_fill(~graphs.edges, -torch.inf)

    def refined(self, x: Tensor, graphs: Hypergraphs) -> Tensor:
        """Eq. 13, the hyperedges for the next layer (V, Q, K, D); the mean over members is taken over kinds."""
        # Bounded: the exponent grows with the node's own values, and exp overflows float32 above 88.
        weighed = x * (-self.gamma * x).clamp(-MOST_REFINEMENT, MOST_REFINEMENT).exp()
        kinds = F.linear(graphs.sums(weighed), self.edge_refine.weight)
        return ((graphs.kinds.T @ kinds) / graphs.degrees[:, None, :, None]).relu_()


def messages(edges: Tensor, logits: Tensor, graphs: Hypergraphs) -> Tensor:
    """Messages to the nodes of each kind (V, Q, R, D) from their hyperedges (V, Q, K, D), eq. 12.

    The mean weighted by attention, renormalised over the hyperedges of a node: a softmax over these alone, which
    cannot divide by an attention that has rounded to zero.
    """
    foreign = (graphs.kinds == 0).expand(*logits.shape[:2], -1, -1)
    weights = logits[:, :, None].expand(foreign.shape).masked_fill(foreign, -torch.inf).softmax(-1)
    return weights @ edges


def cross_edges(x: Tensor, visual: int) -> Tensor:
    """Unit hyperedges (V, Q, n, D), one of each triple with V and the frames (eq. 10)."""
    frames, triples = x[:, :, :visual], x[:, :, visual:]
    return F.normalize((triples @ frames.transpose(2, 3)) @ frames, dim=-1, eps=1e-12)


def node_attention(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out . LeakyReLU(left_i + right_j) of all nodes i, j: (V, Q, N, H) twice to (V, Q, N, N)."""
    flat_left, flat_right = left.flatten(0, 1), right.flatten(0, 1)
    rows = max(1, ATTENTION_FLOATS // (left.shape[2] ** 2 * left.shape[3]))
    if left.device.type != "cpu":
        rows = len(flat_left)
    parts = [
        F.leaky_relu_(a[:, :, None] + b[:, None], SLOPE) @ out
        for a, b in zip(flat_left.split(rows), flat_right.split(rows), strict=True)
    ]
    return torch.cat(parts).view(*left.shape[:3], left.shape[2])
