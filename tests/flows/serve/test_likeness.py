"""Which items are alike, and the map of them, against slow forms of the same computations; what chance reaches."""

from __future__ import annotations

import numpy as np
import pytest

from flows.search.calibration import Calibration
from flows.serve.likeness import alike, principal, profiles

RANDOM = np.random.default_rng(0)


def test_items_are_alike_whatever_a_caption_or_an_item_adds_to_all_its_scores() -> None:
    scores = RANDOM.normal(size=(20, 9)).astype(np.float32)
    shifted = scores + RANDOM.normal(size=(20, 1)).astype(np.float32)
    assert profiles(shifted) == pytest.approx(profiles(scores), abs=1e-5)
    assert np.linalg.norm(profiles(scores), axis=1) == pytest.approx(np.ones(9), abs=1e-5)


def test_the_most_alike_items_are_those_with_the_largest_correlation_and_never_the_item_itself() -> None:
    scores = RANDOM.normal(size=(40, 12)).astype(np.float32)
    scores[:, 7] = scores[:, 3] + 0.1 * scores[:, 0]
    vectors = profiles(scores)
    found = alike(vectors, 3, 5)
    expected = sorted(((float(vectors[3] @ vectors[n]), n) for n in range(12) if n != 3), reverse=True)[:5]
    assert [item for item, _ in found] == [item for _, item in expected] and found[0][0] == 7
    assert [value for _, value in found] == pytest.approx([value for value, _ in expected], abs=1e-6)
    assert len(alike(vectors[:2], 0, 5)) == 1


def test_the_map_is_that_of_a_singular_value_decomposition_up_to_signs() -> None:
    vectors = RANDOM.normal(size=(30, 6)).astype(np.float32)
    points, explained = principal(vectors)
    centred = vectors - vectors.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    assert np.abs(points) == pytest.approx(np.abs(left[:, :2] * values[:2]), abs=1e-4)
    assert explained == pytest.approx(tuple(values[:2] ** 2 / (values**2).sum()), abs=1e-5)
    assert principal(vectors[:, :1])[0][:, 1].tolist() == [0.0] * 30


def test_the_share_of_captions_that_reach_a_score_is_never_zero() -> None:
    chance = Calibration("train", np.zeros((4, 2), np.float32), np.array([0.1, 0.2, 0.2, 0.4], np.float32))
    assert [chance.share_above(score) for score in (0.0, 0.2, 0.3, 0.9)] == [1.0, 4 / 5, 2 / 5, 1 / 5]
