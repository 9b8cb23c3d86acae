"""The leaderboard: every metric with its interval and its value by chance, and the protocol in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flows.results.measured import by_kind
from flows.results.pairs import PairRow
from flows.results.wording import NOUNS, counted, listed, member, titles
from trainers.measure.evaluated import Estimates, Metrics, Side
from trainers.measure.evaluated import Protocol as EvaluatedProtocol
from trainers.measure.metric_table import DIRECTIONS, metric, shown_metrics
from trainers.measure.metrics import Estimate

TABLES = (*DIRECTIONS, "both")  # each direction has a table, and so have the sums over both


@dataclass(frozen=True)
class Bar:
    """Positions of an estimate, its interval and chance, in percent of a scale that all methods share.

    The scale begins at the least possible value: 0, or 1 for ranks.
    """

    value: float
    low: float
    high: float
    chance: float | None


@dataclass(frozen=True)
class Column:
    """The head of a metric's column: its name, its title, and whether its arrow points down (lower is better).

    parts: what a sum adds up, for instance "R@1+5+10+100"; "" of other metrics.
    """

    label: str
    title: str
    lower_is_better: bool
    parts: str = ""


@dataclass(frozen=True)
class Cell:
    """One estimate of one method: the exact value, the printed value and interval, and the drawn bar.

    best: the value is shown to be better than that of every other method.
    """

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
    chance: tuple[str, ...]  # the value by chance of each metric; empty if a metric has none


@dataclass(frozen=True)
class Protocol:
    """The protocol that some methods were measured under: terms with their explanation."""

    methods: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]


Better = Callable[[str, str, str], bool]
"""Whether the value of a direction, a metric and a method is shown to be better than all others of its column."""


def _never(direction: str, name: str, method: str) -> bool:
    return False


def boards(measured: Mapping[str, Metrics], better: Better = _never) -> list[Board]:
    """A table for each direction that any method has estimates for; measured: by method, in the order of the rows.

    They are made from realistic ranks: a positive that is tied with others has the mean rank of the ties, so that a
    model that gives every item the same score finds nothing.
    """
    return _boards({method: metrics.estimates for method, metrics in measured.items()}, measured, better)


def strict_boards(measured: Mapping[str, Metrics]) -> list[Board]:
    """Tables of optimistic ranks (a tied positive has the best of the tied ranks), of the methods with ties."""
    return _boards({m: metrics.metrics for m, metrics in measured.items() if metrics.tied}, measured)


def _boards(
    estimates_of: Mapping[str, Estimates], measured: Mapping[str, Metrics], better: Better = _never
) -> list[Board]:
    return [
        _board(
            direction,
            {m: estimates_of[m][direction] for m in some if direction in estimates_of[m]},
            some,
            better,
        )
        for some in by_kind({method: measured[method] for method in estimates_of}).values()
        for direction in TABLES
        if any(direction in estimates_of[method] for method in some)
    ]


def look_alike(some: Sequence[Board], others: Sequence[Board]) -> bool:
    """Whether two lists of tables print the same values; decimals that are not printed do not count."""

    def values(tables: Sequence[Board]) -> dict[tuple[str, str], list[str]]:
        return {(t.direction, method): [c.value for c in cells] for t in tables for method, cells in t.rows}

    known = values(others)
    return all(known[key] == texts for key, texts in values(some).items())


def _board(
    direction: str, estimates_of: Mapping[str, Mapping[str, Estimate]], measured: Mapping[str, Metrics],
    better: Better,
) -> Board:  # fmt: skip
    kind = next(iter(measured.values())).protocol.kind
    names = shown_metrics((name for estimates in estimates_of.values() for name in estimates), kind)
    chance = {method: measured[method].protocol.chance(direction) for method in estimates_of}
    ends = {name: _end(name, estimates_of, chance) for name in names}
    rows = []
    for method, estimates in estimates_of.items():
        cells = (
            _cell(
                name,
                estimates[name],
                chance[method].get(name),
                ends[name],
                better(direction, name, method),
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
    parts = "+".join(map(str, facts.parts)) if len(facts.parts) > 1 else ""
    return Column(facts.name, facts.title, facts.lower_is_better, f"R@{parts}" if parts else "")


def in_percent(kinds: Iterable[str]) -> str:
    """The metrics that are percentages in tables of these kinds of items, as a list in a sentence."""
    sums = (name for kind in kinds for name in shown_metrics(("SumR", "RSUM"), kind))
    return listed(["R@K", *dict.fromkeys(sums)])


def _end(
    name: str, estimates_of: Mapping[str, Mapping[str, Estimate]], chance: Mapping[str, Mapping[str, float]]
) -> float:
    """The end of a metric's scale: 5 % above the greatest value that is drawn, so that intervals fill the scale."""
    drawn = [estimates[name].high for estimates in estimates_of.values()]
    drawn += [sides[name] for sides in chance.values() if name in sides]
    return max(drawn) * 1.05


