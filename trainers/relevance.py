"""Relevance of items to captions: the positives of an evaluation, by position.

Axes: Q captions, V items, L pairs of a caption and an item that is relevant to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[Any]  # float16, float32 or float64: compared in the type they come in
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Relevance:
    """Pairs of a caption and a relevant item: L pairs by position, in order of the captions, none twice.

    caption, item: (L,); the first positive of a caption is the item it belongs to. captions, items: numbers of captions
    and items, with those in no pair: such a caption or item is no query, but remains a candidate for other queries.
    """

    caption: Positions
    item: Positions
    captions: int
    items: int

    @classmethod
    def of(cls, positives: Sequence[Sequence[int]], items: int) -> Relevance:
        """The relevance with these positives of each caption; a repeated position counts once."""
        kept = [list(dict.fromkeys(row)) for row in positives]
        caption = np.repeat(np.arange(len(kept)), [len(row) for row in kept])
        item = np.array([place for row in kept for place in row], np.int64)
        return cls(caption.astype(np.int64), item, len(kept), items)

    @classmethod
    def one_each(cls, item: Positions, items: int) -> Relevance:
        """The relevance with one positive (Q,) for each caption."""
        return cls(np.arange(len(item)), np.asarray(item, np.int64), len(item), items)

    def __getitem__(self, where: slice) -> Relevance:
        """The pairs of consecutive captions, which are renumbered from 0."""
        start, stop, _ = where.indices(self.captions)
        first, last = np.searchsorted(self.caption, (start, stop))
        return Relevance(self.caption[first:last] - start, self.item[first:last], stop - start, self.items)

    def of_captions(self, places: Positions) -> Relevance:
        """The pairs of some captions (n,), ascending positions, which are renumbered from 0."""
        kept = np.isin(self.caption, places)
        caption = np.searchsorted(places, self.caption[kept])
        return Relevance(caption, self.item[kept], len(places), self.items)

    @property
    def several(self) -> bool:
        """Whether any caption has more than one positive."""
        return len(self.answered) < len(self.caption)

    @property
    def answered(self) -> Positions:
        """The captions with a positive, in order."""
        return np.unique(self.caption)

    @property
    def captioned_items(self) -> Positions:
        """The items with a caption, which are the queries of item-to-text retrieval, in gallery order."""
        return np.unique(self.item)

    def best(self, scores: Scores) -> Positions:
        """The positive with the highest score, for each caption that has one; the first of equals. scores: (Q, V)."""
        own, starts = scores[self.caption, self.item], np.unique(self.caption, return_index=True)[1]
        order = np.lexsort(
            (-own, self.caption)
        )  # stable: captions keep their place, and the best comes first
        return self.item[order][starts]
