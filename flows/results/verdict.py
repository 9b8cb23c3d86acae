"""The verdict on the methods of an experiment: who is ahead, how sure that is, and what limits it. Reads no store.

Sentences are made from the paired tests of `flows.results.comparison`, corrected over all pairs, metrics and
directions at once. Report, terminal, model card, board and Prefect's artifact show the same verdict, which the report
keeps in `verdict.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

from flows.circumstances import Circumstances
from flows.results.comparison import ALPHA, Pair, ahead, compare, corrected, matched, smallest_detectable
from flows.results.limits import first_direction, limits
from flows.results.measured import Measured, by_kind, measured
from flows.results.pairs import PairRow
from flows.results.wording import NOUNS, counted, listed, member, titles
from pipeline.errors import UserError
from pipeline.store.documents import Document
from trainers.measure.evaluated import EvaluatedFolder, Metrics
from trainers.measure.metric_table import DIRECTIONS, metric, shown_metrics

FILE = "verdict.json"
OWNER, REMEDY = "a report", "draw the report again with `crossreel stage report --redo`"
# Notes of a direction that not all runs have: those that have it are compared in a group of their own.
_EVERY_LEFT_OUT = tuple(f"{direction} is left out" for direction in DIRECTIONS)
MOST_GROUPS = 3  # groups of methods that cannot be told apart, named in one sentence
SHOWN_CHANCE = "MRR"  # a metric that a random order does not fill, however small the gallery


class Verdict(Document):
    """Who is ahead, and how sure that is.

    figure, direction: the metric that the methods are ordered by. order: all methods, the best first. sentences: who is
    ahead of whom. basis: what that rests on and what limits it. better: (direction, metric, method) of values that are
    shown to be better than those of every other method of its kind. tests: number of tests, over each kind of which p
    values are corrected by themselves.
    meaningless: the split is too small for any figure to mean anything.
    """

    figure: str
    direction: str
    order: list[str]
    sentences: list[str]
    basis: list[str]
    better: list[tuple[str, str, str]] = []
    pairs: list[PairRow] = []
    tests: int = 0
    meaningless: bool = False

    def is_better(self, direction: str, name: str, method: str) -> bool:
        """Whether a value is shown to be better than those of every other method."""
        return (direction, name, method) in self.better

    def rank(self, method: str) -> int:
        """A sort key that puts the best method first, and unknown ones last."""
        return self.order.index(method) if method in self.order else len(self.order)

    @property
    def lines(self) -> list[str]:
        """All sentences, those on who is ahead first."""
        return [*self.sentences, *self.basis]


@dataclass(frozen=True)
class Tested:
    """The pairs of the methods that can be compared, corrected together, and a sentence on each that is left out."""

    pairs: Sequence[Pair]
    notes: Sequence[str]
    left_out: Sequence[str]

    @property
    def tests(self) -> int:
        """The number of tests that p values are corrected for."""
        return sum(len(pair.tests) for pair in self.pairs)

    def of(self, direction: str) -> list[Pair]:
        """The pairs of a direction."""
        return [pair for pair in self.pairs if pair.direction == direction]


def judge(evaluated: Mapping[str, EvaluatedFolder], limiting: Circumstances) -> Verdict:
    """The verdict on evaluated methods, by name. Raises UserError naming a damaged file."""
    metrics = {method: folder.metrics for method, folder in evaluated.items()}
    figure, direction = task_figure(metrics)
    kinds = by_kind(metrics)
    orders = {kind: in_order(some, figure, direction) for kind, some in kinds.items()}
    runs = {method: measured(evaluated[method], method) for order in orders.values() for method in order}
    parts = [
        _of_kind(figure, direction, order, kinds[kind], [runs[method] for method in order])
        for kind, order in orders.items()
    ]
    starts = [f"{NOUNS[kind].capitalize()}s: " if len(kinds) > 1 else "" for kind in kinds]
    return Verdict(
        figure=figure, direction=direction, order=list(runs),
        sentences=[
            *_apart(orders),
            *(start + line for start, part in zip(starts, parts, strict=True) for line in part.sentences),
        ],
        basis=[
            *(start + line for start, part in zip(starts, parts, strict=True) for line in part.basis),
            *limits(list(runs.values()), evaluated, limiting),
        ],
        better=[value for part in parts for value in part.better],
        pairs=[pair for part in parts for pair in part.pairs],
        tests=sum(part.tests for part in parts),
        meaningless=all(part.meaningless for part in parts),
    )  # fmt: skip


def _apart(orders: Mapping[str, list[str]]) -> Iterator[str]:
    """Why methods of different kinds are not compared; nothing where all rank items of one kind."""
    if len(orders) > 1:
        ranked = [
            f"{listed(order)} rank{'s'[: len(order) == 1]} {NOUNS[kind]}s" for kind, order in orders.items()
        ]
        yield f"Methods that rank items of different kinds are not compared: {listed(ranked)}."


def _of_kind(
    figure: str, direction: str, order: list[str], metrics: Mapping[str, Metrics], runs: Sequence[Measured]
) -> Verdict:
    """The verdict on the methods that rank items of one kind, the best first; its basis is how they were tested."""
    first = metrics[order[0]].protocol
    least = min(len({unit for side in run.queries.values() for unit in side.units}) for run in runs)
    if least <= 1:
        noun = member(first.kind)
        sentence = (
            f"The split {first.split} has one test {noun}: its figures mean nothing, whatever they are, and no "
            "method can be called better"
        )
        return Verdict(
            figure=figure, direction=direction, order=order, sentences=[f"{sentence}."], basis=[],
            meaningless=True,
        )  # fmt: skip
    tested = test_all(runs)
    sentences = [*_sentences(order, tested, metrics, runs), *_beside_chance(order, metrics)]
    return Verdict(
        figure=figure, direction=direction, order=order,
        sentences=[f"{_begun(sentence)}." for sentence in sentences],
        basis=list(_how_tested(tested, runs)),
        better=list(_better(tested, metrics)),
        pairs=[_row(pair, first.kind, tested) for pair in tested.pairs],
        tests=tested.tests,
    )  # fmt: skip


def _begun(sentence: str) -> str:
    """A sentence with a capital letter, unless it begins with a name, which keeps its spelling."""
    return sentence[0].upper() + sentence[1:] if sentence.startswith(("no ", "galleries ")) else sentence


def task_figure(metrics: Mapping[str, Metrics]) -> tuple[str, str]:
    """The figure that the task reports, and its direction, of those that every method has.

    RSUM over both directions; else SumR of one, which tables of point clouds do not show: there R@1.
    """
    everywhere = [d for d in (*DIRECTIONS, "both") if all(d in one.estimates for one in metrics.values())]
    if "both" in everywhere:
        return "RSUM", "both"
    direction = everywhere[0] if everywhere else first_direction(next(iter(metrics.values())))
    shown = all(metric("SumR").shown(one.protocol.kind) for one in metrics.values())
    return ("SumR" if shown else "R@1"), direction


def in_order(metrics: Mapping[str, Metrics], figure: str, direction: str) -> list[str]:
    """The methods by a figure, the best first; those that do not have it last."""
    sign = 1 if metric(figure).lower_is_better else -1

    def key(method: str) -> tuple[bool, float]:
        estimate = metrics[method].estimates.get(direction, {}).get(figure)
        return estimate is None, sign * estimate.value if estimate else 0.0

    return sorted(metrics, key=key)


def test_all(runs: Sequence[Measured]) -> Tested:
    """Every pair of runs that can be compared, in every direction that both have, corrected over all tests."""
    group, left_out = _comparable(runs)
    pairs: list[Pair] = []
    notes: list[str] = []
    for some in _by_directions(group):
        matching = matched(some, common=True)
        known = {(pair.a, pair.b, pair.direction) for pair in pairs}
        pairs += [p for p in compare(matching) if (p.a, p.b, p.direction) not in known]
        notes += [note for note in matching.notes if not note.startswith(_EVERY_LEFT_OUT)]
    return Tested(corrected(pairs), list(dict.fromkeys(notes)), left_out)


def _comparable(runs: Sequence[Measured]) -> tuple[list[Measured], list[str]]:
    """The largest group of runs with the same protocol, and a sentence on each run outside of it."""
    groups: list[list[Measured]] = []
    for run in runs:
        home = next((group for group in groups if not _obstacle(group[0], run)), None)
        if home is None:
            groups.append([run])
        else:
            home.append(run)
    largest = max(groups, key=len)
    outside = [run for group in groups if group is not largest for run in group]
    return largest, [f"{run.name} is not compared: {_obstacle(largest[0], run)}" for run in outside]


def _obstacle(a: Measured, b: Measured) -> str:
    """Why two runs cannot be compared; "" if they can."""
    try:
        matched([a, b], common=True)
    except UserError as error:
        return str(error)
    return ""


def _by_directions(runs: Sequence[Measured]) -> list[list[Measured]]:
    """The runs, and then those of them alone that have a direction which not all have."""
    everywhere = set.intersection(*(set(run.queries) for run in runs))
    some = [run for run in runs if len(run.queries) == len(DIRECTIONS)]
    groups = [list(runs), some if len(everywhere) < len(DIRECTIONS) else []]
    return [group for group in groups if len(group) > 1]


def wins(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """By method, those that it is shown to be ahead of at a tested metric."""
    out: dict[str, list[str]] = {}
    for pair in pairs:
        for best in dict.fromkeys(ahead(pair, name) for name in _significant(pair)):
            out.setdefault(best, []).append(pair.b if best == pair.a else pair.a)
    return out


def _significant(pair: Pair) -> list[str]:
    return [name for name, test in pair.tests.items() if test.corrected < ALPHA and ahead(pair, name)]


def _sentences(
    order: Sequence[str], tested: Tested, metrics: Mapping[str, Metrics], runs: Sequence[Measured]
) -> Iterator[str]:
    """Who is ahead of whom, in every direction that was compared."""
    if len(order) == 1:
        yield _alone(order[0], metrics[order[0]])
        return
    kind = metrics[order[0]].protocol.kind
    directions = [d for d in DIRECTIONS if tested.of(d)]
    if not directions:
        yield "no two methods can be compared"
    for direction in directions:
        absent = [m for m in order if direction not in metrics[m].estimates]
        without = f" (without {listed(absent)})" if absent else ""
        prefix = "" if direction == directions[0] else f"{titles(kind)[direction]}{without}: "
        brief = direction != directions[0]
        yield from (prefix + said for said in _of_direction(order, tested, direction, brief))


def _of_direction(order: Sequence[str], tested: Tested, direction: str, brief: bool) -> Iterator[str]:
    """Who is ahead of whom in one direction; brief: in one sentence without figures."""
    pairs = tested.of(direction)
    methods = [method for method in order if any(method in (pair.a, pair.b) for pair in pairs)]
    won = wins(pairs)
    if not won:
        yield f"no method is shown to be better than another{'' if brief else _would_need(pairs, tested.tests)}"
        return
    leaders = [method for method in methods if method in won]
    if brief:
        yield _all_ahead(leaders, won, methods)
        return
    yield _leads(leaders[0], won[leaders[0]], methods, pairs)
    if leaders[1:]:
        yield _all_ahead(leaders[1:], won, methods)
    if groups := alike(methods, won):
        told = [f"{listed(group)} cannot be told apart" for group in groups[:1]]
        told += [f"nor can {listed(group)}" for group in groups[1:MOST_GROUPS]]
        yield "; ".join(told)


def _all_ahead(leaders: Sequence[str], won: Mapping[str, Sequence[str]], methods: Sequence[str]) -> str:
    """Who is ahead of whom, those together that are ahead of the same methods."""
    same: dict[str, list[str]] = {}
    for one in leaders:
        same.setdefault(_others(won[one], methods), []).append(one)
    return "; ".join(
        f"{listed(some)} {'is' if len(some) == 1 else 'are'} ahead of {beaten}"
        for beaten, some in same.items()
    )


def _others(beaten: Sequence[str], methods: Sequence[str]) -> str:
    """The methods that one is ahead of, in their order."""
    if len(beaten) == len(methods) - 1 > 1:
        return "every other method"
    return listed([method for method in methods if method in beaten])


def _leads(leader: str, beaten: Sequence[str], methods: Sequence[str], pairs: Sequence[Pair]) -> str:
    """The lead of a method, with its figures over the best of the methods that it is ahead of."""
    rival = next(method for method in methods if method in beaten)
    pair = next(pair for pair in pairs if {pair.a, pair.b} == {leader, rival})
    if len(beaten) == 1:
        return f"{leader} is ahead of {rival} {_lead(leader, pair)}"
    return f"{leader} is ahead of {_others(beaten, methods)}, of {rival} {_lead(leader, pair)}"


def _lead(leader: str, pair: Pair) -> str:
    """For instance "at R@5 by 17.0 points (8.0 to 25.0); at R@1 no difference is shown"."""
    shown = [name for name in _significant(pair) if ahead(pair, name) == leader]
    parts = []
    for name in shown:
        d, printed = pair.differences[name], metric(name).printed
        low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
        parts.append(f"at {name} by {printed(abs(d.value))} points ({printed(low)} to {printed(high)})")
    rest = [name for name in pair.tests if name not in _significant(pair)]
    more = f"; at {listed(rest)} no difference is shown" if rest else ""
    return listed(parts) + more


def alike(methods: Sequence[str], won: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """The largest groups of two or more methods of which none is shown to be ahead of another."""
    apart = {frozenset((one, other)) for one, beaten in won.items() for other in beaten}
    groups: list[list[str]] = []
    for size in range(len(methods), 1, -1):
        for group in combinations(methods, size):
            free = all(frozenset(pair) not in apart for pair in combinations(group, 2))
            if free and not any(set(group) <= set(known) for known in groups):
                groups.append(list(group))
    return groups


def _would_need(pairs: Sequence[Pair], tests: int) -> str:
    """The size that a difference at the first metric would need, in the pair that needs least."""
    needed = [
        smallest_detectable(pair.differences[name].error, tests)
        for pair in pairs for name in list(pair.tests)[:1] if pair.differences[name].error
    ]  # fmt: skip
    if not needed:
        return ""
    name = next(iter(pairs[0].tests))
    return (
        f"; at {name} a difference would have to be about {metric(name).printed(min(needed))} points to show"
    )


def _alone(method: str, metrics: Metrics) -> str:
    """The figures of the only method, with their intervals."""
    direction = first_direction(metrics)
    estimates, luck = metrics.estimates[direction], metrics.protocol.chance(direction)
    parts = []
    for name in shown_metrics(("R@1", "R@10"), metrics.protocol.kind):
        one, printed = estimates[name], metric(name).printed
        by_chance = f", by chance {printed(luck[name])}" if name in luck else ""
        parts.append(f"{name} {printed(one.value)} ({printed(one.low)} to {printed(one.high)}{by_chance})")
    return f"{method} is the only method, so nothing is compared: {listed(parts)}"


def _beside_chance(order: Sequence[str], metrics: Mapping[str, Metrics]) -> Iterator[str]:
    """A sentence on the methods that are not shown to be better than a random order."""
    lost = []
    for method in order:
        direction = first_direction(metrics[method])
        estimates = metrics[method].estimates[direction]
        luck = metrics[method].protocol.chance(direction).get(SHOWN_CHANCE)
        if luck is not None and SHOWN_CHANCE in estimates and estimates[SHOWN_CHANCE].low <= luck:
            lost.append(method)
    if lost:
        yield f"{listed(lost)} {'is' if len(lost) == 1 else 'are'} not shown to be better than a random order"


def _how_tested(tested: Tested, runs: Sequence[Measured]) -> Iterator[str]:
    """How the pairs were tested, and which runs and queries are left out."""
    if tested.pairs:
        noun = member(runs[0].protocol.kind)
        yield (
            f"Paired tests over {noun}s with all their captions, corrected after Holm for {tested.tests} tests; "
            "95 % intervals in brackets."
        )
        units = max(pair.units for pair in tested.pairs)
        if tested.tests * 2.0 ** (1 - units) >= ALPHA:
            yield f"With {counted(units, noun)} no test can show a difference, however large it is."
    yield from (f"{_begun(note)}." for note in tested.notes)
    yield from (f"{note}." for note in tested.left_out)


def _better(tested: Tested, metrics: Mapping[str, Metrics]) -> Iterator[tuple[str, str, str]]:
    """Yield (direction, metric, method) of each value that is shown to be better than all others of its column."""
    for direction in dict.fromkeys(pair.direction for pair in tested.pairs):
        pairs = tested.of(direction)
        rows = [method for method, one in metrics.items() if direction in one.estimates]
        for name in pairs[0].differences:
            shown = [best for pair in pairs if (best := shown_ahead(pair, name, tested))]
            yield from ((direction, name, m) for m in rows if shown.count(m) == len(rows) - 1)


def shown_ahead(pair: Pair, name: str, tested: Tested) -> str:
    """The method that is shown to be better at a metric, or "".

    Where the metric is tested, by its corrected p. Another metric is made of the same ranks, so a difference counts
    only between methods that a test has told apart in this direction (for RSUM in either), and where 0 is outside of
    the interval that holds for all pairs at once (Bonferroni), from the standard error of the paired bootstrap.
    """
    if name in pair.tests:
        return ahead(pair, name) if name in _significant(pair) else ""
    best, d = ahead(pair, name), pair.differences[name]
    directions = DIRECTIONS if pair.direction == "both" else (pair.direction,)
    pairs = [other for each in directions for other in tested.of(each)]
    loser = pair.b if best == pair.a else pair.a
    if loser not in wins(pairs).get(best, []):
        return ""
    reach = NormalDist().inv_cdf(1 - ALPHA / 2 / len(tested.of(pair.direction))) * d.error
    return best if d.error > 0 and abs(d.value) > reach else ""


def _row(pair: Pair, kind: str, tested: Tested) -> PairRow:
    shown = [n for n in pair.differences if n in pair.tests or pair.direction == "both" or n == "SumR"]
    shown = list(shown_metrics(shown, kind))
    return PairRow(
        a=pair.a, b=pair.b, direction=pair.direction,
        differences={name: _difference(pair, name) for name in shown},
        p={name: f"{test.corrected:.3f}" if test.corrected >= 0.001 else "<0.001" for name, test in pair.tests.items()},
        ahead={name: shown_ahead(pair, name, tested) for name in shown},
    )  # fmt: skip


def _difference(pair: Pair, name: str) -> str:
    d, signed = pair.differences[name], metric(name).signed
    return f"{signed(d.value)} ({signed(d.low)} to {signed(d.high)})"
