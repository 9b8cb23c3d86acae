"""What the report says of ranks and hubs: curves, bins and limits as pure functions."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from flows.results.report import hubness, ranks
from flows.results.report.ranks import RankedQueries
from trainers.measure.hubness import hubness as measured_hubness
from trainers.measure.metrics import chance as measured_chance


def drawn_ranks(count: int, gallery: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, gallery + 1, count).astype(np.float64)


def test_recall_never_falls_with_k_and_ends_at_all_whatever_the_order_of_the_queries() -> None:
    drawn = drawn_ranks(200, 50)
    curve = ranks.recall(drawn, range(1, 51))
    assert curve == sorted(curve) and curve[-1] == 100
    assert curve == ranks.recall(np.random.default_rng(1).permutation(drawn), range(1, 51))
    assert curve == pytest.approx([100 * float(np.mean(drawn <= k)) for k in range(1, 51)])


def test_a_tied_answer_counts_where_its_mean_rank_says() -> None:
    assert ranks.recall(np.array([1.5]), (1, 2)) == [0, 100]


def test_chance_is_what_counting_all_orders_gives_and_what_the_protocol_says() -> None:
    gallery, right = 6, (1, 2, 4)
    for k in range(1, gallery + 1):
        chosen = [set(places) for places in combinations(range(gallery), k)]
        shares = [np.mean([bool(set(range(m)) & places) for places in chosen]) for m in right]
        assert ranks.chance(np.array(right), gallery, [k])[0] == pytest.approx(100 * np.mean(shares))
    many = np.random.default_rng(0).integers(1, 5, 40)
    told = measured_chance(700, many)
    assert ranks.chance(many, 700, (1, 5, 10, 100)) == pytest.approx(
        [told[f"R@{k}"] for k in (1, 5, 10, 100)]
    )


@pytest.mark.parametrize("gallery", [1, 2, 7, 1000, 12345])
def test_cutoffs_and_labels_lie_in_the_gallery_and_hold_its_ends(gallery: int) -> None:
    at, shown = ranks.cutoffs(gallery), ranks.ticks(gallery)
    assert at[0] == shown[0] == 1 and at[-1] == gallery and max(shown) <= gallery
    assert at == sorted(set(at)) and len(at) <= ranks.MOST_POINTS and len(shown) <= 10


@pytest.mark.parametrize("gallery", [2, 33, 294, 1000, 99_999])
def test_labels_under_the_curves_do_not_touch_and_powers_of_ten_come_first(gallery: int) -> None:
    shown = ranks.ticks(gallery)
    kept = ranks.uncrowded(shown, gallery)
    assert {k for k in shown if str(k).strip("0") == "1" and k <= 1000} <= set(kept) <= set(shown)
    left = [(ranks._x(k, gallery), 4 * len(f"{k:,}")) for k in kept]
    assert all(a + wide < b - other for (a, wide), (b, other) in pairwise(left))


def test_names_are_spread_without_overlap_in_their_order_and_within_the_picture() -> None:
    generator = np.random.default_rng(0)
    for count in range(1, 9):
        wanted = generator.uniform(0, 100, count).tolist()
        placed = ranks.spread_out(wanted, 10, 0, 100)
        assert np.argsort(placed).tolist() == np.argsort(wanted).tolist()
        assert (np.diff(sorted(placed)) >= 10 - 1e-9).all() and min(placed) >= 0 and max(placed) <= 100 + 1e-9
    assert ranks.spread_out([10, 40, 90], 10, 0, 100) == [10, 40, 90]
    assert sorted(ranks.spread_out([100] * 4, 50, 0, 100)) == [0, 50, 100, 150]  # no room: none is lost


def test_a_method_keeps_its_colour_where_another_is_missing_in_a_direction() -> None:
    some = RankedQueries(drawn_ranks(30, 20), np.ones(30, np.int64), 20)
    first, second = ranks.curves({"a": {"t2v": some}, "b": {"t2v": some, "v2t": some}}, "video")
    assert [(line.name.split()[0], line.style) for line in first.lines] == [
        ("a", "s0"), ("b", "s1"), ("chance", "chance"),
    ]  # fmt: skip
    assert [line.style for line in second.lines] == ["s1", "chance"]
    assert first.title == "Text to video" and second.title == "Video to text"
    assert first.rows[0][1:] == first.rows[1][1:] and first.columns[1] == "R@1"


@pytest.mark.parametrize("gallery", [1, 2, 33, 1000])
def test_rank_bins_double_cover_the_gallery_and_hold_every_query_once(gallery: int) -> None:
    ends, shares = ranks.rank_bins(drawn_ranks(77, gallery), gallery)
    assert ends[0] == 1 and ends[-1] == gallery and sum(shares) == pytest.approx(100)
    assert all(b <= 2 * a for a, b in pairwise(ends))
    assert shares[0] == pytest.approx(100 * float((drawn_ranks(77, gallery) == 1).mean()))


def test_bars_are_as_high_as_they_say_and_the_rare_can_be_seen() -> None:
    drawn = ranks.bars([50, 100, 0.01, 0], ["a", "b", "c", "d"], [100, 25, 0, 0], {1})
    assert drawn[1].height == pytest.approx(2 * drawn[0].height, abs=0.1) and drawn[3].height == 0
    assert drawn[2].height > 1 and [bar.strong for bar in drawn] == [False, True, False, False]
    assert drawn[0].chance == drawn[1].top
    assert all(a.left + a.width <= b.left for a, b in pairwise(drawn))


def test_occurrence_bins_keep_those_in_none_apart_and_lose_nobody() -> None:
    for counts in (np.array([0, 0, 3]), np.random.default_rng(0).poisson(40, 500), np.array([7])):
        stretches, sizes = hubness.occurrence_bins(counts)
        assert stretches[0] == (0, 0) and sizes[0] == (counts == 0).sum() and sum(sizes) == len(counts)
        assert all(a[1] + 1 == b[0] for a, b in pairwise(stretches))
        assert len(stretches) <= hubness.MOST_BINS


def test_hubs_are_those_that_the_measured_share_of_places_is_of() -> None:
    counts = np.random.default_rng(0).negative_binomial(1, 0.1, 300)
    found = hubness.hubs_of(counts)
    assert counts[found].sum() / counts.sum() == pytest.approx(measured_hubness(counts, 10).hub_share)
    assert (np.diff(counts[found]) <= 0).all()
    assert {hubness.status(int(counts[place]), counts) for place in found} == {"a hub"}
    assert hubness.status(0, counts) == "an anti-hub" and hubness.status(1, counts) == "no hub"
    assert len(hubness.hubs_of(np.full(9, 4))) == 0