def _cell(name: str, estimate: Estimate, chance: float | None, end: float, best: bool) -> Cell:
    facts = metric(name)
    start, printed = facts.least, facts.printed

    def place(number: float) -> float:
        return round(100 * (number - start) / max(end - start, 1e-9), 2)

    value, low, high = estimate.value, estimate.low, estimate.high
    bar = Bar(place(value), place(low), place(high), None if chance is None else place(chance))
    return Cell(value, printed(value), f"{printed(low)}–{printed(high)}", bar, best)


@dataclass(frozen=True)
class PairTable:
    """Every pair of methods in one direction: metrics across, pairs down."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[PairRow, ...]


def pair_tables(pairs: Sequence[PairRow], measured: Mapping[str, Metrics]) -> list[PairTable]:
    """A table for each direction in which methods of a kind were compared; measured: by method."""
    out = []
    for kind, some in by_kind(measured).items():
        for direction in TABLES:
            rows = tuple(pair for pair in pairs if pair.direction == direction and pair.a in some)
            if rows:
                out.append(PairTable(titles(kind)[direction], tuple(rows[0].differences), rows))
    return out


def protocols(measured: Mapping[str, Metrics]) -> list[Protocol]:
    """The protocol of all methods in words, or of each group of methods that share one."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for method, metrics in measured.items():
        groups.setdefault(tuple(_terms(metrics.protocol)), []).append(method)
    return [Protocol(tuple(methods), terms) for terms, methods in groups.items()]


def contradict(some: Sequence[Protocol]) -> bool:
    """Whether two protocols differ in any term, except directions that only one of them evaluates."""
    terms_of = [dict(protocol.terms) for protocol in some]
    directions = {title for kind in NOUNS for title in titles(kind).values()}
    return any(
        one.get(name) != other.get(name)
        for one in terms_of
        for other in terms_of
        for name in {*one, *other}
        if name not in directions or (name in one and name in other)
    )


def _terms(protocol: EvaluatedProtocol) -> Sequence[tuple[str, str]]:
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


def _task(direction: str, side: Side, protocol: EvaluatedProtocol) -> str:
    """The task of a direction's queries in a sentence, with the recall of a random order."""
    gallery, noun = f"{side.gallery:,}", member(protocol.kind)
    positives = "one of them is right"
    if counts := protocol.items_per_caption:
        positives = (
            f"{counts.min} to {counts.max} of them are right ({counts.mean:.2f} on average); "
            f"{protocol.t2v_rank} counts"
        )
    candidates = "groups of captions" if protocol.groups else "captions"
    asks = {
        "t2v": f"each caption ranks all {gallery} {noun}s, and {positives}",
        "v2t": f"each {noun} ranks all {gallery} {candidates}; the {protocol.v2t_rank.removeprefix('the ')} counts",
    }[direction]
    chance = [f"{metric(name).printed(side.chance[name])} % for {name}" for name in ("R@1", "R@10")]
    return f"{counted(side.queries, 'query')}: {asks}. Chance: {listed(chance)}"


def post_processed_boards(measured: Mapping[str, Metrics]) -> list[Board]:
    """Raw and post-processed estimates, one under the other, of the methods that have both; none is marked as best."""
    estimates: dict[str, Estimates] = {}
    owners: dict[str, Metrics] = {}
    for method, metrics in measured.items():
        if not metrics.post_processed:
            continue
        rows = {f"{method}, raw": metrics.estimates}
        rows |= {f"{method} after {name}": block.estimates for name, block in metrics.post_processed.items()}
        estimates |= rows
        owners |= dict.fromkeys(rows, metrics)
    return [
        replace(b, rows=tuple((row, tuple(replace(c, best=False) for c in cells)) for row, cells in b.rows))
        for b in _boards(estimates, owners)
    ]


def post_processing_notes(measured: Mapping[str, Metrics]) -> dict[str, str]:
    """The note of each post-processing that was measured, by its name."""
    return {
        name: block.note for metrics in measured.values() for name, block in metrics.post_processed.items()
    }
