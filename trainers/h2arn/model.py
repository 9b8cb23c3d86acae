"""The network of H2ARN: two stacks of attention blocks, contribution-aware aggregation, points on a hyperboloid.

Attributes have the authors' names (`text_encoder`, `encoder_layer`, `log_alpha_pcd` ...), so that state dicts are
interchangeable. Points have their time component first; the authors' have it last, which affects no weight.

Axes: N captions or clouds, L tokens of each, W width of the input, D d_model.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.geometry import lorentz
from trainers.h2arn.config import H2arnConfig

LEAST_C, GREATEST_C = 0.1, 10.0  # bounds of c; outside of them log_c has no gradient, as released
START_TEMPERATURE = 0.07
CPU_BATCH = 8  # inputs whose activations stay in the cache: 15 % less time than 48 at the published size
HIDDEN = 4  # width of a block's feed-forward part, as a multiple of d_model


class Pooled(NamedTuple):
    """Captions or clouds as one vector each, with the weights of their tokens.

    point: (N, 1 + D) on the hyperboloid, time first, or (N, D) of length 1 in Euclidean geometry. weights: (N, L) of
    the tokens, which sum to 1. distances: (N, L) between tokens and their mean; in Euclidean geometry minus their dot
    products with it.
    """

    point: Tensor
    weights: Tensor
    distances: Tensor


class Block(nn.Module):
    """A pre-norm transformer block (N, L, W) to (N, L, D), after a linear map if W differs from D."""

    def __init__(self, inputs: int, config: H2arnConfig) -> None:
        super().__init__()
        width = config.d_model
        self.input_proj = nn.Linear(inputs, width) if inputs != width else nn.Identity()
        self.encoder_layer = nn.TransformerEncoderLayer(
            width, config.nhead, HIDDEN * width, config.dropout, "relu", batch_first=True, norm_first=True
        )

    def forward(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens (N, L, D) after attention; `padding` (N, L) is true for tokens that are not attended to."""
        return self.encoder_layer(self.input_proj(tokens), src_key_padding_mask=padding)


class Aggregator(nn.Module):
    """Weights the tokens of a caption or cloud by their distance from their mean: near tokens weigh more."""

    def __init__(self, config: H2arnConfig) -> None:
        super().__init__()
        self.config = config
        self.temperature = nn.Parameter(torch.tensor(START_TEMPERATURE))

    def forward(self, tokens: Tensor, c: Tensor, padding: Tensor | None = None) -> Pooled:
        """One point for the scaled tokens (N, L, D) of each input; tokens with `padding` (N, L) true take no part."""
        anchor = _mean(tokens, padding)
        distances = self.distances(tokens, anchor, c)
        if self.config.aggregation == "mean":
            weights = _kept(torch.zeros_like(distances), padding).softmax(-1)
            return Pooled(self.point(anchor, c), weights, distances)
        logits = -distances
        if self.config.temperature == "learnable":
            logits = logits / self.temperature
        weights = _kept(logits, padding).softmax(-1)
        pooled = (weights[:, None] @ tokens).squeeze(1)
        return Pooled(self.point(pooled, c), weights, distances)

    def distances(self, tokens: Tensor, anchor: Tensor, c: Tensor) -> Tensor:
        """Distances (N, L) between tokens (N, L, D) and their anchor (N, D)."""
        anchor = anchor[:, None]
        if self.config.geometry == "euclidean":
            return -(anchor @ tokens.mT).squeeze(1)
        return lorentz.distance(lorentz.inner(self.lifted(anchor, c), self.lifted(tokens, c)), c)

    def point(self, pooled: Tensor, c: Tensor) -> Tensor:
        """Points of vectors (N, D)."""
        if self.config.geometry == "euclidean":
            return F.normalize(pooled, dim=-1)
        return self.lifted(pooled, c)

    def lifted(self, vectors: Tensor, c: Tensor) -> Tensor:
        """Points (..., 1 + D) of vectors (..., D), taken as space components or mapped exponentially at the origin."""
        if self.config.lift == "exponential":
            vectors = lorentz.exp_origin(vectors, c)
        return lorentz.lift(vectors, c)


