"""The losses of LEAN (eq. 17-20). Axes: B pairs of a batch, V videos, Q captions, R rows of nodes, Z latent size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(scores: Tensor, video: Tensor) -> Tensor:
    """Mean cross entropy of the rows of scores (B, B), with the diagonal as target.

    Other pairs of the same `video` (B,) match too, so they are left out of the negatives.
    """
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    same_video = (video[:, None] == video) & ~own
    target = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores.masked_fill(same_video, -torch.inf), target)


def divergence(mean: Tensor, log_sigma: Tensor, counts: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each pair (V, Q) in nats, the mean over its nodes and latent dimensions.

    Eq. 19 prints the sum without the factor -1/2; minimising that would maximise the divergence. We take the divergence
    that the text names. mean, log_sigma: (V, Q, R, Z), each row for counts (V, R) nodes.
    """
    each = 0.5 * (mean.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma)
    return (each.mean(-1) * counts[:, None]).sum(-1) / counts.sum(-1, keepdim=True)
