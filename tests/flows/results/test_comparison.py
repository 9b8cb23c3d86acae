"""Paired comparison: a slow twin of the bootstrap, exact tests by enumeration and scipy, what must not matter."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from flows.results.comparison import (
    Matched,
    compare,
    exchange_p,
    holm,
    matched,
    mcnemar,
    meaning,
    smallest_detectable,
    weighted,
)
from flows.results.measured import Measured, RankedQueries
from pipeline.errors import UserError
from trainers.measure.evaluated import Protocol, PublishedProtocol, Spread
from trainers.measure.metrics import metrics, rsum, units_of
from trainers.relevance import Relevance

PROTOCOL = Protocol(
    kind="video", split="test", split_digest="0", items=0, captions=0, captions_per_item=Spread(min=1, mean=1, max=1),
    directions={}, ties="mean", v2t_rank="best", post_processing="none", intervals="none",
)  # fmt: skip


def ranked(ranks, of) -> RankedQueries:
    """Queries named by their place; `of` is the item of each."""
    keys = tuple(((f"q{number:04}", f"v{item:03}"), 1) for number, item in enumerate(of))
    return RankedQueries(keys, tuple(f"v{item:03}" for item in of), np.asarray(ranks, np.float64))


def run(name: str, texts, of, items=None, **protocol) -> Measured:
    sides = {"t2v": ranked(texts, of)}
    if items is not None:
        sides["v2t"] = ranked(items, range(len(items)))
    gallery = frozenset(f"v{item:03}" for item in of)
    measured_under = PROTOCOL.model_copy(update={"captions": len(of), **protocol})
    return Measured(name, Path(name), measured_under, gallery, sides)


def under(one: Measured, **protocol: object) -> Measured:
    """The run under a protocol that differs in some terms."""
    return replace(one, protocol=one.protocol.model_copy(update=protocol))


def drawn(seed: int, items: int = 20, each: int = 4) -> tuple[Measured, Measured]:
    """Two runs, both directions, captions of an item alike."""
    random = np.random.default_rng(seed)
    of = np.repeat(np.arange(items), random.integers(1, each + 1, items))
    level = random.integers(0, 8, items)

    def ranks(rows):
        return 1 + random.poisson(level[rows])

    return tuple(run(name, ranks(of), of, ranks(np.arange(items))) for name in "ab")


def told(a: Measured, b: Measured, **options):
    return {pair.direction: pair for pair in compare(matched([a, b]), **options)}


def test_counting_a_query_twice_is_having_it_twice():
    random = np.random.default_rng(0)
    rank = random.integers(1, 30, 40) + random.choice([0, 0.5], 40)
    counts = random.integers(0, 4, (5, 40))
    found = weighted(rank, counts)
    for row in range(5):
        expected = metrics(np.repeat(rank, counts[row]))
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def test_intervals_are_those_of_a_slow_twin_that_repeats_items_with_all_their_captions():
    a, b = drawn(1)
    found = told(a, b, seed=5, resamples=50)
    units = sorted(set(a.queries["t2v"].units))
    samples: dict[tuple[str, str], list[float]] = {}
    random = np.random.default_rng(5)
    for _ in range(50):
        times = dict(zip(units, random.multinomial(len(units), [1 / len(units)] * len(units)), strict=True))
        sides = []
        for one in (a, b):
            figures = {}
            for direction, side in one.queries.items():
                rows = [n for n, unit in enumerate(side.units) for _ in range(times[unit])]
                figures[direction] = metrics(side.rank[rows])
            figures["both"] = {"RSUM": sum(figures[d][f"R@{k}"] for d in ("t2v", "v2t") for k in (1, 5, 10))}
            sides.append(figures)
        for direction in sides[0]:
            for name, value in sides[0][direction].items():
                samples.setdefault((direction, name), []).append(value - sides[1][direction][name])
    for (direction, name), values in samples.items():
        d = found[direction].differences[name]
        assert (d.low, d.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975]))), (direction, name)
        assert d.error == pytest.approx(np.std(values))


def test_values_are_those_of_the_leaderboard():
    a, b = drawn(2)
    found = told(a, b, resamples=3)
    for direction in ("t2v", "v2t"):
        expected = metrics(a.queries[direction].rank)
        values = {name: d.a for name, d in found[direction].differences.items()}
        assert values == pytest.approx(expected)
    of = np.array([int(unit[1:]) for unit in b.queries["t2v"].units])
    units = units_of(Relevance.one_each(of, len(b.queries["v2t"].keys)))
    assert found["both"].differences["RSUM"].b == pytest.approx(
        rsum(b.queries["t2v"].rank, b.queries["v2t"].rank, units, seed=0).value
    )


def test_a_against_b_is_minus_b_against_a():
    a, b = drawn(3)
    one, other = told(a, b), told(b, a)
    for direction, pair in one.items():
        for name, d in pair.differences.items():
            back = other[direction].differences[name]
            assert (d.value, d.low, d.high) == pytest.approx((-back.value, -back.high, -back.low))
        for name, test in pair.tests.items():
            back = other[direction].tests[name]
            assert (test.only_a, test.only_b, test.p) == (back.only_b, back.only_a, back.p)


def test_a_run_and_itself_differ_in_nothing():
    a, _ = drawn(4)
    for pair in told(a, replace(a, name="again")).values():
        assert all((d.value, d.low, d.high, d.error) == (0, 0, 0, 0) for d in pair.differences.values())
        assert all((t.only_a, t.only_b, t.p, t.corrected) == (0, 0, 1, 1) for t in pair.tests.values())
        if pair.direction != "both":
            assert meaning(pair, 6, PROTOCOL) == "a and again rank the right answer of every query alike"
        else:
            assert meaning(pair, 6, PROTOCOL) == "a and again have the same RSUM"


def test_the_order_of_the_queries_changes_nothing():
    a, b = drawn(5)
    random = np.random.default_rng(0)
    shuffled = {
        d: side.at(side.keys[i] for i in random.permutation(len(side.keys))) for d, side in b.queries.items()
    }
    assert shuffled["t2v"].keys != b.queries["t2v"].keys
    assert told(a, replace(b, queries=shuffled)) == told(a, b)


def test_captions_that_all_fare_as_their_item_does_are_worth_one():
    """Naming every caption four times brings no information: intervals and p stay, McNemar's over queries falls."""
    random = np.random.default_rng(6)
    of = np.arange(30)
    ranks = [random.choice([1, 7], 30, p=share) for share in ([0.7, 0.3], [0.3, 0.7])]
    once = told(*(run(name, r, of) for name, r in zip("ab", ranks, strict=True)))["t2v"]
    four = told(*(run(name, np.repeat(r, 4), np.repeat(of, 4)) for name, r in zip("ab", ranks, strict=True)))[
        "t2v"
    ]
    for name, d in once.differences.items():
        assert (d.low, d.high) == pytest.approx((four.differences[name].low, four.differences[name].high))
    assert (
        four.tests["R@1"].p == pytest.approx(once.tests["R@1"].p) == pytest.approx(once.tests["R@1"].by_query)
    )
    assert four.tests["R@1"].by_query < once.tests["R@1"].by_query / 10


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 0), (10, 2), (7, 7), (3, 20), (400, 310)])
def test_mcnemar_is_the_exact_binomial_of_scipy(only_a, only_b):
    found = np.r_[np.ones(only_a), np.zeros(only_b), np.ones(9)] > 0
    other = np.r_[np.zeros(only_a), np.ones(only_b), np.ones(9)] > 0
    test = mcnemar(found, other, np.arange(len(found)))
    n = only_a + only_b
    expected = binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert (test.only_a, test.only_b) == (only_a, only_b)
    assert test.by_query == pytest.approx(expected, abs=1e-12) and test.p == test.by_query


