"""Hubness: how unevenly the top-k slots of all queries are distributed over the gallery, and which members are hubs.

N_k of a member of the gallery is the number of queries that have it among their first k. A hub has an N_k above mean +
2 standard deviations, as in the share of top-k slots taken by hubs that evaluation measures; an anti-hub has N_k = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.report.frames import Strip
from flows.results.report.pictures import Pictures
from flows.results.report.plots import Bars, histogram, room_above
from flows.results.report.ranks import Histogram, thinned
from flows.results.wording import counted, member, titles
from trainers.measure.evaluated import EvaluatedFolder, Metrics, Queries
from trainers.measure.hubness import Hubness
from trainers.measure.metric_table import DIRECTIONS

DEVIATIONS = 2  # a member is a hub if its N_k is more standard deviations above the mean
MOST_BINS = 16
MOST_NAMED = 5  # largest number of hubs that are named in a direction
MOST_TEXT = 160  # characters that are shown of a caption that is a hub

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class HubnessRow:
    """The hubness of one method in one direction, as printed."""

    method: str
    title: str
    skewness: str
    anti_hubs: str  # share of the members that are anti-hubs
    most: str  # the largest and the mean N_k
    hubs: str  # share of the top-k slots taken by hubs


@dataclass(frozen=True)
class HubnessTable:
    """All methods under one k."""

    k: int
    rows: tuple[HubnessRow, ...]


@dataclass(frozen=True)
class Hub:
    """A hub; `positive_of` counts the queries that it is a positive of."""

    name: str
    count: int
    times: str  # its N_k divided by the mean
    positive_of: str  # a count with its noun, for instance "5 captions"
    strip: Strip


@dataclass(frozen=True)
class Hubs:
    """The hubs of one method in one direction, the largest N_k first, and the distribution of N_k."""

    method: str
    title: str
    sentence: str
    histogram: Histogram
    named: tuple[Hub, ...]
    more: int  # number of hubs that are not named
    of_items: bool  # the hubs are items, which have pictures; else captions


def hubness_tables(measured: Mapping[str, Metrics]) -> list[HubnessTable]:
    """A table for each k that was measured, with the directions one after the other; measured: by method."""
    measured_rows = [
        (method, titles(metrics.protocol.kind)[direction], metrics.hubness[direction])
        for direction in DIRECTIONS
        for method, metrics in measured.items()
        if direction in metrics.hubness
    ]
    return [
        HubnessTable(k, tuple(_row(method, title, one) for method, title, one in measured_rows if one.k == k))
        for k in sorted({one.k for _, _, one in measured_rows}, reverse=True)
    ]


def _row(method: str, title: str, hubness: Hubness) -> HubnessRow:
    return HubnessRow(
        method,
        title,
        skewness=f"{hubness.skewness:.2f}",
        anti_hubs=f"{100 * hubness.anti_hub_share:.1f} %",
        most=f"{hubness.most:,} (mean {hubness.mean:.1f})",
        hubs=f"{100 * hubness.hub_share:.1f} %",
    )


def threshold(counts: Counts) -> float:
    """The N_k above which a member is a hub."""
    return float(counts.mean() + DEVIATIONS * counts.std())


def status(count: int, counts: Counts) -> str:
    """ "a hub", "an anti-hub" or "no hub", for a member with the N_k `count`."""
    if count == 0:
        return "an anti-hub"
    return "a hub" if count > threshold(counts) else "no hub"


def hubs_of(counts: Counts) -> Counts:
    """The positions of the hubs, the largest N_k first, equal ones in gallery order."""
    order = np.argsort(-counts, kind="stable")
    hubs: Counts = order[counts[order] > threshold(counts)]
    return hubs


def occurrence_bins(
    counts: Counts, most: int = MOST_BINS, greatest: int = 0
) -> tuple[list[tuple[int, int]], list[int]]:
    """The least and greatest N_k of each bin, and its number of members.

    N_k = 0 has a bin of its own; the other bins have equal widths, up to `greatest` or to the largest N_k.
    """
    greatest = max(greatest, int(counts.max()))
    width = max(1, -(-greatest // (most - 1)))
    stretches = [(0, 0), *((low, low + width - 1) for low in range(1, greatest + 1, width))]
    return stretches, [int(((counts >= low) & (counts <= high)).sum()) for low, high in stretches]


@dataclass(frozen=True)
class Scale:
    """What the histograms of one direction share: the greatest N_k, and the end of the axis of members."""

    greatest: int
    top: float


def scales(evaluated: Mapping[str, EvaluatedFolder]) -> dict[str, Scale]:
    """The scale of each direction, which holds the N_k of every method."""
    out = {}
    for direction in DIRECTIONS:
        counts = [
            c for folder in evaluated.values() if (c := folder.ranking.occurrences.get(direction)) is not None
        ]
        if counts:
            greatest = max(int(one.max()) for one in counts)
            sizes = [size for one in counts for size in occurrence_bins(one, greatest=greatest)[1]]
            out[direction] = Scale(greatest, room_above(sizes))
    return out


def read_hubs(
    method: str, folder: EvaluatedFolder, inputs: Mapping[str, Any], pictures: Pictures,
    shared: Mapping[str, Scale],
) -> list[Hubs]:  # fmt: skip
    """The hubs of an evaluation for each direction; empty if it did not measure hubness."""
    metrics, occurrences = folder.metrics, folder.ranking.occurrences
    writer = _HubWriter(method, metrics.protocol.kind, folder.queries, inputs, pictures, shared)
    return [
        writer.hubs(direction, occurrences[direction], hubness.k)
        for direction, hubness in metrics.hubness.items()
        if direction in occurrences
    ]


@dataclass(frozen=True)
class _HubWriter:
    """Makes the hubs and their histogram from the N_k of a method's galleries."""

    method: str
    kind: str
    queries: Queries
    inputs: Mapping[str, Any]
    pictures: Pictures
    shared: Mapping[str, Scale]

    def hubs(self, direction: str, counts: Counts, k: int) -> Hubs:
        hubs, of_items = hubs_of(counts), direction == "t2v"
        noun = member(self.kind) if of_items else "caption"
        title = titles(self.kind)[direction]
        named = tuple(self._hub(int(place), counts, of_items) for place in hubs[:MOST_NAMED])
        least = int(threshold(counts)) + 1
        reason = f"{DEVIATIONS} standard deviations above the mean of {counts.mean():.1f}"
        sentence = (
            f"{counted(len(hubs), noun)} of {len(counts):,} in {least:,} or more top {k}, over {reason}"
        )
        if not len(hubs):
            sentence = f"No {noun} is in {least:,} or more top {k}, over {reason}: there is no hub"
        return Hubs(
            self.method, title, sentence, self._histogram(direction, noun, counts, k), named,
            max(0, len(hubs) - MOST_NAMED), of_items,
        )  # fmt: skip

    def _histogram(self, direction: str, noun: str, counts: Counts, k: int) -> Histogram:
        scale, title = self.shared[direction], titles(self.kind)[direction]
        stretches, sizes = occurrence_bins(counts, greatest=scale.greatest)
        limit = threshold(counts)
        names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in stretches]
        strong = frozenset(place for place, (low, _) in enumerate(stretches) if low > limit)
        extremes = f"{counted(sizes[0], noun)} in no top {k}, the most frequent in {counts.max():,}"
        summary = f"{self.method}, {title}: {extremes}"
        rows = tuple((name, f"{size:,}") for name, size in zip(names, sizes, strict=True))
        drawn = Bars(sizes, thinned([f"{low:,}" for low, _ in stretches]), None, strong)
        axes = (f"N_{k}, from", f"{noun.capitalize()}s")
        picture = histogram(f"hubs {direction} {self.method}", drawn, scale.top, axes, True, summary)
        return Histogram(self.method, title, picture, summary, rows)

    def _hub(self, place: int, counts: Counts, of_items: bool) -> Hub:
        strip, queries = Strip(), self.queries
        if not of_items:
            positive_of = counted(len(set(queries.positives[place])), member(self.kind))
            name = queries.texts[place][:MOST_TEXT]
        else:
            digest = queries.items[place]
            item = self.inputs["items"].get(digest, {"id": digest, "video": None})
            name = item["id"]
            positive_of = counted(len(queries.captions_of[place]), "caption")
            if self.kind != "pointcloud" or item.get("points"):
                strip = self.pictures.strip(item)
        count = int(counts[place])
        return Hub(name, count, f"{count / counts.mean():.1f}", positive_of, strip)
