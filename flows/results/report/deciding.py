"""The queries that decide between the methods: captions that methods rank most differently, with what each finds.

Axes: M methods, Q captions that all methods ranked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.measured import measured
from flows.results.report.addresses import query_address
from flows.results.report.clips import At, Clip, Clips
from trainers.measure.evaluated import EvaluatedFolder

SHOWN = 12
SAME_PAIR = 0.3  # how much each query of a pair of methods counts against the next one of the same pair
MIDDLE = 0.5  # the moment that is shown where nothing is known of it, as a share of the video

Ranks = NDArray[np.float64]


@dataclass(frozen=True)
class First:
    """An item beside a query: whose first result it is ("" for the right item alone), and its moving picture."""

    method: str
    item: str
    right: bool
    clip: Clip
    moment: str  # why this part of the video is shown


@dataclass(frozen=True)
class Deciding:
    """A query on which methods disagree: the best and the worst method on it, and the rank under every method."""

    text: str
    best: str
    worst: str
    items: tuple[First, ...]
    ranks: tuple[tuple[str, str, bool], ...]  # method, rank of the right item, whether it is the first
    address: str  # where serve shows it; "" if it cannot


def read_deciding(
    evaluated: Mapping[str, EvaluatedFolder], inputs: Mapping[str, Any], clips: Clips, count: int = SHOWN
) -> list[Deciding]:
    """The queries of captions that methods disagree most on; empty for fewer than two methods.

    evaluated: by method, in the order of the page.
    """
    some = {m: folder for m, folder in evaluated.items() if "t2v" in folder.ranking.ranks}
    if len(some) < 2:
        return []
    keys, ranks = _common(some)
    if not keys:
        return []
    first = next(iter(some.values()))
    rows = {method: {key: row for row, key in enumerate(_keys(folder))} for method, folder in some.items()}
    owners = [first.queries.caption_item[rows[next(iter(some))][key]] for key in keys]
    writer = _Writer(some, inputs, clips)
    return [
        writer.query({m: rows[m][keys[q]] for m in some}, ranks[:, q])
        for q in disagreeing(ranks, owners, count)
    ]


def _keys(folder: EvaluatedFolder) -> Sequence[Any]:
    return measured(folder, "").queries["t2v"].keys


def _common(some: Mapping[str, EvaluatedFolder]) -> tuple[list[Any], Ranks]:
    """The queries (Q,) that all methods ranked, in the order of the first, and their ranks (M, Q)."""
    sides = [measured(folder, "").queries["t2v"] for folder in some.values()]
    shared = set.intersection(*(set(side.keys) for side in sides))
    keys = [key for key in sides[0].keys if key in shared]
    return keys, np.stack([side.at(keys).rank for side in sides])


def disagreeing(ranks: Ranks, owners: Sequence[int], count: int) -> list[int]:
    """Numbers of the queries with the largest distance of best and worst rank, on a logarithmic scale.

    ranks: (M, Q). owners: (Q,), the item of each caption, of which only one is taken. A pair of methods that has been
    chosen already counts less, so that others are seen too. Queries that all methods rank alike are never chosen.
    """
    logs = np.log2(ranks)
    spread = logs.max(axis=0) - logs.min(axis=0)
    pairs = list(zip(ranks.argmin(axis=0).tolist(), ranks.argmax(axis=0).tolist(), strict=True))
    seen: Counter[tuple[int, int]] = Counter()
    items: set[int] = set()
    # Far more candidates than places: choosing among all of 30,000 queries would take a pass for each place.
    pool = np.argsort(-spread, kind="stable")[: 40 * count].tolist()
    chosen: list[int] = []
    while len(chosen) < count:
        left = [q for q in pool if spread[q] > 0 and owners[q] not in items]
        if not left:
            break
        best = max(left, key=lambda q: (spread[q] / (1 + SAME_PAIR * seen[pairs[q]]), -q))
        chosen.append(best)
        items.add(owners[best])
        seen[pairs[best]] += 1
    return chosen


@dataclass(frozen=True)
class _Writer:
    """Makes the shown queries from the rankings of all methods."""

    evaluated: Mapping[str, EvaluatedFolder]
    inputs: Mapping[str, Any]
    clips: Clips

    def query(self, rows: Mapping[str, int], ranks: Ranks) -> Deciding:
        """A query by its row under every method, and its ranks (M,)."""
        methods = list(self.evaluated)
        best, worst = methods[int(ranks.argmin())], methods[int(ranks.argmax())]
        queries = self.evaluated[best].queries
        text, own = queries.texts[rows[best]], int(self.evaluated[best].ranking.best_positives[rows[best]])
        shown = [self._first(method, rows[method]) for method in (best, worst)]
        if not any(one.right for one in shown):
            shown.append(self._item("", best, rows[best], own))
        split = self.evaluated[best].metrics.protocol.split
        named = tuple(
            (m, f"{rank:,.0f}" if rank == round(rank) else f"{rank:,.1f}", rank == 1)
            for m, rank in zip(methods, ranks.tolist(), strict=True)
        )
        return Deciding(text, best, worst, tuple(shown), named, query_address(text, best, worst, split))

    def _first(self, method: str, row: int) -> First:
        return self._item(method, method, row, int(self.evaluated[method].ranking.top_items[row, 0]))

    def _item(self, name: str, method: str, row: int, position: int) -> First:
        folder = self.evaluated[method]
        digest = folder.queries.items[position]
        item = self.inputs["items"].get(digest, {"id": digest, "video": None})
        at, why = At(MIDDLE), "middle of the video"
        if moments := self._moments(folder, row, digest):
            at, why = At(seconds=sum(moments[0]) / 2), "the caption's moment"
        if (share := best_share(folder, row, position)) is not None:
            at, why = At(share), f"best moment of {method}"
        right = position in folder.queries.positives[row]
        clip = self.clips.clip(item, at)
        return First(name, item["id"], right, clip, "views from four sides" if item.get("points") else why)

    def _moments(self, folder: EvaluatedFolder, row: int, digest: str) -> list[list[float]]:
        """The moments of the item that the caption describes, in seconds."""
        entry: dict[str, Any] = self.inputs["captions"].get(folder.queries.captions[row], {}).get(digest, {})
        return list(entry.get("moments", []))


def best_share(folder: EvaluatedFolder, row: int, position: int) -> float | None:
    """The best moment of an item for a query, as a share of its length; None where the method says nothing of it.

    It is the clip with the best score, or the frame with the largest share of the pooled video.
    """
    arrays = folder.explanation
    if "query" not in arrays:
        return None
    known = np.flatnonzero(arrays["query"] == row)
    if not len(known):
        return None
    place = np.flatnonzero(arrays["item"][known[0]] == position)
    if not len(place):
        return None
    if "clip_scores" in arrays:
        values = arrays["clip_scores"][known[0], place[0]]
    elif {"pool_weights", "real"} <= arrays.keys():
        values = arrays["pool_weights"][known[0], place[0]]
        values = values[arrays["real"][known[0], place[0]].astype(bool)]
    else:
        return None
    return (int(values.argmax()) + 0.5) / len(values) if len(values) else None
