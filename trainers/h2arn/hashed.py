"""Weights and inputs of recorded cases that are too large to be stored: numbers of a hash instead."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GOLDEN = 0x9E3779B9
FIRST, SECOND = 0x85EBCA6B, 0xC2B2AE35
WORD = 0xFFFFFFFF


def uniform(count: int, stream: int) -> NDArray[np.float64]:
    """`count` numbers in [-1, 1): murmur3's fmix32 of their index, offset by the stream."""
    u = (np.arange(count, dtype=np.uint64) + np.uint64(GOLDEN * (stream + 1) & WORD)) & np.uint64(WORD)
    u ^= u >> np.uint64(16)
    u = u * np.uint64(FIRST) & np.uint64(WORD)
    u ^= u >> np.uint64(13)
    u = u * np.uint64(SECOND) & np.uint64(WORD)
    u ^= u >> np.uint64(16)
    return u / 2.0**31 - 1


def tensor(stream: int, shape: tuple[int, ...], bound: float, offset: float = 0.0) -> Tensor:
    """A float32 tensor of numbers in offset - bound to offset + bound."""
    values = uniform(math.prod(shape), stream) * bound + offset
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def state(shapes: Mapping[str, tuple[int, ...]], base_stream: int) -> dict[str, Tensor]:
    """The weights of a state dict with these keys and shapes; scalars are left out, because they keep their value.

    A stream is the place of a key among all keys in sorted order.
    """
    return {
        name: tensor(base_stream + place, shapes[name], *_range(name, shapes[name]))
        for place, name in enumerate(sorted(shapes))
        if shapes[name]
    }


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Bound and offset of a weight."""
    if name.endswith("running_var"):
        return 0.4, 1.0
    if name.endswith("running_mean"):
        return 0.1, 0.0
    if len(shape) > 1:
        inputs = math.prod(shape[1:]) if "conv" in name else shape[1]
        return math.sqrt((6 if "conv" in name else 3) / inputs), 0.0
    return (0.2, 1.0) if name.endswith("weight") else (0.05, 0.0)
