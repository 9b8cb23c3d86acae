"""The network of HLFormer: stems, Gaussian and Lorentz attention, the mean-guided mixture of their blocks.

Attributes have the authors' names (`self`, `output`, `norm1`, `e_attns` ...), so that state dicts are interchangeable
and the rule of weight decay, which goes by names, covers the same parameters.

Axes: N sequences, L positions, D hidden size, H heads, m Lorentz dimension, K blocks, Q captions, V videos.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainers.geometry import lorentz
from trainers.hlformer.config import HLFormerConfig

MASKED_LOGIT = -10000.0  # added to Euclidean attention
MASKED_LORENTZ_LOGIT = -1e18  # replaces a Lorentz logit; adding would not do, as these have no lower bound
MASKED_TOKEN_LOGIT = -1e10
MIN_LORENTZ_TIME = 1.1
MAX_TANGENT_NORM = 10.0
MIN_TANGENT_NORM = 1e-9**0.5
# The authors divide by these two squares without a bound. With a small m, dropout can set all of a token's coordinates
# to 0, and one step of training then turns the weights into NaN. On ordinary input neither bound is reached.
MIN_SPACE_SQUARE = 1e-12
MIN_LOG_SQUARE = 1e-9


@lru_cache(maxsize=64)
def log_window(length: int, width: float, device: torch.device) -> Tensor:
    """The logarithm (L, L) of the Gaussian window, rows queries, columns keys, 0 at each row's greatest entry.

    Row i is centred at i/L on a grid of j/(L-1): two different grids, as published.
    """
    with torch.inference_mode(False):  # a cached inference tensor could not take part in training later
        scale = max(width, 0.01) / 9
        centre = torch.arange(length, dtype=torch.float64)[:, None] / length
        grid = torch.arange(length, dtype=torch.float64)[None] / (length - 1)
        log = -(grid - centre).square() / (2 * scale**2)
        return (log - log.amax(1, keepdim=True)).float().to(device)


@lru_cache(maxsize=64)
def gaussian_window(length: int, width: float, device: torch.device) -> Tensor:
    """The Gaussian window (L, L) with values in (0, 1], built once for each length, width and device."""
    with torch.inference_mode(False):
        return log_window(length, width, device).exp()


def windowed(logits: Tensor, width: float | None, form: str) -> Tensor:
    """Attention logits (..., L, L) under a window.

    "multiply" is published. For Euclidean logits, which have either sign, it prefers near keys only on average; Lorentz
    logits are at most 0, so that far keys move to the largest value and win. "additive" prefers near keys.
    """
    if width is None:
        return logits
    if form == "multiply":
        return logits * gaussian_window(logits.shape[-1], width, logits.device)
    return logits + log_window(logits.shape[-1], width, logits.device)


class InputProjection(nn.Module):
    """ReLU(W drop(LN(x)) + b): (..., I) to (..., O)."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(inputs)
        self.net = nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Projected rows (..., O), at least 0."""
        return self.net(self.LayerNorm(x))


class PositionEmbedding(nn.Module):
    """drop(LN(x + P)) with a learned row of P for each position."""

    def __init__(self, positions: int, width: int, dropout: float) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded tokens (N, L, D); L is at most the number of positions."""
        return self.drop(self.LayerNorm(x + self.position_embeddings.weight[: x.shape[1]]))


class Projections(nn.Module):
    """The three linear maps of an attention and the dropout of its probabilities."""

    def __init__(self, config: HLFormerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3)
        )
        self.drop = nn.Dropout(config.dropout)