def test_mcnemar_by_hand():
    ten_to_two = np.r_[np.ones(10), -np.ones(2)].astype(int)
    assert exchange_p(ten_to_two) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert exchange_p(np.array([1] * 5)) == pytest.approx(2 / 2**5)
    assert exchange_p(np.array([4, 0, -1])) == pytest.approx(1.0)  # |3| or |5| whatever the signs
    assert exchange_p(np.array([4, 1])) == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_exchanging_items_is_exact(seed):
    less = np.random.default_rng(seed).integers(-3, 4, 9)
    sums = [abs(int(np.dot(signs, less))) for signs in itertools.product((-1, 1), repeat=len(less))]
    assert exchange_p(less) == pytest.approx(np.mean([total >= abs(less.sum()) for total in sums]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def simulated(random: np.random.Generator, gain: float, items: int = 60, each: int = 5):
    """Two runs whose luck with an item is shared by its captions; a finds 100 * gain points more in truth."""
    of = np.repeat(np.arange(items), each)
    chances = np.clip(random.beta(0.5, 0.5, (2, items)) * (1 - gain) + np.array([[gain], [0.0]]), 0, 1)
    found = random.random((2, len(of))) < chances[:, of]
    return tuple(run(name, np.where(hits, 1, 20), of) for name, hits in zip("ab", found, strict=True))


@pytest.mark.slow
def test_intervals_cover_the_truth_and_equal_runs_are_seldom_distinguished():
    """200 pairs of runs that are equal in truth, each caption sharing its item's luck."""
    random = np.random.default_rng(0)
    covered = wrong = naive = 0
    for _ in range(200):
        pair = told(*simulated(random, 0.0), resamples=200)["t2v"]
        d, test = pair.differences["R@1"], pair.tests["R@1"]
        covered += d.low <= 0 <= d.high
        wrong += test.p < 0.05
        naive += test.by_query < 0.05
    assert 0.91 <= covered / 200 <= 0.98
    assert wrong / 200 <= 0.08
    assert naive / 200 > 0.2  # what taking captions for independent would do


@pytest.mark.slow
def test_the_smallest_detectable_difference_is_detected_four_times_out_of_five():
    random = np.random.default_rng(1)
    error = told(*simulated(random, 0.0), resamples=400)["t2v"].differences["R@1"].error
    gain = smallest_detectable(error, 1) / 100
    found = sum(told(*simulated(random, gain), resamples=2)["t2v"].tests["R@1"].p < 0.05 for _ in range(100))
    assert 0.65 <= found / 100 <= 0.92


def test_p_values_are_corrected_over_all_pairs_and_directions():
    a, b = drawn(7)
    c, _ = drawn(7)
    pairs = compare(matched([a, b, replace(c, name="c")]), resamples=3)
    tests = [test for pair in pairs for test in pair.tests.values()]
    assert [(pair.a, pair.b) for pair in pairs if pair.direction == "t2v"] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert len(tests) == 3 * 2 * 3
    assert [test.corrected for test in tests] == pytest.approx(holm([test.p for test in tests]))


def test_what_it_means_is_a_sentence():
    of = np.arange(140)
    good, bad = np.where(of < 90, 1, 4), np.where(of < 50, 1, 4)
    pair = told(run("new", good, of), run("old", bad, of))["t2v"]
    assert meaning(pair, 3, PROTOCOL).startswith("new finds 28.6 points more at R@1 (2")
    assert ": significant after correction for 3 tests; at R@5 and R@10 no difference is shown" in meaning(
        pair, 3, PROTOCOL
    )
    back = told(run("old", bad, of), run("new", good, of))["t2v"]
    assert meaning(back, 3, PROTOCOL).startswith("new finds 28.6 points more at R@1 (2")
    close = np.where(of < 52, 1, 4)
    pair = told(run("new", close, of), run("old", bad, of))["t2v"]
    assert meaning(pair, 3, PROTOCOL).startswith(
        "no difference that these 140 queries can show: new finds 1.4 points more at R@1 (0.0 to 3.6); "
        "the smallest detectable difference is about 3."
    )
    late = told(run("new", np.where(bad == 4, 3, 1), of), run("old", bad, of))["t2v"]
    assert (
        meaning(late, 3, PROTOCOL)
        == "no difference that these 140 queries can show: at R@1 both find the same"
    )


def refused(*runs: Measured, **options) -> str:
    with pytest.raises(UserError) as error:
        matched(runs, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "pointcloud"}, "what is ranked (video / pointcloud)"),
        ({"split": "val"}, "the split (test / val)"),
        ({"ties": "strict"}, "the rank of ties (mean / strict)"),
        ({"rerank": "two stages"}, "the scoring (every pair is scored / two stages)"),
        ({"post_processing": "querybank"}, "the post-processing (none / querybank)"),
    ],
)
def test_runs_under_different_protocols_are_refused_with_the_difference(change, words):
    a, b = drawn(8)
    said = refused(a, under(b, **change))
    assert said == f"a and b were measured under different protocols: {words}"


