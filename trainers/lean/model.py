"""The network of LEAN: projections, hypergraph layers, variational inference, and the score of each pair.

Axes: V videos, Q captions of n triples each, N = 1 + m + n nodes, R = 2 + n kinds of nodes, K = 3 + n
hyperedges, D hidden size, Z latent size. Parameters carry the names of docs/methods/lean.md.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.lean.config import LeanConfig
from trainers.lean.hypergraph import Hypergraphs, hypergraphs
from trainers.lean.layer import SLOPE, LeanLayer, Weight
from trainers.lean.replacements import Replacement


class Refined(NamedTuple):
    """Nodes (V, Q, N, D) after the last layer, and the attention (V, Q, K) of its hyperedges."""

    nodes: Tensor
    alpha: Tensor


class Latent(NamedTuple):
    """Parameters of the distribution of latent vectors, one row for all nodes that share it.

    states: (V, Q, R, D); mean and log sigma are linear in them. counts: (V, R), number of nodes of each row. Without
    the hypergraph network every node has its own row, and R is N.
    """

    states: Tensor
    counts: Tensor
    graphs: Hypergraphs | None

    def spread(self, values: Tensor) -> Tensor:
        """The values (V, Q, R, ...) of each node's row, (V, Q, N, ...)."""
        return values if self.graphs is None else self.graphs.spread(values)


class Scored(NamedTuple):
    """Scores (V, Q) of the pairs, and the weights (V, Q, R or N) of rows of nodes, or of nodes, in them."""

    scores: Tensor
    beta: Tensor


class Readout(nn.Module):
    """The weights of the nodes in the sum that is classified (eq. 16)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.weight = Weight(latent, latent).weight
        self.vector = Weight(latent).weight


class LeanNetwork(nn.Module):
    """Scores every pair of some videos with some captions that have the same number of triples."""

    def __init__(self, config: LeanConfig, visual_dim: int, text_dim: int) -> None:
        super().__init__()
        c = self.config = config
        self.text_proj, self.visual_proj = nn.Linear(text_dim, c.hidden), nn.Linear(visual_dim, c.hidden)
        if c.hypergraph:
            self.layers = nn.ModuleList(_layer(c, number) for number in range(c.layers))
        self.gcn = Weight(c.hidden, c.hidden)
        self.gcn_mu = Weight(c.latent, c.hidden)
        if c.variational:
            self.gcn_logsigma = Weight(c.latent, c.hidden)
        self.readout = Readout(c.latent)
        self.classifier = Weight(c.latent)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def texts(self, triples: Tensor) -> Tensor:
        """Start values (Q, n, D) of triples (Q, n, text_dim)."""
        return self.text_proj(triples)

    def videos(self, frames: Tensor) -> Tensor:
        """Start values (V, 1 + m, D) of V, the mean, and of frames (V, m, visual_dim)."""
        projected = self.visual_proj(frames)
        return torch.cat([projected.mean(1, keepdim=True), projected], 1)

    def graphs(self, top: Tensor, visual: Tensor, textual: Tensor) -> Hypergraphs:
        """The hypergraphs of videos (V, 1 + m, D) with captions (Q, n, D)."""
        return hypergraphs(top, visual.shape[1] - 1, textual.shape[1], visual.dtype, self.config.without)

    def refine(self, visual: Tensor, textual: Tensor, graphs: Hypergraphs) -> Refined:
        """The nodes after all layers."""
        if self.config.layer == "lean":
            first, *others = cast(list[LeanLayer], list(self.layers))
            edged = first.first(visual, textual, graphs)
            for layer in others:
                edged = layer(edged.nodes, edged.edges, graphs)
            return Refined(edged.nodes, edged.alpha)
        nodes = every_pair(visual, textual)
        for replacement in self.layers:
            nodes = replacement(nodes, graphs)
        edges = graphs.edges.to(nodes.dtype)
        return Refined(nodes, (edges / edges.sum()).expand(*nodes.shape[:2], -1))

    def infer(self, visual: Tensor, textual: Tensor, graphs: Hypergraphs) -> Latent:
        """Latent states of all pairs of videos (V, 1 + m, D) with captions (Q, n, D), the inputs of eq. 15."""
        if self.config.hypergraph:
            return self.encode(self.refine(visual, textual, graphs), graphs)
        # each node is encoded by itself; caption and video meet only in the readout
        states = every_pair(*(F.linear(side, self.gcn.weight).relu_() for side in (visual, textual)))
        return Latent(states, states.new_ones(len(visual), states.shape[2]), None)

    def encode(self, refined: Refined, graphs: Hypergraphs) -> Latent:
        """Eq. 14-15: two convolutions over the hypergraph, weighted by the attention of the last layer."""
        step = graphs.propagation(refined.alpha)
        hidden = F.linear(step @ graphs.sums(refined.nodes), self.gcn.weight).relu_()
        return Latent((step * graphs.counts[:, None, None]) @ hidden, graphs.counts, graphs)

    def mean(self, latent: Latent) -> Tensor:
        """Mean mu (V, Q, R, Z)."""
        return F.linear(latent.states, self.gcn_mu.weight)

    def log_sigma(self, latent: Latent) -> Tensor:
        """log sigma (V, Q, R, Z)."""
        return F.linear(latent.states, self.gcn_logsigma.weight)

    def expected(self, latent: Latent) -> Scored:
        """Eq. 16 with z = mu. mu is linear in the states, so only the weighted sum is projected, not every node."""
        weight = self.readout.weight @ self.gcn_mu.weight
        logits = F.linear(latent.states, weight).tanh_() @ self.readout.vector  # (V, Q, R)
        beta = (logits + latent.counts.log()[:, None]).softmax(-1)
        return Scored(self._classified(F.linear(_weighed(beta, latent.states), self.gcn_mu.weight)), beta)

    def drawn(self, latent: Latent, mean: Tensor, log_sigma: Tensor, eps: Tensor) -> Scored:
        """Eq. 16 with z = mu + eps sigma; eps: (V, Q, N, Z)."""
        z = latent.spread(mean) + eps * latent.spread(log_sigma.exp())
        beta = (F.linear(z, self.readout.weight).tanh() @ self.readout.vector).softmax(-1)
        return Scored(self._classified(_weighed(beta, z)), beta)

    def _classified(self, total: Tensor) -> Tensor:
        return F.leaky_relu(total.sigmoid() @ self.classifier.weight, SLOPE) * self.log_scale.exp()


def every_pair(visual: Tensor, textual: Tensor) -> Tensor:
    """Nodes (V, Q, N, D) of all pairs of videos (V, 1 + m, D) and captions (Q, n, D)."""
    shape = len(visual), len(textual)
    return torch.cat([visual[:, None].expand(*shape, -1, -1), textual[None].expand(*shape, -1, -1)], 2)


def _weighed(beta: Tensor, values: Tensor) -> Tensor:
    """Sums (V, Q, D) of values (V, Q, R, D) with weights (V, Q, R)."""
    return (beta[:, :, None] @ values).squeeze(2)


def _layer(config: LeanConfig, number: int) -> nn.Module:
    if config.layer != "lean":
        return Replacement(config.layer, config.hidden)
    last = number == config.layers - 1
    c = config
    return LeanLayer(c.hidden, c.attention_hidden, c.frames, c.max_triples, c.gamma, last)
