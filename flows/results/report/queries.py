"""A few found and missed queries of a method, with the first results of each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.report.explained import Drawing, Explanation
from flows.results.report.frames import Moments, Strip
from flows.results.report.pictures import Pictures
from flows.results.report.pieces import Pieces
from flows.results.wording import counted, member
from trainers.measure.evaluated import EvaluatedFolder
from trainers.measure.metrics import Ranks

PLACES = 3  # results shown of a query; the best positive follows if it is not among them

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A moment on the timeline, in percent of the video's length."""

    left: float
    width: float


@dataclass(frozen=True)
class Result:
    """One item in the ranking of a query. Only the caption's own item has its moments."""

    rank: str
    item: str
    score: str
    positive: bool
    strip: Strip
    moments: Moments = ()
    drawing: Drawing | None = None  # drawing of the method's explanation of the match

    @property
    def spans(self) -> list[Span]:
        """The moments as stretches of the video."""
        length = self.strip.seconds
        if not length:
            return []
        ends = [(min(start, length), min(end, length)) for start, end in self.moments]
        return [_span(100 * start / length, 100 * end / length) for start, end in ends]

    def shows(self, seconds: float) -> bool:
        """Whether a frame at this time is inside one of the moments."""
        return any(start <= seconds <= end for start, end in self.moments)


def _span(left: float, right: float) -> Span:
    """The stretch from left to right in percent, at least 1 % wide so that it can be seen."""
    return Span(round(left, 2), round(max(right - left, 1.0), 2))


@dataclass(frozen=True)
class Query:
    """A caption and the beginning of its ranking; `positives` are the ids of all its positives, its own item first."""

    text: str
    caption: str
    found: bool
    verdict: str
    positives: tuple[str, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Queries:
    """The queries that are shown of one method, the numbers of found and missed ones, and the noun of what is ranked.

    noun: "item" or "cloud". several: whether any caption has more than one positive. legend: sentences on what the
    drawings show; empty if there are none.
    """

    method: str
    noun: str
    several: bool
    shown: tuple[Query, ...]
    found: int
    missed: int
    legend: str


def read_queries(
    method: str, folder: EvaluatedFolder, inputs: Mapping[str, Any], pictures: Pictures, count: int
) -> Queries | None:
    """`count` queries of an evaluation, half of them found; None if captions did not rank items."""
    ranks = folder.ranking.ranks.get("t2v")
    if ranks is None:
        return None
    noun = member(folder.metrics.protocol.kind)
    found = ranks.mean == 1
    with closing(Pieces()) as pieces:
        explanation = Explanation.read(method, folder, pieces if _reads_clip(method, inputs) else None)
        writer = _QueryWriter(folder, ranks, inputs, pictures, noun, explanation)
        chosen = choose(ranks.mean, np.asarray(folder.queries.caption_item), count, explanation.queries)
        shown = tuple(writer.query(int(q)) for q in chosen)
    several = folder.queries.several
    return Queries(method, noun, several, shown, int(found.sum()), int((~found).sum()), explanation.legend)


def _reads_clip(method: str, inputs: Mapping[str, Any]) -> bool:
    """Whether the method reads the captions as tokens of CLIP."""
    settings = inputs["experiment"].get("settings", {}).get(f"train-{method}", {})
    return settings.get("text_features") == "clip_text"


def choose(
    mean_rank: NDArray[np.float64], item: Positions, count: int, among: Positions | None = None
) -> Positions:
    """Numbers of the queries to show: half found, of different items, and half missed, from near misses to the worst.

    A query is found if its positive is first without a tie: a model that gives every item the same score has found
    nothing. Where there are too few of one kind, more of the other kind are taken. mean_rank, item: (Q,). among: the
    queries whose matches are explained; if given, only these and the query with the worst rank can be chosen.
    """
    pool = np.arange(len(mean_rank)) if among is None else np.union1d(among, mean_rank.argmax())
    found = pool[mean_rank[pool] == 1]
    found = found[np.sort(np.unique(item[found], return_index=True)[1])]
    missed = pool[mean_rank[pool] > 1]
    missed = missed[np.argsort(mean_rank[missed], kind="stable")]
    count_found = min(len(found), max(-(-count // 2), count - len(missed)))
    count_missed = min(len(missed), count - count_found)
    return np.concatenate([_spread(found, count_found), _spread(missed, count_missed)]).astype(np.int64)


def _spread(values: Positions, count: int) -> Positions:
    """`count` of the values, evenly spaced, with the first and the last."""
    return values[np.linspace(0, len(values) - 1, count).round().astype(np.int64)] if count else values[:0]


@dataclass(frozen=True)
class _QueryWriter:
    """Makes the shown queries and results from the rows of a ranking."""

    folder: EvaluatedFolder
    ranks: Ranks
    inputs: Mapping[str, Any]
    pictures: Pictures
    noun: str
    explanation: Explanation

    def query(self, q: int) -> Query:
        queries, ranking = self.folder.queries, self.folder.ranking
        rank, mean = int(self.ranks.strict[q]), float(self.ranks.mean[q])
        own, caption, positives = queries.caption_item[q], queries.captions[q], queries.positives[q]
        brief = self.inputs["captions"].get(caption, {}).get(queries.items[own], {})
        moments = tuple((start, end) for start, end in brief.get("moments", []))
        scores = ranking.top_scores[q].tolist()
        # position in the gallery -> place in the ranking and score
        places = {
            int(position): (place, f"{scores[place - 1]:.3f}")
            for place, position in enumerate(ranking.top_items[q], start=1)
        }
        best = int(ranking.best_positives[q])
        shown = list(dict.fromkeys([*list(places)[:PLACES], best]))
        results = tuple(
            self._result(
                q, p, *places.get(p, (rank, "")), positive=p in positives, moments=moments if p == own else ()
            )
            for p in shown
        )
        verdict = _verdict(rank, mean, len(queries.items), self.noun, len(positives))
        names = tuple(self._item(p)["id"] for p in positives)
        return Query(queries.texts[q], brief.get("id", caption), mean == 1, verdict, names, results)

    def _item(self, position: int) -> dict[str, Any]:
        digest = self.folder.queries.items[position]
        item: dict[str, Any] = self.inputs["items"].get(digest, {"id": digest, "video": None})
        return item

    def _result(
        self, q: int, position: int, place: int, score: str, positive: bool, moments: Moments
    ) -> Result:
        item = self._item(position)
        unseen = self.noun == "cloud" and not item.get("points")  # imported features: no points
        strip = Strip() if unseen else self.pictures.strip(item, moments)
        drawing = self.explanation.drawn(q, position, self.folder.queries.texts[q], strip.seconds)
        return Result(f"{place:,}", item["id"], score, positive, strip, moments, drawing)


def _verdict(rank: int, mean: float, gallery: int, noun: str, positives: int) -> str:
    """The rank of the best positive in words; mean = rank + half the number of other items with an equal score.

    If there are several positives, it is not known how many of them share the score, so others are not counted.
    """
    ties = round(2 * (mean - rank))
    if mean == 1:
        return "Found first"
    others = counted(ties, "other") if positives == 1 else "others"
    tied = f", tied with {others}" if mean > rank else ""
    best = "Right" if positives == 1 else f"Best of {positives} right"
    return f"{best} {noun}{'' if positives == 1 else 's'} at rank {rank:,} of {gallery:,}{tied}"
