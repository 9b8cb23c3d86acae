"""The token-wise score of a text and a video: every token's best partner, weighted by learned importance.

Axes: A texts, V videos, P word slots, Q frame slots, D embedding size, N samples with L tokens of one side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainers.measure.scoring import CPU_FLOATS, GPU_FLOATS

MaskMode = Literal["zero", "neg_inf"]

NORM_EPS = 1e-12  # lower bound of the length that a token is divided by
PADDED = -9e15  # logit of a padded token; finite, because a row of -inf alone would give NaN weights
GROUPS = (
    4  # groups of samples of similar length: captions fill half of their slots, and padding needs no product
)
SMALLEST_GROUP = 16


class Tokens(NamedTuple):
    """Inputs of the score from the tokens of one side, computed once for each sample.

    unit: (N, L, D), of length 1, zero where padded. weights: (N, L), which sum to 1. length: (N,) int64, number of
    slots up to the last token. padding_counts: whether a padded slot takes part in maxima, with a product of 0.
    """

    unit: Tensor
    weights: Tensor
    length: Tensor
    padding_counts: bool = True

    def rows(self, where: Tensor | slice, slots: int) -> Tokens:
        """Samples `where`, cut to their first `slots` slots."""
        unit, weights = self.unit[where, :slots], self.weights[where, :slots]
        return Tokens(unit, weights, self.length[where], self.padding_counts)


def weighting_net(width: int) -> nn.Sequential:
    """The network that gives each token a logit of its importance."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, 1))


