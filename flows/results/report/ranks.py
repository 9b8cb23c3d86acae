"""Where the right answers stand: recall at every K, and how the ranks are spread.

As on the leaderboard, a right answer that is tied with others has the mean rank of the ties. Axes: Q queries.
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

WIDTH, HEIGHT = 400, 250  # of the curves, in their own units
LEFT, RIGHT, TOP, BOTTOM = 136, 50, 12, 24  # margins: names at the left, percent at the right
LINE_HEIGHT = 14  # of a name
DIGIT_WIDTH, LABEL_GAP = 8, 5  # of the labels under the curves
MOST_POINTS = 72  # of a curve
SERIES = 5  # colours and dashes there are; more methods begin again
BAR_WIDTH, BAR_HEIGHT = 280, 120  # of a histogram, in its own units
BAR_TOP, BAR_BOTTOM, BAR_LEFT = 18, 20, 8
GAP = 2  # between bars
MOST_BIN_LABELS = 10

Ranks = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """The queries of one method in one direction: their mean ranks (Q,), and how many answers of each are right."""

    ranks: Ranks
    right: Counts
    gallery: int


@dataclass(frozen=True)
class Line:
    """One curve in units of its picture; the name stands at the left, beside where it starts."""

    name: str
    points: str
    style: str
    start: float
    label: float


@dataclass(frozen=True)
class Curves:
    """Recall by K of all methods in one direction, as a picture, in a sentence, and as a table."""

    title: str
    lines: tuple[Line, ...]
    x_labels: tuple[Label, ...]
    y_labels: tuple[Label, ...]
    summary: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, in units of its picture; `chance` is how high it would be in a random order."""

    left: float
    top: float
    width: float
    height: float
    label: str
    chance: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Histogram:
    """Bars of one method in one direction, all of it in a sentence, and the numbers as rows."""

    method: str
    title: str
    bars: tuple[Bar, ...]
    peak: str  # the share or number of the highest bar, as printed
    summary: str
    rows: tuple[tuple[str, ...], ...]


def read_asked(folder: EvaluatedFolder) -> dict[str, Asked]:
    """The directions of an evaluation."""
    queries = folder.queries
    return {
        direction: Asked(found.mean, queries.positive_counts(direction), queries.gallery(direction))
        for direction, found in folder.ranking.ranks.items()
    }


def recall(ranks: Ranks, cutoffs: Sequence[int]) -> list[float]:
    """Percent of the queries with a rank of at most each K."""
    ordered = np.sort(ranks)
    return [100 * float(np.searchsorted(ordered, k, side="right")) / len(ordered) for k in cutoffs]


def chance(right: Counts, gallery: int, cutoffs: Sequence[int]) -> list[float]:
    """The recall at each K that is expected of a random order, in percent. right: (Q,), the positives of each query."""
    return [recall_by_chance(gallery, right, cutoff) for cutoff in cutoffs]


def cutoffs(gallery: int, most: int = MOST_POINTS) -> list[int]:
    """Whole K from 1 to the gallery, about evenly spaced on a scale of logarithms."""
    return sorted({round(k) for k in np.geomspace(1, gallery, most)})


def ticks(gallery: int) -> list[int]:
    """The K that are labelled: 1, 2, 5, 10, 20, 50 ..., of a gallery over 1,000 the powers of 10 alone."""
    steps = (1,) if gallery > 1000 else (1, 2, 5)
    return [
        step * 10**power
        for power in range(len(str(gallery)))
        for step in steps
        if step * 10**power <= gallery
    ]


def uncrowded(labelled: Sequence[int], gallery: int) -> list[int]:
    """Those of the K whose labels do not touch: powers of 10 first, then the others from the left."""
    kept: list[int] = []
    for k in sorted(labelled, key=lambda k: (str(k).strip("0") != "1", k)):
        room = (DIGIT_WIDTH * (len(f"{k:,}") + len(f"{other:,}")) / 2 + LABEL_GAP for other in kept)
        if all(
            abs(_x(k, gallery) - _x(other, gallery)) >= wide for other, wide in zip(kept, room, strict=True)
        ):
            kept.append(k)
    return sorted(kept)


def curves(asked: Mapping[str, Mapping[str, Asked]], kind: str) -> list[Curves]:
    """A picture for each direction that any method has ranks for; asked: by method, then by direction."""
    found = {way: {m: ways[way] for m, ways in asked.items() if way in ways} for way in DIRECTIONS}
    styles = {method: f"s{number % SERIES}" for number, method in enumerate(asked)} | {"chance": "chance"}
    return [_curves(titles(kind)[way], named, styles) for way, named in found.items() if named]


