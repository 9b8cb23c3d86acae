"""Which items a run takes for which, and its hubs with the queries that they attract."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flows.serve.ranks.table import NOWHERE, Column, RankTable


@dataclass(frozen=True)
class Confusion:
    """A pair of items: `count` of the `of` queries of the item at `right` have the item at `taken` first instead.

    back: number of queries of `taken` that have `right` first; so both directions of a pair are seen at once.
    """

    right: int
    taken: int
    count: int
    of: int
    back: int


@dataclass(frozen=True)
class Attracting:
    """A hub: it stands in the first places of `times` queries, first in `first` of them, and is right for `own`."""

    item: int
    times: int
    first: int
    own: int


def confusions(table: RankTable, column: Column, count: int) -> list[Confusion]:
    """The most frequent confusions of a run: the largest number of queries first, then the largest share."""
    right, taken = table.rows.item.astype(np.int64), column.first[:, 0].astype(np.int64)
    wrong = (column.rank > 1) & (taken != NOWHERE) & (taken != right)
    size = len(table.rows.keys)
    pairs, counts = np.unique(right[wrong] * size + taken[wrong], return_counts=True)
    of = np.bincount(right, minlength=size)
    order = np.lexsort((pairs, -counts / of[pairs // size], -counts))[:count]
    times = dict(zip(pairs.tolist(), counts.tolist(), strict=True))
    out = []
    for pair in pairs[order].tolist():
        a, b = divmod(pair, size)
        out.append(Confusion(a, b, times[pair], int(of[a]), times.get(b * size + a, 0)))
    return out


def hubs(table: RankTable, column: Column, count: int) -> list[Attracting]:
    """The hubs of a run, those in the most first places first. Where no item is a hub, none is named."""
    own = np.bincount(table.rows.item, minlength=len(table.rows.keys))
    there = column.first[:, 0][column.first[:, 0] != NOWHERE]
    first = np.bincount(there, minlength=len(table.rows.keys))
    order = np.lexsort((np.arange(len(column.times)), -column.times))
    named = order[column.hub[order]][:count]
    return [
        Attracting(int(item), int(column.times[item]), int(first[item]), int(own[item]))
        for item in named.tolist()
    ]
