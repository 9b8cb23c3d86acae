"""A few queries of a method, found and missed, with what it put first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flows.report.frames import Frames, Moments, Strip
from flows.report.wording import counted
from pipeline.sampling import uniform_positions

PLACES = 3  # results shown of a query; the right item follows where it is not among them

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """A moment on the timeline, in percent of the video's length."""

    left: float
    width: float


@dataclass(frozen=True)
class Result:
    """One item in the ranking of a query. The moments of the caption are known of the right item alone."""

    rank: str
    item: str
    score: str
    right: bool
    strip: Strip
    moments: Moments = ()

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
    """A caption and the beginning of its ranking."""

    text: str
    caption: str
    found: bool
    verdict: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Queries:
    """What is shown of one method, and how many there are of either kind."""

    method: str
    shown: tuple[Query, ...]
    found: int
    missed: int


def read_queries(
    method: str, folder: Path, inputs: Mapping[str, Any], frames: Frames, count: int
) -> Queries | None:
    """So many queries of an evaluation, half of them found; None where captions did not rank items."""
    ranking = load_file(folder / "ranking.safetensors")
    if "t2v.rank" not in ranking:
        return None
    asked = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    teller = _Teller(ranking, asked, inputs, frames)
    found = ranking["t2v.mean_rank"] == 1
    chosen = choose(ranking["t2v.mean_rank"], np.asarray(asked["caption_item"]), count)
    return Queries(method, tuple(teller.query(int(q)) for q in chosen), int(found.sum()), int((~found).sum()))


def choose(mean_rank: NDArray[np.float64], item: Positions, count: int) -> Positions:
    """Queries to show: half found, of different items, and half missed, from near misses to the worst.

    Found is what stands first alone: a model that scores everything alike has found nothing. Where
    there are too few of one kind, the other fills up. mean_rank, item: (Q,).
    """
    found = np.flatnonzero(mean_rank == 1)
    found = found[np.sort(np.unique(item[found], return_index=True)[1])]
    missed = np.flatnonzero(mean_rank > 1)
    missed = missed[np.argsort(mean_rank[missed], kind="stable")]
    right = min(len(found), max(-(-count // 2), count - len(missed)))
    wrong = min(len(missed), count - right)
    return np.concatenate([_spread(found, right), _spread(missed, wrong)]).astype(np.int64)


def _spread(values: Positions, count: int) -> Positions:
    return values[uniform_positions(len(values), count)] if count else values[:0]


@dataclass(frozen=True)
class _Teller:
    """Turns rows of a ranking into what is shown of them."""

    ranking: Mapping[str, NDArray[Any]]
    asked: Mapping[str, Any]
    inputs: Mapping[str, Any]
    frames: Frames

    def query(self, q: int) -> Query:
        rank, mean = int(self.ranking["t2v.rank"][q]), float(self.ranking["t2v.mean_rank"][q])
        right = self.asked["caption_item"][q]
        caption = self.asked["captions"][q]
        known = self.inputs["captions"].get(caption, {}).get(self.asked["items"][right], {})
        moments = tuple((start, end) for start, end in known.get("moments", []))
        scores = self.ranking["top.scores"][q].tolist()
        # position in the gallery -> place in the ranking and score
        places = {
            int(position): (place, f"{scores[place - 1]:.3f}")
            for place, position in enumerate(self.ranking["top.items"][q], start=1)
        }
        shown = list(dict.fromkeys([*list(places)[:PLACES], right]))
        results = tuple(
            self._result(p, *places.get(p, (rank, "")), right=p == right, moments=moments if p == right else ())
            for p in shown
        )  # fmt: skip
        verdict = _verdict(rank, mean, len(self.asked["items"]))
        return Query(self.asked["texts"][q], known.get("id", caption), mean == 1, verdict, results)

    def _result(self, position: int, place: int, score: str, right: bool, moments: Moments) -> Result:
        digest = self.asked["items"][position]
        item = self.inputs["items"].get(digest, {"id": digest, "video": None})
        strip = self.frames.strip(item["video"], moments)
        return Result(f"{place:,}", item["id"], score, right, strip, moments)


def _verdict(rank: int, mean: float, gallery: int) -> str:
    """Where the right item stands; mean = rank + half the number of other items of equal score."""
    ties = round(2 * (mean - rank))
    if rank == 1 and not ties:
        return "Found first"
    tied = f", tied with {counted(ties, 'other')}" if ties else ""
    return f"Right item at rank {rank:,} of {gallery:,}{tied}"
