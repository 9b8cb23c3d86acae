"""The leaderboard: every figure with its interval and where chance lies, and the protocol in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.results.report.wording import NOUNS, counted, kind_of, listed, member, titles

DIRECTIONS = ("t2v", "v2t", "both")
CLOUD_METRICS = ("R@1", "R@5", "R@10", "MnR", "MRR", "RSUM")  # what papers on point clouds give
LOWER_IS_BETTER = ("MdR", "MnR")


@dataclass(frozen=True)
class Bar:
    """Where a figure, its interval and chance lie, in percent of a scale that all methods share.

    It begins at the least that is possible: 0, for ranks 1.
    """

    value: float
    low: float
    high: float
    chance: float | None


@dataclass(frozen=True)
class Cell:
    """One figure of one method: as measured, as printed, as drawn."""

    exact: float
    value: str
    interval: str
    bar: Bar
    best: bool


@dataclass(frozen=True)
class Board:
    """A table of one direction: metrics across, methods down."""

    direction: str
    title: str
    metrics: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    chance: tuple[str, ...]  # under each metric; empty where it has none


@dataclass(frozen=True)
class Protocol:
    """Under which conditions some methods were measured: terms with their explanation."""

    methods: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]


def boards(measured: Mapping[str, Mapping[str, Any]]) -> list[Board]:
    """A table for each direction that any method has figures for; measured: metrics.json by method.

    Where right answers are tied with others, the mean rank of the ties counts: a model that scores everything
    alike finds nothing.
    """
    return _boards(
        {method: report["mean_ties"] or report["metrics"] for method, report in measured.items()}, measured
    )


def strict_boards(measured: Mapping[str, Mapping[str, Any]]) -> list[Board]:
    """Of the methods with tied answers, the figures where a tied answer has the best of the tied ranks."""
    return _boards({m: report["metrics"] for m, report in measured.items() if report["mean_ties"]}, measured)


def _boards(found: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]) -> list[Board]:
    return [
        _board(direction, {m: figure[direction] for m, figure in found.items() if direction in figure}, measured)
        for direction in DIRECTIONS
        if any(direction in figure for figure in found.values())
    ]  # fmt: skip


def look_alike(some: Sequence[Board], others: Sequence[Board]) -> bool:
    """Whether two lists of tables print the same values, whatever lies behind the last decimal."""

    def values(tables: Sequence[Board]) -> dict[tuple[str, str], list[str]]:
        return {(t.direction, method): [c.value for c in cells] for t in tables for method, cells in t.rows}

    known = values(others)
    return all(known[key] == texts for key, texts in values(some).items())


def _board(
    direction: str, found: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, Any]]
) -> Board:
    kind = kind_of(next(iter(measured.values()))["protocol"])
    names = shown_metrics((name for figures in found.values() for name in figures), kind)
    sides = {method: measured[method]["protocol"]["directions"].get(direction, {}) for method in found}
    chance = {method: side.get("chance", {}) for method, side in sides.items()}
    ends = {name: _end(name, found, chance) for name in names}
    rows = []
    for method, figures in found.items():
        cells = (
            _cell(name, figures[name], chance[method].get(name), ends[name], _is_best(name, figures, found))
            for name in names
        )
        rows.append((method, tuple(cells)))
    first = next(iter(chance.values()))
    return Board(
        direction, titles(kind)[direction], tuple(label(name, kind) for name in names), tuple(rows),
        tuple(printed(name, first[name]) if name in first else "" for name in names),
    )  # fmt: skip


def shown_metrics(names: Iterable[str], kind: str) -> tuple[str, ...]:
    """The metrics that tables of a kind of items show, of those there are."""
    there = dict.fromkeys(names)
    return tuple(name for name in there if kind != "pointcloud" or name in CLOUD_METRICS)


def in_percent(kind: str) -> str:
    """The metrics that are percentages, as a list in a sentence."""
    return listed(["R@K", *(label(n, kind) for n in shown_metrics(("SumR", "RSUM"), kind))])


def label(name: str, kind: str) -> str:
    """What a table calls a metric: papers on point clouds write Rsum."""
    return "Rsum" if name == "RSUM" and kind == "pointcloud" else name


def _end(
    name: str, found: Mapping[str, Mapping[str, Any]], chance: Mapping[str, Mapping[str, float]]
) -> float:
    """Where a metric's scale ends: a little beyond all that is drawn, so that intervals can be told apart."""
    drawn = [figures[name]["high"] for figures in found.values()]
    drawn += [sides[name] for sides in chance.values() if name in sides]
    return max(drawn) * 1.05


