"""A few queries of a method, found and missed, with what it put first."""

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
from flows.results.report.wording import counted, member
from trainers.measure.evaluated import EvaluatedFolder
from trainers.measure.metrics import Ranks

PLACES = 3  # results shown of a query; the right item follows where it is not among them

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A moment on the timeline, in percent of the video's length."""

    left: float
    width: float


@dataclass(frozen=True)
class Result:
    """One item in the ranking of a query. The moments of the caption are known of its own item alone."""

    rank: str
    item: str
    score: str
    right: bool
    strip: Strip
    moments: Moments = ()
    drawing: Drawing | None = None  # what carried the match

    @property
    def spans(self) -> list[Span]:
        """The moments as they lie on the video."""
        length = self.strip.seconds
        if not length:
            return []
        ends = [(min(start, length), min(end, length)) for start, end in self.moments]
        return [_span(100 * start / length, 100 * end / length) for start, end in ends]

    def shows(self, seconds: float) -> bool:
        """Whether a frame lies in one of the moments."""
        return any(start <= seconds <= end for start, end in self.moments)


def _span(left: float, right: float) -> Span:
    """At least 1 % wide, so that it can be seen."""
    return Span(round(left, 2), round(max(right - left, 1.0), 2))


@dataclass(frozen=True)
class Query:
    """A caption and the beginning of its ranking; `right` names all its right items, its own first."""

    text: str
    caption: str
    found: bool
    verdict: str
    right: tuple[str, ...]
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Queries:
    """What is shown of one method, how many there are of either kind, and what is ranked ("item", "cloud").

    several: whether any caption has more than one right item. legend: what the drawings show, where there are any.
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
    """So many queries of an evaluation, half of them found; None where captions did not rank items."""
    ranks = folder.ranking.ranks.get("t2v")
    if ranks is None:
        return None
    noun = member(folder.metrics.protocol.kind)
    found = ranks.mean == 1
    with closing(Pieces()) as pieces:
        explanation = Explanation.read(method, folder, pieces if _reads_clip(method, inputs) else None)
        teller = _Teller(folder, ranks, inputs, pictures, noun, explanation)
        chosen = choose(ranks.mean, np.asarray(folder.queries.caption_item), count, explanation.queries)
        shown = tuple(teller.query(int(q)) for q in chosen)
    several = folder.queries.several
    return Queries(method, noun, several, shown, int(found.sum()), int((~found).sum()), explanation.legend)


def _reads_clip(method: str, inputs: Mapping[str, Any]) -> bool:
    """Whether the captions' tokens that a method reads are those of CLIP."""
    settings = inputs["experiment"].get("settings", {}).get(f"train-{method}", {})
    return settings.get("text_features") == "clip_text"


def choose(
    mean_rank: NDArray[np.float64], item: Positions, count: int, among: Positions | None = None
) -> Positions:
    """Queries to show: half found, of different items, and half missed, from near misses to the worst.

    Found is what stands first alone: a model that scores everything alike has found nothing. Where
    there are too few of one kind, the other fills up. mean_rank, item: (Q,). Where `among` names some queries, whose
    matches are explained, only these are chosen, and the worst of all.
    """
    pool = np.arange(len(mean_rank)) if among is None else np.union1d(among, mean_rank.argmax())
    found = pool[mean_rank[pool] == 1]
    found = found[np.sort(np.unique(item[found], return_index=True)[1])]
    missed = pool[mean_rank[pool] > 1]
    missed = missed[np.argsort(mean_rank[missed], kind="stable")]
    right = min(len(found), max(-(-count // 2), count - len(missed)))
    wrong = min(len(missed), count - right)
    return np.concatenate([_spread(found, right), _spread(missed, wrong)]).astype(np.int64)


def _spread(values: Positions, count: int) -> Positions:
    """So many of them, evenly spaced, with the first and the last."""
    return values[np.linspace(0, len(values) - 1, count).round().astype(np.int64)] if count else values[:0]


@dataclass(frozen=True)
class _Teller:
    """Turns rows of a ranking into what is shown of them."""

    folder: EvaluatedFolder
    ranks: Ranks
    inputs: Mapping[str, Any]
    pictures: Pictures
    noun: str
    explanation: Explanation

    def query(self, q: int) -> Query:
        queries, ranking = self.folder.queries, self.folder.ranking
        rank, mean = int(self.ranks.strict[q]), float(self.ranks.mean[q])
        own, caption, right = queries.caption_item[q], queries.captions[q], queries.positives[q]
        known = self.inputs["captions"].get(caption, {}).get(queries.items[own], {})
        moments = tuple((start, end) for start, end in known.get("moments", []))
        scores = ranking.top_scores[q].tolist()
        # position in the gallery -> place in the ranking and score
        places = {
            int(position): (place, f"{scores[place - 1]:.3f}")
            for place, position in enumerate(ranking.top_items[q], start=1)
        }
        best = int(ranking.right[q])
        shown = list(dict.fromkeys([*list(places)[:PLACES], best]))
        results = tuple(
            self._result(
                q, p, *places.get(p, (rank, "")), right=p in right, moments=moments if p == own else ()
            )
            for p in shown
        )
        verdict = _verdict(rank, mean, len(queries.items), self.noun, len(right))
        names = tuple(self._item(p)["id"] for p in right)
        return Query(queries.texts[q], known.get("id", caption), mean == 1, verdict, names, results)

    def _item(self, position: int) -> dict[str, Any]:
        digest = self.folder.queries.items[position]
        item: dict[str, Any] = self.inputs["items"].get(digest, {"id": digest, "video": None})
        return item

    def _result(self, q: int, position: int, place: int, score: str, right: bool, moments: Moments) -> Result:
        item = self._item(position)
        unseen = self.noun == "cloud" and not item.get("points")  # its features were imported
        strip = Strip() if unseen else self.pictures.strip(item, moments)
        drawing = self.explanation.drawn(q, position, self.folder.queries.texts[q], strip.seconds)
        return Result(f"{place:,}", item["id"], score, right, strip, moments, drawing)


def _verdict(rank: int, mean: float, gallery: int, noun: str, right: int) -> str:
    """Where the best right item stands; mean = rank + half the number of other items of equal score.

    Of several right ones, how many share the score is not known, and so not how many others do.
    """
    ties = round(2 * (mean - rank))
    if mean == 1:
        return "Found first"
    others = counted(ties, "other") if right == 1 else "others"
    tied = f", tied with {others}" if mean > rank else ""
    best = "Right" if right == 1 else f"Best of {right} right"
    return f"{best} {noun}{'' if right == 1 else 's'} at rank {rank:,} of {gallery:,}{tied}"
