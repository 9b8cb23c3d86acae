"""GARE's variant of ActivityNet: the video is corrected for each caption, with the caption's words as context.

The paper says only that, and nobody released it. What it leaves open is chosen here: the frames pooled for the pair
receive the increment; the gap is that of the other side with its sign changed, caption less mean frame; padded words
are no context; the pooled frames are weighted by shares of the real frames alone, because their length counts where
something is added to them. All else is as in `trainers.gare.model`: one layer norm for gap and context, one attention
head, the same increment, and losses over the increments of a pair.

Axes: A captions, W words, B videos, F frames, D embedding size.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.gare.config import GareConfig
from trainers.gare.method import Gare, started
from trainers.gare.model import PAIR_FLOATS, Head, Pairs
from trainers.layers.pair_data import PairData
from trainers.loop import distributed
from trainers.method import Batch, Encoded


class VideoHead(Head):
    """The pair head that corrects videos; its parameters are those of the head that corrects captions."""

    def pairs(
        self,
        text: Tensor,
        words: Tensor,
        word_mask: Tensor,
        frames: Tensor,
        mask: Tensor,
        keep: Tensor | None = None,
    ) -> Pairs:
        """Similarities (A, B) and increments (A, B, D) of captions (A, D) with words (A, W, D), and frames (B, F, D).

        keep: (A, B, D), 1 where dropout keeps a value; without it nothing is dropped. Keys meet the query's projection
        and values the output's before the pairs are formed, so that two products with D x D matrices a pair are left.
        """
        psi, dims = self.psi, text.shape[-1]
        pooled = torch.einsum("bfa,bfd->abd", self._shares(_products(text, frames), mask), frames)
        gap = psi.layer_norm1(text[:, None] - self._mean(frames, mask)[None])
        context = psi.layer_norm1(words)
        keys = psi.k_proj(context)
        logits = gap @ (keys @ psi.q_proj.weight).transpose(1, 2) + (keys @ psi.q_proj.bias)[:, None]
        logits = (logits / math.sqrt(dims)).masked_fill(~word_mask.bool()[:, None], -math.inf)
        h = psi.layer_norm2(
            logits.softmax(-1) @ psi.out_proj(psi.v_proj(context))
        )  # shares sum to 1: biases go through
        delta = psi.mean_proj(psi.layer_norm3(h + self._dropped(psi.linear1(h), keep)))
        return Pairs(F.cosine_similarity(text[:, None], pooled + delta, dim=-1, eps=0), delta)

    def score_videos(self, texts: Encoded, items: Encoded) -> Tensor:
        """Similarities (A, B) of encoded captions and videos, a few captions at a time; nothing is dropped."""
        frames, mask = items["frames"], items["mask"]
        rows = max(1, PAIR_FLOATS // (len(frames) * frames.shape[-1]))
        blocks = zip(*(texts[name].split(rows) for name in ("text", "words", "word_mask")), strict=True)
        return torch.cat(
            [self.pairs(text, words, real, frames, mask).similarity for text, words, real in blocks]
        )


class VideoGare(Gare):
    """Ranks videos by the cosine of a caption and the frames it pools, corrected for it.

    Batches are those of `Gare` with `word_mask` (A, W); in mode "frozen" `words` (A, W, D) are the states of all words,
    of which the last real one is the end token's.
    """

    @property
    def head(self) -> VideoHead:
        """The head, which `build` made for this class."""
        return cast(VideoHead, self.network.head)

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Every term of the joint batch of all processes, which each of them computes whole."""
        self.network.towers.clamp_scale_()
        own, frames = self.encode_texts(batch), self._videos(batch)
        text, frames = self.shared(own["text"], frames)
        words = distributed.gather_with_grad(
            distributed.scaled_gradient(own["words"], self.config.encoder_grad_scale)
        )
        masks = [
            torch.cat(distributed.gather(mask.to(torch.uint8)))
            for mask in (own["word_mask"], batch["frame_mask"])
        ]
        keep = self._keep(len(text), len(frames), text.shape[1], text.device)
        with torch.autocast(text.device.type, enabled=False):
            return self.pair_terms(self.head.pairs(text, words, masks[0], frames, masks[1], keep))

    def encode_texts(self, batch: Batch) -> Encoded:
        """Caption vectors (A, D) and the states of their words (A, W, D), neither normalised, with a mask (A, W)."""
        mask = batch["word_mask"].bool()
        if self.config.mode == "frozen":
            words = batch["words"].float()
            text = words[torch.arange(len(words), device=words.device), mask.sum(1) - 1]
        else:
            towers = self.network.trained_towers()
            words = towers.text(batch["tokens"])
            text = towers.end(words, batch["tokens"])
        return {"text": text, "words": words, "word_mask": mask}

    def encode_items(self, batch: Batch) -> Encoded:
        """Frames in their context (B, F, D) with their mask."""
        return {"frames": self._videos(batch), "mask": batch["frame_mask"].bool()}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Cosines (A, B) of each caption and the frames it pools of each video, corrected for it."""
        with torch.autocast(texts["text"].device.type, enabled=False):
            return self.head.score_videos(texts, items)

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Nothing: the drawing is of increments frame by frame, and these are word by word."""
        return {}


def build(config: GareConfig, data: PairData) -> VideoGare:
    """A GARE that corrects videos and starts from CLIP, for the packed data; raises what `method.build` raises."""
    return VideoGare(config, started(config, data, VideoHead))


def _products(text: Tensor, frames: Tensor) -> Tensor:
    """Inner products (B, F, A) of captions (A, D) and frames (B, F, D)."""
    return frames @ text.T
