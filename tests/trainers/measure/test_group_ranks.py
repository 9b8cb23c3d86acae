"""Ranks among groups of captions against a twin that holds the whole matrix of items and groups."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainers.measure.group_ranks import CAPTIONS, GROUPS, item_ranks
from trainers.measure.metrics import Ranks, metrics
from trainers.relevance import Relevance


def ranked(scores: NDArray, relevance: Relevance, convention: str, cuts: tuple[int, ...] = ()) -> Ranks:
    """The ranks of items, with the rows cut at the given places."""
    ranks = item_ranks(relevance, convention)
    blocks = [slice(a, b) for a, b in itertools.pairwise((0, *cuts, len(scores)))]
    for where in blocks:
        ranks.find(scores[where], relevance[where])
    for where in blocks:
        ranks.count(scores[where], relevance[where])
    return ranks.ranks()


def twin(scores: NDArray, positives: list[list[int]]) -> tuple[list[int], list[float]]:
    """Optimistic and mean rank of each item with a caption, in plain Python over the orders of equal scores."""
    strict, mean = [], []
    for item in range(scores.shape[1]):
        groups: dict[object, list[int]] = {}
        for caption, right in enumerate(positives):
            groups.setdefault(right[0] if right else f"caption {caption}", []).append(caption)
        of_item = [c for c, right in enumerate(positives) if item in right]
        if not of_item:
            continue
        best = max(scores[c, item] for c in of_item)
        wrong = [max(scores[c, item] for c in g) for g in groups.values() if not {*g} & {*of_item}]
        at_best = [g for g in groups.values() if any(c in of_item and scores[c, item] == best for c in g)]
        ties, own = sum(score == best for score in wrong), len(at_best)
        strict.append(1 + sum(score > best for score in wrong))
        orders = list(
            itertools.combinations(range(ties + own), own)
        )  # the places of the right groups among equals
        mean.append(strict[-1] + sum(min(order) for order in orders) / len(orders))
    return strict, mean


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sets(st.integers(1, 9), max_size=4))
def test_group_ranks_equal_those_of_the_whole_matrix_in_any_order_of_captions_and_wherever_rows_are_cut(
    seed: int, several: bool, cuts: set[int]
) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-3, 3, (10, 6)).astype(np.float32)
    most = 4 if several else 2
    positives = [
        random.choice(6, random.integers(0 if several else 1, most), replace=False).tolist() for _ in scores
    ]
    ranks = ranked(scores, Relevance.of(positives, 6), GROUPS, tuple(sorted(cuts)))
    strict, mean = twin(scores, positives)
    assert ranks.strict.tolist() == strict
    assert ranks.mean == pytest.approx(mean)


@given(st.integers(0, 2**32 - 1))
def test_both_conventions_have_one_first_place_and_groups_never_the_worse_rank(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, relevance = random.random((12, 4)), Relevance.one_each(random.integers(0, 4, 12), 4)
    groups, captions = (ranked(scores, relevance, convention).strict for convention in (GROUPS, CAPTIONS))
    assert ((groups == 1) == (captions == 1)).all() and (groups <= captions).all()


@given(st.integers(0, 2**32 - 1))
def test_conventions_are_one_where_every_item_has_one_caption(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(-3, 3, (6, 6)).astype(np.float32)
    relevance = Relevance.one_each(random.permutation(6), 6)
    groups, captions = (ranked(scores, relevance, convention) for convention in (GROUPS, CAPTIONS))
    assert (groups.strict == captions.strict).all() and (groups.mean == captions.mean).all()


def test_ranks_of_two_items_by_hand() -> None:
    """Item 0 is passed by both captions of item 1, which are one group: rank 2 among groups, 3 among captions."""
    scores = np.array([[0.5, 0.0], [0.9, 0.8], [0.7, 0.1]], np.float32)
    relevance = Relevance.one_each(np.array([0, 1, 1]), 2)
    assert ranked(scores, relevance, GROUPS).strict.tolist() == [2, 1]
    assert ranked(scores, relevance, CAPTIONS).strict.tolist() == [3, 1]
    assert metrics(ranked(scores, relevance, GROUPS).strict)["MnR"] == 1.5
    lent = replace(relevance, caption=np.array([0, 1, 1, 2]), item=np.array([0, 1, 0, 1]))
    assert ranked(scores, lent, GROUPS).strict.tolist() == [1, 1]
