"""The best of many: scores of texts against items that are several vectors each."""

from __future__ import annotations

from torch import Tensor

TEXT_ROWS = 1024  # texts a product; fewer would leave the product short of rows, more gain nothing
CPU_FLOATS = 2**19  # products held at once: 2 MB are still in the cache when their maxima are taken
GPU_FLOATS = 2**26  # 256 MB: few large products keep the device busy


def max_similarity(texts: Tensor, items: Tensor) -> Tensor:
    """Largest inner product (Q, V) of each text with any of the L vectors of each item.

    texts: (Q, D); items: (V, L, D); cosines if both are normalised beforehand, which is done once, by
    the caller. One product (Q, D) x (D, V' L) a chunk of V' items instead of one over all V keeps the
    similarities small: on 2 CPU cores with L = 128, D = 384, Q = 1000 it takes 0.26 s for 500 items
    against 0.35 s, and memory does not grow with V.
    """
    length = items.shape[1]
    out = texts.new_empty(len(texts), len(items))
    floats = CPU_FLOATS if texts.device.type == "cpu" else GPU_FLOATS
    rows = min(TEXT_ROWS, max(1, len(texts)))
    chunk = max(1, floats // (rows * length))
    for first in range(0, len(items), chunk):
        vectors = items[first : first + chunk].flatten(0, 1).T  # (D, V' L)
        for row in range(0, len(texts), rows):
            products = texts[row : row + rows] @ vectors
            similarities = products.unflatten(1, (-1, length))
            out[row : row + rows, first : first + chunk] = similarities.amax(dim=2)
    return out
