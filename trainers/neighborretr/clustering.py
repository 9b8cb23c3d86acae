"""Clustering of tokens to few vectors: density peaks, a weighted merge, and attention from clusters to tokens.

Axes: B samples, N tokens, K clusters, D width, H heads. A mask (B, N) is True on real tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

MERGE_EPS = 1e-6  # added to the sum of a cluster's weights, so that an empty cluster gives 0 and not 0 / 0


class Clusters(NamedTuple):
    """The result of a clustering stage.

    tokens: (B, N, D); score: (B, N), -inf where padded; assign: (B, N) int64; merged: (B, K, D).
    """

    tokens: Tensor
    score: Tensor
    assign: Tensor
    merged: Tensor


def cluster_count(tokens: int, ratio: float) -> int:
    """Number of clusters for a share `ratio` of the tokens, at least 1."""
    return max(math.ceil(tokens * ratio), 1)


class TokenConv(nn.Module):
    """A convolution along tokens (B, N, D), which also reads padding, as released."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, kernel_size=3, padding=1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The convolved tokens (B, N, D)."""
        out: Tensor = self.conv(tokens.transpose(1, 2)).transpose(1, 2)
        return out


class TokenClustering(nn.Module):
    """Groups the tokens of each sample around density peaks, and merges each group with learned weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = TokenConv(width)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 1)

    def forward(
        self, tokens: Tensor, mask: Tensor | None, clusters: int, knn: int, noise: Tensor | None
    ) -> Clusters:
        """Steps 1 to 4 of a clustering stage. tokens: (B, N, D); noise: (B, N), added to the densities."""
        tokens = self.norm(tokens + self.conv(tokens))
        score = self.score(tokens).squeeze(-1)
        if mask is not None:
            score = score.masked_fill(~mask, -torch.inf)
        assign = density_peaks(tokens.detach(), mask, clusters, knn, noise)
        return Clusters(tokens, score, assign, merge(tokens, score, assign, clusters))


@torch.no_grad()
def density_peaks(
    tokens: Tensor, mask: Tensor | None, clusters: int, knn: int, noise: Tensor | None = None
) -> Tensor:
    """The cluster (B, N) of each token, numbered by descending peak value of the clusters' centres.

    The peak value of a token is its density times its distance to the nearest denser token. Distances to padding are
    set above those of all pairs of the batch, as released; distances from padding are kept.
    """
    if clusters == 1:  # a shortcut, which also holds for fewer tokens than `knn`
        return torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    apart = torch.cdist(tokens, tokens) / tokens.shape[-1] ** 0.5
    if mask is not None:
        apart = torch.where(mask[:, None], apart, apart.max() + 1)
    density = (
        -apart.topk(knn, largest=False).values.square().mean(-1)
    ).exp()  # each token is its own neighbour too
    if noise is not None:
        density = density + noise
    if mask is not None:
        density = density * mask
    denser = density[:, None] > density[:, :, None]  # (B, N, N), whether the column is denser than the row
    # The densest token has no denser one; the largest distance of its sample stands in.
    peak = torch.where(denser, apart, apart.flatten(1).amax(1)[:, None, None]).amin(-1) * density
    centres = peak.topk(clusters).indices  # (B, K), highest peak first
    rows = apart.gather(1, centres[..., None].expand(-1, -1, apart.shape[-1]))  # (B, K, N)
    numbers = torch.arange(clusters, device=tokens.device).expand_as(centres)
    return rows.argmin(1).scatter(
        1, centres, numbers
    )  # a centre belongs to its own cluster even at equal distances


def merge(tokens: Tensor, score: Tensor, assign: Tensor, clusters: int) -> Tensor:
    """y_c = sum_{i in c} x_i w_i / (sum_{i in c} w_i + 1e-6), w = exp(score); (B, K, D).

    A cluster without a real token is a zero vector. The release takes plain exponentials, which overflow float32 above
    a score of 88. Here the exponentials of a cluster and the 1e-6 are divided by its largest one, for the same value.
    """
    inside = assign[:, None] == torch.arange(clusters, device=assign.device)[:, None]  # (B, K, N)
    logits = score[:, None].masked_fill(~inside, -torch.inf)
    greatest = logits.detach().amax(-1, keepdim=True)
    greatest = torch.where(greatest.isfinite(), greatest, 0)
    weights = (logits - greatest).exp()  # (B, K, N)
    return weights @ tokens / (weights.sum(-1, keepdim=True) + MERGE_EPS * (-greatest).exp())


class ClusterAttention(nn.Module):
    """Clusters plus their attention over all tokens; the score of a token is added to its attention logits."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = ScoredAttention(width, heads)

    def forward(self, clusters: Clusters) -> Tensor:
        """The clusters (B, K, D) after attention."""
        attended = self.attn(self.norm1(clusters.merged), self.norm1(clusters.tokens), clusters.score)
        out: Tensor = clusters.merged + attended
        return out


class ScoredAttention(nn.Module):
    """Attention of queries (B, K, D) to tokens (B, N, D) with a bias (B, N) on the keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)  # keys first
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
        """The attended values (B, K, D)."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, K, D / H)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D / H)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias[:, None, None]
        out: Tensor = self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return out


def initialise_clustering(module: nn.Module) -> None:
    """Draw the attention's Linear layers from a truncated N(0, 0.02) with zero biases; others keep torch's values."""
    for part in module.modules():
        if isinstance(part, ScoredAttention):
            for linear in (part.q, part.kv, part.proj):
                nn.init.trunc_normal_(linear.weight, std=0.02, a=-2.0, b=2.0)
                nn.init.zeros_(linear.bias)
