"""The ranks of the positives: recall at every K, and the distribution of ranks.

As on the leaderboard, ranks are realistic: a positive that is tied with other candidates has the mean rank of the ties.
Axes: Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.results.report.training import Label
from flows.results.report.wording import titles
from trainers.measure.evaluated import EvaluatedFolder
from trainers.measure.metric_table import DIRECTIONS, recall_by_chance

WIDTH, HEIGHT = 400, 250  # size of the curves' picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 136, 50, 12, 24  # margins: names at the left, percent at the right
LINE_HEIGHT = 14  # height of a name
DIGIT_WIDTH, LABEL_GAP = 8, 5  # width of a digit and space between the labels under the curves
MOST_POINTS = 72  # largest number of points of a curve
SERIES = 5  # number of colours and dashes in the style sheet; a sixth method has the style of the first
BAR_WIDTH, BAR_HEIGHT = 280, 120  # size of a histogram, in its own units
BAR_TOP, BAR_BOTTOM, BAR_LEFT = 18, 20, 8
GAP = 2  # space between two bars
MOST_BIN_LABELS = 10

Ranks = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class RankedQueries:
    """The queries of one method in one direction: realistic (mean) ranks (Q,) and numbers of positives (Q,)."""

    ranks: Ranks
    positives: Counts
    gallery: int


@dataclass(frozen=True)
class Line:
    """One curve in units of its picture; its name is printed at the left, beside its first point."""

    name: str
    points: str
    style: str
    start: float
    label: float


@dataclass(frozen=True)
class Curves:
    """Recall by K of all methods in one direction: a picture, a sentence, and a table."""

    title: str
    lines: tuple[Line, ...]
    x_labels: tuple[Label, ...]
    y_labels: tuple[Label, ...]
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, in units of its picture; `chance` is its height for a random order."""

    left: float
    top: float
    width: float
    height: float
    label: str
    chance: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Histogram:
    """The histogram of one method in one direction, with a sentence that describes it, and its numbers as rows."""

    method: str
    title: str
    bars: tuple[Bar, ...]
    peak: str  # the share or number of the highest bar, as printed
    summary: str
    rows: tuple[tuple[str, ...], ...]


def read_ranked(folder: EvaluatedFolder) -> dict[str, RankedQueries]:
    """The ranked queries of an evaluation, by direction."""
    queries, groups = folder.queries, folder.metrics.protocol.groups
    return {
        direction: RankedQueries(
            ranks.mean, queries.positive_counts(direction, groups), queries.gallery(direction, groups)
        )
        for direction, ranks in folder.ranking.ranks.items()
    }


def recall(ranks: Ranks, cutoffs: Sequence[int]) -> list[float]:
    """For each K, the percentage of queries with a rank of at most K."""
    ordered = np.sort(ranks)
    return [100 * float(np.searchsorted(ordered, k, side="right")) / len(ordered) for k in cutoffs]


def chance(positives: Counts, gallery: int, cutoffs: Sequence[int]) -> list[float]:
    """The expected recall at each K of a random order, in percent. positives: (Q,), the number of each query."""
    return [recall_by_chance(gallery, positives, cutoff) for cutoff in cutoffs]


def cutoffs(gallery: int, most: int = MOST_POINTS) -> list[int]:
    """Whole K from 1 to the size of the gallery, about evenly spaced on a logarithmic scale."""
    return sorted({round(k) for k in np.geomspace(1, gallery, most)})


def ticks(gallery: int) -> list[int]:
    """The K that get a label: 1, 2, 5, 10, 20, 50 ...; for galleries over 1,000, the powers of 10 alone."""
    steps = (1,) if gallery > 1000 else (1, 2, 5)
    return [
        step * 10**power
        for power in range(len(str(gallery)))
        for step in steps
        if step * 10**power <= gallery
    ]


def uncrowded(labelled: Sequence[int], gallery: int) -> list[int]:
    """The K whose labels do not touch: powers of 10 are kept first, then the others from the left."""
    kept: list[int] = []
    for k in sorted(labelled, key=lambda k: (str(k).strip("0") != "1", k)):
        room = (DIGIT_WIDTH * (len(f"{k:,}") + len(f"{other:,}")) / 2 + LABEL_GAP for other in kept)
        if all(
            abs(_x(k, gallery) - _x(other, gallery)) >= wide for other, wide in zip(kept, room, strict=True)
        ):
            kept.append(k)
    return sorted(kept)


def curves(ranked: Mapping[str, Mapping[str, RankedQueries]], kind: str) -> list[Curves]:
    """A picture for each direction that any method has ranks for; ranked: by method, then by direction."""
    by_direction = {way: {m: ways[way] for m, ways in ranked.items() if way in ways} for way in DIRECTIONS}
    styles = {method: f"s{number % SERIES}" for number, method in enumerate(ranked)} | {"chance": "chance"}
    return [_curves(titles(kind)[way], named, styles) for way, named in by_direction.items() if named]


