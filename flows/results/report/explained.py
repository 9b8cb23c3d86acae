"""A small drawing of the explanation of each shown result, from the arrays in explanation.safetensors.

Each method that explains its matches has a drawer; where the file or an array in it is missing, nothing is drawn. All
values are those that evaluation stored; only the greatest value and its position are computed here. Axes: P results of
a query, in the order that evaluation kept them; M triples, m key frames, L positions, F frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.report.hubness import status, threshold
from flows.results.report.pieces import Pieces
from pipeline.child import resolve
from trainers.measure.evaluated import EvaluatedFolder
from trainers.registry import METHODS

MOST_DRAWN = 120  # largest number of results that are drawn of a method; a drawing takes up to 3 KB
LEVELS = 4  # number of strengths that a word can have, besides none
BAR_HEIGHT, LINE_HEIGHT = 24.0, 40.0  # heights of bars and of timelines, which are 100 wide
GAP = 0.14  # space between two bars, as a share of a bar's width
RADIUS = 34  # radius of a dial

Values = NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """One result of a query: the explanation's arrays for it, and those (P, ...) of all results of the query."""

    arrays: Mapping[str, Values]
    all_results: Mapping[str, Values]
    text: str
    seconds: float  # length of the video; 0 if it is not known
    position: int  # position of the item in the gallery


@dataclass(frozen=True)
class Word:
    """A part of the caption with a strength from 0 to LEVELS, and its printed weight; empty if it has none."""

    text: str
    level: int = 0
    weight: str = ""


@dataclass(frozen=True)
class Strip:
    """Bars side by side, as outlines in a picture 100 wide; `label` describes them for screen readers."""

    title: str
    plain: str
    strong: str
    label: str
    first: str
    last: str


@dataclass(frozen=True)
class Timeline:
    """Scores over a video, in a picture 100 wide: steps of clips, a line of frames, a box around the best clip."""

    clips: str
    frames: str
    left: float
    width: float
    zero: float | None  # height of a score of 0, if it is in the picture
    label: str
    last: str  # the printed end of the video


@dataclass(frozen=True)
class Dial:
    """A cone that opens to the right, and a direction: the outline of the cone, and the end of the ray."""

    slice: str
    ray: tuple[float, float]
    inside: bool
    label: str


@dataclass(frozen=True)
class Gauge:
    """A value on a line from the least to the greatest value, with marks for mean and limit, in percent of it."""

    title: str
    value: float
    mean: float
    limit: float | None
    label: str


@dataclass(frozen=True)
class Drawing:
    """The drawing of one result, and a sentence that describes it."""

    sentence: str
    timeline: Timeline | None = None
    words: tuple[Word, ...] = ()
    strips: tuple[Strip, ...] = ()
    dial: Dial | None = None
    gauges: tuple[Gauge, ...] = ()