class H2arnNetwork(nn.Module):
    """Captions (N, L, W) and clouds (N, L, W') to one point each."""

    def __init__(self, config: H2arnConfig, text_dim: int, cloud_dim: int) -> None:
        super().__init__()
        self.config = config
        self.log_c = nn.Parameter(torch.tensor(math.log(config.hyperbolic_c)))
        scale = -math.log(config.d_model) / 2
        self.log_alpha_txt, self.log_alpha_pcd = (nn.Parameter(torch.tensor(scale)) for _ in range(2))
        self.text_encoder, self.pcd_encoder = (_encoder(config, inputs) for inputs in (text_dim, cloud_dim))
        self.text_aggregator, self.pcd_aggregator = Aggregator(config), Aggregator(config)

    @property
    def c(self) -> Tensor:
        """c, where the curvature is -c."""
        return self.log_c.exp().clamp(LEAST_C, GREATEST_C)

    def texts(self, tokens: Tensor, padding: Tensor | None = None) -> Pooled:
        """Captions to points; `padding` (N, L) is true for tokens that take no part, None if all do."""
        encoded = encode(self.text_encoder, tokens, padding)
        return self.pool_texts(encoded, padding)

    def clouds(self, tokens: Tensor) -> Pooled:
        """Clouds to points."""
        return self.pool_clouds(encode(self.pcd_encoder, tokens))

    def pool_texts(self, encoded: Tensor, padding: Tensor | None = None) -> Pooled:
        """Captions to points, from their encoder's outputs (N, L, D)."""
        # In float32: distances are differences of large products, which cancel.
        with torch.autocast(encoded.device.type, enabled=False):
            scaled = self.log_alpha_txt.exp() * _full(encoded)
            return self.text_aggregator(scaled, self.c, padding)

    def pool_clouds(self, encoded: Tensor) -> Pooled:
        """Clouds to points, from their encoder's outputs (N, L, D); in float32, as captions."""
        with torch.autocast(encoded.device.type, enabled=False):
            return self.pcd_aggregator(self.log_alpha_pcd.exp() * _full(encoded), self.c)

    def inner(self, texts: Tensor, clouds: Tensor) -> Tensor:
        """Lorentz products (Q, V) of points (Q, 1 + D) and (V, 1 + D); plain products in Euclidean geometry."""
        with torch.autocast(texts.device.type, enabled=False):
            if self.config.geometry == "euclidean":
                return texts @ clouds.T
            return lorentz.pairwise_inner(texts, clouds)

    def similarity(self, inner: Tensor) -> Tensor:
        """Scores (Q, V) from products (Q, V): the products themselves, or negative distances."""
        return -lorentz.distance(inner, self.c) if self.config.similarity == "distance" else inner


def encode(encoder: nn.Module, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
    """Tokens (N, L, W) through a stack of blocks: (N, L, D); without gradients on a CPU, CPU_BATCH at a time."""
    if tokens.device.type == "cpu" and not torch.is_grad_enabled() and len(tokens) > CPU_BATCH:
        masks = [None] * len(tokens) if padding is None else padding.split(CPU_BATCH)
        pairs = zip(tokens.split(CPU_BATCH), masks, strict=False)
        return torch.cat([encode(encoder, *pair) for pair in pairs])
    for block in encoder.children():
        tokens = block(tokens, padding)
    return tokens


def _encoder(config: H2arnConfig, inputs: int) -> nn.ModuleList:
    widths = [inputs, *[config.d_model] * (config.num_layers - 1)]
    return nn.ModuleList(Block(width, config) for width in widths)


def _full(values: Tensor) -> Tensor:
    """The values in float32; wider ones unchanged."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _mean(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Means (N, D) of the tokens (N, L, D) without padding."""
    if padding is None:
        return tokens.mean(1)
    kept = (~padding).to(tokens.dtype)
    return (kept[:, None] @ tokens).squeeze(1) / kept.sum(1, keepdim=True)


def _kept(logits: Tensor, padding: Tensor | None) -> Tensor:
    return logits if padding is None else logits.masked_fill(padding, -torch.inf)
