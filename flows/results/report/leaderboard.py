"""The leaderboard: every figure with its interval and where chance lies, and the protocol in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flows.results.report.wording import NOUNS, counted, listed, member, titles
from trainers.measure.evaluated import Estimates, Metrics, Side
from trainers.measure.evaluated import Protocol as Measured
from trainers.measure.metric_table import DIRECTIONS, metric, shown_metrics
from trainers.measure.metrics import Estimate

TABLES = (*DIRECTIONS, "both")  # each direction has a table, and so have the sums over both


@dataclass(frozen=True)
class Bar:
    """Where an estimate, its interval and chance lie, in percent of a scale that all methods share.

    It begins at the least that is possible: 0, for ranks 1.
    """

    value: float
    low: float
    high: float
    chance: float | None


@dataclass(frozen=True)
class Column:
    """A metric at the head of a table: what it is called, what it is, and whether its arrow points down."""

    label: str
    title: str
    lower_is_better: bool


@dataclass(frozen=True)
class Cell:
    """One estimate of one method: as measured, as printed, as drawn."""

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
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    chance: tuple[str, ...]  # under each metric; empty where it has none


@dataclass(frozen=True)
class Protocol:
    """Under which conditions some methods were measured: terms with their explanation."""

    methods: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]


def boards(measured: Mapping[str, Metrics]) -> list[Board]:
    """A table for each direction that any method has estimates for; measured: by method.

    Where right answers are tied with others, the mean rank of the ties counts: a model that scores everything
    alike finds nothing.
    """
    return _boards({method: metrics.estimates for method, metrics in measured.items()}, measured)


def strict_boards(measured: Mapping[str, Metrics]) -> list[Board]:
    """Of the methods with tied answers, the estimates where a tied answer has the best of the tied ranks."""
    return _boards({m: metrics.metrics for m, metrics in measured.items() if metrics.tied}, measured)


def _boards(found: Mapping[str, Estimates], measured: Mapping[str, Metrics]) -> list[Board]:
    return [
        _board(direction, {m: all_[direction] for m, all_ in found.items() if direction in all_}, measured)
        for direction in TABLES
        if any(direction in all_ for all_ in found.values())
    ]


def look_alike(some: Sequence[Board], others: Sequence[Board]) -> bool:
    """Whether two lists of tables print the same values, whatever lies behind the last decimal."""

    def values(tables: Sequence[Board]) -> dict[tuple[str, str], list[str]]:
        return {(t.direction, method): [c.value for c in cells] for t in tables for method, cells in t.rows}

    known = values(others)
    return all(known[key] == texts for key, texts in values(some).items())


def _board(
    direction: str, found: Mapping[str, Mapping[str, Estimate]], measured: Mapping[str, Metrics]
) -> Board:
    kind = next(iter(measured.values())).protocol.kind
    names = shown_metrics((name for estimates in found.values() for name in estimates), kind)
    chance = {method: measured[method].protocol.chance(direction) for method in found}
    ends = {name: _end(name, found, chance) for name in names}
    rows = []
    for method, estimates in found.items():
        cells = (
            _cell(
                name, estimates[name], chance[method].get(name), ends[name], _is_best(name, estimates, found)
            )
            for name in names
        )
        rows.append((method, tuple(cells)))
    first = next(iter(chance.values()))
    return Board(
        direction, titles(kind)[direction], tuple(_column(name) for name in names), tuple(rows),
        tuple(metric(name).printed(first[name]) if name in first else "" for name in names),
    )  # fmt: skip


def _column(name: str) -> Column:
    facts = metric(name)
    return Column(facts.name, facts.title, facts.lower_is_better)


def in_percent(kind: str) -> str:
    """The metrics that are percentages, as a list in a sentence."""
    return listed(["R@K", *shown_metrics(("SumR", "RSUM"), kind)])


def _end(
    name: str, found: Mapping[str, Mapping[str, Estimate]], chance: Mapping[str, Mapping[str, float]]
) -> float:
    """Where a metric's scale ends: a little beyond all that is drawn, so that intervals can be told apart."""
    drawn = [estimates[name].high for estimates in found.values()]
    drawn += [sides[name] for sides in chance.values() if name in sides]
    return max(drawn) * 1.05


