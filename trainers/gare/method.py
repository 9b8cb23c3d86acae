"""GARE as the engine sees it: its loss terms, its encodings, its scores, its optimizer.

Batches. Of mode "finetune": `tokens` (A, L) int64, `frames` (B, F, R, R, 3) uint8, `frame_mask` (B, F) bool.
Of mode "frozen": `words` (A, 1, D), the projected state of each caption's end token, `frames` (B, F, D), `frame_mask`.
In training A = B, and row i of both is a pair. `index` (A,) beside captions is left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.gare import losses
from trainers.gare.config import GareConfig
from trainers.gare.model import GareNetwork, Head, Pairs
from trainers.layers.clip_towers import load_towers
from trainers.layers.pair_data import PairData
from trainers.loop import distributed
from trainers.loop.optim import BertAdam, tower_groups
from trainers.method import Batch, Encoded, Method

BETAS = (0.9, 0.98)
STORED_POSITIONS = 77  # positions of frames without a CLIP network that defines their number


class Gare(Method):
    """Ranks videos by the cosine of a caption, corrected for each video, and the frames it pools."""

    pairs_at_once = 2**19  # 1 s on a core

    def __init__(self, config: GareConfig, network: GareNetwork) -> None:
        super().__init__()
        self.config, self.network = config, network

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Every term of the joint batch of all processes, which each of them computes whole."""
        self.network.towers.clamp_scale_()  # after the latest update, as published
        order = distributed.joint_order(batch)
        text, frames = self.shared(self._texts(batch), self._videos(batch), order)
        mask = distributed.joint(batch["frame_mask"], order)
        return self.terms(text, frames, mask, self._keep(len(text), len(frames), text.shape[1], text.device))

    def shared(self, text: Tensor, frames: Tensor, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Captions and frames of all processes; only their gradient is multiplied by `encoder_grad_scale`.

        The release's gradient is 1 / W of the true one with W processes for all that encodes, and the true
        one for the head and the logit scale.
        """
        share = self.config.encoder_grad_scale
        text, frames = (distributed.scaled_gradient(values, share) for values in (text, frames))
        return distributed.joint(text, order), distributed.joint(frames, order)

    def terms(
        self, text: Tensor, frames: Tensor, mask: Tensor, keep: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted terms of captions (B, D) and frames (B, F, D); keep (B, B, D) is 1 where dropout keeps."""
        with torch.autocast(
            text.device.type, enabled=False
        ):  # float32: a tau of 0.01 needs all digits of a cosine
            return self.pair_terms(self.network.head(text, frames, mask, keep))

    def pair_terms(self, pairs: Pairs) -> dict[str, Tensor]:
        """Weighted loss terms of the head's outputs for every pair of a caption and a video."""
        c = self.config
        return {
            "contrastive": losses.contrastive(pairs.similarity, self.network.towers.scale),
            "divergence": c.beta * losses.divergence(pairs.delta, c.kl_reduction),
            "direction": c.lambda_dir * losses.direction(pairs.delta, c.alpha),
            "norm": c.lambda_epsilon * losses.norm(pairs.delta, c.lambda_lower),
        }

    def _keep(self, texts: int, videos: int, dims: int, device: torch.device) -> Tensor | None:
        """The dropout mask (A, B, D) of a step, the same in every process; None without dropout."""
        rate = self.config.psi_dropout
        if not self.training or rate == 0:
            return None
        generator = torch.Generator(device).manual_seed(distributed.shared_seed())
        drawn = torch.empty(videos, texts, dims, device=device).bernoulli_(1 - rate, generator=generator)
        return drawn.transpose(0, 1)

    def _texts(self, batch: Batch) -> Tensor:
        return (
            batch["words"][:, 0].float()
            if self.config.mode == "frozen"
            else self.network.texts(batch["tokens"])
        )

    def _videos(self, batch: Batch) -> Tensor:
        """Frames (B, F, D) after the temporal stage."""
        frames, mask = batch["frames"], batch["frame_mask"]
        features = frames if self.config.mode == "frozen" else self.network.frames(frames, mask)
        return self.network.videos(features, mask)

    def encode_texts(self, batch: Batch) -> Encoded:
        """Caption vectors (A, D); not normalised, since the head adds to them."""
        return {"text": self._texts(batch)}

    def encode_items(self, batch: Batch) -> Encoded:
        """Inputs of the head for each video, videos on the first axis; see `Head.prepare`."""
        frames = self._videos(batch)
        with torch.autocast(frames.device.type, enabled=False):
            return self.network.head.prepare(frames, batch["frame_mask"])

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Cosines (A, B) of each caption, corrected for each video, and the frames it pools of that video."""
        with torch.autocast(texts["text"].device.type, enabled=False):
            return self.network.head.score(texts["text"], items)

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, Tensor]:
        """Explanation of each match: length of the caption's increment for the video, and each frame's part.

        increment (A, B): the length of the increment. text (A, B): that of the caption before it. frame_increments
        (A, B, F): the length of each frame's part; the increment is the sum of the parts and of what the biases add,
        which are vectors, so that lengths need not add up. pool_weights (A, B, F): the share of each frame in the
        pooled video; they sum to 1. real (A, B, F) uint8: 0 where there is no frame, only padding.
        """
        text, mask = texts["text"], items["mask"]
        with torch.autocast(text.device.type, enabled=False):
            found = self.network.head.sizes(text, items)
        shape = len(text), len(mask)
        return {
            "increment": found.increment,
            "text": text.norm(dim=-1)[:, None].expand(shape),
            "frame_increments": found.frames,
            "pool_weights": found.pool,
            "real": mask.to(torch.uint8).expand(*shape, -1),
        }


def build(config: GareConfig, data: PairData) -> Gare:
    """A GARE that starts from CLIP, for the frames or features of the packed data.

    Raises UserError if the frames do not have the size that the network reads, or are too many.
    """
    return Gare(config, started(config, data, Head))


def started(config: GareConfig, data: PairData, head: type[Head]) -> GareNetwork:
    """The network with its initial weights and a head of some kind, for the packed data.

    Raises UserError if the frames do not have the size that the network reads, or are too many.
    """
    if config.mode == "frozen":
        return GareNetwork(config, None, data.dims, max(STORED_POSITIONS, config.max_frames), head)
    towers = load_towers(config, data.side)
    positions = towers.context_length
    if config.max_frames > positions and config.agg_module == "seqTransf":
        raise UserError(
            f"max_frames = {config.max_frames}: {config.base_encoder} has positions for {positions}"
        )
    return GareNetwork(config, towers, towers.dims, positions, head)


def optimizer(config: GareConfig, method: Gare, total_steps: int) -> BertAdam:
    """The published optimizer; a schedule over `t_total_epochs` instead of all epochs if that is set."""
    if config.t_total_epochs is not None:
        total_steps = max(1, round(total_steps * config.t_total_epochs / max(1, config.epochs)))
    return BertAdam(
        tower_groups(method.named_parameters(), config.weight_decay, config.lr, config.lr * config.coef_lr),
        lr=config.lr,
        total_steps=total_steps,
        warmup=config.warmup_proportion,
        schedule="cosine",
        betas=BETAS,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