@dataclass
class Explanation:
    """The explained pairs of an evaluation, of which at most MOST_DRAWN are drawn."""

    drawer: Drawer | None
    arrays: Mapping[str, Values]
    occurrences: (
        Values | None
    )  # N_k of each item of the gallery: the number of queries that have it among the first k
    rows: dict[int, int] = field(default_factory=dict)
    pieces: Pieces | None = None  # positions of tokens in captions, for methods that read CLIP's tokens
    left: int = MOST_DRAWN  # number of results that may still be drawn

    @classmethod
    def read(cls, method: str, folder: EvaluatedFolder, pieces: Pieces | None = None) -> Explanation:
        """The explanation that an evaluation stored; empty if it stored none."""
        drawer = drawer_of(method)
        arrays = folder.explanation if drawer else {}
        counts = folder.ranking.occurrences.get("t2v")
        rows = {int(query): row for row, query in enumerate(arrays.get("query", []))}
        return cls(drawer, arrays, counts, rows, pieces)

    @property
    def legend(self) -> str:
        """Sentences on what the drawings of this method show; empty if nothing is drawn."""
        drawer = self.drawer
        if (
            drawer is None
            or not (self.arrays or self.occurrences is not None)
            or not drawer.needs <= self.arrays.keys()
        ):
            return ""
        return " ".join(
            [drawer.legend, *(sentence for name, sentence in drawer.more.items() if name in self.arrays)]
        )

    @property
    def queries(self) -> NDArray[np.int64] | None:
        """The numbers of the captions whose matches are explained; None if none is."""
        return np.asarray(self.arrays["query"]) if self.arrays and self.legend else None

    def drawn(self, query: int, position: int, text: str, seconds: float) -> Drawing | None:
        """The drawing of an item of the gallery as a result of a query; None if no explanation of it is stored."""
        drawer = self.drawer
        if drawer is None or not self.left or not self.legend:
            return None
        all_results, arrays = self._stored(query, position)
        if not drawer.needs <= arrays.keys():
            return None
        self.left -= 1
        return drawer.draw(Pair(arrays, all_results, text, seconds, position), self)

    def _stored(self, query: int, position: int) -> tuple[dict[str, Values], dict[str, Values]]:
        """The arrays of all kept results of a query, and those of this result; empty for results that were not kept."""
        if query not in self.rows:
            return {}, {}
        row = self.rows[query]
        all_results = {
            name: values[row] for name, values in self.arrays.items() if name not in ("query", "item")
        }
        place = np.flatnonzero(self.arrays["item"][row] == position)
        return all_results, {name: values[place[0]] for name, values in all_results.items()} if len(
            place
        ) else {}


def _hlformer(pair: Pair, explanation: Explanation) -> Drawing:
    """Similarity of caption and video over time; all results of a query share one scale."""
    clips, count = pair.arrays["clip_scores"], int(pair.arrays["frame_count"])
    frames = pair.arrays["frame_scores"][:count]
    clip, frame = int(clips.argmax()), int(frames.argmax())
    every = np.concatenate(
        [pair.all_results["clip_scores"].ravel(), pair.all_results["frame_scores"].ravel()]
    )
    low, high = float(every.min()), float(every.max())

    def y(score: float) -> float:
        return round(1 + (LINE_HEIGHT - 2) * (high - score) / max(high - low, 1e-9), 1)

    share = pair.arrays["shares"].tolist()
    start, end = clip / len(clips), (clip + 1) / len(clips)
    best = f"Best clip {clips[clip]:.3f} at {span(start, end, pair.seconds)}"
    best_parts = f"{best}, best frame {frames[frame]:.3f} at {moment((frame + 0.5) / count, pair.seconds)}"
    padded = (
        " (positions without a frame score 0, and count)"
        if frames[frame] < pair.arrays["frame_scores"].max()
        else ""
    )
    timeline = Timeline(
        steps([y(float(score)) for score in clips], y(max(low, min(high, 0.0)))),
        " ".join(f"{100 * (place + 0.5) / count:.4g},{y(float(score))}" for place, score in enumerate(frames)),
        round(100 * start, 2), round(100 * (end - start), 2),
        y(0.0) if low < 0 < high else None,
        f"{best_parts}; clips score {clips.min():.3f} to {clips.max():.3f}, "
        f"frames {frames.min():.3f} to {frames.max():.3f}",
        moment(1.0, pair.seconds),
    )  # fmt: skip
    return Drawing(f"{best_parts}{padded}; the score weighs them {share[0]:.2g} to {share[1]:.2g}.", timeline)


def span(start: float, end: float, seconds: float) -> str:
    """A stretch between two shares of a video, as printed: in seconds, or in percent if its length is unknown."""
    if not seconds:
        return f"{100 * start:.0f}–{100 * end:.0f} %"
    return f"{start * seconds:.1f}–{end * seconds:.1f} s"


def moment(share: float, seconds: float) -> str:
    """A moment at a share of a video, as printed: in seconds, or in percent if its length is unknown."""
    return f"{share * seconds:.1f} s" if seconds else f"{100 * share:.0f} %"


