"""The temporal stages of frame features that CLIP4Clip introduced, `seqTransf` and `seqLSTM`, and its successors share.

Axes: V videos, F frames, D embedding size. Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.clip_towers import HEAD_WIDTH, ClipTowers

EPS = 1e-12  # epsilon of the LayerNorms in the releases; CLIP's own is 1e-5
PADDED = -1e6  # added to the logits of padded keys; finite, so that a video without frames gives no NaN


class TemporalTransformer(nn.Module):
    """Frame features plus the output of pre-norm blocks with QuickGELU over features and positions; in float32."""

    def __init__(
        self, dims: int, layers: int, positions: int, eps: float = EPS, padded: float = PADDED,
        heads: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        import_open_clip()
        from open_clip.transformer import LayerNormFp32, QuickGELU, Transformer

        self.padded, self.heads = padded, heads or max(1, dims // HEAD_WIDTH)
        self.frame_position_embeddings = nn.Embedding(positions, dims)
        norm = partial(LayerNormFp32, eps=eps)
        self.transformerClip = Transformer(dims, layers, self.heads, act_layer=QuickGELU, norm_layer=norm)
        self._initialise()

    def _initialise(self) -> None:
        """Draw linear layers and embeddings from N(0, 0.02), as published; `start_from` overwrites CLIP's part."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def start_from(self, towers: ClipTowers) -> None:
        """Copy CLIP's text positions, and text block n into block n; further blocks keep their initial values.

        Raises UserError if the text tower is not as wide as the embedding.
        """
        positions, dims = towers.text_positions, self.frame_position_embeddings.embedding_dim
        if positions.shape[1] != dims:
            raise UserError(
                f"a temporal transformer starts from CLIP's text blocks, so the text width, {positions.shape[1]}, "
                f"must be the embedding size, {dims}; choose another CLIP network or no temporal transformer"
            )
        rows = min(len(positions), len(self.frame_position_embeddings.weight))
        self.frame_position_embeddings.weight[:rows] = positions[:rows].float()
        for block, source in zip(self.transformerClip.resblocks, towers.text_blocks, strict=False):
            block.load_state_dict({name: tensor.float() for name, tensor in source.state_dict().items()})

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Features (V, F, D) after attention over frames. frames: (V, F, D); mask: (V, F), true where real.

        No frame attends to padded ones, but they get an output too.
        """
        with torch.autocast(frames.device.type, enabled=False):
            frames = frames.float()
            positions = self.frame_position_embeddings.weight[: frames.shape[1]]
            keys = (1 - mask.float()) * self.padded  # (V, F)
            added = keys[:, None].expand(-1, frames.shape[1], -1).repeat_interleave(self.heads, 0)
            out: Tensor = self.transformerClip(frames + positions, attn_mask=added) + frames
        return out


class RecurrentFrames(nn.Module):
    """`seqLSTM`: features plus an LSTM over real frames; slots beyond the longest video are doubled, as released."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.lstm_visual = nn.LSTM(dims, dims, batch_first=True)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Features (B, F, D) of frames (B, F, D) with mask (B, F)."""
        with torch.autocast(frames.device.type, enabled=False):
            frames, lengths = frames.float(), mask.sum(1).clamp_min(1).cpu()  # torch refuses empty sequences
            packed = nn.utils.rnn.pack_padded_sequence(
                frames, lengths, batch_first=True, enforce_sorted=False
            )
            out, _ = nn.utils.rnn.pad_packed_sequence(self.lstm_visual(packed)[0], batch_first=True)
            out = torch.cat([out, frames[:, out.shape[1] :]], 1) + frames
        return out
