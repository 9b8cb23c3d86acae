"""CLIP4Clip's loss: cross entropies of both directions (page, section "Loss"). Axes: B pairs of the joint batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def directions(logits: Tensor, video: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean cross entropies text to video and video to text of logits (B, B), pairs on the diagonal.

    With `video` (B,), the video of each pair, other captions of the same video are neither positives nor negatives;
    without it they are negatives, as in the release.
    """
    if video is not None:
        own = torch.eye(len(video), dtype=torch.bool, device=video.device)
        same_video = (video[:, None] == video[None]) & ~own
        logits = logits.masked_fill(same_video, -math.inf)
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
