"""What the report says of ranks and hubs: curves, bins and limits as pure functions."""

from __future__ import annotations

import re
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
    at = [
        (np.log(k) / np.log(gallery), 0.016 * len(f"{k:,}")) for k in kept
    ]  # half a label: 5 of 300 pixels a digit
    assert all(a + wide < b - other for (a, wide), (b, other) in pairwise(at))


def ranked(count: int = 30, gallery: int = 20) -> RankedQueries:
    return RankedQueries(
        drawn_ranks(count, gallery), np.ones(count, np.int64), gallery, np.arange(count) // 2
    )


def test_a_method_keeps_its_style_where_another_is_missing_in_a_direction() -> None:
    first, second = ranks.curves({"a": {"t2v": ranked()}, "b": {"t2v": ranked(), "v2t": ranked()}}, "video")
    styles = {key.name: key.style.variable if key.style else "" for key in first.keys}
    assert styles == {"a": "s0", "b": "s1", "chance": ""}
    assert [key.name for key in second.keys] == ["b", "chance"] and second.keys[0].style == first.keys[
        1
    ].style
    assert first.title == "Text to video" and second.title == "Video to text"
    assert first.rows[0][1:] == first.rows[1][1:] and first.columns[1] == "R@1"


def test_a_band_holds_the_recall_and_is_wider_where_captions_of_an_item_are_found_together() -> None:
    random = np.random.default_rng(0)
    ranks_of_items = random.integers(1, 50, 40).astype(np.float64)
    together, at = np.repeat(ranks_of_items, 5), [1, 5, 10, 25, 50]
    units = np.repeat(np.arange(40), 5)
    low, high = ranks.band(together, units, at)
    curve = np.array(ranks.recall(together, at))
    assert (low <= curve).all() and (curve <= high).all() and low[-1] == high[-1] == 100
    alone = ranks.band(together, np.arange(200), at)
    assert (high - low)[1] > 1.5 * (alone[1] - alone[0])[1]
    draws = [np.mean(random.choice(ranks_of_items, 40) <= 10) for _ in range(2000)]  # a slow twin
    assert low[2] == pytest.approx(100 * np.quantile(draws, 0.025), abs=4)
    assert high[2] == pytest.approx(100 * np.quantile(draws, 0.975), abs=4)


def test_the_panels_of_a_direction_share_one_scale_that_holds_every_bar() -> None:
    def heights(picture: str) -> list[float]:
        """The heights of the bars, in units of the picture."""
        bars = re.findall(
            r'd="M [\d.]+ ([\d.]+) \nL [\d.]+ [\d.]+ \nL [\d.]+ ([\d.]+) [^"]*"[^>]*var\(--(?:reach|accent)\)',
            picture,
        )
        return [float(floor) - float(top) for floor, top in bars]

    few = RankedQueries(np.array([1.0] * 9 + [3.0]), np.ones(10, np.int64), 8, np.arange(10))
    even = RankedQueries(np.arange(1.0, 9.0), np.ones(8, np.int64), 8, np.arange(8))
    (charts,) = ranks.rank_histograms({"few": {"t2v": few}, "even": {"t2v": even}}, "video").values()
    tall, low = (heights(chart.picture) for chart in charts)
    assert tall[0] / low[0] == pytest.approx(
        90 / 12.5, rel=0.02
    )  # 90 % and 12.5 % of the queries have rank 1
    assert "Queries (%)" in charts[0].picture and "Rank, from" in charts[0].picture


@pytest.mark.parametrize("gallery", [1, 2, 33, 1000])
def test_rank_bins_double_cover_the_gallery_and_hold_every_query_once(gallery: int) -> None:
    ends, shares = ranks.rank_bins(drawn_ranks(77, gallery), gallery)
    assert ends[0] == 1 and ends[-1] == gallery and sum(shares) == pytest.approx(100)
    assert all(b <= 2 * a for a, b in pairwise(ends))
    assert shares[0] == pytest.approx(100 * float((drawn_ranks(77, gallery) == 1).mean()))


def test_a_figure_is_the_same_each_time_shares_no_id_with_another_and_keeps_to_the_colours_of_the_page() -> (
    None
):
    drawn = ranks.curves({"a": {"t2v": ranked(), "v2t": ranked()}}, "video")
    again = ranks.curves({"a": {"t2v": ranked(), "v2t": ranked()}}, "video")
    assert [chart.picture for chart in drawn] == [chart.picture for chart in again]
    ids = [set(re.findall(r'id="([^"]+)"', chart.picture)) for chart in drawn]
    assert ids[0] and not ids[0] & ids[1]
    for chart in drawn:
        assert "<style" not in chart.picture and "font-family" not in chart.picture
        assert not re.search(r"(fill|stroke): #", chart.picture)
        assert "Recall at K (%)" in chart.picture and "K, number of first results" in chart.picture


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
