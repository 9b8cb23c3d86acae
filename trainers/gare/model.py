"""GARE's network: towers, temporal stage, and the head that corrects each caption for each video.

Axes: A captions, B videos, F frames, G rows of a video, D embedding size, R pixels. The head computes in float32 for
any precision of the towers. Padded frames take part in it, as published, unless `mask_padding` is set.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from trainers.gare.config import GareConfig
from trainers.layers.clip_input import pixels
from trainers.layers.clip_towers import ClipTowers, StoredScale
from trainers.layers.temporal import RecurrentFrames, TemporalTransformer

INIT_STD = 0.02
NORM_EPS = 1e-5
PAIR_FLOATS = 2**22  # numbers in one array over pairs and frames in `score`: 16 MB, which fits into a cache


class Pairs(NamedTuple):
    """Outputs of the head for every pair of a caption and a video."""

    similarity: Tensor  # (A, B), cosine of the corrected caption and the pooled frames
    delta: Tensor  # (A, B, D), the increments


class PlainPairs(NamedTuple):
    """All intermediates of the head in the form of the page's section 5."""

    pool_weight: Tensor  # (A, B, F)
    video_pooled: Tensor  # (A, B, D)
    video_mean: Tensor  # (B, D)
    psi_ln1_gap: Tensor  # (A, B, D)
    psi_ln1_frames: Tensor  # (B, F, D)
    psi_attn_weight: Tensor  # (A, B, F)
    psi_attn_out: Tensor  # (A, B, D)
    psi_ln2: Tensor  # (A, B, D)
    psi_ln3: Tensor  # (A, B, D)
    delta: Tensor  # (A, B, D)
    text_corrected: Tensor  # (A, B, D)
    sim: Tensor  # (A, B)


class Sizes(NamedTuple):
    """Lengths of the increments, and of the part that each frame adds to them."""

    increment: Tensor  # (A, B)
    frames: Tensor  # (A, B, F), at least 0
    pool: Tensor  # (A, B, F), weights of the frames in the pooled video, which sum to 1


