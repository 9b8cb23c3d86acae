"""Whether two runs differ: a paired bootstrap and McNemar's test over the ranks of the same queries. Reads no file.

Axes: Q queries, U units, B bootstrap samples. A unit is an item with its captions: captions of one item are not
independent, since a run that finds an item finds it for most of them, so an item is drawn, or exchanged, with all its
captions. Queries are put in the order of their keys, so that the order of a run's own files changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.measured import Measured, RankedQueries
from flows.results.wording import counted, listed, member
from pipeline.errors import UserError
from trainers.measure.evaluated import Protocol
from trainers.measure.metric_table import CUTOFFS, DIRECTIONS, RSUM_CUTOFFS, metric
from trainers.measure.metrics import LEVEL, RESAMPLES, SAMPLE_ENTRIES, Estimate, intervals, rsum

TESTED = RSUM_CUTOFFS  # McNemar's test is made of recall at these ranks
ALPHA = 0.05
POWER = 0.8  # probability of detecting a difference as large as the smallest detectable one
TERMS = {
    "kind": "what is ranked",
    "split": "the split",
    "ties": "the rank of ties",
    "t2v_rank": "the rank of a caption",
    "v2t_rank": "the rank of an item",
    "rerank": "the scoring",
    "post_processing": "the post-processing",
}
NO_RERANK = "every pair is scored"  # the scoring of a protocol that names no re-ranking

Floats = NDArray[np.float64]
Samples = dict[str, dict[str, Floats]]
"""By direction and metric, an array (1 + B,): the value on all queries, then those of B bootstrap samples."""


@dataclass(frozen=True)
class Difference:
    """A metric of runs A and B, and A - B with its 95 % interval and standard error over resampled items."""

    a: float
    b: float
    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's test: the queries that only one run finds within a rank, and the p value of their difference.

    by_query: p of McNemar's exact test, which exchanges the runs query by query. p: exchanges them item by item with
    all its captions; equal to by_query where every item has one caption, and the one to trust where items have
    several. corrected: p after Holm's correction.
    """

    only_a: int
    only_b: int
    by_query: float
    p: float
    corrected: float = 1.0


@dataclass(frozen=True)
class Pair:
    """Two runs in one direction: the difference of every metric, and the tests of those metrics that are tested."""

    a: str
    b: str
    direction: str
    queries: int
    units: int
    differences: Mapping[str, Difference]
    tests: Mapping[str, McNemar] = field(default_factory=dict)
    of_a: Mapping[str, Estimate] = field(default_factory=dict)  # each run's own metrics with their intervals
    of_b: Mapping[str, Estimate] = field(default_factory=dict)
    alike: bool = False  # every query has the same rank in both runs


@dataclass(frozen=True)
class Matched:
    """Runs with the same queries in the same order; `notes` are sentences about what had to be left out for it."""

    runs: tuple[Measured, ...]
    directions: tuple[str, ...]
    notes: tuple[str, ...]


def matched(runs: Sequence[Measured], direction: str = "", common: bool = False) -> Matched:
    """The runs on the same queries, in `direction` or in all directions that every run was evaluated in.

    Raises UserError where their protocols differ, naming the differences. With `common`, galleries and queries may
    differ by the items that failed in one run, and the queries that all runs have are taken.
    """
    directions, notes = _directions(runs, direction)
    first = runs[0]
    for other in runs[1:]:
        terms = _differing_terms(first, other, common, directions)
        members = [] if common else _differing_members(first, other, directions)
        if terms or members:
            hint = "" if terms else "; --common compares the queries that both have"
            raise UserError(
                f"{first.name} and {other.name} were measured under different protocols: "
                f"{'; '.join([*terms, *members])}{hint}"
            )
    if common:
        notes += _gallery_notes(runs, directions)
    kept = {each: first.queries[each].at(_shared_keys(runs, each)) for each in directions}
    units = frozenset.intersection(*(frozenset(side.units) for side in kept.values()))
    kept = {each: _of_units(side, units) for each, side in kept.items()}
    out = []
    for run in runs:
        queries = {d: replace(run.queries[d].at(side.keys), units=side.units) for d, side in kept.items()}
        out.append(replace(run, queries=queries))
    for each in directions:
        compared, most = len(out[0].queries[each].keys), max(len(run.queries[each].keys) for run in runs)
        if not compared:
            raise UserError(f"{listed([run.name for run in runs])} have no query of {each} in common")
        if compared < most:
            notes.append(
                f"{each}: {compared} of {counted(most, 'query')} compared, {most - compared} left out"
            )
    return Matched(tuple(out), directions, tuple(notes))