def _is_best(name: str, figures: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether no other method has a better value; of one method alone nothing is said."""
    values = [other[name]["value"] for other in found.values()]
    best = min(values) if name in LOWER_IS_BETTER else max(values)
    return len(values) > 1 and figures[name]["value"] == best


def _cell(name: str, figure: Mapping[str, float], chance: float | None, end: float, best: bool) -> Cell:
    value, low, high = figure["value"], figure["low"], figure["high"]
    start = 1.0 if name in LOWER_IS_BETTER else 0.0

    def place(number: float) -> float:
        return round(100 * (number - start) / max(end - start, 1e-9), 2)

    bar = Bar(place(value), place(low), place(high), None if chance is None else place(chance))
    return Cell(value, printed(name, value), f"{printed(name, low)}–{printed(name, high)}", bar, best)


def printed(name: str, value: float) -> str:
    """A figure with the decimals its metric is usually given with."""
    return f"{value:.3f}" if name == "MRR" else f"{value:.1f}"


def protocols(measured: Mapping[str, Mapping[str, Any]]) -> list[Protocol]:
    """The protocol of all methods in words, or of each group of methods that share one."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for method, report in measured.items():
        groups.setdefault(tuple(_terms(report["protocol"])), []).append(method)
    return [Protocol(tuple(methods), terms) for terms, methods in groups.items()]


def contradict(some: Sequence[Protocol]) -> bool:
    """Whether two protocols differ in more than one asking a direction that the other does not ask."""
    told = [dict(protocol.terms) for protocol in some]
    directions = {title for kind in NOUNS for title in titles(kind).values()}
    return any(
        one.get(name) != other.get(name)
        for one in told
        for other in told
        for name in {*one, *other}
        if name not in directions or (name in one and name in other)
    )


def _terms(protocol: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    each = protocol["captions_per_item"]
    kind = kind_of(protocol)
    size = f"{counted(protocol['items'], member(kind))} and {counted(protocol['captions'], 'caption')}"
    per_item = f"{each['min']} to {each['max']} for each, {each['mean']:.2f} on average"
    if each["min"] == each["max"]:
        per_item = f"{each['min']} for each"
    corpus, title = protocol.get("corpus"), titles(kind)
    dropped = protocol.get("dropped", 0)
    return [
        *([("Corpus", f"{corpus['sentence']} (digest {corpus['digest']})")] if corpus else []),
        ("Split", f"{protocol['split']}, digest {protocol['split_digest']}"),
        ("Size", f"{size}, {per_item}"),
        *([("Dropped", f"{counted(dropped, 'caption')} without a right {member(kind)}")] if dropped else []),
        *((title[name], _task(name, side, protocol)) for name, side in protocol["directions"].items()),
        *([("Scoring", protocol["rerank"])] if "rerank" in protocol else []),
        ("Ties", protocol["ties"]),
        ("Post-processing", protocol["post_processing"]),
        ("Intervals", protocol["intervals"]),
    ]


def _task(direction: str, side: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """What a query of a direction asks, and how often a random order answers it."""
    gallery, noun = f"{side['gallery']:,}", member(kind_of(protocol))
    right = "one of them is right"
    if several := protocol.get("items_per_caption"):
        right = (
            f"{several['min']} to {several['max']} of them are right ({several['mean']:.2f} on average); "
            f"{protocol['t2v_rank']} counts"
        )
    asks = {
        "t2v": f"each caption ranks all {gallery} {noun}s, and {right}",
        "v2t": f"each {noun} ranks all {gallery} captions; {protocol['v2t_rank']} counts",
    }[direction]
    chance = [f"{printed(name, side['chance'][name])} % for {name}" for name in ("R@1", "R@10")]
    return f"{counted(side['queries'], 'query')}: {asks}. Chance: {listed(chance)}"


def post_processed_boards(measured: Mapping[str, Mapping[str, Any]]) -> list[Board]:
    """Raw and post-processed figures, one under the other, of the methods that have both; none is called the best."""
    found: dict[str, Mapping[str, Any]] = {}
    told: dict[str, Mapping[str, Any]] = {}
    for method, report in measured.items():
        after = report.get("post_processed", {})
        for name, block in ({"": report} | after if after else {}).items():
            row = f"{method} after {name}" if name else f"{method}, raw"
            found[row], told[row] = block["mean_ties"] or block["metrics"], report
    return [
        replace(b, rows=tuple((row, tuple(replace(c, best=False) for c in cells)) for row, cells in b.rows))
        for b in _boards(found, told)
    ]


def post_processing_notes(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each post-processing that was measured must be read with."""
    return {
        name: block["note"]
        for report in measured.values()
        for name, block in report.get("post_processed", {}).items()
    }
