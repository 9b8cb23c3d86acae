"""The four loss terms of a batch against a bank, with the intermediates they come from.

Axes: B pairs, M bank entries (of this process's share), D embedding size. Scores: rows texts, columns videos.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainers.loop import distributed
from trainers.neighborretr import losses
from trainers.neighborretr.bank import Pairs, merged
from trainers.neighborretr.losses import Neighbors
from trainers.neighborretr.model import NeighborRetrHead, Summary
from trainers.neighborretr.similarity import local_similarity


class Outputs(NamedTuple):
    """Outputs of one pass over a batch. Only the means over the bank include the bank shares of other processes.

    local, overall: (B, B); bank_texts: (M, B), the bank's texts with the batch's videos; bank_videos: (B, M);
    text_hubness, video_hubness: (B,), the mean score with all bank entries; centralities: (B,).
    """

    text: Summary
    video: Summary
    local: Tensor
    overall: Tensor
    bank_texts: Tensor
    bank_videos: Tensor
    text_hubness: Tensor
    video_hubness: Tensor
    text_centrality: Tensor
    video_centrality: Tensor


def outputs(head: NeighborRetrHead, batch: Pairs, bank: Pairs, sharded: bool = False) -> Outputs:
    """The inputs of the losses for a batch. The bank's features have no gradient, the weights of its tokens have.

    sharded: every process scores its part of the bank, which all of them hold alike, and the means are merged.
    """
    share = bank.share(distributed.rank(), distributed.world()) if sharded else bank
    texts = head.tokens("text", batch.words, batch.word_mask)
    videos = head.tokens("video", batch.frames, batch.frame_mask)
    bank_texts = local_similarity(head.tokens("text", share.words, share.word_mask), videos)
    bank_videos = local_similarity(texts, head.tokens("video", share.frames, share.frame_mask))
    sums = bank_videos.sum(1), bank_texts.sum(0)
    hubness = [(merged(part) if sharded else part) / len(bank.words) for part in sums]
    text = head.summary("text", batch.words, batch.word_mask)
    video = head.summary("video", batch.frames, batch.frame_mask)
    scale = head.config.centrality_scale
    return Outputs(
        text=text,
        video=video,
        local=local_similarity(texts, videos),
        overall=head.overall(text.vectors, video.vectors),
        bank_texts=bank_texts,
        bank_videos=bank_videos,
        text_hubness=hubness[0],
        video_hubness=hubness[1],
        text_centrality=losses.centrality(text.vectors, batch.words, scale),
        video_centrality=losses.centrality(video.vectors, batch.frames, scale),
    )


def neighbor_terms(head: NeighborRetrHead, out: Outputs) -> tuple[Neighbors, Neighbors]:
    """N of the texts among the videos, and of the videos among the texts."""
    count, temperature = head.config.num_neighbors, head.config.temperature
    return (
        losses.neighbors(out.local, out.video_hubness, count, temperature),
        losses.neighbors(out.local.T, out.text_hubness, count, temperature),
    )


def terms(head: NeighborRetrHead, out: Outputs, gamma: Tensor) -> dict[str, Tensor]:
    """C, U, N and KL with their weights; gamma: the factor of the token-wise scores in C."""
    c = head.config
    near = torch.stack([found.loss for found in neighbor_terms(head, out)]).mean()
    nce = losses.weighted_nce(out.local, out.text_centrality, out.video_centrality, gamma)
    uniform = losses.uniform(out.overall, c.beta, c.ot_scale, c.sinkhorn_iters)
    return {
        "centrality": c.centrality_weight * nce,
        "uniform": c.uniform_weight * uniform,
        "neighbor": c.neighbor_weight * near,
        "kl": c.kl_weight * losses.divergence(out.local, out.overall),
    }
