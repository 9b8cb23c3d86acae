"""Item-to-text ranks under two conventions: an item's best caption among all captions, or its group among groups.

The family of CLIP4Clip scores an item and a *caption group*, all captions of one item, by the best caption of the
group, and ranks the item's own group among the groups of all items. Ranking the best own caption among all captions
has the same R@1, and recalls further down that are lower, because a wrong item is passed once for each of its captions.
Where every item has one caption, both are the same. Axes: q captions of a block, Q of the split, V items, G groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainers.measure.metrics import ItemRanks, Ranks, require_finite
from trainers.relevance import Positions, Relevance, Scores

GROUPS, CAPTIONS = "caption_groups", "all_captions"
EQUAL, LARGER = 1, 2  # how a score compares with the best own one of its item; 0: smaller


class CaptionGroups:
    """The groups of captions of a split, and which of them are right for which items.

    A group holds the captions that belong to one item, their first positive; a caption without a positive is a group by
    itself. A group is right for an item if any of its captions is. of: (Q,), the group of each caption. last: (G,), the
    last caption of each group. pairs: (L,), the number of the (group, right item) pair that each pair of a caption and
    a relevant item lies in; group, item: the members of those distinct pairs, in order of the groups.
    """

    def __init__(self, relevance: Relevance) -> None:
        captions = np.arange(relevance.captions)
        answered, first = np.unique(relevance.caption, return_index=True)
        home = relevance.items + captions
        home[answered] = relevance.item[first]
        named, self.of = np.unique(home, return_inverse=True)
        self.last = np.zeros(len(named), np.int64)
        np.maximum.at(self.last, self.of, captions)
        keys = self.of[relevance.caption] * relevance.items + relevance.item
        distinct, self.pairs = np.unique(keys, return_inverse=True)
        self.group, self.item = np.divmod(distinct, max(relevance.items, 1))

    def __len__(self) -> int:
        """Number of groups, G."""
        return len(self.last)

    @property
    def right(self) -> NDArray[np.int64]:
        """Number of right groups of each item that has any, in gallery order."""
        counts = np.bincount(self.item)
        return counts[counts > 0]


class GroupRanks(ItemRanks):
    """Ranks of item-to-text retrieval among groups of captions, from two passes over all captions in order.

    With b[v] the best score among the captions that item v is a positive of, strict = 1 + number of groups that are not
    right for v and whose best caption scores above b[v]. With t such groups at b[v] and m right ones there, the first
    right one of a random order stands at mean = strict + t / (m + 1).

    A group is counted once its last caption was seen. Where captions of an item follow each other, as in a manifest,
    one group at most waits for the next block. What waits are V bytes a group: how its best score compares, not the
    score itself.
    """

    def __init__(self, relevance: Relevance) -> None:
        super().__init__(relevance.items)
        self.groups = CaptionGroups(relevance)
        self._at_best = np.zeros(len(self.groups.item), bool)
        self._captions, self._pairs = 0, 0  # counted so far
        self._open: dict[int, NDArray[np.uint8]] = {}

    def count(self, scores: Scores, positives: Positions | Relevance) -> None:
        """Second pass over the same rows (q, V): the wrong groups that reach the best own score."""
        require_finite(scores)
        relevance = positives if isinstance(positives, Relevance) else Relevance.one_each(
            positives, scores.shape[1]
        )  # fmt: skip
        best = self.best.astype(scores.dtype)  # exact, the scores came from this type
        pairs = self.groups.pairs[self._pairs : self._pairs + len(relevance.caption)]
        own = scores[relevance.caption, relevance.item] == best[relevance.item]
        self._at_best[pairs[own]] = True
        self._pairs += len(pairs)
        level = (scores >= best).view(np.uint8)
        level += scores > best
        of = self.groups.of[self._captions : self._captions + len(scores)]
        self._captions += len(scores)
        if (np.diff(of) < 0).any():
            order = np.argsort(of, kind="stable")
            of, level = of[order], level[order]
        groups, starts = np.unique(of, return_index=True)
        self._close(groups, np.maximum.reduceat(level, starts))

    def _close(self, groups: Positions, level: NDArray[np.uint8]) -> None:
        """Count the groups that end in this block, and keep the others for a later one. level: (g, V)."""
        for row, group in enumerate(groups.tolist()):
            if (before := self._open.pop(group, None)) is not None:
                np.maximum(level[row], before, out=level[row])
        ended = self.groups.last[groups] < self._captions
        self._open |= {int(groups[row]): level[row].copy() for row in np.flatnonzero(~ended)}
        groups, level = groups[ended], level[ended]
        first, end = (np.searchsorted(self.groups.group, groups, side=side) for side in ("left", "right"))
        for row, (start, stop) in enumerate(zip(first, end, strict=True)):
            level[row, self.groups.item[start:stop]] = 0  # right ones are passed by nobody
        self.larger += np.count_nonzero(level == LARGER, axis=0)
        self.ties += np.count_nonzero(level == EQUAL, axis=0)

    def ranks(self) -> Ranks:
        """Ranks of the items that have a caption, in gallery order; the others are no queries."""
        self.own_ties = np.bincount(self.groups.item[self._at_best], minlength=len(self.best))
        return super().ranks()


def item_ranks(relevance: Relevance, convention: str) -> ItemRanks:
    """The ranks of items under a convention, GROUPS or CAPTIONS."""
    return GroupRanks(relevance) if convention == GROUPS else ItemRanks(relevance.items)
