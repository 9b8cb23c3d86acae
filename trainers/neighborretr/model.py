"""The network of NeighborRetr: CLIP's towers, the temporal transformer, and the head on word and frame features.

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
UNUSED = ("fc0", "fc1", "intra")  # weighting networks of the release, besides `fc`, that change no score
NOISE = 1e-6  # largest value added to a density, which orders the clusters of equally dense tokens
FRAME_POSITIONS = 77  # positions of frames without a CLIP network: the context length of CLIP


class Summary(NamedTuple):
    """One vector (B, D) for each sample, and the two clustering stages that lead to it."""

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
        """Draw the weighting networks from N(0, 0.02), and initialise the clustering parts."""
        for name, part in self.named_children():
            if "_weight_" in name:
                for layer in part.modules():
                    if isinstance(layer, nn.Linear):
                        nn.init.normal_(layer.weight, std=0.02)
                        nn.init.zeros_(layer.bias)
            initialise_clustering(part)

    def tokens(self, side: Side, features: Tensor, mask: Tensor) -> Tokens:
        """Inputs of the token-wise score, from features (N, L, D) and mask (N, L)."""
        return prepare(getattr(self, f"{side}_weight_fc"), features, mask, self.config.mask_mode)

    def summary(self, side: Side, features: Tensor, mask: Tensor) -> Summary:
        """One vector for each sample's features (B, N, D), from two clustering stages.

        The second stage always makes one cluster. In the release its number of clusters depends on the number of
        slots: 1 for the published sizes, but with more than 24 words or 12 frames several vectors remain and it fails.
        """
        ratio = self.config.text_ratios if side == "text" else self.config.video_ratios
        count, mask = cluster_count(features.shape[1], ratio[0]), mask.bool()
        noise = shared_noise(mask.shape, features.device) if self.config.density_noise else None
        first = self._clustering(side, 0)(features, mask, count, self.config.knn, noise)
        first_out = self._attention(side, 0)(first)
        second = self._clustering(side, 1)(first_out, None, 1, self.config.knn, None)
        return Summary(self._attention(side, 1)(second).squeeze(1), first, first_out, second)

    def overall(self, texts: Tensor, videos: Tensor) -> Tensor:
        """Global scores (B, B) of vectors (B, D): plain products as published, or cosines if configured.

        The release multiplies them by a softmax over the single vector of each side. It is always 1, so its networks
        get a gradient of exactly 0 and only weight decay changes them.
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
    """Noise from U(0, 1e-6), the same in every process, because all must cluster the joint batch alike."""
    generator = torch.Generator().manual_seed(distributed.shared_seed())
    return (NOISE * torch.rand(shape, generator=generator, device="cpu")).to(device)


class NeighborRetrNetwork(nn.Module):
    """All trained parts. Without towers it reads stored features of CLIP, and holds the logit scale itself."""

    def __init__(self, config: NeighborRetrConfig, towers: ClipTowers | None, dims: int) -> None:
        super().__init__()
        self.config = config
        self.towers = towers
        positions = FRAME_POSITIONS if towers is None else towers.context_length
        self.temporal = TemporalTransformer(dims, config.temporal_layers, max(positions, config.max_frames))
        self.head = NeighborRetrHead(config, dims)
        if towers is None:
            self.logit_scale = nn.Parameter(
                torch.tensor(MAX_LOGIT_SCALE)
            )  # the value at the end of OpenAI's training
        else:
            self.temporal.start_from(towers)
            if not config.train_token_embedding:
                towers.clip.token_embedding.requires_grad_(False)

    @property
    def scale(self) -> Tensor:
        """gamma, the factor of the token-wise scores in the loss C."""
        return self.logit_scale.exp() if self.towers is None else self.towers.scale

    @torch.no_grad()
    def clamp_(self) -> None:
        """Limit gamma to 100, as CLIP's training does."""
        if self.towers is None:
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        else:
            self.towers.clamp_scale_()

    def words(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Word features (B, P, D) of token ids (B, P), not normalised, including those of padded slots."""
        if self.towers is None:
            raise ValueError("a network without CLIP's towers takes word features, not token ids")
        return self.towers.text(tokens.long(), mask.bool())

    def frame_features(self, pixels: Tensor) -> Tensor:
        """Features (B, Q, D) of normalised frames (B, Q, 3, R, R), each encoded by itself."""
        if self.towers is None:
            raise ValueError("a network without CLIP's towers takes frame features, not frames")
        return self.towers.image(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])

    def in_context(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Frame features (B, Q, D) after the temporal transformer."""
        out: Tensor = self.temporal(frames, mask)
        return out
