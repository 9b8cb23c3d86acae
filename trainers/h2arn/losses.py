"""The losses of H2ARN from matrix products, positive pairs alone.

Axes: B pairs of a batch, P positive pairs, D width. Points are on the hyperboloid, time first, (B, 1 + D).
`positive` (B, B) says which captions (rows) describe which clouds (columns); every caption describes its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.geometry import cone

LEAST_NORM = 1e-8  # lower bound of the norm of a caption's space components


def contrastive(scores: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Cross entropy of each row of scores (B, B) with all its positives as one target, in nats, a mean over rows.

    mean_i [logsumexp_j s_ij / tau - logsumexp over the positives j of i]. The cloud side is that of the transposes.
    """
    logits = scores / temperature
    own = logits.masked_fill(~positive, -torch.inf)
    return (logits.logsumexp(1) - own.logsumexp(1)).mean()


def cone_terms(
    texts: Tensor, clouds: Tensor, inner: Tensor, positive: Tensor, c: Tensor, radius: float
) -> tuple[Tensor, Tensor]:
    """Angle (P,) of each positive pair's cloud outside the axis of its caption's cone, and half that cone's aperture.

    texts, clouds: points; inner: all their Lorentz products (B, B), of which those of positive pairs are read;
    radius: K.
    """
    text, cloud = positive.nonzero(as_tuple=True)
    norm = texts[:, 1:].norm(dim=-1).clamp_min(LEAST_NORM)
    aperture = cone.aperture_at(norm, c, radius, cone.CLAMPED)[text]
    times = texts[text, 0], clouds[cloud, 0]
    return cone.angle_at(norm[text], *times, inner[text, cloud], c, cone.CLAMPED), aperture


def entailment(
    texts: Tensor, clouds: Tensor, inner: Tensor, positive: Tensor, c: Tensor, radius: float
) -> Tensor:
    """By how much clouds lie outside the cones of their captions, in radians, a mean over positive pairs."""
    angle, aperture = cone_terms(texts, clouds, inner, positive, c, radius)
    return (angle - aperture).relu().sum() / max(1, len(angle))