def _is_best(
    name: str, estimates: Mapping[str, Estimate], found: Mapping[str, Mapping[str, Estimate]]
) -> bool:
    """Whether no other method has a better value; of one method alone nothing is said."""
    values = [other[name].value for other in found.values()]
    best = min(values) if metric(name).lower_is_better else max(values)
    return len(values) > 1 and estimates[name].value == best


def _cell(name: str, estimate: Estimate, chance: float | None, end: float, best: bool) -> Cell:
    facts = metric(name)
    start, printed = facts.least, facts.printed

    def place(number: float) -> float:
        return round(100 * (number - start) / max(end - start, 1e-9), 2)

    value, low, high = estimate.value, estimate.low, estimate.high
    bar = Bar(place(value), place(low), place(high), None if chance is None else place(chance))
    return Cell(value, printed(value), f"{printed(low)}–{printed(high)}", bar, best)


def protocols(measured: Mapping[str, Metrics]) -> list[Protocol]:
    """The protocol of all methods in words, or of each group of methods that share one."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for method, metrics in measured.items():
        groups.setdefault(tuple(_terms(metrics.protocol)), []).append(method)
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


def _terms(protocol: Measured) -> Sequence[tuple[str, str]]:
    each, kind, corpus, title = (
        protocol.captions_per_item, protocol.kind, protocol.corpus, titles(protocol.kind)
    )  # fmt: skip
    size = f"{counted(protocol.items, member(kind))} and {counted(protocol.captions, 'caption')}"
    per_item = f"{each.min} to {each.max} for each, {each.mean:.2f} on average"
    if each.min == each.max:
        per_item = f"{each.min} for each"
    dropped = f"{counted(protocol.dropped, 'caption')} without a right {member(kind)}"
    return [
        *([("Corpus", f"{corpus.sentence} (digest {corpus.digest})")] if corpus else []),
        ("Split", f"{protocol.split}, digest {protocol.split_digest}"),
        ("Size", f"{size}, {per_item}"),
        *([("Dropped", dropped)] if protocol.dropped else []),
        *((title[name], _task(name, side, protocol)) for name, side in protocol.directions.items()),
        *([("Scoring", protocol.rerank)] if protocol.rerank else []),
        ("Ties", protocol.ties),
        ("Post-processing", protocol.post_processing),
        ("Intervals", protocol.intervals),
        *([("Sums", protocol.sums)] if protocol.sums else []),
    ]


def _task(direction: str, side: Side, protocol: Measured) -> str:
    """What a query of a direction asks, and how often a random order answers it."""
    gallery, noun = f"{side.gallery:,}", member(protocol.kind)
    right = "one of them is right"
    if several := protocol.items_per_caption:
        right = (
            f"{several.min} to {several.max} of them are right ({several.mean:.2f} on average); "
            f"{protocol.t2v_rank} counts"
        )
    asks = {
        "t2v": f"each caption ranks all {gallery} {noun}s, and {right}",
        "v2t": f"each {noun} ranks all {gallery} captions; {protocol.v2t_rank} counts",
    }[direction]
    chance = [f"{metric(name).printed(side.chance[name])} % for {name}" for name in ("R@1", "R@10")]
    return f"{counted(side.queries, 'query')}: {asks}. Chance: {listed(chance)}"


def post_processed_boards(measured: Mapping[str, Metrics]) -> list[Board]:
    """Raw and post-processed estimates, one under the other, of the methods that have both; none is called the best."""
    found: dict[str, Estimates] = {}
    owners: dict[str, Metrics] = {}
    for method, metrics in measured.items():
        if not metrics.post_processed:
            continue
        rows = {f"{method}, raw": metrics.estimates}
        rows |= {f"{method} after {name}": block.estimates for name, block in metrics.post_processed.items()}
        found |= rows
        owners |= dict.fromkeys(rows, metrics)
    return [
        replace(b, rows=tuple((row, tuple(replace(c, best=False) for c in cells)) for row, cells in b.rows))
        for b in _boards(found, owners)
    ]


def post_processing_notes(measured: Mapping[str, Metrics]) -> dict[str, str]:
    """What each post-processing that was measured must be read with."""
    return {
        name: block.note for metrics in measured.values() for name, block in metrics.post_processed.items()
    }
