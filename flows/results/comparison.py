"""Are two runs different? Their ranks on the same queries, resampled and exchanged in pairs; knows no file.

Axes: Q queries, U units, B bootstrap samples. A unit is an item with its captions: captions of one item are not
independent, since whether a run finds an item decides over all of them, so an item is drawn, or exchanged, with all
its captions. Queries are put in the order of their keys: the order of a run's own files decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.measured import Asked, Measured
from flows.results.report.wording import counted, listed, member
from pipeline.errors import UserError
from trainers.measure.evaluated import Protocol
from trainers.measure.metric_table import CUTOFFS, DIRECTIONS, RSUM_CUTOFFS, metric
from trainers.measure.metrics import LEVEL, RESAMPLES, SAMPLE_ENTRIES, Estimate, intervals, rsum

TESTED = RSUM_CUTOFFS  # the ranks whose share of found queries is tested
ALPHA = 0.05
POWER = 0.8  # of finding the smallest difference that is told
TERMS = {
    "kind": "what is ranked",
    "split": "the split",
    "ties": "the rank of ties",
    "t2v_rank": "the rank of a caption",
    "v2t_rank": "the rank of an item",
    "rerank": "the scoring",
    "post_processing": "the post-processing",
}
EVERY_PAIR = "every pair is scored"  # where a protocol names no other scoring

Floats = NDArray[np.float64]
Samples = dict[str, dict[str, Floats]]
"""Direction, then metric: the value first, then B of resampled queries (1 + B,)."""


@dataclass(frozen=True)
class Difference:
    """A metric of both runs and A's less B's, with its 95 % interval and standard error over resampled items."""

    a: float
    b: float
    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class McNemar:
    """How many queries only one run finds within a rank, and the probability of so uneven a share by chance.

    by_query exchanges the runs query by query (McNemar's exact test), p item by item with all its captions: the
    same where every item has one caption, and the one to trust where it has several. corrected: p after Holm.
    """

    only_a: int
    only_b: int
    by_query: float
    p: float
    corrected: float = 1.0


@dataclass(frozen=True)
class Pair:
    """Two runs in one direction: differences by metric, tests by metric of those that are tested."""

    a: str
    b: str
    direction: str
    queries: int
    units: int
    differences: Mapping[str, Difference]
    tests: Mapping[str, McNemar] = field(default_factory=dict)
    of_a: Mapping[str, Estimate] = field(default_factory=dict)  # each run's own metrics with their intervals
    of_b: Mapping[str, Estimate] = field(default_factory=dict)
    alike: bool = False  # every query has the same rank in both


@dataclass(frozen=True)
class Matched:
    """Runs with the same queries in the same order, and what had to be left out for it, in words."""

    runs: tuple[Measured, ...]
    directions: tuple[str, ...]
    notes: tuple[str, ...]


def matched(runs: Sequence[Measured], direction: str = "", common: bool = False) -> Matched:
    """The runs on the same queries, in `direction` or in all that every run was asked in.

    Raises UserError where their protocols differ, saying in what. With `common`, galleries and queries may differ by
    what failed in one of them, and the queries of all are taken.
    """
    directions, notes = _directions(runs, direction)
    first = runs[0]
    for other in runs[1:]:
        terms = _terms(first, other, common)
        members = [] if common else _members(first, other, directions)
        if terms or members:
            hint = "" if terms else "; --common compares the queries that both have"
            raise UserError(
                f"{first.name} and {other.name} were measured under different protocols: "
                f"{'; '.join([*terms, *members])}{hint}"
            )
    if common:
        notes += _galleries(runs, directions)
    kept = {each: first.asked[each].at(_shared(runs, each)) for each in directions}
    units = frozenset.intersection(*(frozenset(side.units) for side in kept.values()))
    kept = {each: _within(side, units) for each, side in kept.items()}
    out = []
    for run in runs:
        asked = {d: replace(run.asked[d].at(side.keys), units=side.units) for d, side in kept.items()}
        out.append(replace(run, asked=asked))
    for each in directions:
        having, most = len(out[0].asked[each].keys), max(len(run.asked[each].keys) for run in runs)
        if not having:
            raise UserError(f"{listed([run.name for run in runs])} have no query of {each} in common")
        if having < most:
            notes.append(f"{each}: {having} of {counted(most, 'query')} compared, {most - having} left out")
    return Matched(tuple(out), directions, tuple(notes))


def _directions(runs: Sequence[Measured], wanted: str) -> tuple[tuple[str, ...], list[str]]:
    """Those that every run was asked in, and a word on those that only some were."""
    everywhere = tuple(d for d in DIRECTIONS if all(d in run.asked for run in runs))
    some = [d for d in DIRECTIONS if any(d in run.asked for run in runs) and d not in everywhere]
    for run in runs:
        if wanted and wanted not in run.asked:
            raise UserError(
                f"{run.name} was not evaluated in the direction {wanted}, only in {listed([*run.asked])}"
            )
    if wanted:
        return (wanted,), []
    if not everywhere:
        told = "; ".join(f"{run.name} {listed([*run.asked])}" for run in runs)
        raise UserError(f"the runs were evaluated in no direction together: {told}")
    return everywhere, [
        f"{d} is left out: {listed([run.name for run in runs if d not in run.asked])} has no figures of it"
        for d in some
    ]


def _terms(a: Measured, b: Measured, common: bool) -> list[str]:
    """The words of two protocols that differ."""
    out = []
    for term, words in TERMS.items():
        x, y = (getattr(run.protocol, term) or (EVERY_PAIR if term == "rerank" else "") for run in (a, b))
        if x != y and "" not in (x, y):
            out.append(f"{words} ({x} / {y})")
    names = [run.protocol.corpus.name if run.protocol.corpus else "" for run in (a, b)]
    if names[0] != names[1] and "" not in names:
        out.append(f"the published protocol ({names[0]} / {names[1]})")
    if common:
        x, y = (run.protocol.captions + run.protocol.dropped for run in (a, b))
        if x != y:
            out.append(f"the captions of the split before any failed ({x} / {y})")
    return out


def _members(a: Measured, b: Measured, directions: Sequence[str]) -> list[str]:
    """Who is in one gallery or asks one run alone; the order, which split_digest counts too, decides no rank."""
    out = []
    if a.items != b.items:
        out.append(
            f"the gallery ({counted(len(a.items - b.items), 'item')} only in {a.name}, "
            f"{len(b.items - a.items)} only in {b.name})"
        )
    for direction in directions:
        x, y = (set(run.asked[direction].keys) for run in (a, b))
        if x != y:
            out.append(
                f"the queries of {direction} ({len(x - y)} only in {a.name}, {len(y - x)} only in {b.name})"
            )
    return out


def _galleries(runs: Sequence[Measured], directions: Sequence[str]) -> list[str]:
    """A word on galleries that differ, which leaving out queries does not mend."""
    out, shared = [], frozenset.intersection(*(run.items for run in runs))
    sizes = {"items": {run.name: len(run.items - shared) for run in runs}}
    if "v2t" in directions:
        captions = {run.name: run.protocol.captions for run in runs}
        sizes["captions"] = {name: count - min(captions.values()) for name, count in captions.items()}
    for noun, more in sizes.items():
        if any(more.values()):
            told = listed([f"{name} has {count}" for name, count in more.items() if count])
            out.append(f"galleries differ: {told} more {noun} to find an answer among, which is harder")
    return out


def _shared(runs: Sequence[Measured], direction: str) -> list[Any]:
    """The queries of all runs, in an order of their own."""
    keys = set.intersection(*(set(run.asked[direction].keys) for run in runs))
    return sorted(keys)


def _within(asked: Asked, units: frozenset[str]) -> Asked:
    """The queries of some units: those that ask in every direction, so that no sample is without a query."""
    return asked.at(key for key, unit in zip(asked.keys, asked.units, strict=True) if unit in units)


def compare(found: Matched, seed: int = 0, resamples: int = RESAMPLES) -> list[Pair]:
    """Every pair of runs in every direction, and RSUM where there are both; p values corrected over all of them.

    The interval of a run alone is drawn as its evaluation drew it, by the seed of its protocol: on all of its queries
    it is the one that the report shows.
    """
    samples = _resampled(found, seed, resamples)
    own = [_estimates(run, found.directions, seed) for run in found.runs]
    pairs = []
    for number, a in enumerate(found.runs):
        for place, b in enumerate(found.runs[number + 1 :], start=number + 1):
            for direction in samples[number]:
                pair = _pair(a, b, direction, samples[number], samples[place])
                pairs.append(replace(pair, of_a=own[number][direction], of_b=own[place][direction]))
    return _corrected(pairs)


def _estimates(run: Measured, directions: Sequence[str], seed: int) -> dict[str, dict[str, Estimate]]:
    """A run's own metrics with their intervals by direction, RSUM under `both`."""
    asked = {direction: run.asked[direction] for direction in directions}
    number = {
        unit: place for place, unit in enumerate(sorted({u for side in asked.values() for u in side.units}))
    }
    units = {d: np.array([number[unit] for unit in side.units], np.int64) for d, side in asked.items()}
    seed = seed if run.protocol.seed is None else run.protocol.seed
    out = {d: intervals(side.rank, units[d], seed) for d, side in asked.items()}
    if len(asked) == len(DIRECTIONS):
        t2v, v2t = (asked[d].rank for d in DIRECTIONS)
        out["both"] = {"RSUM": rsum(t2v, v2t, (units["t2v"], units["v2t"]), seed)}
    return out


def _pair(a: Measured, b: Measured, direction: str, of_a: Samples, of_b: Samples) -> Pair:
    differences = {
        name: _difference(of_a[direction][name], of_b[direction][name]) for name in of_a[direction]
    }
    asked = a.asked[direction if direction in a.asked else "t2v"]
    pair = Pair(a.name, b.name, direction, len(asked.keys), len(set(asked.units)), differences)
    if direction not in a.asked:
        return pair
    other = b.asked[direction]
    units = np.unique(asked.units, return_inverse=True)[1]
    tests = {f"R@{k}": mcnemar(asked.rank <= k, other.rank <= k, units) for k in TESTED}
    return replace(pair, tests=tests, alike=bool((asked.rank == other.rank).all()))


def _difference(a: Floats, b: Floats) -> Difference:
    less = a - b
    low, high = np.quantile(less[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        float(a[0]), float(b[0]), float(less[0]), float(low), float(high), float(less[1:].std())
    )


def _resampled(found: Matched, seed: int, resamples: int) -> list[Samples]:
    """The metrics of every run, on all queries and on resampled ones: the same draws for every run and direction."""
    first = found.runs[0]
    units = sorted({unit for d in found.directions for unit in first.asked[d].units})
    where = {unit: place for place, unit in enumerate(units)}
    of = {d: np.array([where[unit] for unit in first.asked[d].units]) for d in found.directions}
    most = max(len(units), *(len(each) for each in of.values()))
    parts: list[list[Samples]] = [[] for _ in found.runs]
    for drawn in _draws(len(units), most, seed, resamples):
        for run, kept in zip(found.runs, parts, strict=True):
            kept.append(_both({d: weighted(run.asked[d].rank, drawn[:, of[d]]) for d in found.directions}))
    return [
        {d: {name: np.concatenate([p[d][name] for p in kept]) for name in kept[0][d]} for d in kept[0]}
        for kept in parts
    ]


def _draws(units: int, most: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """How often each unit counts (B, U): once first, then as often as it is drawn with replacement."""
    random = np.random.default_rng(seed)
    yield np.ones((1, units), np.int64)
    chunk = max(1, SAMPLE_ENTRIES // most)
    for start in range(0, resamples, chunk):
        yield random.multinomial(units, np.full(units, 1 / units), size=min(chunk, resamples - start))


def weighted(rank: Floats, counts: NDArray[np.int64]) -> dict[str, Floats]:
    """The metrics (B,) of ranks (Q,), each query counted as often as a row of counts (B, Q) says."""
    order = np.argsort(rank, kind="stable")
    values, counts = rank[order], counts[:, order]
    reached = np.cumsum(counts, axis=1)
    total = reached[:, -1]
    out = {f"R@{k}": 100 * (counts @ (values <= k)) / total for k in CUTOFFS}
    out["SumR"] = np.sum(list(out.values()), axis=0)
    middle = [values[np.argmax(reached > place[:, None], axis=1)] for place in ((total - 1) // 2, total // 2)]
    out["MdR"] = (middle[0] + middle[1]) / 2
    return out | {"MnR": counts @ values / total, "MRR": counts @ (1 / values) / total}


def _both(figures: Samples) -> Samples:
    """The figures with RSUM where there are both directions."""
    if len(figures) < len(DIRECTIONS):
        return figures
    parts = [figures[d][f"R@{k}"] for d in DIRECTIONS for k in RSUM_CUTOFFS]
    return figures | {"both": {"RSUM": np.sum(parts, axis=0)}}


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_], units: NDArray[np.int64]) -> McNemar:
    """Whether two runs find (Q,) so unevenly by chance; units (Q,): the items that queries are exchanged with."""
    less = a.astype(np.int64) - b.astype(np.int64)
    by_unit = np.rint(np.bincount(units, weights=less)).astype(np.int64)
    only_a, only_b = int((less > 0).sum()), int((less < 0).sum())
    return McNemar(only_a, only_b, exchange_p(less), exchange_p(by_unit))


def exchange_p(less: NDArray[np.int64]) -> float:
    """The exact two-sided probability that |sum of +-d| is at least |sum of d|, all signs being equally likely.

    less: (U,), by how many queries more A finds than B in each unit. With units of one query this is McNemar's exact
    test, the binomial one of the discordant queries. The distribution is built unit by unit: exact, nothing is drawn.
    """
    steps = np.abs(less[less != 0])
    total, seen = int(steps.sum()), abs(int(less.sum()))
    chances = np.zeros(total + 1)  # of the sum of the units that fall to A
    chances[0] = 1.0
    for step in steps.tolist():
        chances *= 0.5
        chances[step:] += chances[:-step].copy()
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chances[sums >= seen].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number after Holm (1979): below alpha with at most alpha for any false one."""
    order = np.argsort(p, kind="stable")
    raised = np.array(p)[order] * np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.maximum.accumulate(raised)) if len(p) else raised
    return [float(value) for value in out]


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with Holm's p values over the tests of all of them."""
    corrected = iter(holm([test.p for pair in pairs for test in pair.tests.values()]))
    return [
        replace(pair, tests={name: replace(t, corrected=next(corrected)) for name, t in pair.tests.items()})
        for pair in pairs
    ]


def smallest(error: float, tests: int) -> float:
    """The difference that would be found four times out of five: about, by the normal distribution.

    error: the standard error of the difference; tests: how many are corrected for.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - ALPHA / 2 / max(tests, 1)) + normal.inv_cdf(POWER)) * error


def ahead(pair: Pair, name: str) -> str:
    """Which run has the better value of a metric; empty if none."""
    value = pair.differences[name].value
    if abs(value) < 1e-9:
        return ""
    return pair.a if (value > 0) != metric(name).lower_is_better else pair.b


def meaning(pair: Pair, tests: int, protocol: Protocol) -> str:
    """What a pair's figures say, in a sentence; tests: how many were corrected for."""
    if pair.direction == "both":
        return _sum_meaning(pair, "RSUM")
    if pair.alike:
        return f"{pair.a} and {pair.b} rank the right answer of every query alike"
    shown = [name for name, test in pair.tests.items() if test.corrected < ALPHA]
    if shown:
        told = [f"{ahead(pair, name)} finds {_points(pair, name)}" for name in shown]
        rest = [name for name in pair.tests if name not in shown]
        more = f"; at {listed(rest)} no difference is shown" if rest else ""
        return f"{'; '.join(told)}: significant after correction for {tests} tests{more}"
    first = next(iter(pair.tests))
    noun = member(protocol.kind)
    queries = f"these {counted(pair.queries, 'query')}"
    if pair.units < pair.queries:
        queries += f" of {counted(pair.units, noun)}"
    if pair.differences[first].error == 0:
        return f"no difference that {queries} can show: at {first} both find the same"
    least = smallest(pair.differences[first].error, tests)
    best = ahead(pair, first)
    now = f"{best} finds {_points(pair, first)}" if best else f"both find as many within {first}"
    shown_least = f"the smallest they could show is about {metric(first).printed(least)} points"
    return f"no difference that {queries} can show: {now}; {shown_least}"


def _points(pair: Pair, name: str) -> str:
    """For instance "3.1 points more at R@1 (0.4 to 5.9)", of the run that is ahead."""
    d, printed = pair.differences[name], metric(name).printed
    low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
    return f"{printed(abs(d.value))} points more at {name} ({printed(low)} to {printed(high)})"


def _sum_meaning(pair: Pair, name: str) -> str:
    d, printed = pair.differences["RSUM"], metric("RSUM").printed
    best = ahead(pair, "RSUM")
    if not best:
        return f"{pair.a} and {pair.b} have the same {name}"
    low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
    says = "which leaves out 0" if low > 0 else "which holds 0: no difference is shown"
    return f"{best} has {printed(abs(d.value))} more {name}, 95 % interval {printed(low)} to {printed(high)}, {says}"