class GaussianAttention(Projections):
    """Multi-head attention without output projection, its logits under a Gaussian window if a width is given."""

    def __init__(self, config: HLFormerConfig, width: float | None = None) -> None:
        super().__init__(config)
        self.width, self.window = width, config.window

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attended tokens (N, L, D); mask (N, L) is 1 for keys that exist."""
        q, k, v = (_split(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        logits = windowed(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), self.width, self.window)
        if mask is not None:
            logits = logits + (1 - mask[:, None, None]) * MASKED_LOGIT
        return (self.drop(logits.softmax(-1)) @ v).transpose(1, 2).flatten(2)


class PoolingAttention(Projections):
    """One query token of each sequence attends to every block's output of that sequence."""

    def forward(self, token: Tensor, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Pooled tokens (N, K, D) of block outputs (N, K, L, D) for the token (N, 1, D).

        The projections of keys and values are folded onto the one query and the pooled row: K L projections
        of width D become K. Dropped attention no longer sums to 1, so the value bias is scaled by its sum.
        """
        n, k, length, width = outputs.shape
        q = _split(self.query(token), self.heads).squeeze(2) / math.sqrt(width // self.heads)  # (N, H, D/H)
        key_weight, value_weight = (
            layer.weight.view(self.heads, -1, width) for layer in (self.key, self.value)
        )
        folded = torch.einsum("nhe,hed->nhd", q, key_weight)
        shift = (q * self.key.bias.view(self.heads, -1)).sum(-1)  # (N, H), the same for every key
        logits = outputs.flatten(1, 2) @ folded.transpose(-1, -2) + shift[:, None]  # (N, K L, H)
        logits = logits.view(n, k, length, self.heads).transpose(-1, -2)
        if mask is not None:
            logits = logits + (1 - mask[:, None, None]) * MASKED_LOGIT
        attention = self.drop(logits.softmax(-1))  # (N, K, H, L)
        pooled = torch.einsum("nkhd,hed->nkhe", attention.to(outputs.dtype) @ outputs, value_weight)
        bias = attention.sum(-1, keepdim=True) * self.value.bias.view(self.heads, -1)
        return (pooled + bias).flatten(2)


class HyperbolicLinear(nn.Module):
    """A linear map of points (N, L, m+1) whose result is cut into heads, each put on its own hyperboloid."""

    def __init__(self, coordinates: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.tensor(2.3))
        self.weight = nn.Linear(coordinates, coordinates, bias=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, points: Tensor) -> Tensor:
        """Points of the heads (N, H, L, (m+1)/H), time first, time above 1.1."""
        z = _split(self.weight(self.drop(points)), self.heads)
        time = z[..., :1].sigmoid() * self.scale.exp() + MIN_LORENTZ_TIME
        space = z[..., 1:]
        square = space.square().sum(-1, keepdim=True).clamp_min(MIN_SPACE_SQUARE)
        return torch.cat([time, space * ((time.square() - 1) / square).sqrt()], dim=-1)


class LorentzMultiAttention(nn.Module):
    """Attention by Lorentz distance, values averaged by the Lorentz centroid (curvature -1)."""

    def __init__(self, config: HLFormerConfig, width: float | None) -> None:
        super().__init__()
        coordinates = config.lorentz_dim + 1
        self.width, self.window = width, config.window
        self.scale = nn.Parameter(torch.tensor([math.sqrt(coordinates)]))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.linear_keys, self.linear_values, self.linear_query = (
            HyperbolicLinear(coordinates, config.heads, config.dropout) for _ in range(3)
        )

    def logits(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Minus squared distances, scaled (N, H, L, L): (2 + 2 <q, k>) / c + b, then window and key mask."""
        logits = (2 + 2 * lorentz.pairwise_inner(query, keys)) / self.scale + self.bias
        logits = windowed(logits, self.width, self.window)
        if mask is not None:
            logits = logits.masked_fill(mask[:, None, None] == 0, MASKED_LORENTZ_LOGIT)
        return logits

    def forward(self, points: Tensor, mask: Tensor | None) -> Tensor:
        """The heads' centroids, concatenated (N, L, m+1). The result is off the hyperboloid and used as a point."""
        logits = self.logits(self.linear_query(points), self.linear_keys(points), mask)
        middle = lorentz.midpoint(logits.softmax(-1), self.linear_values(points))  # no dropout, as published
        return middle.transpose(1, 2).flatten(2)


class LorentzAttention(nn.Module):
    """Maps tokens to the hyperboloid, attends there, and maps back: (N, L, D) to (N, L, D), at least 0."""

    def __init__(self, config: HLFormerConfig, width: float | None = None) -> None:
        super().__init__()
        d, m = config.hidden_size, config.lorentz_dim
        self.scale_alpha = nn.Parameter(torch.tensor(-0.5 * math.log(m)))
        self.input_proj = InputProjection(d, m, config.dropout)
        self.lorentz_multiattention = LorentzMultiAttention(config, width)
        self.output_proj = InputProjection(m, d, config.dropout)

    def enter(self, tangent_space: Tensor) -> Tensor:
        """Points (N, L, m+1) of projected tokens (N, L, m)."""
        scaled = tangent_space * self.scale_alpha.exp()
        return lorentz.lift(lorentz.exp_origin(scaled, 1.0, MIN_TANGENT_NORM, MAX_TANGENT_NORM), 1.0)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attended tokens (N, L, D); mask (N, L) is 1 for keys that exist."""
        with torch.no_grad():
            self.scale_alpha.clamp_(max=0)  # in place and in evaluation too, as published
        tangent = self.input_proj(x)
        # float32: t^2 - |s|^2 is the difference of two large numbers, which bfloat16's 8 bits would lose
        with torch.autocast(x.device.type, enabled=False):
            points = self.lorentz_multiattention(self.enter(tangent.float()), mask)
            tangent = lorentz.log_origin(points, MIN_LOG_SQUARE) / self.scale_alpha.exp()
        return self.output_proj(tangent)


class FeedForward(nn.Module):
    """W2 drop(ReLU(W1 x + b1)) + b2."""

    def __init__(self, width: int, inner: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(width, inner), nn.Linear(inner, outputs)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transformed rows."""
        return self.layer2(self.drop(self.layer1(x).relu()))


class ResidualShell(nn.Module):
    """An attention, then a feed-forward, each added to its input and normalised."""

    def __init__(self, attention: nn.Module, config: HLFormerConfig, inner: int) -> None:
        super().__init__()
        d = config.hidden_size
        self.self = attention
        self.output = FeedForward(d, inner, d, config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.drop = nn.Dropout(config.dropout)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block after its attention; x, which broadcasts, is the residual."""
        x = self.norm1(x + self.drop(attended))
        return self.norm2(x + self.drop(self.output(x)))


class AttentionBlock(ResidualShell):
    """A block of self-attention with a feed-forward of four times the width."""

    def __init__(self, attention: nn.Module, config: HLFormerConfig) -> None:
        super().__init__(attention, config, 4 * config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attended tokens (N, L, D)."""
        return self.finish(x, self.self(x, mask))


class PoolingBlock(ResidualShell):
    """The block that pools each block's output to one vector, guided by the mean token."""

    def __init__(self, config: HLFormerConfig) -> None:
        super().__init__(PoolingAttention(config), config, config.hidden_size)

    def forward(self, token: Tensor, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Vectors (N, K, D) of block outputs (N, K, L, D) for the token (N, 1, D)."""
        return self.finish(token, self.self(token, outputs, mask))


class MixtureEncoder(nn.Module):
    """K/2 Gaussian and K/2 Lorentz blocks in parallel, mixed at each position by learned weights."""

    def __init__(self, config: HLFormerConfig, length: int) -> None:
        super().__init__()
        d, half = config.hidden_size, config.blocks // 2
        widths = [None, *(float(2**i) for i in range(1, half))]
        self.e_attns = nn.ModuleList(
            AttentionBlock(GaussianAttention(config, width), config) for width in widths
        )
        self.h_attns = nn.ModuleList(
            AttentionBlock(LorentzAttention(config, width), config) for width in widths
        )
        self.ca = PoolingBlock(config)
        self.layer1, self.layer2 = nn.Linear(d, d), nn.Linear(d, length)
        self.drop = nn.Dropout(config.dropout)
        self.tau = config.tau

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Encoded tokens (N, L, D) of tokens of exactly the encoder's length."""
        outputs = torch.stack([block(x, mask) for block in (*self.e_attns, *self.h_attns)], dim=1)
        weights = self.weights(self.ca(self.mean_token(outputs), outputs, mask))
        return (weights[..., None] * outputs).sum(1)

    def mean_token(self, outputs: Tensor) -> Tensor:
        """The mean (N, 1, D) over blocks and positions, padded ones included."""
        return outputs.mean((1, 2))[:, None]

    def weights(self, tokens: Tensor) -> Tensor:
        """Shares (N, K, L) of the blocks at each position, from one vector of each block (N, K, D)."""
        logits = self.layer2(self.drop(self.layer1(tokens).relu()))
        return (logits / self.tau).softmax(1)


class VideoTokens(NamedTuple):
    """Encoded clips (N, map_size, D) and frames (N, max_ctx_l, D); rows of frames beyond the video are 0."""

    clips: Tensor
    frames: Tensor


class HLFormerNetwork(nn.Module):
    """Query, clip and frame branches, the pooled vectors, and the scalars of the partial-order loss."""

    def __init__(self, config: HLFormerConfig, visual_dim: int, text_dim: int) -> None:
        super().__init__()
        d, drop = config.hidden_size, config.input_dropout
        self.config = config
        self.curv = nn.Parameter(
            torch.tensor(math.log(config.curvature)), requires_grad=config.learn_curvature
        )
        self.textual_alpha = nn.Parameter(torch.tensor(-0.5 * math.log(d)))
        self.video_alpha = nn.Parameter(torch.tensor(-0.5 * math.log(d)))
        self.query_pos_embed = PositionEmbedding(config.max_desc_l, d, drop)
        self.clip_pos_embed = PositionEmbedding(config.max_ctx_l, d, drop)
        self.frame_pos_embed = PositionEmbedding(config.max_ctx_l, d, drop)
        self.query_input_proj = InputProjection(text_dim, d, drop)
        self.query_encoder = AttentionBlock(GaussianAttention(config), config)
        self.clip_input_proj = InputProjection(visual_dim, d, drop)
        self.clip_encoder = MixtureEncoder(config, config.map_size)
        self.frame_input_proj = InputProjection(visual_dim, d, drop)
        self.frame_encoder_1 = MixtureEncoder(config, config.max_ctx_l)
        self.modular_vector_mapping = nn.Linear(d, 1, bias=False)  # query
        self.modular_vector_mapping_2 = nn.Linear(d, 1, bias=False)  # frames
        self.modular_vector_mapping_3 = nn.Linear(d, 1, bias=False)  # clips
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring the scalars of the partial-order loss into their ranges, in place, before a training step."""
        start = math.log(self.config.curvature)
        self.curv.clamp_(start - math.log(10), start + math.log(10))
        self.textual_alpha.clamp_(max=0)
        self.video_alpha.clamp_(max=0)

    def queries(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Query vectors (Q, D) of token features (Q, L, text_dim) with mask (Q, L)."""
        x = self.query_pos_embed(self.query_input_proj(tokens))
        x = self.query_encoder(x, mask)
        logits = self.modular_vector_mapping(x).squeeze(-1).float()
        weights = (logits * mask + (1 - mask) * MASKED_TOKEN_LOGIT).softmax(1)
        return (weights[..., None] * x.float()).sum(
            1
        )  # a matrix product would be rounded to bfloat16 by autocast

    def videos(self, clips: Tensor, frames: Tensor, mask: Tensor) -> VideoTokens:
        """Tokens of clip rows (N, map_size, visual_dim) and frame rows (N, L, visual_dim) with mask (N, L)."""
        clip_tokens = self.clip_encoder(self.clip_pos_embed(self.clip_input_proj(clips)), None)
        # Frames are padded before the stem: padded positions are no keys, but they are part of the mean token.
        missing = self.config.max_ctx_l - frames.shape[1]
        frames, mask = nn.functional.pad(frames, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))
        x = self.frame_pos_embed(self.frame_input_proj(frames))
        frame_tokens = self.frame_encoder_1(x, mask)
        return VideoTokens(clip_tokens.float(), frame_tokens.float() * mask[..., None])

    def video_vectors(self, tokens: VideoTokens) -> Tensor:
        """One vector (N, D) of each video; rows of padding have logit and value 0, but take their softmax weight."""
        frames = self.pooled(self.modular_vector_mapping_2, tokens.frames)
        return (frames + self.pooled(self.modular_vector_mapping_3, tokens.clips)) / 2

    @staticmethod
    def pooled(mapping: nn.Linear, tokens: Tensor) -> Tensor:
        """Softmax-weighted sum (N, D) of tokens (N, L, D) over all positions, padding included."""
        return torch.einsum("nl,nld->nd", mapping(tokens).squeeze(-1).softmax(1), tokens)

    def project(self, vectors: Tensor, alpha: Tensor) -> Tensor:
        """Space components (N, D), curvature -exp(curv), of vectors scaled by exp(alpha)."""
        return lorentz.exp_origin(vectors * alpha.exp(), self.curv.exp())


def max_scores(queries: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and plain-product scores (Q, V): the greatest over positions (V, L, D) for queries (Q, D).

    A row of zeros (padding) takes part with a score of 0. One product serves both.
    """
    v, length, _ = positions.shape
    dot = (queries @ positions.flatten(0, 1).T).view(-1, v, length)
    norms = queries.norm(dim=-1).clamp_min(1e-12)[:, None, None] * positions.norm(dim=-1).clamp_min(1e-12)
    return (dot / norms).amax(-1), dot.amax(-1)


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, L, H E) as (N, H, L, E)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)