def _directions(runs: Sequence[Measured], direction: str) -> tuple[tuple[str, ...], list[str]]:
    """The directions that every run was evaluated in, and a note for each that only some runs were evaluated in."""
    everywhere = tuple(d for d in DIRECTIONS if all(d in run.queries for run in runs))
    some = [d for d in DIRECTIONS if any(d in run.queries for run in runs) and d not in everywhere]
    for run in runs:
        if direction and direction not in run.queries:
            raise UserError(
                f"{run.name} was not evaluated in the direction {direction}, only in {listed([*run.queries])}"
            )
    if direction:
        return (direction,), []
    if not everywhere:
        evaluated = "; ".join(f"{run.name} {listed([*run.queries])}" for run in runs)
        raise UserError(f"the runs were evaluated in no direction together: {evaluated}")
    return everywhere, [
        f"{d} is left out: {listed([run.name for run in runs if d not in run.queries])} was not evaluated in it"
        for d in some
    ]


def _differing_terms(a: Measured, b: Measured, common: bool, directions: Sequence[str]) -> list[str]:
    """The terms in which two protocols differ, each with both values; how items rank only where they are compared."""
    out = []
    for term, words in TERMS.items():
        if term == "v2t_rank" and "v2t" not in directions:
            continue
        x, y = (getattr(run.protocol, term) or (NO_RERANK if term == "rerank" else "") for run in (a, b))
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


def _differing_members(a: Measured, b: Measured, directions: Sequence[str]) -> list[str]:
    """Counts of the items and queries that only one of two runs has.

    split_digest is not compared: it also depends on the order of the items, which decides no rank.
    """
    out = []
    if a.items != b.items:
        out.append(
            f"the gallery ({counted(len(a.items - b.items), 'item')} only in {a.name}, "
            f"{len(b.items - a.items)} only in {b.name})"
        )
    for direction in directions:
        x, y = (set(run.queries[direction].keys) for run in (a, b))
        if x != y:
            out.append(
                f"the queries of {direction} ({len(x - y)} only in {a.name}, {len(y - x)} only in {b.name})"
            )
    return out


def _gallery_notes(runs: Sequence[Measured], directions: Sequence[str]) -> list[str]:
    """Notes on galleries of different sizes, which remain different when queries are left out."""
    out, shared = [], frozenset.intersection(*(run.items for run in runs))
    sizes = {"items": {run.name: len(run.items - shared) for run in runs}}
    if "v2t" in directions:
        captions = {run.name: run.protocol.captions for run in runs}
        sizes["captions"] = {name: count - min(captions.values()) for name, count in captions.items()}
    for noun, more in sizes.items():
        if any(more.values()):
            larger = listed([f"{name} has {count}" for name, count in more.items() if count])
            out.append(f"galleries differ: {larger} more {noun} to find an answer among, which is harder")
    return out


def _shared_keys(runs: Sequence[Measured], direction: str) -> list[Any]:
    """The sorted keys of the queries that all runs have."""
    keys = set.intersection(*(set(run.queries[direction].keys) for run in runs))
    return sorted(keys)