def steps(tops: Sequence[float], floor: float) -> str:
    """The outline of steps over a floor, in a picture 100 wide."""
    width = 100 / len(tops)
    ends = [(f"{width * place:.4g}", f"{width * (place + 1):.4g}", top) for place, top in enumerate(tops)]
    return f"M0 {floor}" + "".join(f"L{left} {top}H{right}" for left, right, top in ends) + f"L100 {floor}Z"


def _lean(pair: Pair, explanation: Explanation) -> Drawing:
    """The caption by the weight of its triples' hyperedges, the key frames by their share of what is classified."""
    edges, nodes, spans = (pair.arrays[name] for name in ("edge_weights", "node_weights", "words"))
    triples, of_frames = edges[3:], nodes[1 : len(nodes) - len(spans)]
    kept = np.flatnonzero(nodes[1 + len(of_frames) :] > 0)
    named = [(phrase(pair.text, spans[node]) or "the sentence", float(triples[node])) for node in kept]
    greatest = float(np.delete(pair.all_results["node_weights"], 0, 1)[:, : len(of_frames)].max())
    top = set(pair.arrays["top"].tolist())
    strip = bar_strip("Share of the key frames", of_frames, top, greatest, ("first", "last key frame"))
    triple_weights = ", ".join(f"{words} {percent(weight)}" for words, weight in named)
    other_weights = ", ".join(
        f"{name} {percent(w)}" for name, w in zip(("the whole", "video", "caption"), edges, strict=False)
    )
    return Drawing(
        f"Hyperedges of the triples: {triple_weights}; of {other_weights}.",
        words=marked(pair.text, [(spans[node], float(triples[node])) for node in kept]),
        strips=(strip,),
    )


def phrase(text: str, spans: Values) -> str:
    """The words at these spans of a caption; a span (0, 0) stands for no word."""
    return " ".join(text[start:end] for start, end in spans.tolist() if end > start)


