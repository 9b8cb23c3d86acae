"""The verdict: what is said to be better, and what is not, from evaluations by the product's own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.circumstances import Circumstances, OfMethod, Repeated
from flows.results.report import leaderboard
from flows.results.report.deciding import best_share, disagreeing
from flows.results.verdict import Verdict, alike, judge
from trainers.data import SplitIndex
from trainers.measure.evaluated import EvaluatedFolder

Evaluated = Callable[..., EvaluatedFolder]
ITEMS, EACH = 40, 3


def index_of(items: int, each: int = EACH) -> SplitIndex:
    names, owner = [f"item-{i:03d}" for i in range(items)], [i // each for i in range(items * each)]
    captions = [f"caption-{i:03d}" for i in range(items * each)]
    return SplitIndex(names, list(range(items)), captions, list(range(len(captions))), owner, captions)


def scores(index: SplitIndex, good: float, seed: int = 0) -> np.ndarray:
    """Scores (Q, V) of a model that prefers the right item by `good` standard deviations."""
    out = np.random.default_rng(seed).normal(size=(len(index.captions), len(index.items)))
    out[np.arange(len(out)), index.caption_item] += good
    return out


@pytest.fixture
def judged(tmp_path: Path, evaluated_from: Evaluated) -> Callable[..., Verdict]:
    """`judged(a=2.0, b=0.0)` is the verdict on models of this quality; seeds follow from the order."""

    def make(items: int = ITEMS, **good: float) -> Verdict:
        index = index_of(items)
        folders = {
            name: evaluated_from(tmp_path / name, scores(index, value, seed), index)
            for seed, (name, value) in enumerate(good.items())
        }
        return judge(folders, Circumstances())

    return make


def test_a_method_that_is_far_better_is_ahead_with_points_and_interval_and_is_the_only_bold_one(
    judged: Callable[..., Verdict],
) -> None:
    verdict = judged(weak=0.3, strong=3.0, poor=0.2)
    assert verdict.order[0] == "strong" and (verdict.figure, verdict.direction) == ("RSUM", "both")
    assert verdict.sentences[0].startswith("strong is ahead of every other method, of ")
    assert " points (" in verdict.sentences[0]
    assert any(
        "weak and poor cannot be told apart" in s or "poor and weak cannot" in s for s in verdict.sentences
    )
    assert verdict.is_better("t2v", "R@1", "strong") and verdict.is_better("both", "RSUM", "strong")
    assert {method for _, _, method in verdict.better} == {"strong"}
    assert verdict.tests == 3 * 2 * 3  # pairs, directions, metrics


def test_methods_of_equal_quality_are_not_told_apart_whichever_is_larger(
    judged: Callable[..., Verdict],
) -> None:
    verdict = judged(a=1.0, b=1.0, c=1.0, d=1.0)
    assert verdict.sentences[0].startswith(
        "No method is shown to be better than another; at R@1 a difference"
    )
    assert verdict.better == [] and not any(ahead for pair in verdict.pairs for ahead in pair.ahead.values())


def test_equal_methods_are_seldom_told_apart_over_many_draws(
    tmp_path: Path, evaluated_from: Evaluated
) -> None:
    index, false = index_of(20, 1), 0
    for draw in range(12):
        folders = {
            name: evaluated_from(
                tmp_path / f"{draw}{name}", scores(index, 1.0, 3 * draw + n), index, ("t2v",)
            )
            for n, name in enumerate("abc")
        }
        false += bool(judge(folders, Circumstances()).better)
    assert false <= 2  # 5 % each: 3 or more of 12 happen once in 50 times


def test_one_test_item_is_no_test_and_two_items_can_show_nothing(judged: Callable[..., Verdict]) -> None:
    one = judged(items=1, a=2.0, b=0.0)
    assert one.meaningless and "has one test item: its figures mean nothing" in one.sentences[0]
    assert not one.better and not one.pairs
    two = judged(items=3, a=9.0, b=-9.0)
    assert "With 3 items no test can show a difference, however large it is." in two.basis
    assert not two.meaningless and not two.better  # not even at SumR, whose interval leaves out 0


def test_a_model_without_skill_is_not_better_than_a_random_order(judged: Callable[..., Verdict]) -> None:
    verdict = judged(skilled=3.0, blind=0.0)
    assert "blind is not shown to be better than a random order." in verdict.sentences


def test_a_method_of_another_protocol_is_left_out_with_the_reason(
    tmp_path: Path, evaluated_from: Evaluated
) -> None:
    index = index_of(ITEMS)
    folders = {n: evaluated_from(tmp_path / n, scores(index, 1.0, s), index) for s, n in enumerate("ab")}
    folders["val"] = evaluated_from(tmp_path / "val", scores(index, 3.0), index, split="val")
    verdict = judge(folders, Circumstances())
    (left_out,) = [line for line in verdict.basis if line.startswith("val is not compared: ")]
    assert "the split (" in left_out
    assert not any("val" in (pair.a, pair.b) for pair in verdict.pairs) and not verdict.better


def test_methods_of_each_kind_are_compared_among_themselves_and_with_no_other(
    tmp_path: Path, evaluated_from: Evaluated
) -> None:
    qualities = {"video": {"good": 4.0, "poor": 0.0}, "pointcloud": {"fine": 4.0, "bad": 0.0}}
    index = index_of(ITEMS)
    folders = {
        name: evaluated_from(tmp_path / name, scores(index, quality, seed), index, kind=kind)
        for kind, methods in qualities.items()
        for seed, (name, quality) in enumerate(methods.items())
    }
    verdict = judge(folders, Circumstances())
    assert verdict.order == ["good", "poor", "fine", "bad"]
    assert verdict.sentences[0] == (
        "Methods that rank items of different kinds are not compared: good and poor rank videos and fine and bad rank "
        "clouds."
    )
    assert verdict.sentences[1].startswith("Videos: good is ahead of poor at R@1 by ")
    assert any(line.startswith("Clouds: fine is ahead of bad at R@1 by ") for line in verdict.sentences)
    assert {(pair.a, pair.b) for pair in verdict.pairs} == {("good", "poor"), ("fine", "bad")}
    assert {method for _, _, method in verdict.better} == {"good", "fine"}
    alone = judge({name: folders[name] for name in ("good", "poor")}, Circumstances())
    assert alone.sentences == [
        line.removeprefix("Videos: ") for line in verdict.sentences[1 : 1 + len(alone.sentences)]
    ]
    assert "Tested on 120 captions of 40 clouds, the split test." in verdict.basis
    tables = leaderboard.boards({name: folder.metrics for name, folder in folders.items()}, verdict.is_better)
    assert [(table.title, [name for name, _ in table.rows]) for table in tables] == [
        (title, methods)
        for noun, methods in (("video", ["good", "poor"]), ("cloud", ["fine", "bad"]))
        for title in (f"Text to {noun}", f"{noun.capitalize()} to text", "Both directions")
    ]


def test_a_direction_that_not_all_have_is_compared_among_those_that_do(
    tmp_path: Path, evaluated_from: Evaluated
) -> None:
    index = index_of(ITEMS)
    folders = {
        "one_way": evaluated_from(tmp_path / "one_way", scores(index, 1.0, 0), index, ("t2v",)),
        "good": evaluated_from(tmp_path / "good", scores(index, 4.0, 1), index),
        "poor": evaluated_from(tmp_path / "poor", scores(index, 0.0, 2), index),
    }
    verdict = judge(folders, Circumstances())
    assert (verdict.figure, verdict.direction) == ("SumR", "t2v")
    assert any(
        s.startswith("Video to text (without one_way): good is ahead of poor") for s in verdict.sentences
    )
    assert sorted((p.direction, p.a, p.b) for p in verdict.pairs if p.direction != "t2v") == [
        ("both", "good", "poor"), ("v2t", "good", "poor"),
    ]  # fmt: skip
    assert not any("left out" in line for line in verdict.basis)


def test_what_limits_the_figures_is_said(tmp_path: Path, evaluated_from: Evaluated) -> None:
    index = index_of(ITEMS)
    folders = {n: evaluated_from(tmp_path / n, scores(index, 1.0, s), index) for s, n in enumerate("abc")}
    again = Repeated(seed=7, evaluated=str(folders["c"].folder))
    limiting = Circumstances(
        failed_items=2, failed_captions=1,
        methods={
            "a": OfMethod(random=["clip"], recipe="msrvtt", differences=8, seed=0, again=[again]),
            "b": OfMethod(random=["clip", "bert"], recipe="msrvtt", exact=True, seed=0),
            "c": OfMethod(differences=3),
        },
    )  # fmt: skip
    told = " ".join(judge(folders, limiting).basis)
    assert "Tested on 120 captions of 40 videos, the split test." in told
    assert "2 items of the corpus failed and 1 caption failed; what is missing is in no figure." in told
    assert "clip and bert have random weights (read by " in told and "not how good a method is" in told
    assert "Not the published experiments: a in 8 points." in told
    assert "b: nothing is known in which it differs from the published experiment." in told
    values = sorted(folders[n].metrics.estimates["t2v"]["R@1"].value for n in "ac")
    assert f"a was trained with 2 seeds (0, 7): R@1 {values[0]:.1f} to {values[1]:.1f}" in told
    assert "b was trained once (seed 0)" in told


def test_groups_that_cannot_be_told_apart_are_the_largest_ones() -> None:
    assert alike("abcd", {"a": ["d"]}) == [["a", "b", "c"], ["b", "c", "d"]]
    assert alike("abc", {"a": ["b", "c"], "b": ["c"]}) == []


def test_the_deciding_queries_are_those_of_largest_distance_one_an_item_and_of_several_pairs() -> None:
    ranks = np.array([[1, 1, 1, 5, 30, 2], [40, 30, 2, 5, 1, 2], [10, 2, 1, 5, 8, 2]], np.float64)
    chosen = disagreeing(ranks, [0, 0, 1, 2, 3, 4], 4)
    assert chosen[0] == 0 and 1 not in chosen  # query 1 is of the same item
    assert set(chosen) == {0, 4, 2}  # all rank queries 3 and 5 alike
    many = np.ones((2, 900))
    many[1] = np.arange(1, 901)
    assert disagreeing(many, list(range(900)), 12) == list(range(899, 887, -1))
    both_ways = np.array([[1, 1, 1, 1, 20], [64, 63, 62, 61, 1]], np.float64)
    assert 4 in disagreeing(both_ways, list(range(5)), 3)  # the pair seen so far counts less


def test_the_best_moment_is_the_middle_of_the_best_clip_or_frame(
    tmp_path: Path, evaluated_from: Evaluated
) -> None:
    index = index_of(4, 1)

    def said(query: int, item: int) -> dict[str, np.ndarray]:
        return {"clip_scores": np.eye(5, dtype=np.float32)[item]}

    folder = evaluated_from(tmp_path / "a", scores(index, 5.0), index, ("t2v",), said=said)
    assert best_share(folder, 2, 2) == pytest.approx(0.5) and best_share(folder, 3, 3) == pytest.approx(0.7)
    silent = evaluated_from(tmp_path / "b", scores(index, 5.0), index, ("t2v",))
    assert best_share(silent, 2, 2) is None
