"""The memory bank: the tokens of the latest training pairs, newest first, against which centrality is measured.

Axes: M entries, B pairs, P word slots, Q frame slots, D embedding size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.loop import distributed


class Pairs(NamedTuple):
    """Token features of pairs.

    words: (B, P, D), frames: (B, Q, D) float32; word_mask: (B, P), frame_mask: (B, Q) bool, true where real.
    """

    words: Tensor
    word_mask: Tensor
    frames: Tensor
    frame_mask: Tensor

    def share(self, rank: int, world: int) -> Pairs:
        """Every `world`-th pair: the part of one of several processes."""
        return Pairs(*(part[rank::world] for part in self))


class Bank(nn.Module):
    """A queue of M pairs without gradient. It is part of the state dict, so that a resumed run continues with it.

    A new run that starts from trained weights begins with an empty one, which may have other sizes.
    """

    passing = True
    filled: Tensor  # number of entries
    epoch: Tensor  # the epoch of the last call of `begin`

    def __init__(self, size: int, words: int, frames: int, dims: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("words", torch.zeros(size, words, dims))
        self.register_buffer("word_mask", torch.zeros(size, words, dtype=torch.bool))
        self.register_buffer("frames", torch.zeros(size, frames, dims))
        self.register_buffer("frame_mask", torch.zeros(size, frames, dtype=torch.bool))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def content(self) -> Pairs | None:
        """The entries, newest first; None if the bank is empty."""
        count = int(self.filled)
        parts = (getattr(self, name)[:count] for name in Pairs._fields)
        return Pairs(*parts) if count else None

    @torch.no_grad()
    def push(self, pairs: Pairs) -> None:
        """Add the pairs in front of the others, and drop entries beyond M.

        Buffers are replaced and not written to, because the gradient of an earlier step may still need the old ones.
        """
        for name, new in pairs._asdict().items():
            old = getattr(self, name)
            setattr(self, name, torch.cat([new.to(old.dtype), old])[: self.size])
        self.filled = (self.filled + len(pairs.words)).clamp_max(self.size)

    def begin(self, epoch: int) -> None:
        """Empty the bank if this is another epoch than at the last call."""
        if int(self.epoch) != epoch:
            self.filled, self.epoch = torch.zeros_like(self.filled), torch.full_like(self.epoch, epoch)


def merged(part: Tensor) -> Tensor:
    """The sum of a tensor over all processes.

    Its gradient is the sum of theirs, so that with gradients averaged over processes each part counts once.
    """
    return _Sum.apply(part) if distributed.world() > 1 else part


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
