"""HLFormer as the engine sees it: its loss terms, its encodings, its scores, its optimizer."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.hlformer import losses
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.data import HLFormerData
from trainers.hlformer.losses import Negatives
from trainers.hlformer.model import HLFormerNetwork, VideoTokens, max_scores
from trainers.loop import distributed
from trainers.loop.optim import BertAdam, decay_groups
from trainers.measure.scoring import max_similarity
from trainers.method import Batch, Encoded, Method

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """Scores (Q, V) of a branch: cosine for the triplets and the ranking, plain product for the NCE."""

    cos: Tensor
    dot: Tensor


class TrainingOutputs(NamedTuple):
    """Inputs of the losses from one forward pass; space components are on the hyperboloid of curvature -c."""

    clip: Scores  # from the first encoding of the captions
    frame: Scores
    queries: Tensor  # (Q, D), from the second
    texts_space: Tensor  # (Q, D)
    videos_space: Tensor  # (V, D)
    c: Tensor


class Joint(NamedTuple):
    """The joint batch of all processes: each video once, with its captions, in the order that one process has.

    videos (V,), captions (Q,): rows of the gathered tensors; owner (Q,): the joint video of each caption.
    """

    videos: Tensor
    captions: Tensor
    owner: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Joint | None:
        """From the batches of all processes; None for one process, whose batch is the joint one."""
        videos = distributed.joint_order(batch, "video_place")
        captions = distributed.joint_order(batch, "text_place")
        if videos is None or captions is None:
            return None
        return cls(videos, captions, distributed.joint(batch["video_place"][batch["owner"]], captions))


class HLFormer(Method):
    """Ranks untrimmed videos by the moment that fits a caption best, over clips and over frames."""

    pairs_at_once = 2**18  # 1.3 s on a core

    def __init__(self, config: HLFormerConfig, visual_dim: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.network = HLFormerNetwork(config, visual_dim, text_dim)
        self._warned = False

    def outputs(self, batch: Batch, joint: Joint | None = None) -> TrainingOutputs:
        """One training pass. The captions are encoded twice with independent dropout, as published.

        With `joint`, each process encodes its own, and the outputs are those of all processes' videos.
        """
        net = self.network
        net.clamp_()
        first, second = (net.queries(batch["tokens"], batch["token_mask"]) for _ in range(2))
        tokens = net.videos(batch["clips"], batch["frames"], batch["frame_mask"])
        vectors = net.video_vectors(tokens)
        if joint is not None:
            first, second = (distributed.joint(rows, joint.captions) for rows in (first, second))
            clips, frames, vectors = (distributed.joint(rows, joint.videos) for rows in (*tokens, vectors))
            tokens = VideoTokens(clips, frames)
        # float32: bfloat16's 8 bits are too few for margins of 0.1 between cosines, and for sinh and acos
        with torch.autocast(first.device.type, enabled=False):
            return TrainingOutputs(
                clip=Scores(*max_scores(first, tokens.clips)),
                frame=Scores(*max_scores(first, tokens.frames)),
                queries=second,
                texts_space=net.project(second, net.textual_alpha),
                videos_space=net.project(vectors, net.video_alpha),
                c=net.curv.exp(),
            )

    def terms(
        self, out: TrainingOutputs, owner: Tensor, clip: Negatives | None, frame: Negatives | None
    ) -> dict[str, Tensor]:
        """Every loss term with its weight; a branch without negatives has a triplet term of 0."""
        c = self.config
        with torch.autocast(owner.device.type, enabled=False):
            terms = {
                "clip_nce": c.clip_nce_weight * losses.nce(out.clip.dot, owner),
                "frame_nce": c.frame_nce_weight * losses.nce(out.frame.dot, owner),
                "diversity": c.diversity_weight
                * losses.diversity(out.queries, owner, c.mu, c.diversity_scale, c.diversity_power),
                "partial_order": c.partial_order_weight
                * losses.partial_order(out.texts_space, out.videos_space, owner, out.c),
            }
            for name, scores, negatives in (("clip", out.clip.cos, clip), ("frame", out.frame.cos, frame)):
                terms[f"{name}_triplet"] = (
                    scores.new_zeros(())
                    if negatives is None
                    else losses.triplet(scores, owner, negatives, c.margin)
                )
        return terms

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The loss terms of a batch; negatives are hard from the published epoch on."""
        joint = Joint.of(batch)
        owner = batch["owner"] if joint is None else joint.owner
        out = self.outputs(batch, joint)
        if out.clip.cos.shape[1] < 2:
            self._warn_single()
            return self.terms(out, owner, None, None)
        clip, frame = (self._negatives(scores.cos, owner, epoch) for scores in (out.clip, out.frame))
        return self.terms(out, owner, clip, frame)

    def _negatives(self, scores: Tensor, owner: Tensor, epoch: int) -> Negatives:
        """Negatives of a branch, which the first process draws for all: it draws what one process alone would."""
        hard = epoch >= self.config.hard_from_epoch
        drawn = losses.draw_negatives(scores, owner, hard, self.config.hard_pool_size)
        return Negatives(*(distributed.share(places) for places in drawn))

    def _warn_single(self) -> None:
        if not self._warned:
            log.warning("a batch of 1 video has no negatives: its triplet terms are 0")
            self._warned = True

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit query vectors (Q, D)."""
        return {"query": F.normalize(self.network.queries(batch["tokens"], batch["token_mask"]), dim=-1)}

    def encode_items(self, batch: Batch) -> Encoded:
        """Unit clip tokens (V, map_size, D) and frame tokens (V, max_ctx_l, D), which are 0 beyond the last frame."""
        tokens = self.network.videos(batch["clips"], batch["frames"], batch["frame_mask"])
        return {"clips": F.normalize(tokens.clips, dim=-1), "frames": F.normalize(tokens.frames, dim=-1)}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Weighted sum (Q, V) of the best clip's and the best frame's cosine."""
        clip, frame = self.branch_scores(texts, items)
        return self.config.clip_weight * clip + self.config.frame_weight * frame

    def branch_scores(self, texts: Encoded, items: Encoded) -> tuple[Tensor, Tensor]:
        """Cosine (Q, V) of the best clip and of the best frame."""
        clip, frame = (max_similarity(texts["query"], items[name]) for name in ("clips", "frames"))
        return clip, frame

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Similarity of each caption to every moment of each video, which explains the match.

        clip_scores (Q, V, map_size), frame_scores (Q, V, max_ctx_l): cosines, whose greatest make the score.
        frame_count (Q, V) int64: positions that hold a frame; each behind them scores 0 and takes part, as published.
        shares (Q, V, 2): the weights of the best clip and the best frame in the score.
        """
        query, frames = texts["query"], items["frames"]
        shape = len(query), len(frames)
        c, count = self.config, frames.any(-1).sum(-1)
        return {
            "clip_scores": torch.einsum("qd,vld->qvl", query, items["clips"]),
            "frame_scores": torch.einsum("qd,vld->qvl", query, frames),
            "frame_count": count.expand(shape),
            "shares": query.new_tensor([c.clip_weight, c.frame_weight]).expand(*shape, -1),
        }


def build(config: HLFormerConfig, data: HLFormerData) -> HLFormer:
    """A freshly initialised HLFormer for the feature sizes of the packed data."""
    return HLFormer(config, data.visual_dim, data.text_dim)


def optimizer(config: HLFormerConfig, method: HLFormer, total_steps: int) -> BertAdam:
    """The published optimizer over `total_steps` updates; it counts its updates itself."""
    return BertAdam(
        decay_groups(method.named_parameters(), config.weight_decay),
        lr=config.lr,
        total_steps=total_steps,
        warmup=config.warmup,
        schedule=config.schedule,
        max_grad_norm=config.max_grad_norm,
    )
