"""Metrics of a score matrix: by a slow twin, with ties, with several positives, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crossreel
from pipeline.errors import TrainingError, UserError
from trainers.measure.estimates import relevance_of

SCORES = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 0.0], [0.0, 2.0, 1.0], [4.0, 1.0, 4.0]])
ITEM = [0, 1, 2, 2]  # the item of each caption


def expected_rank(candidates, right) -> float:
    """The mean place of the first right candidate if equal scores come in random order, one query at a time."""
    best = max(candidates[r] for r in right)
    above = sum(value > best for value in candidates)
    level = [place for place, value in enumerate(candidates) if value == best]
    own = [place for place in level if place in right]
    # of `level` places in random order, the first of `own` is expected at (n + 1) / (k + 1)
    return above + (len(level) + 1) / (len(own) + 1)


def test_metrics_are_those_of_a_slow_twin_with_ties():
    found = crossreel.metrics(SCORES, ITEM)
    text = [expected_rank(row, [item]) for row, item in zip(SCORES, ITEM, strict=True)]
    video = [expected_rank(SCORES[:, v], [q for q, item in enumerate(ITEM) if item == v]) for v in range(3)]
    assert found.ranks("t2v").tolist() == text == [1.0, 1.5, 2.0, 1.5]
    assert found.ranks("v2t").tolist() == video
    assert found.tied
    assert found["t2v"]["R@1"].value == 25.0 and found.optimistic["t2v"]["R@1"].value == 75.0
    assert found["t2v"]["MnR"].value == np.mean(text) and found["v2t"]["MnR"].value == np.mean(video)
    assert found["t2v"]["R@1"].low <= 25.0 <= found["t2v"]["R@1"].high
    assert found.chance["t2v"]["R@1"] == pytest.approx(100 / 3)
    assert {row["metric"] for row in found.table.where(direction="both")} == {"RSUM"}


@pytest.mark.parametrize(
    "relevance",
    [[[0], [1], [2], [2]], np.eye(3, dtype=bool)[ITEM], torch.tensor(ITEM)],
    ids=["lists", "booleans", "tensor"],
)
def test_every_form_of_relevance_gives_the_same(relevance):
    scores = torch.tensor(SCORES, requires_grad=True)
    assert list(crossreel.metrics(scores, relevance).table) == list(crossreel.metrics(SCORES, ITEM).table)


def test_several_positives_and_captions_without_any():
    relevance = relevance_of([[0, 2], [1], [], [2, 2]], 4, 3)
    assert relevance.caption.tolist() == [0, 0, 1, 3] and relevance.item.tolist() == [0, 2, 1, 2]
    found = crossreel.metrics(SCORES, [[0, 2], [1], [], [2, 2]])
    assert found.table.where(direction="t2v", metric="R@1")[0]["queries"] == 3


def test_groups_of_captions_rank_otherwise_than_captions():
    scores = [[0.5, 0.9], [0.4, 0.9], [0.0, 0.0], [0.1, 0.3]]
    every = crossreel.metrics(scores, [0, 1, 1, 1]).ranks("v2t").tolist()
    groups = crossreel.metrics(scores, [1, 1, 1, 0], v2t_rank="caption_groups").ranks("v2t").tolist()
    assert every == [1.0, 1.5] and groups == [2.0, 1.0]
    captions = crossreel.metrics(scores, [1, 1, 1, 0]).ranks("v2t").tolist()
    assert captions == [3.0, 1.0]  # two captions of one wrong item stand before it, which are one group


@pytest.mark.parametrize(
    ("scores", "relevance", "words"),
    [
        (SCORES, None, r"relevance is needed for scores of the shape \(4, 3\)"),
        (SCORES, [0, 1, 2], "relevance has 3 rows, and scores have 4 captions"),
        (SCORES, [0, 1, 2, 3], "relevance of caption 3 names item 3; there are items 0 to 2"),
        (SCORES, np.eye(3, dtype=int)[ITEM], "integers 0 and 1, which would be read as columns"),
        (SCORES, np.ones((4, 2), bool), r"relevance has the shape \(4, 2\)"),
        (SCORES, [[], [], [], []], "names no item at all|columns of items are needed"),
        (SCORES[0], None, r"scores have the shape \(3,\)"),
        (np.array([["a"]]), None, "numbers are needed"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(scores, relevance, words):
    with pytest.raises(UserError, match=words):
        crossreel.metrics(scores, relevance)


def test_scores_that_are_not_finite_and_unknown_words_are_refused():
    with pytest.raises(TrainingError, match="1 are NaN"):
        crossreel.metrics([[np.nan, 1.0], [0.0, 1.0]])
    with pytest.raises(crossreel.Error, match="unknown direction 't2i'; did you mean 't2v'"):
        crossreel.metrics(np.eye(2), directions=["t2i"])
    with pytest.raises(crossreel.Error, match="v2t_rank = 'groups' is not possible"):
        crossreel.metrics(np.eye(2), v2t_rank="groups")
