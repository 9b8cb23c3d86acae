"""The losses of H2ARN, from matrix products; the entailment terms are computed for positive pairs only.

Axes: B pairs of a batch, P positive pairs, D width. Points are on the hyperboloid, time first, (B, 1 + D).
`positive` (B, B) is true if a caption (row) describes a cloud (column); every caption describes its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.geometry import cone

LEAST_NORM = 1e-8  # lower bound of the norm of a caption's space components


def contrastive(scores: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Mean cross entropy of the rows of scores (B, B) in nats, with all positives of a row as one target.

    mean_i [logsumexp_j s_ij / tau - logsumexp over the positives j of i]. Pass transposes for the loss of the clouds.
    """
    logits = scores / temperature
    own = logits.masked_fill(~positive, -torch.inf)
    return (logits.logsumexp(1) - own.logsumexp(1)).mean()


def cone_terms(
    texts: Tensor, clouds: Tensor, inner: Tensor, positive: Tensor, c: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """For each positive pair (P,): the cloud's angle to the axis of the caption's cone, and half that cone's aperture.

    texts, clouds: points; inner: their Lorentz products (B, B), of which those of positive pairs are read; radius: K.
    """
    text, cloud = positive.nonzero(as_tuple=True)
    norm = texts[:, 1:].norm(dim=-1).clamp_min(LEAST_NORM)
    aperture = cone.aperture_at(norm, c, radius, cone.CLAMPED)[text]
    times = texts[text, 0], clouds[cloud, 0]
    return cone.angle_at(norm[text], *times, inner[text, cloud], c, cone.CLAMPED), aperture


def entailment(
    texts: Tensor, clouds: Tensor, inner: Tensor, positive: Tensor, c: Tensor, radius: float
) -> Tensor:
    """Mean angle in radians by which clouds lie outside the cones of their captions, over positive pairs."""
    angle, aperture = cone_terms(texts, clouds, inner, positive, c, radius)
    return (angle - aperture).relu().sum() / max(1, len(angle))