def _of_units(queries: RankedQueries, units: frozenset[str]) -> RankedQueries:
    """The queries of these units.

    The units are those with queries in every direction: a bootstrap sample of other units could hold no query of one
    direction, whose metrics would then be 0 / 0.
    """
    return queries.at(key for key, unit in zip(queries.keys, queries.units, strict=True) if unit in units)


def compare(matching: Matched, seed: int = 0, resamples: int = RESAMPLES) -> list[Pair]:
    """Every pair of runs in every direction, and RSUM if there are both directions.

    p values are corrected over all tests.

    The interval of each single run is drawn with the seed of its own protocol, as its evaluation drew it: if all
    of its queries are compared, it is the interval that the report shows.
    """
    samples = _resampled(matching, seed, resamples)
    estimates = [_estimates(run, matching.directions, seed) for run in matching.runs]
    pairs = []
    for number, a in enumerate(matching.runs):
        for place, b in enumerate(matching.runs[number + 1 :], start=number + 1):
            for direction in samples[number]:
                pair = _pair(a, b, direction, samples[number], samples[place])
                pairs.append(
                    replace(pair, of_a=estimates[number][direction], of_b=estimates[place][direction])
                )
    return corrected(pairs)


def _estimates(run: Measured, directions: Sequence[str], seed: int) -> dict[str, dict[str, Estimate]]:
    """The metrics of one run with their intervals, by direction; RSUM under "both"."""
    queries = {direction: run.queries[direction] for direction in directions}
    number = {
        unit: place for place, unit in enumerate(sorted({u for side in queries.values() for u in side.units}))
    }
    units = {d: np.array([number[unit] for unit in side.units], np.int64) for d, side in queries.items()}
    seed = seed if run.protocol.seed is None else run.protocol.seed
    out = {d: intervals(side.rank, units[d], seed) for d, side in queries.items()}
    if len(queries) == len(DIRECTIONS):
        t2v, v2t = (queries[d].rank for d in DIRECTIONS)
        out["both"] = {"RSUM": rsum(t2v, v2t, (units["t2v"], units["v2t"]), seed)}
    return out


def _pair(a: Measured, b: Measured, direction: str, of_a: Samples, of_b: Samples) -> Pair:
    differences = {
        name: _difference(of_a[direction][name], of_b[direction][name]) for name in of_a[direction]
    }
    queries = a.queries[direction if direction in a.queries else "t2v"]
    pair = Pair(a.name, b.name, direction, len(queries.keys), len(set(queries.units)), differences)
    if direction not in a.queries:
        return pair
    queries_b = b.queries[direction]
    units = np.unique(queries.units, return_inverse=True)[1]
    tests = {f"R@{k}": mcnemar(queries.rank <= k, queries_b.rank <= k, units) for k in TESTED}
    return replace(pair, tests=tests, alike=bool((queries.rank == queries_b.rank).all()))


