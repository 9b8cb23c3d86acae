"""GARE's loss terms (page section 6), each a scalar without its weight.

Axes: A captions, B videos, D embedding size; in training A = B and pairs stand on the diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STD_EPS = 1e-6  # keeps the logarithm finite where the increments of a video are equal
LOG_EPS = 1e-8  # as published (page section 6)


def contrastive(similarity: Tensor, scale: Tensor) -> Tensor:
    """Mean of the cross-entropies of both directions of cosines (B, B); other captions of a video are negatives."""
    t2v, v2t = directions(similarity, scale)
    return (t2v + v2t) / 2


def directions(similarity: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The cross-entropies text to video and video to text of cosines (B, B)."""
    logits, target = scale * similarity, torch.arange(len(similarity), device=similarity.device)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)


def divergence(delta: Tensor, reduction: str) -> Tensor:
    """KL to N(0, 1) in nats of the normal that the increments (A, B, D) of a video's captions span.

    Mean over videos of the sum over D ("event"), or of the mean over D ("dim"), which is D times smaller.
    """
    mu, sd = delta.mean(0), delta.std(0) + STD_EPS  # (B, D)
    kl = (sd**2 + mu**2 - 1) / 2 - sd.log()
    return kl.mean() if reduction == "dim" else kl.sum(-1).mean()


def direction(delta: Tensor, alpha: float) -> Tensor:
    """Log mean of exp(alpha (cos - 1)) over all ordered pairs of a caption's increments (A, B, D), mean over captions.

    0 if all increments of a caption have the same direction, lower the more they differ.
    """
    unit = F.normalize(delta, dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (A, B, B)
    return ((alpha * (cosines - 1)).exp().mean((1, 2)) + LOG_EPS).log().mean()


def norm_variance(delta: Tensor) -> Tensor:
    """Mean over captions of the variance over videos of the increments' lengths; delta: (A, B, D)."""
    return torch.linalg.vector_norm(delta, dim=-1).var(1).mean()


def norm(delta: Tensor, lower: float) -> Tensor:
    """Minus the variance V of lengths if V <= `lower`, else 0 without a gradient.

    The paper prints max(-V, -lower), which has the same gradient and another value.
    """
    variance = norm_variance(delta)
    return torch.where(variance <= lower, -variance, torch.zeros_like(variance))
