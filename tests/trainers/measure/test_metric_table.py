"""The table of metrics: what it says holds of what is measured, and everything that is measured stands in it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import UserError
from trainers.measure.metric_table import METRICS, metric, recall_by_chance, shown_metrics
from trainers.measure.metrics import chance, metrics

RANKS = np.random.default_rng(0).integers(1, 300, 50)


def test_every_measured_metric_is_in_the_table_in_its_order_and_within_its_range() -> None:
    found = metrics(RANKS)
    assert list(found) == [one.name for one in METRICS if one.measured and one.name != "RSUM"]
    for name, value in found.items():
        assert metric(name).least <= value <= metric(name).most


@pytest.mark.parametrize("name", metrics(RANKS))
def test_better_ranks_move_each_metric_to_its_better_side(name: str) -> None:
    better, worse = metrics(RANKS)[name], metrics(RANKS * 2)[name]
    assert (better < worse) == metric(name).lower_is_better and better != worse
    perfect = metrics(np.ones(7))[name]
    assert perfect == (metric(name).least if metric(name).lower_is_better else metric(name).most)


def test_sums_are_the_sums_of_the_recalls_they_name() -> None:
    found = metrics(RANKS)
    assert found["SumR"] == pytest.approx(sum(found[f"R@{k}"] for k in metric("SumR").parts))
    luck = chance(300, np.array([1, 1, 4]))
    assert luck["SumR"] == pytest.approx(sum(luck[f"R@{k}"] for k in metric("SumR").parts))


def test_chance_of_a_metric_is_the_mean_over_random_orders() -> None:
    random, gallery, positives = np.random.default_rng(1), 40, np.array([1, 3, 3])
    drawn = [[min(random.choice(gallery, m, replace=False)) + 1 for m in positives] for _ in range(4000)]
    for name, value in chance(gallery, positives).items():
        assert value == pytest.approx(metrics(np.array(drawn).ravel())[name], rel=0.1), name
    assert recall_by_chance(gallery, positives, 40) == 100


def test_values_are_printed_with_the_decimals_of_their_metric() -> None:
    assert [metric(name).printed(0.31449) for name in ("R@1", "MnR", "MRR")] == ["0.3", "0.3", "0.314"]
    assert [metric(name).signed(-0.31449) for name in ("SumR", "MRR")] == ["-0.3", "-0.314"]
    assert [metric(n).short(v) for n, v in (("R@5", 23.4), ("R@5", 8.12), ("MRR", 0.314))] == [
        "23",
        "8.1",
        "0.31",
    ]


def test_tables_of_clouds_show_what_papers_on_them_give() -> None:
    names = [one.name for one in METRICS if one.measured]
    assert shown_metrics(names, "pointcloud") == ("R@1", "R@5", "R@10", "RSUM", "MnR", "MRR")
    assert shown_metrics([*names, "R@1"], "video") == tuple(names)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'R@55'; did you mean 'R@5"):
        metric("R@55")
