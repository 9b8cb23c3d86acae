"""The losses of HLFormer, without loops over videos.

Axes: Q captions, V videos, D hidden size. `owner` (Q,) is the row of the video of each caption; every video
of a batch owns at least one caption.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.geometry.cone import exterior_angle, half_aperture


class Negatives(NamedTuple):
    """Negatives of the triplet loss: for each video (V,) a caption of another one, for each caption (Q,) a video."""

    captions: Tensor
    videos: Tensor


def positives(owner: Tensor, videos: int) -> Tensor:
    """Mask (Q, V), true for a caption and its own video."""
    return owner[:, None] == torch.arange(videos, device=owner.device)


def nce(scores: Tensor, owner: Tensor) -> Tensor:
    """Contrastive loss in both directions; all captions of a video are one joint positive of it.

    mean_q [lse_v R_qv - R_q,owner] + mean_v [lse_q R_qv - lse over the captions of v of R_qv].
    """
    own = scores.masked_fill(~positives(owner, scores.shape[1]), -torch.inf)
    texts = scores.logsumexp(1) - scores.gather(1, owner[:, None]).squeeze(1)
    return texts.mean() + (scores.logsumexp(0) - own.logsumexp(0)).mean()


def draw_negatives(scores: Tensor, owner: Tensor, hard: bool, pool: int) -> Negatives:
    """Negatives of a batch of two or more videos, without gradient.

    Soft: uniform. Hard: the best-scoring negative caption of each video, and one of the `pool` best-scoring
    negative videos of each caption.
    """
    scores = scores.detach()
    own = positives(owner, scores.shape[1])
    if not hard:
        captions = torch.rand_like(scores).masked_fill(own, -1).argmax(0)
        others = torch.randint(scores.shape[1] - 1, owner.shape, device=owner.device)
        # Numbers from the own video on are shifted by one, so that it is never drawn.
        return Negatives(captions, others + (others >= owner))
    masked = scores.masked_fill(own, -torch.inf)
    best = masked.topk(min(pool, scores.shape[1] - 1), dim=1).indices
    rank = torch.randint(best.shape[1], (len(owner), 1), device=owner.device)
    return Negatives(masked.argmax(0), best.gather(1, rank).squeeze(1))


def triplet(scores: Tensor, owner: Tensor, negatives: Negatives, margin: float) -> Tensor:
    """mean_v [margin + S_nv - mean of v's own]_+ + mean_q [margin + S_qm - S_q,owner]_+ with drawn n and m."""
    own = scores.gather(1, owner[:, None]).squeeze(1)
    counts = torch.bincount(owner, minlength=scores.shape[1])
    mean_own = own.new_zeros(scores.shape[1]).index_add(0, owner, own) / counts
    wrong_caption = scores.gather(0, negatives.captions[None]).squeeze(0)
    wrong_video = scores.gather(1, negatives.videos[:, None]).squeeze(1)
    return (margin + wrong_caption - mean_own).relu().mean() + (margin + wrong_video - own).relu().mean()


def diversity(queries: Tensor, owner: Tensor, mu: float, scale: float, power: float) -> Tensor:
    """Pushes the captions (Q, D) of one video apart: (1 + cos)^power softplus(scale (cos + mu)), summed over
    ordered pairs of different captions of a video, divided by Q."""
    unit = F.normalize(queries, dim=-1)
    cosine = unit @ unit.T
    pairs = owner[:, None] == owner
    pairs = pairs & ~torch.eye(len(owner), dtype=torch.bool, device=owner.device)
    # 1 + cos may round to less than 0, whose power with a fractional exponent is NaN
    terms = (1 + cosine).clamp_min(0) ** power * F.softplus(scale * (cosine + mu))
    return torch.where(pairs, terms, 0).sum() / len(owner)


def cone_terms(texts_space: Tensor, videos_space: Tensor, owner: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """For each caption (Q,): the angle between the axis of its video's cone and the caption, and half the aperture."""
    apex = videos_space[owner]
    return exterior_angle(apex, texts_space, c), half_aperture(apex, c)


def partial_order(texts_space: Tensor, videos_space: Tensor, owner: Tensor, c: Tensor) -> Tensor:
    """Mean angle in radians by which captions (Q, D) lie outside the cones of their videos (V, D)."""
    angle, aperture = cone_terms(texts_space, videos_space, owner, c)
    return (angle - aperture).relu().mean()
