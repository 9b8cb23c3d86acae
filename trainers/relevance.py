"""Which items are relevant to which captions: the positives of an evaluation, by position.

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
    """Which items are right for which captions: L pairs by position, in order of the captions, none twice.

    caption, item: (L,); of several items of a caption, its own stands first. captions, items: how many there are of
    either, with those that no pair names: such a caption or item asks nothing, and others still compete with it.
    """

    caption: Positions
    item: Positions
    captions: int
    items: int

    @classmethod
    def of(cls, right: Sequence[Sequence[int]], items: int) -> Relevance:
        """From the right items of each caption; one that stands twice counts once."""
        kept = [list(dict.fromkeys(found)) for found in right]
        caption = np.repeat(np.arange(len(kept)), [len(found) for found in kept])
        item = np.array([place for found in kept for place in found], np.int64)
        return cls(caption.astype(np.int64), item, len(kept), items)

    @classmethod
    def one_each(cls, item: Positions, items: int) -> Relevance:
        """From the one right item (Q,) of each caption."""
        return cls(np.arange(len(item)), np.asarray(item, np.int64), len(item), items)

    def __getitem__(self, where: slice) -> Relevance:
        """The pairs of consecutive captions, who are then counted from 0."""
        start, stop, _ = where.indices(self.captions)
        first, last = np.searchsorted(self.caption, (start, stop))
        return Relevance(self.caption[first:last] - start, self.item[first:last], stop - start, self.items)

    @property
    def several(self) -> bool:
        """Whether any caption has more than one right item."""
        return len(self.answered) < len(self.caption)

    @property
    def answered(self) -> Positions:
        """The captions with a right item, in order."""
        return np.unique(self.caption)

    @property
    def asked(self) -> Positions:
        """The items with a caption, in gallery order."""
        return np.unique(self.item)

    def best(self, scores: Scores) -> Positions:
        """Of each answered caption, the right item with the highest score; of equal ones the first. scores: (Q, V)."""
        own, starts = scores[self.caption, self.item], np.unique(self.caption, return_index=True)[1]
        order = np.lexsort(
            (-own, self.caption)
        )  # stable: captions keep their place, and the best comes first
        return self.item[order][starts]
