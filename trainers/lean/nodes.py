"""The nodes of LEAN's hypergraph as vectors (eq. 2-3): words of a caption by token states, frames of a video by rows.

Axes: L tokens, T text dimension, n rows of a video, D its dimension, m key frames, k top frames. A span is
characters [start, end) of the caption.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RELATION = 1  # the part of a triple that is no entity
Span = tuple[int, int]
Words = list[Span]
"""The spans of one node, in the order of the caption."""


def triple_words(spans: NDArray[np.int32]) -> list[Words]:
    """The words of each triple of rows (P, 4), [triple, part, start, end); the same words make one node."""
    found: dict[int, Words] = {}
    for triple, _, start, end in spans.tolist():
        found.setdefault(triple, []).append((start, end))
    return _distinct(found.values())


def entity_words(spans: NDArray[np.int32]) -> list[Words]:
    """The words of each subject and object, in the order of the triples; the same words make one node."""
    found: dict[tuple[int, int], Words] = {}
    for triple, part, start, end in spans.tolist():
        if part != RELATION:
            found.setdefault((triple, part), []).append((start, end))
    return _distinct(found.values())


def _distinct(nodes: Iterable[Words]) -> list[Words]:
    return [list(words) for words in dict.fromkeys(tuple(sorted(words)) for words in nodes)]


def tokens_of(words: Words, offsets: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which tokens (L,) overlap one of the spans. offsets: (L, 2), a span or (0, 0) for a special token."""
    start, end = offsets[:, 0], offsets[:, 1]
    hit = np.zeros(len(offsets), dtype=bool)
    for first, last in words:
        hit |= (start < last) & (end > first)
    return hit


def text_nodes(
    nodes: Sequence[Words], tokens: NDArray, offsets: NDArray[np.int32], most: int
) -> tuple[NDArray[np.float32], list[Words]]:
    """Mean states (at most `most`, T) of the tokens of each node (eq. 3), and the words of these nodes.

    A node without a token, because the caption was cut before it, is left out. If none is left, the sentence is
    the one node: all tokens with a place, and no words, for all of them are.
    """
    masks = [(tokens_of(words, offsets), words) for words in nodes]
    kept = [(mask, words) for mask, words in masks if mask.any()][:most]
    if not kept:
        return sentence_node(tokens, offsets), [[]]
    states = tokens.astype(np.float64)
    return np.stack([states[mask].mean(0) for mask, _ in kept]).astype(np.float32), [
        words for _, words in kept
    ]


def sentence_node(tokens: NDArray, offsets: NDArray[np.int32] | None) -> NDArray[np.float32]:
    """The mean (1, T) of all tokens that stand for characters, or of all tokens where there are none."""
    words = np.ones(len(tokens), dtype=bool) if offsets is None else offsets[:, 1] > offsets[:, 0]
    rows = tokens[words] if words.any() else tokens
    return rows.astype(np.float64).mean(0, keepdims=True).astype(np.float32)


def repeated(rows: NDArray, count: int) -> NDArray:
    """Rows (m, D): fewer repeat the last one."""
    return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])


def salient_rows(rows: NDArray, count: int, top: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Key frames (m, D) and the places (k,) of the top ones, where only rows (n, D) are known.

    The rule of the key frames by colours, with rows in their place: saliency is the L1 distance to the row before;
    the first row is always kept. Equal saliency: the earlier row.
    """
    values = rows.astype(np.float64)
    saliency = np.concatenate([[0.0], np.abs(np.diff(values, axis=0)).sum(1)])
    others = 1 + np.argsort(-saliency[1:], kind="stable")[: count - 1]
    kept = np.sort(np.concatenate([[0], others]))
    frames = repeated(rows[kept], count)
    of_kept = np.concatenate([saliency[kept], np.zeros(count - len(kept))])
    return frames, np.sort(np.argsort(-of_kept, kind="stable")[:top])
