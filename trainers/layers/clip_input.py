"""Inputs of CLIP's towers: padded frames, normalised on the device, and padded token ids.

Axes: V videos, F frame slots, T frames of a video, R side in pixels, A captions, L token slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractors.backbones.weights import import_open_clip

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue, in 0..1, over CLIP's training images."""


def pixels(frames: Tensor, mask: Tensor) -> Tensor:
    """Normalised frames (..., F, 3, R, R) float32 from uint8 frames (..., F, R, R, 3) with mask (..., F).

    A padded slot is 0 *after* normalisation, which is a frame of the mean colour, as in the published code.
    """
    mean, std = (torch.tensor(value, device=frames.device) for value in (MEAN, STD))
    normalised = ((frames.float() / 255 - mean) / std).movedim(-1, -3)
    return normalised * mask.bool()[..., None, None, None]


def padded_frames(frames: NDArray[Any], slots: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The first frames or features of (T, ...) in `slots` slots (F, ...), and a mask (F,) of the filled ones."""
    kept = frames[:slots]
    out = np.zeros((slots, *frames.shape[1:]), dtype=frames.dtype)
    out[: len(kept)] = kept
    return out, np.arange(slots) < len(kept)


def tokenise(texts: Sequence[str], max_words: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids (A, L = max_words) and a mask (A, L) of real tokens, start and end token included.

    A row holds the start token, as many word pieces as fit, the end token, and zeros. The mask is made from lengths,
    because id 0 is a real token, "!".
    """
    tokenizer = _tokenizer()
    ids = np.zeros((len(texts), max_words), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, text in enumerate(texts):
        pieces = [tokenizer.sot_token_id, *tokenizer.encode(text)][: max_words - 1]
        ids[row, : len(pieces) + 1] = [*pieces, tokenizer.eot_token_id]
        mask[row, : len(pieces) + 1] = True
    return ids, mask


@cache
def _tokenizer() -> Any:
    """open_clip's byte-pair tokenizer, cached because its vocabulary takes long to read."""
    return import_open_clip().SimpleTokenizer()
