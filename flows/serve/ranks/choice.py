"""Which queries of a table are shown, and in which order. Everything is computed on arrays.

Axes: Q queries, R chosen runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.serve.ranks.table import NOWHERE, Column, RankTable
from pipeline.errors import UserError, nearest

SORTS = ("order", "worst", "best", "disagreement", "gain", "rank", "words", "seconds")
MOST_K = 1000
Span = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Filters and order of the queries of a split.

    runs: the names of the runs that are shown, () for all. a, b: the two runs that are set against each other, "" for
    the first two. found, missed: runs that find the right item within rank `k`, or do not. words, seconds: least and
    greatest length of the caption and of its item. hub: only queries whose first result under `a` is a hub. failed:
    only queries that a shown run did not rank. item, taken: digest of the right item, or of the first result under `a`.
    text: a word of the caption or of its item's id. sort: one of SORTS; reverse: the other way round.
    """

    runs: tuple[str, ...] = ()
    a: str = ""
    b: str = ""
    found: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    k: int = 1
    words: Span | None = None
    seconds: Span | None = None
    hub: bool = False
    failed: bool = False
    item: str = ""
    taken: str = ""
    text: str = ""
    sort: str = "order"
    reverse: bool = False


def chosen_columns(table: RankTable, choice: Choice) -> list[Column]:
    """The columns of the runs that are shown. Raises UserError for an unknown run."""
    return [table.column(name) for name in choice.runs or table.names]


def pair_of(table: RankTable, choice: Choice) -> tuple[Column | None, Column | None]:
    """The columns of the runs A and B: those that are named, else the first that are shown."""
    shown = chosen_columns(table, choice)
    a = table.column(choice.a) if choice.a else next(iter(shown), None)
    others = [column for column in shown if column is not a]
    b = table.column(choice.b) if choice.b else next(iter(others), None)
    return a, b


def chosen_rows(table: RankTable, choice: Choice) -> NDArray[np.int64]:
    """The rows of the queries that pass all filters, in the chosen order. Raises UserError for what is not there."""
    if choice.sort not in SORTS:
        raise UserError(f"queries cannot be sorted by {choice.sort!r}; {nearest(choice.sort, SORTS)}")
    kept = np.flatnonzero(_passing(table, choice))
    if choice.sort == "order":
        return kept[::-1] if choice.reverse else kept
    keys = [key[kept] for key in _keys(table, choice)]
    if choice.reverse:
        keys = [-key for key in keys]
    ordered: NDArray[np.int64] = kept[
        np.lexsort(keys[::-1])
    ]  # NaN, a query without the figure, comes last both ways
    return ordered


def crossed(table: RankTable, choice: Choice) -> dict[str, int]:
    """Of all queries that A and B ranked, the number that both, one or none finds within rank `k`."""
    a, b = pair_of(table, choice)
    if a is None or b is None:
        return {}
    ranked = ~np.isnan(a.rank) & ~np.isnan(b.rank)
    by_a, by_b = a.rank[ranked] <= choice.k, b.rank[ranked] <= choice.k
    counts = {"both": by_a & by_b, "only_a": by_a & ~by_b, "only_b": by_b & ~by_a, "none": ~(by_a | by_b)}
    return {name: int(mask.sum()) for name, mask in counts.items()}


def _passing(table: RankTable, choice: Choice) -> NDArray[np.bool_]:
    rows, shown = table.rows, chosen_columns(table, choice)
    a, _ = pair_of(table, choice)
    kept = np.ones(len(rows.captions), np.bool_)
    for name in choice.found:
        kept &= table.column(name).rank <= choice.k
    for name in choice.missed:
        kept &= table.column(name).rank > choice.k
    if choice.words:
        kept &= _within(rows.words, choice.words)
    if choice.seconds:
        kept &= _within(table.seconds[rows.item], choice.seconds)
    if choice.failed and shown:  # without a run, no query is ranked
        kept &= np.isnan(np.stack([column.rank for column in shown])).any(0)
    if choice.item:
        kept &= rows.item == _position(table, choice.item)
    if choice.hub and a is not None:
        first = a.first[:, 0]
        kept &= (first != NOWHERE) & a.hub[first]
    if choice.taken and a is not None:
        kept &= a.first[:, 0] == _position(table, choice.taken)
    if choice.text:
        kept &= rows.captions.containing(choice.text) | rows.ids.containing(choice.text)[rows.item]
    return kept


def _within(values: NDArray[Any], span: Span) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = (values >= span[0]) & (values <= span[1])
    return inside


def _position(table: RankTable, key: str) -> int:
    """The position of an item of the split. Raises UserError for another one."""
    if key not in table.rows.position:
        raise UserError(f"no item of the split {table.rows.split!r} has that key")
    return table.rows.position[key]


def _keys(table: RankTable, choice: Choice) -> list[Floats]:
    """Arrays (Q,) to sort by in ascending order, the decisive one first."""
    rows, sort = table.rows, choice.sort
    if sort == "words":
        return [-rows.words.astype(np.float64)]
    if sort == "seconds":
        return [-table.seconds[rows.item].astype(np.float64)]
    ranks = np.stack(
        [column.rank for column in chosen_columns(table, choice)] or [np.full(len(rows.words), np.nan)]
    )
    a, b = pair_of(table, choice)
    if sort == "rank" and a is not None:
        return [-a.rank.astype(np.float64)]
    if sort == "gain":
        return [-gain(a, b)] if a is not None and b is not None else [np.full(len(rows.words), np.nan)]
    logs = np.log2(ranks.astype(np.float64))
    if sort == "disagreement":
        return [-(logs.max(0) - logs.min(0))]  # NaN where a run did not rank the query
    best, mean = np.fmin.reduce(logs), np.nanmean(np.where(np.isnan(logs).all(0), 0.0, logs), axis=0)
    if sort == "best":
        return [best, mean]
    return [-best, -mean]  # worst: first the queries that no run finds


def gain(a: Column, b: Column) -> Floats:
    """How much better A ranks each query than B, (Q,): the logarithm to base 2 of rank under B / rank under A.

    A query at rank 1 under A and 8 under B has the gain 3, and so has one at 10 and 80: the factor counts, because a
    step from 500 to 507 shows a person nothing.
    """
    return np.log2(b.rank.astype(np.float64)) - np.log2(a.rank.astype(np.float64))