def percent(share: float) -> str:
    """A share as printed."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def marked(text: str, parts: Sequence[tuple[Values, float]]) -> tuple[Word, ...]:
    """A caption cut into stretches of equal weight; where parts overlap, their weights are added.

    parts: for each part its spans (S, 2) of characters, where (0, 0) stands for none, and its weight.
    """
    weights = np.zeros(len(text))
    for spans, weight in parts:
        hit = np.zeros(len(text), bool)
        for start, end in spans.tolist():
            hit[start:end] = True
        weights[hit] += weight
    greatest = max(float(weights.max(initial=0)), 1e-12)
    edges = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist(), len(text)]
    stretches = [(text[a:b], float(weights[a])) for a, b in pairwise(edges) if b > a]
    return tuple(Word(part, level(w / greatest), percent(w) if w else "") for part, w in stretches)


def level(share: float) -> int:
    """The strength, from 0 to LEVELS, of a word whose weight is this share of the greatest weight."""
    return int(np.ceil(LEVELS * min(max(share, 0.0), 1.0)))


def bar_strip(title: str, values: Values, strong: set[int], greatest: float, ends: tuple[str, str]) -> Strip:
    """Bars whose height is their share of `greatest`; the numbers in `strong` form a second outline."""
    width = 100 / max(len(values), 1)
    outlines: tuple[list[str], list[str]] = [], []
    for place, value in enumerate(values.tolist()):
        high = BAR_HEIGHT * value / max(greatest, 1e-12)
        left, size = width * (place + GAP / 2), width * (1 - GAP)
        outlines[place in strong].append(f"M{left:.4g} {BAR_HEIGHT:g}v{-high:.3g}h{size:.4g}V{BAR_HEIGHT:g}z")
    best = int(values.argmax()) if len(values) else 0
    label = f"{title}: the greatest of {len(values)} is number {best + 1}, {values[best]:.3g}"
    if len(values) <= 16:
        label = f"{title}, in order: {', '.join(f'{value:.3g}' for value in values)}"
    return Strip(title, "".join(outlines[0]), "".join(outlines[1]), label, *ends)


def _gare(pair: Pair, explanation: Explanation) -> Drawing:
    """The length by which each frame moves the caption, and its share of the pooled video."""
    real = pair.arrays["real"].astype(bool)
    moved, pool = pair.arrays["frame_increments"][real], pair.arrays["pool_weights"][real]
    whole, text, most = float(pair.arrays["increment"]), float(pair.arrays["text"]), int(moved.argmax())
    share = f"{100 * whole / text:.0f} % of its length" if text > 0 else "from nothing"
    ends = "first", "last frame"
    strips = (
        bar_strip(
            "Part of the increment", moved, {most}, float(pair.all_results["frame_increments"].max()), ends
        ),
        bar_strip(
            "Share of the pooled video",
            pool,
            {int(pool.argmax())},
            float(pair.all_results["pool_weights"].max()),
            ends,
        ),
    )
    where = f"frame {most + 1} of {len(moved)} adds most, {moved[most]:.3g}"
    return Drawing(f"For this video the caption is moved by {whole:.3g}, {share}; {where}.", strips=strips)


def _neighborretr(pair: Pair, explanation: Explanation) -> Drawing:
    """The number of queries that have the item among the first ten, and its centrality, each on a line of all items."""
    sentences, gauges = [], []
    if (counts := explanation.occurrences) is not None:
        count = int(counts[pair.position])
        kind = status(count, counts)
        gauges.append(gauge("Among the first 10", count, counts, threshold(counts), f"{count:,}"))
        sentences.append(
            f"This is {kind}: among the first 10 of {count:,} queries, {counts.mean():.1f} on average"
        )
    if "centrality" in pair.arrays:
        items = explanation.arrays["item"].ravel()
        known = explanation.arrays["centrality"].ravel()[np.unique(items, return_index=True)[1]]
        value = float(pair.arrays["centrality"])
        side = "more" if value > known.mean() else "less"
        gauges.append(gauge("Centrality", value, known, None, f"{value:.3f}"))
        sentences.append(
            f"centrality {value:.3f}, {side} than the mean {known.mean():.3f} of {len(known):,} such items"
        )
    return Drawing("; ".join(sentences) + ".", gauges=tuple(gauges))


def gauge(title: str, value: float, among: Values, limit: float | None, label: str) -> Gauge:
    """A gauge that shows one value among all values."""
    low, high = float(min(among.min(), value)), float(max(among.max(), value, limit or -np.inf))
    places = [100 * (mark - low) / max(high - low, 1e-12) for mark in (value, float(among.mean()))]
    line = None if limit is None else round(100 * (limit - low) / max(high - low, 1e-12), 1)
    return Gauge(title, round(places[0], 1), round(places[1], 1), line, label)


def _h2arn(pair: Pair, explanation: Explanation) -> Drawing:
    """The cloud's angle to the caption's cone, and the weights of the tokens in the two points."""
    tokens, points = pair.arrays["text_weights"], pair.arrays["cloud_weights"]
    words: tuple[Word, ...] = ()
    shares = ""
    places = explanation.pieces.spans(pair.text, len(tokens)) if explanation.pieces else None
    if places is not None:
        of_words = tokens[1 : len(places) + 1]
        words = marked(pair.text, [(places[n : n + 1], float(weight)) for n, weight in enumerate(of_words)])
        padding = float(tokens[len(places) + 2 :].sum())
        ends = percent(max(0.0, 1 - float(of_words.sum()) - padding))
        shares = f" Of the caption's point, words make {percent(float(of_words.sum()))}, start and end token {ends}"
        shares += f", padding {percent(padding)}." if len(places) + 2 < len(tokens) else "."
    sides = "first", "last token"
    strips = tuple(
        bar_strip(title, weights, {int(weights.argmax())}, float(pair.all_results[name].max()), sides)
        for title, name, weights in (
            ("Caption tokens", "text_weights", tokens),
            ("Cloud tokens", "cloud_weights", points),
        )
    )
    even = f"an even share would be {percent(1 / len(points))}"
    sentence = (
        f"The heaviest of {len(points)} cloud tokens has {percent(float(points.max()))}; {even}.{shares}"
    )
    if not {"angle", "aperture"} <= pair.arrays.keys():
        return Drawing(sentence, words=words, strips=strips)
    seen = dial(float(pair.arrays["angle"]), float(pair.arrays["aperture"]))
    return Drawing(f"{seen.label}. {sentence}", words=words, strips=strips, dial=seen)


def dial(angle: float, aperture: float) -> Dial:
    """A cone of half opening `aperture`, and a direction at `angle` from its axis; both in radians, in (0, pi)."""
    inside = angle <= aperture
    x, y = RADIUS * np.cos(aperture), RADIUS * np.sin(aperture)
    large = int(2 * aperture > np.pi)
    outline = f"M0 0L{x:.1f} {y:.1f}A{RADIUS} {RADIUS} 0 {large} 0 {x:.1f} {-y:.1f}Z"
    ray = round(float(RADIUS * np.cos(angle)), 1), round(float(-RADIUS * np.sin(angle)), 1)
    opening = f"which opens {np.degrees(aperture):.0f}° to each side"
    where = f"{'inside' if inside else 'outside'}, {np.degrees(angle):.0f}° off its axis"
    return Dial(outline, ray, inside, f"The caption's cone, {opening}, has the cloud {where}")


@dataclass(frozen=True)
class Drawer:
    """The function that draws a method's matches, the arrays that it needs, and its legend.

    more: further sentences of the legend, by the optional array that they are about.
    """

    draw: Callable[[Pair, Explanation], Drawing]
    needs: frozenset[str]
    legend: str
    more: Mapping[str, str] = field(default_factory=dict)


HLFORMER = Drawer(
    _hlformer,
    frozenset({"clip_scores", "frame_scores", "frame_count", "shares"}),
    "The graph under a result shows how alike the caption is to each clip (steps) and to each frame (line) of the "
    "video over time; the box marks the best clip. The graphs of a query share one scale.",
)
LEAN = Drawer(
    _lean,
    frozenset({"edge_weights", "node_weights", "words", "top"}),
    "Under a result, the caption's words are marked by the weight of their triple's hyperedge, and the bars show "
    "the share of each key frame in what is classified; those that change most stand out.",
)
GARE = Drawer(
    _gare,
    frozenset({"increment", "text", "frame_increments", "pool_weights", "real"}),
    "The bars under a result show how far each frame moves the caption, and its share of the video that the moved "
    "caption is compared to; the greatest bar stands out. The bars of a query share one scale.",
)
NEIGHBORRETR = Drawer(
    _neighborretr,
    frozenset(),
    "The line under a result shows how crowded its neighbourhood is: the number of queries that have the item among "
    "their first 10 (dot), the mean over all items (dashed), and the limit above which an item is a hub (solid).",
    {
        "centrality": "The second line is its centrality, the mean score with the captions in the memory bank, by "
        "which training weighs hubs down."
    },
)
H2ARN = Drawer(
    _h2arn,
    frozenset({"text_weights", "cloud_weights"}),
    "The bars under a result show how much each token weighs in the caption's point and in the cloud's; the "
    "heaviest stands out.",
    {
        "angle": "The dial shows the caption's cone and the direction of the cloud; a positive should lie inside.",
        "text_weights": "Words of the caption are marked by the weight of their tokens, if these are CLIP's tokens.",
    },
)


def drawer_of(method: str) -> Drawer | None:
    """The drawer that a method declares; None for a method that declares none, or that is not installed here."""
    entry = METHODS.find(method).drawing if method in METHODS.names() else ""
    if not entry:
        return None
    drawer: Drawer = resolve(entry)
    return drawer
