"""The nodes of LEAN's hypergraph as vectors (eq. 2-3): triples of a caption from token states, frames of a video.

Axes: L tokens, T text dimension, n rows of a video, D its dimension, m key frames, k top frames. A span is
characters [start, end) of the caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RELATION = 1  # number of the part of a triple that is no entity
Span = tuple[int, int]
Words = list[Span]
"""The spans of one node, in the order of the caption."""


def triple_words(spans: NDArray[np.int32]) -> list[Words]:
    """The words of each distinct triple, from rows (P, 4) of [triple, part, start, end)."""
    words: dict[int, Words] = {}
    for triple, _, start, end in spans.tolist():
        words.setdefault(triple, []).append((start, end))
    return _distinct(words.values())


def entity_words(spans: NDArray[np.int32]) -> list[Words]:
    """The words of each distinct subject and object, in the order of the triples."""
    words: dict[tuple[int, int], Words] = {}
    for triple, part, start, end in spans.tolist():
        if part != RELATION:
            words.setdefault((triple, part), []).append((start, end))
    return _distinct(words.values())


def _distinct(nodes: Iterable[Words]) -> list[Words]:
    return [list(words) for words in dict.fromkeys(tuple(sorted(words)) for words in nodes)]


def tokens_of(words: Words, offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Mask (L,) of the tokens that overlap one of the spans. offsets: (L, 2), a span, or (0, 0) for a special token."""
    start, end = offsets[:, 0], offsets[:, 1]
    hit = np.zeros(len(offsets), dtype=bool)
    for first, last in words:
        hit |= (start < last) & (end > first)
    return hit


def text_nodes(
    nodes: Sequence[Words], tokens: NDArray, offsets: NDArray[np.int32], most: int
) -> tuple[NDArray[np.float32], list[Words]]:
    """Mean states (at most `most`, T) of the tokens of each node (eq. 3), and the words of these nodes.

    A node whose tokens were cut off with the end of the caption is left out. If none is left, the whole sentence is the
    only node, with the mean of all tokens that have characters; its list of words is empty.
    """
    masks = [(tokens_of(words, offsets), words) for words in nodes]
    kept = [(mask, words) for mask, words in masks if mask.any()][:most]
    if not kept:
        return sentence_node(tokens, offsets), [[]]
    states = tokens.astype(np.float64)  # stored states may be float16, in which sums round
    means = np.stack([states[mask].mean(0) for mask, _ in kept]).astype(np.float32)
    return means, [words for _, words in kept]


def sentence_node(tokens: NDArray, offsets: NDArray[np.int32] | None) -> NDArray[np.float32]:
    """The mean (1, T) of all tokens that have characters, or of all tokens if none has."""
    words = np.ones(len(tokens), dtype=bool) if offsets is None else offsets[:, 1] > offsets[:, 0]
    rows = tokens[words] if words.any() else tokens
    return rows.astype(np.float64).mean(0, keepdims=True).astype(np.float32)


def repeated(rows: NDArray, count: int) -> NDArray:
    """Rows (m, D) with m = `count`; if there are fewer, the last one is repeated."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def salient_positions(rows: NDArray, count: int, top: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the key frames among the rows, at most `count`, and those of the top ones among the key frames.

    The rule of the stage `keyframes` with features instead of colours: saliency is the L1 distance to the row before,
    and the first row is always kept. Of equally salient rows the earlier one is taken. rows: (n, D), without pictures.
    """
    values = rows.astype(np.float64)
    saliency = np.concatenate([[0.0], np.abs(np.diff(values, axis=0)).sum(1)])
    others = 1 + np.argsort(-saliency[1:], kind="stable")[: count - 1]
    kept = np.sort(np.concatenate([[0], others]))
    of_kept = np.concatenate([saliency[kept], np.zeros(count - len(kept))])
    return kept, np.sort(np.argsort(-of_kept, kind="stable")[:top])
