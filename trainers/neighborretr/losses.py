"""The four losses of NeighborRetr on a batch of B pairs: scores (B, B), rows texts, the pairs on the diagonal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Neighbors(NamedTuple):
    """The neighbour loss of the rows of a score matrix, with its intermediate values.

    mask: (B, B) bool, the nearest columns without the diagonal; scaled_scores, scaled_centrality: (B, B), 0 to 1
    outside neighbours and diagonal; weights: (B, B), 1 on the diagonal.
    """

    mask: Tensor
    scaled_scores: Tensor
    scaled_centrality: Tensor
    weights: Tensor
    loss: Tensor


def centrality(vectors: Tensor, tokens: Tensor, scale: float) -> Tensor:
    """exp(scale * mean cosine of each vector (B, D) with every token (B, L, D) of the batch), (B,).

    Padded tokens are included, as released. The mean of cosines is computed as the product with the mean of unit
    tokens: one vector instead of B x B x L cosines.
    """
    mean = F.normalize(tokens, dim=-1).flatten(0, 1).mean(0)
    return (scale * (F.normalize(vectors, dim=-1) @ mean)).exp()


def weighted_nce(scores: Tensor, text_weights: Tensor, video_weights: Tensor, gamma: Tensor) -> Tensor:
    """C: cross-entropy of gamma * scores in both directions; each pair is weighted by its centrality, with gradient."""
    logits = gamma * scores
    texts = text_weights * logits.log_softmax(1).diagonal()
    videos = video_weights * logits.log_softmax(0).diagonal()
    return -0.5 * (texts.mean() + videos.mean())


@torch.no_grad()
def transport_plan(scores: Tensor, iterations: int) -> Tensor:
    """The doubly stochastic matrix exp(scores + u + v + log 2B) after `iterations` steps of Sinkhorn.

    u and v stay logarithms: exponentials of the scores could overflow.
    """
    marginal = math.log(2 * len(scores))
    u = v = scores.new_zeros(len(scores))
    for _ in range(iterations):
        u = -marginal - (scores + v).logsumexp(1)
        v = -marginal - (scores + u[:, None]).logsumexp(0)
    return (scores + u[:, None] + v + marginal).exp()


def uniform_targets(scores: Tensor, beta: float, iterations: int) -> Tensor:
    """T = beta Q + (1 - beta) I, without gradient."""
    identity = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    return beta * transport_plan(scores.detach(), iterations) + (1 - beta) * identity


def uniform(scores: Tensor, beta: float, scale: float, iterations: int) -> Tensor:
    """U: cross-entropy of scale * scores to the targets of the transport plan, both directions."""
    losses = [
        -(uniform_targets(s, beta, iterations) * (scale * s).log_softmax(1)).sum(1).mean()
        for s in (scores, scores.T)
    ]
    return 0.5 * (losses[0] + losses[1])


def neighbors(scores: Tensor, column_centrality: Tensor, count: int, temperature: float) -> Neighbors:
    """N of the rows: a row's nearest columns count as further positives, weighted up by score and down by hubness.

    column_centrality: (B,), each column's mean score with the bank. Scores and centrality are scaled by the range of
    the columns that are neither neighbour nor pair. A range needs two of them, so B >= count + 3.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    nearest = scores.detach().masked_fill(own, -torch.inf).topk(count, dim=1).indices
    near = torch.zeros_like(own).scatter(1, nearest, True)
    chosen = near | own
    scaled_scores = _scaled(scores, chosen)
    scaled_centrality = _scaled(column_centrality.expand_as(scores), chosen)
    logits = temperature * (scaled_scores - scaled_centrality)
    weights = logits.masked_fill(~near, -torch.inf).softmax(1) + own
    log_share = scores.masked_fill(~chosen, -torch.inf).log_softmax(1).masked_fill(~chosen, 0)
    loss = -((weights * log_share).sum(1) / weights.sum(1)).mean()
    return Neighbors(near, scaled_scores, scaled_centrality, weights, loss)


def _scaled(values: Tensor, left_out: Tensor) -> Tensor:
    """Each row scaled by the range of its values that are not left out, or only shifted if that range is 0.

    Ranges of 0 occur: if padding adds a product of 0 to every maximum, all items that do not match a caption can score
    exactly 0. The release divides by that range.
    """
    least = values.masked_fill(left_out, torch.inf).min(1, keepdim=True).values
    greatest = values.masked_fill(left_out, -torch.inf).max(1, keepdim=True).values
    spread = greatest - least
    return (values - least) / torch.where(spread > 0, spread, torch.ones_like(spread))


def divergence(local: Tensor, overall: Tensor) -> Tensor:
    """KL divergence between the softmax of token-wise and of global scores, over rows and columns, divided by B * B."""
    losses = [
        F.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="sum", log_target=True) / p.numel()
        for p, q in ((local, overall), (local.T, overall.T))
    ]
    return 0.5 * (losses[0] + losses[1])