def _difference(a: Floats, b: Floats) -> Difference:
    less = a - b
    low, high = np.quantile(less[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        float(a[0]), float(b[0]), float(less[0]), float(low), float(high), float(less[1:].std())
    )


def _resampled(matching: Matched, seed: int, resamples: int) -> list[Samples]:
    """The samples of every run's metrics; all runs and directions share the same draws, so differences are paired."""
    first = matching.runs[0]
    units = sorted({unit for d in matching.directions for unit in first.queries[d].units})
    place = {unit: place for place, unit in enumerate(units)}
    unit_of_query = {
        d: np.array([place[unit] for unit in first.queries[d].units]) for d in matching.directions
    }
    most = max(len(units), *(len(each) for each in unit_of_query.values()))
    parts: list[list[Samples]] = [[] for _ in matching.runs]
    for drawn in _draws(len(units), most, seed, resamples):
        for run, kept in zip(matching.runs, parts, strict=True):
            kept.append(
                _with_rsum(
                    {
                        d: weighted(run.queries[d].rank, drawn[:, unit_of_query[d]])
                        for d in matching.directions
                    }
                )
            )
    return [
        {d: {name: np.concatenate([p[d][name] for p in kept]) for name in kept[0][d]} for d in kept[0]}
        for kept in parts
    ]


def _draws(units: int, most: int, seed: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    """Yield counts (B, U) of each unit: first a row of ones, then the counts of draws with replacement, in chunks."""
    random = np.random.default_rng(seed)
    yield np.ones((1, units), np.int64)
    chunk = max(1, SAMPLE_ENTRIES // most)
    for start in range(0, resamples, chunk):
        yield random.multinomial(units, np.full(units, 1 / units), size=min(chunk, resamples - start))


def weighted(rank: Floats, counts: NDArray[np.int64]) -> dict[str, Floats]:
    """The metrics (B,) of ranks (Q,), where query q has the weight counts[b, q] in sample b. counts: (B, Q)."""
    order = np.argsort(rank, kind="stable")
    values, counts = rank[order], counts[:, order]
    reached = np.cumsum(counts, axis=1)
    total = reached[:, -1]
    out = {f"R@{k}": 100 * (counts @ (values <= k)) / total for k in CUTOFFS}
    out["SumR"] = np.sum(list(out.values()), axis=0)
    # MdR is the mean of the two middle queries, which are one query where the total is odd.
    middle = [values[np.argmax(reached > place[:, None], axis=1)] for place in ((total - 1) // 2, total // 2)]
    out["MdR"] = (middle[0] + middle[1]) / 2
    return out | {"MnR": counts @ values / total, "MRR": counts @ (1 / values) / total}


def _with_rsum(figures: Samples) -> Samples:
    """The samples, with RSUM added under "both" if both directions are there."""
    if len(figures) < len(DIRECTIONS):
        return figures
    parts = [figures[d][f"R@{k}"] for d in DIRECTIONS for k in RSUM_CUTOFFS]
    return figures | {"both": {"RSUM": np.sum(parts, axis=0)}}


def mcnemar(a: NDArray[np.bool_], b: NDArray[np.bool_], units: NDArray[np.int64]) -> McNemar:
    """McNemar's test of two runs, from whether each finds each query (Q,).

    units: (Q,), the number of the item that a query is exchanged with.
    """
    less = a.astype(np.int64) - b.astype(np.int64)
    by_unit = np.rint(np.bincount(units, weights=less)).astype(np.int64)
    only_a, only_b = int((less > 0).sum()), int((less < 0).sum())
    return McNemar(only_a, only_b, exchange_p(less), exchange_p(by_unit))


def exchange_p(less: NDArray[np.int64]) -> float:
    """The exact two-sided probability that |sum of +-d| is at least |sum of d|, if all signs are equally likely.

    less: (U,), the number of queries that A finds in each unit, less that of B. With units of one query this is
    McNemar's exact test, the binomial test of the discordant queries. The distribution of the sum is built unit by
    unit, so p is exact and no sample is drawn.
    """
    steps = np.abs(less[less != 0])
    total, seen = int(steps.sum()), abs(int(less.sum()))
    chances = np.zeros(total + 1)  # probability of each sum of the units that are given to A
    chances[0] = 1.0
    for step in steps.tolist():
        chances *= 0.5
        chances[step:] += chances[:-step].copy()
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(chances[sums >= seen].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected for their number after Holm (1979).

    If the corrected values below alpha are called significant, the probability of any false one is at most alpha.
    """
    order = np.argsort(p, kind="stable")
    raised = np.array(p)[order] * np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(1.0, np.maximum.accumulate(raised)) if len(p) else raised
    return [float(value) for value in out]


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, with p values corrected over the tests of all pairs."""
    raised = iter(holm([test.p for pair in pairs for test in pair.tests.values()]))
    return [
        replace(pair, tests={name: replace(t, corrected=next(raised)) for name, t in pair.tests.items()})
        for pair in pairs
    ]


def smallest_detectable(error: float, tests: int) -> float:
    """The smallest detectable difference: a test at ALPHA detects it with probability POWER, four times out of five.

    An approximation by the normal distribution. error: the standard error of the difference; tests: the number of tests
    that p values are corrected for.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - ALPHA / 2 / max(tests, 1)) + normal.inv_cdf(POWER)) * error


def ahead(pair: Pair, name: str) -> str:
    """The name of the run with the better value of a metric; empty if both have the same."""
    value = pair.differences[name].value
    if abs(value) < 1e-9:
        return ""
    return pair.a if (value > 0) != metric(name).lower_is_better else pair.b


def meaning(pair: Pair, tests: int, protocol: Protocol) -> str:
    """A sentence on what the figures of a pair mean; tests: the number of tests that p values are corrected for."""
    if pair.direction == "both":
        return _rsum_meaning(pair, "RSUM")
    if pair.alike:
        return f"{pair.a} and {pair.b} rank the right answer of every query alike"
    significant = [name for name, test in pair.tests.items() if test.corrected < ALPHA]
    if significant:
        gains = [f"{ahead(pair, name)} finds {_points(pair, name)}" for name in significant]
        rest = [name for name in pair.tests if name not in significant]
        more = f"; at {listed(rest)} no difference is shown" if rest else ""
        return f"{'; '.join(gains)}: significant after correction for {tests} tests{more}"
    first = next(iter(pair.tests))
    noun = member(protocol.kind)
    queries = f"these {counted(pair.queries, 'query')}"
    if pair.units < pair.queries:
        queries += f" of {counted(pair.units, noun)}"
    if pair.differences[first].error == 0:
        return f"no difference that {queries} can show: at {first} both find the same"
    detectable = smallest_detectable(pair.differences[first].error, tests)
    best = ahead(pair, first)
    now = f"{best} finds {_points(pair, first)}" if best else f"both find as many within {first}"
    detectable_words = (
        f"the smallest detectable difference is about {metric(first).printed(detectable)} points"
    )
    return f"no difference that {queries} can show: {now}; {detectable_words}"


def _points(pair: Pair, name: str) -> str:
    """The lead of the run that is ahead, for instance "3.1 points more at R@1 (0.4 to 5.9)"."""
    d, printed = pair.differences[name], metric(name).printed
    low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
    return f"{printed(abs(d.value))} points more at {name} ({printed(low)} to {printed(high)})"


def _rsum_meaning(pair: Pair, name: str) -> str:
    d, printed = pair.differences["RSUM"], metric("RSUM").printed
    best = ahead(pair, "RSUM")
    if not best:
        return f"{pair.a} and {pair.b} have the same {name}"
    low, high = (d.low, d.high) if d.value > 0 else (-d.high, -d.low)
    says = "which leaves out 0" if low > 0 else "which holds 0: no difference is shown"
    return f"{best} has {printed(abs(d.value))} more {name}, 95 % interval {printed(low)} to {printed(high)}, {says}"


def as_json(matching: Matched, pairs: Sequence[Pair]) -> dict[str, Any]:
    """A comparison as plain data, with what each pair's figures mean."""
    tests, protocol = sum(len(pair.tests) for pair in pairs), matching.runs[0].protocol
    runs = [
        {"name": run.name, "folder": str(run.folder), "protocol": run.protocol.as_json()}
        for run in matching.runs
    ]
    compared = []
    for pair in pairs:
        tested = {name: _test(pair, name, tests) for name in pair.tests}
        compared.append(asdict(pair) | {"tests": tested, "meaning": meaning(pair, tests, protocol)})
    return {"runs": runs, "notes": list(matching.notes), "tests": tests, "pairs": compared}


def _test(pair: Pair, name: str, tests: int) -> dict[str, Any]:
    test = pair.tests[name]
    least = smallest_detectable(pair.differences[name].error, tests)
    return asdict(test) | {"significant": test.corrected < ALPHA, "smallest_shown": least}