def _curves(title: str, asked: Mapping[str, Asked], styles: Mapping[str, str]) -> Curves:
    first = next(iter(asked.values()))
    gallery = max(one.gallery for one in asked.values())
    at, shown = cutoffs(gallery), ticks(gallery)
    values = {name: (recall(one.ranks, at), recall(one.ranks, shown)) for name, one in asked.items()}
    values["chance"] = (chance(first.right, first.gallery, at), chance(first.right, first.gallery, shown))
    starts = {name: _y(curve[0]) for name, (curve, _) in values.items()}
    labels = spread_out(list(starts.values()), LINE_HEIGHT, TOP, HEIGHT - BOTTOM)
    lines = tuple(
        Line(
            f"{name} {curve[0]:.1f}", " ".join(f"{_x(k, gallery)},{_y(v)}" for k, v in zip(at, curve, strict=True)),
            styles[name], starts[name], label,
        )
        for (name, (curve, _)), label in zip(values.items(), labels, strict=True)
    )  # fmt: skip
    told = "; ".join(f"{name} {curve[0]:.1f} % at 1" for name, (curve, _) in values.items())
    return Curves(
        title, lines,
        tuple(Label(_x(k, gallery), f"{k:,}") for k in uncrowded(shown, gallery)),
        tuple(Label(_y(v), f"{v} %") for v in (0, 25, 50, 75, 100)),
        f"{title}, recall by K from 1 to {gallery:,}: {told}",
        ("", *(f"R@{k:,}" for k in shown)),
        tuple((name, *(f"{v:.1f}" for v in row)) for name, (_, row) in values.items()),
    )  # fmt: skip


def _x(k: int, gallery: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * math.log(k) / max(math.log(gallery), 1e-9), 1)


def _y(percent: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * percent / 100, 1)


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as may be, in their order, `gap` apart, none below `low`.

    None lies above `high` either, as long as there is room for all.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    out = list(wanted)
    edge = low
    for place in order:
        out[place] = edge = max(edge, out[place])
        edge += gap
    edge = max(high, low + gap * (len(wanted) - 1))
    for place in reversed(order):
        out[place] = min(edge, out[place])
        edge = out[place] - gap
    return out


def rank_histograms(asked: Mapping[str, Mapping[str, Asked]], kind: str) -> list[Histogram]:
    """A histogram for each direction of each method."""
    return [
        _rank_histogram(method, titles(kind)[way], ways[way])
        for way in DIRECTIONS
        for method, ways in asked.items()
        if way in ways
    ]


def rank_bins(ranks: Ranks, gallery: int) -> tuple[list[int], list[float]]:
    """The last rank of each bin, 1, 2, 4, 8 ... up to the gallery, and the percent of queries in each."""
    ends = [min(2**power, gallery) for power in range(math.ceil(math.log2(gallery)) + 1)]
    return ends, np.diff([0.0, *recall(ranks, ends)]).tolist()


def _rank_histogram(method: str, title: str, asked: Asked) -> Histogram:
    ends, shares = rank_bins(asked.ranks, asked.gallery)
    random = np.diff([0.0, *chance(asked.right, asked.gallery, ends)]).tolist()
    names = [f"{low:,}" if low == end else f"{low:,}–{end:,}" for low, end in _stretches(ends)]
    half = float(np.median(asked.ranks))
    found = f"{shares[0]:.1f} % of the right answers stand first, half of them at {half:,.0f} or before"
    percent = ((f"{share:.1f} %", f"{luck:.1f} %") for share, luck in zip(shares, random, strict=True))
    return Histogram(
        method, title,
        bars(shares, [f"{low:,}" for low, _ in _stretches(ends)], random, strong={0}),
        f"{max(shares):.0f} %",
        f"{method}, {title}: {found}",
        tuple((name, *values) for name, values in zip(names, percent, strict=True)),
    )  # fmt: skip


def _stretches(ends: Sequence[int]) -> list[tuple[int, int]]:
    return [(1 if n == 0 else ends[n - 1] + 1, end) for n, end in enumerate(ends)]


def bars(
    heights: Sequence[float], labels: Sequence[str], chance: Sequence[float] | None, strong: set[int]
) -> tuple[Bar, ...]:
    """Bars as high as the highest allows; one of more than nothing is never too low to be seen."""
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