def test_all_differences_are_reported_at_once_and_published_protocols_count():
    a, b = (
        under(one, split=name, corpus=PublishedProtocol(name=name))
        for one, name in zip(drawn(8), ("1k-A", "full"), strict=True)
    )
    assert "the split (1k-A / full); the published protocol (1k-A / full)" in refused(a, b)


def test_what_decides_no_rank_may_differ():
    a, b = drawn(8)
    assert matched([a, under(b, split_digest="another order", intervals="another seed")]).notes == ()


def lost(one: Measured, items: set[str]) -> Measured:
    """The run as it would be without some items; ranks stay."""
    sides = {
        d: side.at(k for k, u in zip(side.keys, side.units, strict=True) if u not in items)
        for d, side in one.queries.items()
    }
    left = len(sides["t2v"].keys)
    kept = under(one, captions=left, dropped=one.protocol.captions - left)
    return replace(kept, queries=sides, items=one.items - items)


def test_lost_items_are_named_as_the_difference_and_left_out_when_asked():
    a, b = drawn(9)
    part = lost(b, {"v003", "v007"})
    said = refused(a, part)
    gone = len(a.queries["t2v"].keys) - len(part.queries["t2v"].keys)
    assert "the gallery (2 items only in a, 0 only in b)" in said
    assert (
        f"the queries of t2v ({gone} only in a, 0 only in b)" in said
        and said.endswith("both have")
        and "--common" in said
    )
    found = matched([a, part], common=True)
    assert [note.partition(":")[0] for note in found.notes] == ["galleries differ"] * 2 + ["t2v", "v2t"]
    assert "a has 2 more items" in found.notes[0] and f"a has {gone} more captions" in found.notes[1]
    assert f"{gone} left out" in found.notes[2]
    same = Matched((lost(a, {"v003", "v007"}), part), ("t2v", "v2t"), ())
    for pair, expected in zip(compare(found), compare(same), strict=True):
        assert pair.differences == expected.differences and pair.tests == expected.tests


