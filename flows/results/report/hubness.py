"""Hubness: how unevenly the top places of all rankings fall on the gallery, and on whom they fall.

N_k is in how many top k a member of the gallery stands. A hub has an N_k of more than mean + 2 standard deviations,
as in the share of places that evaluation measures; an anti-hub has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.report.frames import Strip
from flows.results.report.pictures import Pictures
from flows.results.report.ranks import Histogram, bars
from flows.results.report.wording import counted, member, titles
from trainers.measure.evaluated import EvaluatedFolder, Metrics, Queries
from trainers.measure.hubness import Hubness
from trainers.measure.metric_table import DIRECTIONS

DEVIATIONS = 2  # above the mean, from which a member counts as a hub
MOST_BINS = 16
MOST_NAMED = 5  # hubs of a direction
MOST_TEXT = 160  # characters of a caption that is a hub

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class HubnessRow:
    """The figures of one method in one direction, as printed. N_k: in how many top k a member stands."""

    method: str
    title: str
    skewness: str
    anti_hubs: str  # of the members, those without a place
    most: str  # the largest N_k, and the mean
    hubs: str  # of the places, those held by hubs


@dataclass(frozen=True)
class HubnessTable:
    """All methods under one k."""

    k: int
    rows: tuple[HubnessRow, ...]


@dataclass(frozen=True)
class Hub:
    """A member that stands in too many top places; `right`: of which queries it is an answer."""

    name: str
    count: int
    times: str  # of the mean
    right: str  # how many, with what they are
    strip: Strip


@dataclass(frozen=True)
class Hubs:
    """The hubs of one method in one direction, the greatest first, and how the N_k are spread."""

    method: str
    title: str
    sentence: str
    histogram: Histogram
    named: tuple[Hub, ...]
    more: int  # hubs that are not named
    of_items: bool  # items, who can be shown; else captions


def hubness_tables(measured: Mapping[str, Metrics]) -> list[HubnessTable]:
    """A table for each k there is, directions one after the other; measured: by method."""
    found = [
        (method, titles(metrics.protocol.kind)[direction], metrics.hubness[direction])
        for direction in DIRECTIONS
        for method, metrics in measured.items()
        if direction in metrics.hubness
    ]
    return [
        HubnessTable(k, tuple(_row(method, title, one) for method, title, one in found if one.k == k))
        for k in sorted({one.k for _, _, one in found}, reverse=True)
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
    """What a member with such an N_k is called."""
    if count == 0:
        return "an anti-hub"
    return "a hub" if count > threshold(counts) else "no hub"


def hubs_of(counts: Counts) -> Counts:
    """The members that are hubs, the greatest first, equal ones in gallery order."""
    order = np.argsort(-counts, kind="stable")
    found: Counts = order[counts[order] > threshold(counts)]
    return found


def occurrence_bins(counts: Counts, most: int = MOST_BINS) -> tuple[list[tuple[int, int]], list[int]]:
    """The least and greatest N_k of each bin, 0 by itself and then equal widths, and how many members it holds."""
    greatest = int(counts.max())
    width = max(1, -(-greatest // (most - 1)))
    stretches = [(0, 0), *((low, low + width - 1) for low in range(1, greatest + 1, width))]
    return stretches, [int(((counts >= low) & (counts <= high)).sum()) for low, high in stretches]


def read_hubs(
    method: str, folder: EvaluatedFolder, inputs: Mapping[str, Any], pictures: Pictures
) -> list[Hubs]:
    """The hubs of an evaluation, direction by direction; nothing where it did not count them."""
    metrics, occurrences = folder.metrics, folder.ranking.occurrences
    teller = _Teller(method, metrics.protocol.kind, folder.queries, inputs, pictures)
    return [
        teller.hubs(direction, occurrences[direction], hubness.k)
        for direction, hubness in metrics.hubness.items()
        if direction in occurrences
    ]


@dataclass(frozen=True)
class _Teller:
    """Turns how often members were found into what is said of them."""

    method: str
    kind: str
    queries: Queries
    inputs: Mapping[str, Any]
    pictures: Pictures

    def hubs(self, direction: str, counts: Counts, k: int) -> Hubs:
        found, of_items = hubs_of(counts), direction == "t2v"
        noun = member(self.kind) if of_items else "caption"
        title = titles(self.kind)[direction]
        named = tuple(self._hub(int(place), counts, of_items) for place in found[:MOST_NAMED])
        least = int(threshold(counts)) + 1
        reason = f"{DEVIATIONS} standard deviations above the mean of {counts.mean():.1f}"
        sentence = (
            f"{counted(len(found), noun)} of {len(counts):,} in {least:,} or more top {k}, over {reason}"
        )
        if not len(found):
            sentence = f"No {noun} stands in {least:,} or more top {k}, over {reason}: there is no hub"
        return Hubs(
            self.method, title, sentence, self._histogram(title, noun, counts, k), named,
            max(0, len(found) - MOST_NAMED), of_items,
        )  # fmt: skip

    def _histogram(self, title: str, noun: str, counts: Counts, k: int) -> Histogram:
        stretches, sizes = occurrence_bins(counts)
        limit = threshold(counts)
        names = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in stretches]
        strong = {place for place, (low, _) in enumerate(stretches) if low > limit}
        told = f"{counted(sizes[0], noun)} in no top {k}, the most frequent in {counts.max():,}"
        summary = f"{self.method}, {title}: {told}"
        rows = tuple((name, f"{size:,}") for name, size in zip(names, sizes, strict=True))
        lows = [f"{low:,}" for low, _ in stretches]
        return Histogram(
            self.method, title, bars(sizes, lows, None, strong), f"{max(sizes):,}", summary, rows
        )

    def _hub(self, place: int, counts: Counts, of_items: bool) -> Hub:
        strip, queries = Strip(), self.queries
        if not of_items:
            right = counted(len(set(queries.positives[place])), member(self.kind))
            name = queries.texts[place][:MOST_TEXT]
        else:
            digest = queries.items[place]
            item = self.inputs["items"].get(digest, {"id": digest, "video": None})
            name = item["id"]
            right = counted(len(queries.captions_of[place]), "caption")
            if self.kind != "pointcloud" or item.get("points"):
                strip = self.pictures.strip(item)
        count = int(counts[place])
        return Hub(name, count, f"{count / counts.mean():.1f}", right, strip)