def _curves(title: str, ranked: Mapping[str, RankedQueries], styles: Mapping[str, str]) -> Curves:
    first = next(iter(ranked.values()))
    gallery = max(one.gallery for one in ranked.values())
    at, shown = cutoffs(gallery), ticks(gallery)
    values = {name: (recall(one.ranks, at), recall(one.ranks, shown)) for name, one in ranked.items()}
    values["chance"] = (
        chance(first.positives, first.gallery, at),
        chance(first.positives, first.gallery, shown),
    )
    starts = {name: _y(curve[0]) for name, (curve, _) in values.items()}
    labels = spread_out(list(starts.values()), LINE_HEIGHT, TOP, HEIGHT - BOTTOM)
    lines = tuple(
        Line(
            f"{name} {curve[0]:.1f}", " ".join(f"{_x(k, gallery)},{_y(v)}" for k, v in zip(at, curve, strict=True)),
            styles[name], starts[name], label,
        )
        for (name, (curve, _)), label in zip(values.items(), labels, strict=True)
    )  # fmt: skip
    recall_at_1 = "; ".join(f"{name} {curve[0]:.1f} % at 1" for name, (curve, _) in values.items())
    return Curves(
        title, lines,
        tuple(Label(_x(k, gallery), f"{k:,}") for k in uncrowded(shown, gallery)),
        tuple(Label(_y(v), f"{v} %") for v in (0, 25, 50, 75, 100)),
        f"{title}, recall by K from 1 to {gallery:,}: {recall_at_1}",
        ("", *(f"R@{k:,}" for k in shown)),
        tuple((name, *(f"{v:.1f}" for v in row)) for name, (_, row) in values.items()),
    )  # fmt: skip


def _x(k: int, gallery: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(k) / max(math.log(gallery), 1e-9), 1)


def _y(percent: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * percent / 100, 1)


def spread_out(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in the order of the targets and near to them, at least `gap` apart, none below `low`.

    None is above `high` either, if there is room for all.
    """
    order = sorted(range(len(targets)), key=lambda place: targets[place])
    out = list(targets)
    edge = low
    for place in order:
        out[place] = edge = max(edge, out[place])
        edge += gap
    edge = max(high, low + gap * (len(targets) - 1))
    for place in reversed(order):
        out[place] = min(edge, out[place])
        edge = out[place] - gap
    return out


def rank_histograms(ranked: Mapping[str, Mapping[str, RankedQueries]], kind: str) -> list[Histogram]:
    """A histogram for each direction of each method."""
    return [
        _rank_histogram(method, titles(kind)[way], ways[way])
        for way in DIRECTIONS
        for method, ways in ranked.items()
        if way in ways
    ]


def rank_bins(ranks: Ranks, gallery: int) -> tuple[list[int], list[float]]:
    """The last rank of each bin (1, 2, 4, 8 ... up to the size of the gallery), and the percentage of queries in it."""
    ends = [min(2**power, gallery) for power in range(math.ceil(math.log2(gallery)) + 1)]
    return ends, np.diff([0.0, *recall(ranks, ends)]).tolist()


def _rank_histogram(method: str, title: str, ranked: RankedQueries) -> Histogram:
    ends, shares = rank_bins(ranked.ranks, ranked.gallery)
    random = np.diff([0.0, *chance(ranked.positives, ranked.gallery, ends)]).tolist()
    names = [f"{low:,}" if low == end else f"{low:,}–{end:,}" for low, end in _ranges(ends)]
    half = float(np.median(ranked.ranks))
    sentence = f"{shares[0]:.1f} % of the positives have rank 1, half of them rank {half:,.0f} or better"
    percent = ((f"{share:.1f} %", f"{luck:.1f} %") for share, luck in zip(shares, random, strict=True))
    return Histogram(
        method, title,
        bars(shares, [f"{low:,}" for low, _ in _ranges(ends)], random, strong={0}),
        f"{max(shares):.0f} %",
        f"{method}, {title}: {sentence}",
        tuple((name, *values) for name, values in zip(names, percent, strict=True)),
    )  # fmt: skip


def _ranges(ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(1 if n == 0 else ends[n - 1] + 1, end) for n, end in enumerate(ends)]


def bars(
    heights: Sequence[float], labels: Sequence[str], chance: Sequence[float] | None, strong: set[int]
) -> tuple[Bar, ...]:
    """Bars scaled so that the highest fills the picture; a value above 0 is at least 1.5 high, to be visible."""
    top = max([*heights, *(chance or [])]) or 1.0
    width = (BAR_WIDTH - 2 * BAR_LEFT) / len(heights)
    room, floor = BAR_HEIGHT - BAR_TOP - BAR_BOTTOM, BAR_HEIGHT - BAR_BOTTOM
    every = -(-len(labels) // MOST_BIN_LABELS)
    out = []
    for place, value in enumerate(heights):
        high = max(room * value / top, 1.5) if value > 0 else 0.0
        luck = None if chance is None else round(floor - room * chance[place] / top, 1)
        left, label = (
            round(BAR_LEFT + place * width + GAP / 2, 1),
            labels[place] if place % every == 0 else "",
        )
        size = round(width - GAP, 1), round(high, 1)
        out.append(Bar(left, round(floor - high, 1), *size, label, luck, place in strong))
    return tuple(out)