def test_another_split_is_not_the_rest_of_this_one():
    a, b = drawn(9)
    other = replace(lost(b, {"v003"}), protocol=under(b, captions=9).protocol)
    assert "the captions of the split before any failed" in refused(a, other, common=True)


def test_a_direction_that_one_run_was_not_asked_in_is_left_out_with_a_word():
    a, b = drawn(10)
    text_only = replace(b, queries={"t2v": b.queries["t2v"]})
    found = matched([a, text_only])
    assert found.directions == ("t2v",) and found.notes == ("v2t is left out: b was not evaluated in it",)
    assert [pair.direction for pair in compare(found, resamples=3)] == ["t2v"]
    assert refused(a, text_only, direction="v2t") == "b was not evaluated in the direction v2t, only in t2v"
    item_only = replace(a, queries={"v2t": a.queries["v2t"]})
    assert refused(item_only, text_only) == "the runs were evaluated in no direction together: a v2t; b t2v"


def test_runs_without_a_query_in_common_are_refused():
    a, b = drawn(11)
    keys = tuple(((f"other {key}",), 1) for key in b.queries["t2v"].keys)
    other = replace(b, queries={"t2v": replace(b.queries["t2v"], keys=keys)})
    assert "have no query of t2v in common" in refused(a, other, direction="t2v", common=True)
