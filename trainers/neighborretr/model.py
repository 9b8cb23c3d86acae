"""The network of NeighborRetr: CLIP's towers, frames in their context, and the head on word and frame features.

Axes: B pairs, P word slots, Q frame slots, D embedding size, N slots of one side. Parameters are named as in the
published checkpoints, under `towers.`, `temporal.` and `head.`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.layers.clip_towers import MAX_LOGIT_SCALE, ClipTowers
from trainers.layers.temporal import TemporalTransformer
from trainers.loop import distributed
from trainers.neighborretr.clustering import (
    ClusterAttention,
    Clusters,
    TokenClustering,
    cluster_count,
    initialise_clustering,
)
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.similarity import Tokens, prepare, weighting_net

Side = Literal["text", "video"]
SIDES: tuple[Side, Side] = ("text", "video")
UNUSED = ("fc0", "fc1", "intra")  # weighting nets that the release creates besides `fc`
NOISE = 1e-6  # greatest value added to a density
FRAME_POSITIONS = 77  # without a CLIP network to ask: its context length


class Summary(NamedTuple):
    """One vector (B, D) for each sample, and the two clustering stages it comes from."""

    vectors: Tensor
    first: Clusters
    first_out: Tensor  # (B, K, D)
    second: Clusters


class NeighborRetrHead(nn.Module):
    """Token-wise and global scores of word features and frame features."""

    def __init__(self, config: NeighborRetrConfig, dims: int) -> None:
        super().__init__()
        self.config = config
        for side in SIDES:
            for kind in ("fc", *(UNUSED if config.unused_nets else ())):
                setattr(self, f"{side}_weight_{kind}", weighting_net(dims))
            for stage in (0, 1):
                setattr(self, f"{side}_ctm{stage}", TokenClustering(dims))
                setattr(self, f"{side}_block{stage}", ClusterAttention(dims, config.cluster_heads))
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02) in the weighting nets, and each clustering part's own."""
        for name, part in self.named_children():
            if "_weight_" in name:
                for layer in part.modules():
                    if isinstance(layer, nn.Linear):
                        nn.init.normal_(layer.weight, std=0.02)
                        nn.init.zeros_(layer.bias)
            initialise_clustering(part)

    def tokens(self, side: Side, features: Tensor, mask: Tensor) -> Tokens:
        """What the token-wise score needs of features (N, L, D)."""
        return prepare(getattr(self, f"{side}_weight_fc"), features, mask, self.config.mask_mode)

    def summary(self, side: Side, features: Tensor, mask: Tensor) -> Summary:
        """One vector of each sample's features (B, N, D), through two clustering stages.

        The second makes one cluster however many tokens reach it. That is what the published sizes lead to;
        with more than 24 words or 12 frames the release is left with several vectors and fails.
        """
        ratio = self.config.text_ratios if side == "text" else self.config.video_ratios
        count, mask = cluster_count(features.shape[1], ratio[0]), mask.bool()
        noise = shared_noise(mask.shape, features.device) if self.config.density_noise else None
        first = self._clustering(side, 0)(features, mask, count, self.config.knn, noise)
        first_out = self._attention(side, 0)(first)
        second = self._clustering(side, 1)(first_out, None, 1, self.config.knn, None)
        return Summary(self._attention(side, 1)(second).squeeze(1), first, first_out, second)

    def overall(self, texts: Tensor, videos: Tensor) -> Tensor:
        """Global scores (B, B) of vectors (B, D): plain products, as published, unless cosines are set.

        The release weighs the one vector of each side by a softmax over it, which is 1, through nets that get
        a gradient of exactly zero, and so decay.
        """
        if self.config.global_similarity == "cosine":
            texts, videos = F.normalize(texts, dim=-1), F.normalize(videos, dim=-1)
        products = texts @ videos.T
        if not self.config.unused_nets:
            return products
        ones = [
            getattr(self, f"{side}_weight_fc1")(vectors[:, None]).softmax(1).flatten(1)  # (B, 1)
            for side, vectors in zip(SIDES, (texts, videos), strict=True)
        ]
        return 0.5 * (ones[0] + ones[1].T) * products

    def _clustering(self, side: Side, stage: int) -> TokenClustering:
        return getattr(self, f"{side}_ctm{stage}")

    def _attention(self, side: Side, stage: int) -> ClusterAttention:
        return getattr(self, f"{side}_block{stage}")


def shared_noise(shape: torch.Size, device: torch.device) -> Tensor:
    """U(0, 1e-6), the same in every process: all must cluster the joint batch alike."""
    generator = torch.Generator().manual_seed(distributed.shared_seed())
    return (NOISE * torch.rand(shape, generator=generator)).to(device)


class NeighborRetrNetwork(nn.Module):
    """Everything that is trained. Without towers, features of CLIP come in, and its logit scale is kept here."""

    def __init__(self, config: NeighborRetrConfig, towers: ClipTowers | None, dims: int) -> None:
        super().__init__()
        self.config = config
        self.towers = towers
        positions = FRAME_POSITIONS if towers is None else towers.context_length
        self.temporal = TemporalTransformer(dims, config.temporal_layers, max(positions, config.max_frames))
        self.head = NeighborRetrHead(config, dims)
        if towers is None:
            self.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE))  # where OpenAI's training ended
        else:
            self.temporal.start_from(towers)
            if not config.train_token_embedding:
                towers.clip.token_embedding.requires_grad_(False)

    @property
    def scale(self) -> Tensor:
        """gamma, the factor of the token-wise scores in C."""
        return self.logit_scale.exp() if self.towers is None else self.towers.scale

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep gamma at 100 at most."""
        if self.towers is None:
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        else:
            self.towers.clamp_scale_()

    def words(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Word features (B, P, D) of token ids (B, P), not normalised, padded slots included."""
        if self.towers is None:
            raise ValueError("a network without CLIP's towers takes word features, not token ids")
        return self.towers.text(tokens.long(), mask.bool())

    def frame_features(self, pixels: Tensor) -> Tensor:
        """Features (B, Q, D) of normalised frames (B, Q, 3, R, R), each by itself."""
        if self.towers is None:
            raise ValueError("a network without CLIP's towers takes frame features, not frames")
        return self.towers.image(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def in_context(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Frame features (B, Q, D) after the temporal transformer."""
        out: Tensor = self.temporal(frames, mask)
        return out
