"""Hubness against a slow twin, under maps that must not change it, and with a planted hub."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from trainers.measure.hubness import ColumnTop, Hubness, hubness, occurrences
from trainers.measure.metrics import top


def scores(queries: int = 40, gallery: int = 30, levels: int = 0, seed: int = 0) -> NDArray[np.float32]:
    """Random scores; of few levels, nearly all are tied."""
    random = np.random.default_rng(seed)
    drawn = (
        random.integers(0, levels, (queries, gallery)) if levels else random.normal(size=(queries, gallery))
    )
    return drawn.astype(np.float32)


def counted(values: NDArray[np.float32], k: int = 10) -> NDArray[np.int64]:
    return occurrences(top(values, k)[0], values.shape[1])


def slow(values: NDArray[np.float32], k: int) -> tuple[list[int], Hubness]:
    """The definitions word by word, in plain Python."""
    held: Counter[int] = Counter()
    for row in values.tolist():
        held.update(sorted(range(len(row)), key=lambda place: (-row[place], place))[:k])
    counts = [held[place] for place in range(values.shape[1])]
    mean = sum(counts) / len(counts)
    std = (sum((n - mean) ** 2 for n in counts) / len(counts)) ** 0.5
    third = sum((n - mean) ** 3 for n in counts) / len(counts)
    hubs = [n for n in counts if n > mean + 2 * std]
    return counts, Hubness(
        k,
        mean,
        max(counts),
        third / std**3 if std else 0.0,
        counts.count(0) / len(counts),
        sum(hubs) / sum(counts),
    )


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("k", [1, 10, 30])
def test_figures_are_those_of_a_slow_twin_that_breaks_ties_by_position(levels: int, k: int) -> None:
    values = scores(levels=levels)
    counts, figures = slow(values, k)
    assert counted(values, k).tolist() == counts
    assert vars(hubness(counted(values, k), k)) == pytest.approx(vars(figures))


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("rows", [1, 3, 7, 40])
def test_best_rows_of_columns_do_not_depend_on_how_the_rows_are_cut(levels: int, rows: int) -> None:
    values, best = scores(levels=levels), ColumnTop(30)
    for first in range(0, 40, rows):
        best.add(values[first : first + rows])
    assert np.array_equal(best.positions, np.argsort(-values.T, axis=1, kind="stable")[:, :10])
    assert np.array_equal(best.scores, -np.sort(-values.T, axis=1)[:, :10])


def test_fewer_rows_than_places_are_all_kept() -> None:
    best = ColumnTop(5)
    best.add(scores(4, 5))
    assert best.positions.shape == (5, 4)
    assert np.array_equal(np.sort(best.positions, axis=1), np.tile(np.arange(4), (5, 1)))


def test_a_map_that_keeps_the_order_changes_nothing() -> None:
    values = scores()
    for mapped in (np.exp(values), 1000 * values - 5, np.arctan(values)):
        assert hubness(counted(mapped), 10) == hubness(counted(values), 10)


def test_permuted_queries_and_members_leave_the_figures_and_move_the_counts() -> None:
    values, random = scores(), np.random.default_rng(1)
    queries, members = random.permutation(40), random.permutation(30)
    moved = values[queries][:, members]
    assert np.array_equal(counted(moved), counted(values)[members])
    assert vars(hubness(counted(moved), 10)) == pytest.approx(vars(hubness(counted(values), 10)))


def test_a_planted_hub_is_found() -> None:
    values = scores(200, 100)
    plain = hubness(counted(values), 10)
    values[:, 17] += 100
    found = hubness(counted(values), 10)
    assert counted(values)[17] == found.most == 200
    assert found.hub_share >= 200 / 2000 > plain.hub_share
    assert found.skewness > 3 > plain.skewness


def test_equal_scores_everywhere_make_the_first_members_hubs() -> None:
    found = hubness(counted(np.zeros((8, 40), np.float32)), 10)
    assert found.most == 8 and found.anti_hub_share == 0.75
    assert found == hubness(counted(np.zeros((8, 40), np.float32)), 10)


def test_a_gallery_no_larger_than_k_has_no_hubs_and_no_skew() -> None:
    assert hubness(counted(scores(9, 6)), 6) == Hubness(6, 9.0, 9, 0.0, 0.0, 0.0)


def test_no_rankings_are_refused() -> None:
    with pytest.raises(ValueError, match="hubness of no rankings"):
        hubness(np.zeros(3, np.int64), 10)
