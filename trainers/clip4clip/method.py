"""CLIP4Clip as the engine sees it: its loss terms, its encodings, its scores, its optimizer.

Batches. Of mode "finetune": `tokens` (A, L) int64, `frames` (V, F, R, R, 3) uint8, `frame_mask` (V, F) bool.
Of mode "frozen": `words` (A, 1, D), the projected state of each caption's end token, `frames` (V, F, D), `frame_mask`.
In training A = V, row i of both is a pair, and `video` (A,) says which video it is. `index` (A,) beside captions is
left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from trainers.clip4clip import losses
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.clip4clip.model import Clip4ClipNetwork
from trainers.layers.clip_towers import load_towers
from trainers.layers.pair_data import PairData
from trainers.loop import distributed
from trainers.loop.optim import BertAdam, tower_groups
from trainers.method import Batch, Encoded, Method

BETAS = (0.9, 0.98)
STORED_POSITIONS = 77  # positions of frames without a CLIP network that defines their number


class Clip4Clip(Method):
    """Ranks videos by the cosine of a caption's vector and the mean of a video's frames."""

    def __init__(self, config: Clip4ClipConfig, network: Clip4ClipNetwork) -> None:
        super().__init__()
        self.config, self.network = config, network

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Half of each direction's cross entropy over the joint batch, which every process computes whole."""
        self.network.towers.clamp_scale_()  # after the latest update, as published
        order = distributed.joint_order(batch)
        video = distributed.joint(batch["video"], order) if self.config.mask_same_video else None
        return self.terms(self.batch_logits(batch, order), video)

    def terms(self, logits: Tensor, video: Tensor | None = None) -> dict[str, Tensor]:
        """Half of each direction's cross entropy of logits (B, B); `video` (B,) as `losses.directions` reads it."""
        t2v, v2t = losses.directions(logits, video)
        return {"t2v": t2v / 2, "v2t": v2t / 2}

    def batch_logits(self, batch: Batch, order: Tensor | None = None) -> Tensor:
        """exp(logit_scale) times the cosines (A, V) of the joint batch of all processes.

        The gradient of the encoders is multiplied by `encoder_grad_scale`: the release gathers with 1 / W of the true
        one with W processes, and with the true one for the logit scale.
        """
        share = self.config.encoder_grad_scale
        text, video = (
            distributed.joint(distributed.scaled_gradient(rows, share), order)
            for rows in (self._texts(batch), self._videos(batch))
        )
        # In float32: a factor of 100 makes the rounding of a cosine in half precision visible.
        with torch.autocast(text.device.type, enabled=False):
            return self.network.towers.scale.float() * (text.float() @ video.float().T)

    def _texts(self, batch: Batch) -> Tensor:
        """Unit vectors (A, D) of captions."""
        frozen = self.config.mode == "frozen"
        rows = batch["words"][:, 0] if frozen else self.network.texts(batch["tokens"])
        return F.normalize(rows.float(), dim=-1)

    def _videos(self, batch: Batch) -> Tensor:
        """Unit vectors (V, D) of videos."""
        frames, mask = batch["frames"], batch["frame_mask"]
        features = frames if self.config.mode == "frozen" else self.network.frames(frames, mask)
        with torch.autocast(features.device.type, enabled=False):
            return self.network.videos(features, mask)

    def encode_texts(self, batch: Batch) -> Encoded:
        """Unit vectors (A, D)."""
        return {"text": self._texts(batch)}

    def encode_items(self, batch: Batch) -> Encoded:
        """Unit vectors (V, D)."""
        return {"video": self._videos(batch)}

    def scores(self, texts: Encoded, items: Encoded) -> Tensor:
        """Cosines (A, V)."""
        with torch.autocast(texts["text"].device.type, enabled=False):
            return texts["text"] @ items["video"].T


def build(config: Clip4ClipConfig, data: PairData) -> Clip4Clip:
    """A CLIP4Clip that starts from CLIP, for the frames or features of the packed data.

    Raises UserError if the frames do not have the size that the network reads, or are too many for its positions.
    """
    if config.mode == "frozen":
        positions = max(STORED_POSITIONS, config.max_frames)
        return Clip4Clip(config, Clip4ClipNetwork(config, None, data.dims, positions))
    towers = load_towers(config, data.side)
    positions = towers.context_length
    if config.max_frames > positions and config.sim_header == "seqTransf":
        raise UserError(
            f"trainers.clip4clip.max_frames = {config.max_frames}: {config.base_encoder} has positions for {positions}"
        )
    return Clip4Clip(config, Clip4ClipNetwork(config, towers, towers.dims, positions))


def optimizer(config: Clip4ClipConfig, method: Clip4Clip, total_steps: int) -> BertAdam:
    """The published optimizer of the trained parameters: CLIP has `coef_lr` times the rate of the rest."""
    named = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    return BertAdam(
        tower_groups(named, config.weight_decay, config.lr, config.lr * config.coef_lr),
        lr=config.lr,
        total_steps=total_steps,
        warmup=config.warmup_proportion,
        schedule="cosine",
        betas=BETAS,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
