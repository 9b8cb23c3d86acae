"""CLIP4Clip's network: CLIP's towers and the similarity header over frames.

Axes: A captions, V videos, F frame slots, D embedding size, R pixels. All parts after the towers compute in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.layers.clip_input import pixels
from trainers.layers.clip_towers import ClipTowers, StoredScale
from trainers.layers.temporal import RecurrentFrames, TemporalTransformer

ALWAYS_TRAINED = ("ln_final.", "text_projection", "logit_scale", "visual.ln_post.", "visual.proj")
BLOCKS = ("visual.transformer.resblocks.", "transformer.resblocks.")


class Clip4ClipNetwork(nn.Module):
    """All trained parts. Pass `towers` = None to train on stored features of CLIP.

    `heads` is the number of attention heads of seqTransf; None for D / 64, as in every published network.
    """

    def __init__(
        self, config: Clip4ClipConfig, towers: ClipTowers | None, dims: int, positions: int,
        heads: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.towers: ClipTowers | StoredScale = StoredScale() if towers is None else towers
        self.normalise_frames = config.normalise_frames
        self.temporal: nn.Module | None = None
        if config.sim_header == "seqTransf":
            self.temporal = TemporalTransformer(dims, config.cross_num_hidden_layers, positions, heads=heads)
        elif config.sim_header == "seqLSTM":
            self.temporal = RecurrentFrames(dims)
        if towers is not None:
            freeze(towers, config.freeze_layer_num)
            if isinstance(self.temporal, TemporalTransformer):
                self.temporal.start_from(towers)

    def texts(self, tokens: Tensor) -> Tensor:
        """Caption vectors (A, D) of token ids (A, L): CLIP's projected state of the end token.

        A causal state depends on earlier tokens only, so padding needs no mask.
        """
        towers = self._trained()
        return towers.end(towers.text(tokens), tokens)

    def frames(self, frames: Tensor, mask: Tensor) -> Tensor:
        """CLIP's features (V, F, D) of uint8 frames (V, F, R, R, 3) with mask (V, F); 0 in padded slots."""
        real = mask.bool()
        features = self._trained().image(pixels(frames, mask)[real])  # padding is never read, so not encoded
        out = features.new_zeros(*real.shape, features.shape[-1])
        out[real] = features
        return out

    def videos(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors (V, D) of frame features (V, F, D) with mask (V, F); padded slots make no difference.

        Page, section "Similarity": the header, frames scaled to length 1, their mean, and that scaled to length 1. A
        video without frames is the zero vector and scores 0; the release divides by its length and gives NaN.
        """
        frames = frames.float()
        if self.temporal is not None:
            frames = self.temporal(frames, mask)
        if self.normalise_frames:
            frames = F.normalize(frames, dim=-1)
        real = mask.to(frames.dtype)[..., None]  # (V, F, 1)
        return F.normalize((frames * real).sum(1) / real.sum(1).clamp_min(1), dim=-1)

    def _trained(self) -> ClipTowers:
        if isinstance(self.towers, StoredScale):
            raise UserError(
                "this CLIP4Clip was made for stored features (mode = 'frozen'): it has no CLIP to encode with"
            )
        return self.towers


@torch.no_grad()
def freeze(towers: ClipTowers, blocks: int) -> None:
    """Freeze parts of CLIP as the release does: train the blocks from number `blocks` on, and all layers after them.

    Embeddings, positions, the patch convolution and the norm before the blocks are frozen. With -1 all is trained.
    """
    for full, parameter in towers.clip.named_parameters():
        name = full.removeprefix("text.")  # prefix of the text tower in some networks of open_clip
        block = next((int(name.removeprefix(b).split(".")[0]) for b in BLOCKS if name.startswith(b)), -1)
        kept = blocks < 0 or block >= blocks or name.startswith(ALWAYS_TRAINED)
        parameter.requires_grad_(kept)