def token_weights(net: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """Softmax (N, L) of the network's logits over the real tokens. tokens: (N, L, D); mask: (N, L) bool.

    The network encodes real tokens only: with padding, half of its work would go into logits that are not used.
    """
    logits = tokens.new_full(mask.shape, PADDED)
    logits[mask] = net(tokens[mask]).squeeze(-1)
    return logits.softmax(-1)


def prepare(net: nn.Module, tokens: Tensor, mask: Tensor, mode: MaskMode = "zero") -> Tokens:
    """The part of the score that does not depend on the partner. tokens: (N, L, D); mask: (N, L), 0 or 1.

    `zero`, as published: a padded slot takes part in every maximum with a product of 0, so that no maximum
    over a padded partner is negative. `neg_inf`: it repeats the first real token, which changes no maximum.
    """
    mask = mask.bool()
    weights = token_weights(net, tokens, mask)
    inverse = 1 / tokens.norm(dim=-1).clamp_min(NORM_EPS)
    unit = tokens * (inverse * mask if mode == "zero" else inverse)[..., None]  # one pass over the features
    if mode == "neg_inf":
        first = mask.long().argmax(-1)[:, None, None].expand(-1, 1, unit.shape[-1])
        unit = torch.where(mask[..., None], unit, unit.gather(1, first))
    slots = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return Tokens(unit, weights, (mask * slots).amax(-1), mode == "zero")


def local_similarity(texts: Tokens, videos: Tokens) -> Tensor:
    """L (A, V) = (sum_p a_p max_q s_pq + sum_q b_q max_p s_pq) / 2 with s the products of unit tokens.

    Samples of similar length form groups that are cut to their longest sample. The padding that is cut off is not
    multiplied; it takes part in the maxima as the constant 0.
    """
    text_groups, video_groups = _groups(texts), _groups(videos)
    blocks = [
        [_block(texts.rows(*rows), videos.rows(*columns), texts, videos) for columns in video_groups]
        for rows in text_groups
    ]
    scores = torch.cat([torch.cat(row, 1) for row in blocks])
    return _put_back(_put_back(scores, text_groups, 0), video_groups, 1)


Group = tuple[Tensor | slice, int]
"""Samples, and the number of slots that they need."""


def _groups(tokens: Tokens) -> list[Group]:
    """The samples in groups of similar length."""
    count, slots = tokens.weights.shape
    groups = min(GROUPS, count // SMALLEST_GROUP)
    if groups < 2:
        return [(slice(None), slots)]
    order = tokens.length.argsort()
    parts = order.tensor_split(groups)
    longest = tokens.length[
        torch.stack([part[-1] for part in parts])
    ].tolist()  # one synchronisation with the GPU
    if longest[0] == slots:
        return [(slice(None), slots)]
    return [(part, max(1, length)) for part, length in zip(parts, longest, strict=True)]


def _put_back(scores: Tensor, groups: list[Group], axis: int) -> Tensor:
    """Rows or columns in their original order, before they were grouped."""
    where = [rows for rows, _ in groups if isinstance(rows, Tensor)]
    return scores.index_select(axis, torch.cat(where).argsort()) if where else scores


def _block(texts: Tokens, videos: Tokens, all_texts: Tokens, all_videos: Tokens) -> Tensor:
    """L of a group of texts and a group of videos, whose slots may have been cut."""
    best_frame, best_word = token_maxima(texts.unit, videos.unit)
    if texts.padding_counts and texts.unit.shape[1] < all_texts.unit.shape[1]:
        best_word = best_word.clamp_min(0)
    if videos.padding_counts and videos.unit.shape[1] < all_videos.unit.shape[1]:
        best_frame = best_frame.clamp_min(0)
    of_texts = (texts.weights[:, None] @ best_frame).squeeze(1)
    return 0.5 * (of_texts + (best_word * videos.weights.T).sum(1))


def token_maxima(words: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Each word's best product with a frame (A, P, V), and each frame's with a word (A, Q, V).

    words: (A, P, D); frames: (V, Q, D). The products are held in blocks under a memory budget. The gradient of
    a maximum goes to the first of equal products, whole.
    """
    if torch.is_grad_enabled() and (words.requires_grad or frames.requires_grad):
        best_frame, best_word = _TokenMaxima.apply(words, frames)
        return best_frame, best_word
    outs = _outputs(words, frames, words.dtype)
    for rows, columns, products in _products(words, frames):
        outs[0][rows, :, columns] = products.amax(2)
        outs[1][rows, :, columns] = products.amax(1)
    return outs


def _outputs(words: Tensor, frames: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    texts, videos = len(words), len(frames)
    return (
        torch.empty(texts, words.shape[1], videos, dtype=dtype, device=words.device),
        torch.empty(texts, frames.shape[1], videos, dtype=dtype, device=words.device),
    )


def _blocks(words: Tensor, frames: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of the texts and of the videos whose products fit into the budget."""
    budget = CPU_FLOATS if words.device.type == "cpu" else GPU_FLOATS
    pairs = max(1, budget // (words.shape[1] * frames.shape[1]))
    columns = max(1, min(len(frames), pairs // 8))  # 8 texts a block at least: thin products are slow
    rows = max(1, pairs // columns)
    for row in range(0, len(words), rows):
        for column in range(0, len(frames), columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _products(words: Tensor, frames: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks (a, P, Q, v) of all products. Videos come last: maxima over the other axes are then vectorised."""
    slots = frames.transpose(0, 1).contiguous()  # (Q, V, D)
    memory = words.new_empty(0)
    for rows, columns in _blocks(words, frames):
        a, v = words[rows], slots[:, columns]
        shape = (len(a), a.shape[1], v.shape[0], v.shape[1])
        memory = _memory(memory, shape)
        products = memory[: math.prod(shape)].view(shape)
        torch.mm(a.flatten(0, 1), v.flatten(0, 1).T, out=products.view(shape[0] * shape[1], -1))
        yield rows, columns, products


def _memory(kept: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The memory of the previous block if it is large enough: new pages would cost more time than the maxima."""
    return kept if kept.numel() >= math.prod(shape) else kept.new_empty(math.prod(shape))


class _TokenMaxima(torch.autograd.Function):
    """The maxima; only their positions are kept for the gradient, not all products."""

    @staticmethod
    def forward(ctx: Any, words: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        best = _outputs(words, frames, words.dtype)
        place = _outputs(words, frames, torch.int16)
        for rows, columns, products in _products(words, frames):
            for out, at, axis in ((best[0], place[0], 2), (best[1], place[1], 1)):
                values, indices = products.max(axis)
                out[rows, :, columns], at[rows, :, columns] = values, indices
        ctx.save_for_backward(words, frames, *place)
        return best

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        words, frames, frame_at, word_at = ctx.saved_tensors
        out_words = torch.zeros_like(words) if ctx.needs_input_grad[0] else None
        out_frames = torch.zeros_like(frames).transpose(0, 1) if ctx.needs_input_grad[1] else None
        slots = frames.transpose(0, 1).contiguous()  # (Q, V, D)
        memory = words.new_empty(0)
        for rows, columns in _blocks(words, frames):
            a, v = words[rows], slots[:, columns]
            shape = (len(a), a.shape[1], v.shape[0], v.shape[1])
            memory = _memory(memory, shape)
            sparse = memory[: math.prod(shape)].view(shape).zero_()
            sparse.scatter_(
                2, frame_at[rows, :, columns].long()[:, :, None], gradients[0][rows, :, columns][:, :, None]
            )
            sparse.scatter_add_(
                1, word_at[rows, :, columns].long()[:, None], gradients[1][rows, :, columns][:, None]
            )
            flat = sparse.flatten(2).flatten(0, 1)  # (a P, Q v)
            if out_words is not None:
                out_words[rows] += (flat @ v.flatten(0, 1)).view_as(a)
            if out_frames is not None:
                out_frames[:, columns] += (flat.T @ a.flatten(0, 1)).view_as(v)
        return out_words, None if out_frames is None else out_frames.transpose(0, 1)
