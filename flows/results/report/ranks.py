"""The ranks of the positives: recall at every K, and the distribution of ranks.

As on the leaderboard, ranks are realistic: a positive that is tied with other candidates has the mean rank of the ties.
Axes: Q queries, U units, K cutoffs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from flows.results.measured import measured
from flows.results.report.plots import Bars, Curve, Style, histogram, recall_curves, room_above
from flows.results.wording import short_title, titles
from trainers.measure.evaluated import EvaluatedFolder
from trainers.measure.metric_table import DIRECTIONS, recall_by_chance
from trainers.measure.metrics import LEVEL

MOST_POINTS = 72  # largest number of points of a curve
MOST_BIN_LABELS = 7
DRAWS, CHUNK = 400, 50  # bootstrap samples of a band, and how many are held at once
TICK_ROOM = 0.1  # least distance of two labels under the curves, as a share of the axis, per three characters

Ranks = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class RankedQueries:
    """The queries of one method in one direction.

    ranks: realistic (mean) ranks (Q,); positives: number of positives (Q,) of each query; units: (Q,), the number of
    the item that a query is resampled with.
    """

    ranks: Ranks
    positives: Counts
    gallery: int
    units: Counts


@dataclass(frozen=True)
class Key:
    """A method in the legend of curves: its name with R@1, and the style of its curve (None: a random order)."""

    name: str
    first: str  # R@1, as printed
    style: Style | None


@dataclass(frozen=True)
class Curves:
    """Recall by K of all methods in one direction: a picture, its legend, and a table."""

    title: str
    picture: Markup
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Histogram:
    """The histogram of one method in one direction, with a sentence that describes it, and its numbers as rows."""

    method: str
    title: str
    picture: Markup
    summary: str
    rows: tuple[tuple[str, ...], ...]


def read_ranked(folder: EvaluatedFolder) -> dict[str, RankedQueries]:
    """The ranked queries of an evaluation, by direction."""
    queries, groups = folder.queries, folder.metrics.protocol.groups
    run = measured(folder, "")
    return {
        direction: RankedQueries(
            ranks.mean,
            queries.positive_counts(direction, groups),
            queries.gallery(direction, groups),
            np.unique(run.queries[direction].units, return_inverse=True)[1],
        )
        for direction, ranks in folder.ranking.ranks.items()
    }


def recall(ranks: Ranks, cutoffs: Sequence[int]) -> list[float]:
    """For each K, the percentage of queries with a rank of at most K."""
    ordered = np.sort(ranks)
    return [100 * float(np.searchsorted(ordered, k, side="right")) / len(ordered) for k in cutoffs]


def band(
    ranks: Ranks, units: Counts, cutoffs: Sequence[int], seed: int = 0, draws: int = DRAWS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends (K,) of the 95 % interval of the recall at each K, in percent, over units drawn with replacement."""
    count = int(units.max()) + 1
    hits = np.zeros((count, len(cutoffs) + 1))
    np.add.at(hits, (units, np.searchsorted(cutoffs, ranks, side="left")), 1)
    reached = np.cumsum(hits[:, :-1], axis=1)
    sizes, random = hits.sum(axis=1), np.random.default_rng(seed)
    found = []
    for start in range(0, draws, CHUNK):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=min(CHUNK, draws - start)).astype(
            np.float64
        )
        found.append(100 * (drawn @ reached) / (drawn @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def chance(positives: Counts, gallery: int, cutoffs: Sequence[int]) -> list[float]:
    """The expected recall at each K of a random order, in percent. positives: (Q,), the number of each query."""
    return [recall_by_chance(gallery, positives, cutoff) for cutoff in cutoffs]


def cutoffs(gallery: int, most: int = MOST_POINTS) -> list[int]:
    """Whole K from 1 to the size of the gallery, about evenly spaced on a logarithmic scale."""
    return sorted({round(k) for k in np.geomspace(1, gallery, most)})


def ticks(gallery: int) -> list[int]:
    """The K that get a column: 1, 2, 5, 10, 20, 50 ...; for galleries over 1,000, the powers of 10 alone."""
    steps = (1,) if gallery > 1000 else (1, 2, 5)
    return [
        step * 10**power
        for power in range(len(str(gallery)))
        for step in steps
        if step * 10**power <= gallery
    ]


def uncrowded(labelled: Sequence[int], gallery: int) -> list[int]:
    """The K whose labels under an axis do not touch: powers of 10 are kept first, then the others from the left."""

    def place(k: int) -> float:
        return math.log(k) / max(math.log(gallery), 1e-9)

    kept: list[int] = []
    for k in sorted(labelled, key=lambda k: (str(k).strip("0") != "1", k)):
        room = (TICK_ROOM * (len(f"{k:,}") + len(f"{other:,}")) / 6 for other in kept)
        if all(abs(place(k) - place(other)) >= wide for other, wide in zip(kept, room, strict=True)):
            kept.append(k)
    return sorted(kept)


def curves(ranked: Mapping[str, Mapping[str, RankedQueries]], kind: str) -> list[Curves]:
    """A picture for each direction that any method has ranks for; ranked: by method, then by direction."""
    by_direction = {way: {m: ways[way] for m, ways in ranked.items() if way in ways} for way in DIRECTIONS}
    styles = {method: Style(number) for number, method in enumerate(ranked)}
    return [_curves(way, kind, named, styles) for way, named in by_direction.items() if named]


def _curves(
    direction: str, kind: str, ranked: Mapping[str, RankedQueries], styles: Mapping[str, Style]
) -> Curves:
    title = titles(kind)[direction]
    first = next(iter(ranked.values()))
    gallery = max(one.gallery for one in ranked.values())
    at, shown = cutoffs(gallery), ticks(gallery)
    drawn = [Curve(at, chance(first.positives, first.gallery, at), None)]
    drawn += [
        Curve(at, recall(one.ranks, at), styles[name], *band(one.ranks, one.units, at))
        for name, one in ranked.items()
    ]
    rows = {name: recall(one.ranks, shown) for name, one in ranked.items()}
    rows["chance"] = chance(first.positives, first.gallery, shown)
    at_1 = "; ".join(f"{name} {values[0]:.1f} % at 1" for name, values in rows.items())
    summary = f"{title}, recall by K from 1 to {gallery:,}: {at_1}"
    return Curves(
        title,
        recall_curves(f"recall {short_title(direction, kind)}", drawn, uncrowded(shown, gallery), summary),
        tuple(Key(name, f"{values[0]:.1f}", styles.get(name)) for name, values in rows.items()),
        ("", *(f"R@{k:,}" for k in shown)),
        tuple((name, *(f"{v:.1f}" for v in row)) for name, row in rows.items()),
    )


def rank_histograms(
    ranked: Mapping[str, Mapping[str, RankedQueries]], kind: str
) -> dict[str, list[Histogram]]:
    """By direction, a histogram of each method; all of a direction share one scale."""
    out = {}
    for way in DIRECTIONS:
        binned = {method: _binned(ways[way]) for method, ways in ranked.items() if way in ways}
        if binned:
            top = room_above(
                [height for _, shares, random in binned.values() for height in (*shares, *random)]
            )
            out[titles(kind)[way]] = [
                _rank_histogram(method, way, titles(kind)[way], bins, top, ranked[method][way].ranks)
                for method, bins in binned.items()
            ]
    return out


def rank_bins(ranks: Ranks, gallery: int) -> tuple[list[int], list[float]]:
    """The last rank of each bin (1, 2, 4, 8 ... up to the size of the gallery), and the percentage of queries in it."""
    ends = [min(2**power, gallery) for power in range(math.ceil(math.log2(gallery)) + 1)]
    return ends, np.diff([0.0, *recall(ranks, ends)]).tolist()


Bins = tuple[list[int], list[float], list[float]]
"""The last rank of each bin, the percentage of queries in it, and that of a random order."""


def _binned(ranked: RankedQueries) -> Bins:
    ends, shares = rank_bins(ranked.ranks, ranked.gallery)
    return ends, shares, np.diff([0.0, *chance(ranked.positives, ranked.gallery, ends)]).tolist()


def _rank_histogram(
    method: str, direction: str, title: str, bins: Bins, top: float, ranks: Ranks
) -> Histogram:
    ends, shares, random = bins
    ranges = list(_ranges(ends))
    names = [f"{low:,}" if low == end else f"{low:,}–{end:,}" for low, end in ranges]
    half = f"half of them rank {float(np.median(ranks)):,.0f} or better"
    summary = f"{method}, {title}: {shares[0]:.1f} % of the positives have rank 1, {half}"
    labels = [f"{low:,}" if low < 10_000 else f"{low // 1000:,}k" for low, _ in ranges]
    bars = Bars(shares, thinned(labels), random, frozenset({0}))
    percent = ((f"{share:.1f} %", f"{luck:.1f} %") for share, luck in zip(shares, random, strict=True))
    return Histogram(
        method, title,
        histogram(f"ranks {direction} {method}", bars, top, ("Rank, from", "Queries (%)"), False, summary),
        summary,
        tuple((name, *values) for name, values in zip(names, percent, strict=True)),
    )  # fmt: skip


def thinned(labels: Sequence[str], most: int = MOST_BIN_LABELS) -> list[str]:
    """The labels with every second, third ... kept, so that at most `most` remain; the others are empty."""
    every = -(-len(labels) // most)
    return [label if place % every == 0 else "" for place, label in enumerate(labels)]


def _ranges(ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    yield from ((1 if n == 0 else ends[n - 1] + 1, end) for n, end in enumerate(ends))