class Psi(nn.Module):
    """The parameters of the increment: one attention head of width D between two layer norms, and a projection.

    Names are the release's without its numbering. Parameters that the release creates and never uses are left out.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj", "linear1", "mean_proj"):
            setattr(self, name, _linear(dims))
        for name in ("layer_norm1", "layer_norm2", "layer_norm3"):
            setattr(self, name, nn.LayerNorm(dims, eps=NORM_EPS))

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    linear1: nn.Linear
    mean_proj: nn.Linear
    layer_norm1: nn.LayerNorm
    layer_norm2: nn.LayerNorm
    layer_norm3: nn.LayerNorm


class Head(nn.Module):
    """The pair head (page section 5): `plain` as published; `forward` and `score` give its values at less cost.

    On one CPU core 1,000 x 1,000 scores take 1.5 s instead of 37 s, a training step at B = 128 1.2 s instead of 2.5 s.
    """

    def __init__(
        self,
        dims: int,
        temp: float = 3.0,
        dropout: float = 0.3,
        mask_padding: bool = False,
        gap_detach_text: bool = False,
    ) -> None:
        super().__init__()
        self.psi = Psi(dims)
        self.temp, self.dropout = temp, dropout
        self.mask_padding, self.gap_detach_text = mask_padding, gap_detach_text

    def plain(self, text: Tensor, frames: Tensor, mask: Tensor, keep: Tensor | None = None) -> PlainPairs:
        """Every intermediate for captions (A, D) and frames (B, F, D) with mask (B, F), from products for each pair.

        keep: (A, B, D), 1 where dropout keeps a value; None for no dropout.
        """
        psi, dims = self.psi, text.shape[-1]
        pool = self._pooling(torch.einsum("ad,bfd->abf", text, frames), mask)
        pooled = torch.einsum("abf,bfd->abd", pool, frames)
        mean = self._mean(frames, mask)
        gap = psi.layer_norm1(mean[None] - self._gap_text(text)[:, None])
        context = psi.layer_norm1(frames)
        logits = torch.einsum("abd,bfd->abf", psi.q_proj(gap), psi.k_proj(context)) / math.sqrt(dims)
        weight = self._attention(logits, mask, axis=-1)
        out = psi.out_proj(torch.einsum("abf,bfd->abd", weight, psi.v_proj(context)))
        h = psi.layer_norm2(out)
        s = psi.layer_norm3(h + self._dropped(psi.linear1(h), keep))
        delta = psi.mean_proj(s)
        corrected = text[:, None] + delta
        similarity = F.cosine_similarity(
            corrected, pooled, dim=-1, eps=0
        )  # a lower bound would change tiny lengths
        return PlainPairs(pool, pooled, mean, gap, context, weight, out, h, s, delta, corrected, similarity)

    def forward(self, text: Tensor, frames: Tensor, mask: Tensor, keep: Tensor | None = None) -> Pairs:
        """Similarities and increments for training: the values of `plain` with one D x D product for each pair.

        All before dropout is affine in the attention weights, up to one factor for each pair. Products with D x D
        matrices are therefore computed for each frame instead of each pair (page section 14).
        """
        psi, dims = self.psi, frames.shape[-1]
        folded, outputs = self.fold(frames, mask)
        pool = self._shares(_products(text, frames), mask)  # (B, F, A)
        weight = self._normed_attention(text, folded, mask).transpose(1, 2)  # (B, A, F)
        gained = psi.layer_norm2.weight * outputs  # (B, F, D)
        both = weight @ torch.cat([gained, F.linear(gained, psi.linear1.weight)], -1)  # (B, A, 2 D)
        bias = psi.layer_norm2.bias
        h, changed = both[..., :dims] + bias, both[..., dims:] + psi.linear1(bias)
        kept = None if keep is None else keep.transpose(0, 1)
        delta = psi.mean_proj(psi.layer_norm3(h + self._dropped(changed, kept))).transpose(0, 1)
        corrected = (text[:, None] + delta).transpose(0, 1)  # (B, A, D)
        toward = (pool * (frames @ corrected.transpose(1, 2))).sum(1)  # (B, A)
        lengths = torch.linalg.vector_norm(corrected, dim=-1) * _form(pool, folded.gram).sqrt()
        return Pairs((toward / lengths).T, delta)

    def fold(self, frames: Tensor, mask: Tensor) -> tuple[Folded, Tensor]:
        """The inputs of attention and norms for each video, and each frame's attention output (B, F, D), centred."""
        psi, dims = self.psi, frames.shape[-1]
        norm1 = psi.layer_norm1
        context = norm1(frames)
        keys = psi.k_proj(context)  # (B, F, D)
        # Attention weights sum to 1, so that the projections' biases can be added before the weighted sum.
        outputs = _centred(psi.out_proj(psi.v_proj(context)))
        # Centring changes no product, because the other factor is always a centred vector.
        kappa = _centred(norm1.weight * F.linear(keys, psi.q_proj.weight.T))
        mean = _centred(self._mean(frames, mask))
        folded = Folded(
            mean=mean,
            kappa=kappa,
            kappa_mean=torch.einsum("bd,bfd->bf", mean, kappa),
            key_bias=keys @ psi.q_proj(norm1.bias) / math.sqrt(dims),
            outputs_gram=outputs @ outputs.transpose(1, 2) / dims,
            gram=frames @ frames.transpose(1, 2),
        )
        return folded, outputs

    def prepare(self, frames: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The inputs of `score` for videos (B, F, D) with mask (B, F): tensors whose first axis is B."""
        psi, dims = self.psi, frames.shape[-1]
        folded, outputs = self.fold(frames, mask)
        gained = psi.layer_norm2.weight * outputs
        inner = _centred(gained + F.linear(gained, psi.linear1.weight))  # r~ of section 14
        steps = F.linear(psi.layer_norm3.weight * inner, psi.mean_proj.weight)  # d_jf of section 14
        inner0, step0, step1 = self._constants()
        basis = torch.cat([steps, torch.stack([step0, step1]).expand(len(frames), -1, -1)], 1)
        return {
            "frames": frames,
            "mask": mask.bool(),
            **folded._asdict(),
            "inner_gram": inner @ inner.transpose(1, 2) / dims,
            "inner_cross": inner @ inner0 / dims,
            "basis": basis,  # (B, F + 2, D); every increment for the video is a combination of these rows
            "basis_gram": basis @ basis.transpose(1, 2),
            "frames_basis": frames @ basis.transpose(1, 2),  # (B, F, F + 2)
        }

    def score(self, text: Tensor, videos: dict[str, Tensor]) -> Tensor:
        """Similarities (A, B) of captions (A, D) and prepared videos, without dropout or any tensor (A, B, D)."""
        rows = max(1, PAIR_FLOATS // videos["basis"].shape[:2].numel())
        return torch.cat([self._score(part, videos) for part in text.split(rows)])

    def _score(self, text: Tensor, videos: dict[str, Tensor]) -> Tensor:
        mask, gram = videos["mask"], videos["gram"]
        products = _products(text, videos["frames"])  # (B, F, A)
        pool, share = self._shares(products, mask), self.increments(text, videos)
        square = (text * text).sum(-1) + 2 * (share * _products(text, videos["basis"])).sum(1)
        square = square + _form(share, videos["basis_gram"])  # |t + delta|^2, expanded
        toward = (pool * (products + videos["frames_basis"] @ share)).sum(1)
        # The expanded square can round to less than 0 if the increment nearly cancels the caption.
        return (toward / (square.clamp_min(0) * _form(pool, gram)).sqrt()).T

    def increments(self, text: Tensor, videos: dict[str, Tensor]) -> Tensor:
        """Coefficients (B, F + 2, A) of the rows of a video's `basis` in its increment of a caption (A, D).

        The first F rows are the parts of the frames, the last two those of the biases; the increment is their sum.
        """
        folded = Folded(**{name: videos[name] for name in Folded._fields})
        weight = self._normed_attention(text, folded, videos["mask"])
        inner0, _, _ = self._constants()
        spread = _form(weight, videos["inner_gram"]) + (inner0 @ inner0) / len(inner0)  # (B, A)
        spread = spread + 2 * (weight * videos["inner_cross"][..., None]).sum(
            1
        )  # variance in LN3, by Gram matrices
        root = (spread.clamp_min(0) + self.psi.layer_norm3.eps).rsqrt()[:, None]
        return torch.cat([root * weight, root, torch.ones_like(root)], 1)

    def sizes(self, text: Tensor, videos: dict[str, Tensor]) -> Sizes:
        """Lengths of the increments of captions (A, D) for prepared videos, in total and for each frame."""
        share, gram = self.increments(text, videos), videos["basis_gram"]
        each = share * gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()[..., None]
        pool = self._shares(_products(text, videos["frames"]), videos["mask"])
        return Sizes(_form(share, gram).sqrt().T, each[:, :-2].permute(2, 0, 1), pool.permute(2, 0, 1))

    def _normed_attention(self, text: Tensor, folded: Folded, mask: Tensor) -> Tensor:
        """Attention weights (B, F, A) divided by the root of LN2's variance, without a vector for each pair."""
        dims, centred = text.shape[-1], _centred(self._gap_text(text))
        cross = folded.mean @ centred.T  # (B, A)
        squares = (centred * centred).sum(-1) + (folded.mean * folded.mean).sum(-1, keepdim=True)
        # |mean - text|^2 expanded, as the variance in LN1; it can round to less than 0 where both are equal.
        root = ((squares - 2 * cross).clamp_min(0) / dims + self.psi.layer_norm1.eps).rsqrt()[:, None]
        logits = root * (folded.kappa_mean[..., None] - _products(centred, folded.kappa)) / math.sqrt(dims)
        weight = self._attention(logits + folded.key_bias[..., None], mask[..., None])
        variance = _form(weight, folded.outputs_gram)
        return weight * (variance + self.psi.layer_norm2.eps).rsqrt()[:, None]

    def _constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors that come from the biases of LN2 and LN3: r~0, d0, d1 (D,) of the page's section 14."""
        psi = self.psi
        inner = _centred(psi.layer_norm2.bias + psi.linear1(psi.layer_norm2.bias))
        step = F.linear(psi.layer_norm3.weight * inner, psi.mean_proj.weight)
        return inner, step, psi.mean_proj(psi.layer_norm3.bias)

    def _gap_text(self, text: Tensor) -> Tensor:
        return text.detach() if self.gap_detach_text else text

    def _mean(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Mean (B, D) over all frames, including padded ones unless they are masked."""
        if not self.mask_padding:
            return frames.mean(1)
        real = mask.to(frames.dtype)[..., None]
        return (frames * real).sum(1) / real.sum(1)

    def _pooling(self, products: Tensor, mask: Tensor) -> Tensor:
        """Weights (A, B, F) of frames in the pooled video; padded ones are set to 0 without rescaling the others."""
        return self._attention(products / self.temp, mask, -1) * mask.to(products.dtype)

    def _shares(self, products: Tensor, mask: Tensor) -> Tensor:
        """Weights (B, F, A) of the real frames, which sum to 1: those of `_pooling` up to a factor for each pair.

        The factor is the weight that padding leaves to real frames. It cancels in a cosine. If padding takes nearly
        all of it, the length of the pooled video underflows to 0 and the published form gives an infinite cosine.
        """
        return (products / self.temp).masked_fill(~mask.bool()[..., None], -math.inf).softmax(1)

    def _attention(self, logits: Tensor, mask: Tensor, axis: int = 1) -> Tensor:
        if self.mask_padding:
            logits = logits.masked_fill(~mask.bool(), -math.inf)
        return logits.softmax(axis)

    def _dropped(self, values: Tensor, keep: Tensor | None) -> Tensor:
        return values if keep is None else values * keep / (1 - self.dropout)


class Folded(NamedTuple):
    """Inputs of attention and norms for each video; a tilde on the page means "centred" here."""

    mean: Tensor  # (B, D), centred mean of the frames
    kappa: Tensor  # (B, F, D), keys multiplied by LN1's gain and the query projection
    kappa_mean: Tensor  # (B, F), their products with the centred mean
    key_bias: Tensor  # (B, F), part of the logits that comes from LN1's bias
    outputs_gram: Tensor  # (B, F, F), products of the frames' centred attention outputs, divided by D
    gram: Tensor  # (B, F, F), products of the frames


class GareNetwork(nn.Module):
    """All trained parts. Pass `towers` = None to train on stored features of CLIP."""

    def __init__(self, config: GareConfig, towers: ClipTowers | None, dims: int, positions: int) -> None:
        super().__init__()
        self.towers: ClipTowers | StoredScale = StoredScale() if towers is None else towers
        self.temporal = _temporal(config, dims, positions)
        if towers is not None and isinstance(self.temporal, TemporalTransformer):
            self.temporal.start_from(towers)
        self.head = Head(dims, config.temp, config.psi_dropout, config.mask_padding, config.gap_detach_text)

    def texts(self, tokens: Tensor) -> Tensor:
        """Caption vectors (A, D) of token ids (A, L): CLIP's state of the end token.

        A causal state depends on earlier tokens only, so padding needs no mask.
        """
        towers = self._trained()
        return towers.end(towers.text(tokens), tokens)

    def frames(self, frames: Tensor, mask: Tensor) -> Tensor:
        """CLIP's features (B, F, D) of uint8 frames (B, F, R, R, 3) with mask (B, F).

        Padded slots are frames of the mean colour. They are all equal, so only one of them is encoded.
        """
        towers, real = self._trained(), mask.bool().flatten()
        shown = pixels(frames, mask).flatten(0, 1)
        return self.pixel_features(towers, shown, real).unflatten(0, mask.shape)

    @staticmethod
    def pixel_features(towers: ClipTowers, shown: Tensor, real: Tensor) -> Tensor:
        """Features (N, D) of normalised frames (N, 3, R, R); those not `real` (N,) are equal and encoded once."""
        if bool(real.all()):
            return towers.image(shown)
        features = towers.image(torch.cat([shown[real], shown.new_zeros(1, *shown.shape[1:])]))
        place = torch.where(real, real.cumsum(0) - 1, len(features) - 1)
        return features[place]

    def videos(self, features: Tensor, mask: Tensor) -> Tensor:
        """Frame features (B, F, D) after the temporal stage."""
        return features.float() if self.temporal is None else self.temporal(features, mask)

    def _trained(self) -> ClipTowers:
        if isinstance(self.towers, StoredScale):
            raise UserError(
                "this GARE was made for stored features (mode = 'frozen'): it has no CLIP to encode with"
            )
        return self.towers


def _temporal(config: GareConfig, dims: int, positions: int) -> nn.Module | None:
    if config.agg_module == "seqTransf":
        return TemporalTransformer(dims, config.num_hidden_layers, positions)
    return RecurrentFrames(dims) if config.agg_module == "seqLSTM" else None


def _linear(dims: int) -> nn.Linear:
    layer = nn.Linear(dims, dims)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


def _centred(values: Tensor) -> Tensor:
    """Values minus their mean over the last axis."""
    return values - values.mean(-1, keepdim=True)


def _products(text: Tensor, rows: Tensor) -> Tensor:
    """Inner products (B, G, A) of captions (A, D) and rows (B, G, D), as one matrix product."""
    return (rows.flatten(0, 1) @ text.T).unflatten(0, rows.shape[:2])


def _form(weight: Tensor, gram: Tensor) -> Tensor:
    """weight^T gram weight (B, A) of weights (B, G, A) and Gram matrices (B, G, G); rounding below 0 is cut off."""
    return ((gram @ weight) * weight).sum(1).clamp_min(0)
