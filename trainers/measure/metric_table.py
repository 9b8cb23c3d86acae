"""The facts of every metric in one table: title, unit, better direction, decimals, range, chance. No model, no torch.

Every page, table, export and check takes them from here. Axes: Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, nearest

DIRECTIONS = ("t2v", "v2t")  # a caption looks for its item, an item for its captions
CUTOFFS = (1, 5, 10, 100)  # K of the measured recalls, and of SumR
RSUM_CUTOFFS = (1, 5, 10)
HALF = 1e-9  # a share of queries this near to a half is a half: it is a sum of many products

Chance = Callable[[int, NDArray[Any]], float]
"""The value that a random order of a gallery is expected to have, from its size and each query's number (Q,) of
positives."""


@dataclass(frozen=True)
class Metric:
    """Facts of a metric that hold wherever it is shown. `least` and `most` bound its value in one direction.

    parts: the cutoffs of the recalls that it is the sum of. hub_name: how the Hugging Face hub spells it. on_clouds:
    papers on point clouds give it, and tables of clouds show it. brief: it is shown where there is room for a few
    alone. measured: evaluations hold it; the others stand in published tables alone.
    """

    name: str
    title: str
    unit: Literal["%", "rank", "share"]
    hub_name: str
    least: float = 0.0
    most: float = 100.0
    decimals: int = 1
    lower_is_better: bool = False
    parts: tuple[int, ...] = ()
    on_clouds: bool = False
    brief: bool = False
    measured: bool = True
    chance: Chance | None = None

    def shown(self, kind: str) -> bool:
        """Whether tables of items of this kind show the metric."""
        return self.on_clouds or kind != "pointcloud"

    def printed(self, value: float) -> str:
        """A value with the decimals of the metric, for instance "23.1"."""
        return f"{value:.{self.decimals}f}"

    def signed(self, value: float) -> str:
        """A difference of two values with its sign, for instance "+0.8"."""
        return f"{value:+.{self.decimals}f}"

    def short(self, value: float) -> str:
        """An end of an interval in as few characters as say something: "23", "8.1", "0.31"."""
        if self.unit == "share":
            return f"{value:.{self.decimals - 1}f}"
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def recall_by_chance(gallery: int, positives: NDArray[Any], cutoff: int) -> float:
    """R@cutoff of a random order of the gallery, in percent.

    A query with m positives among n items finds none of them in K places with probability
    C(n - m, K) / C(n, K) = product over j < K of (n - m - j) / (n - j).
    positives: (Q,), the number of each query.
    """
    numbers, queries = np.unique(positives, return_counts=True)
    places = gallery - np.arange(min(cutoff, gallery))
    missed = np.prod(np.maximum(places - numbers[:, None], 0) / places, axis=1)
    return float(100 * np.average(1 - missed, weights=queries))


def median_by_chance(gallery: int, positives: NDArray[Any]) -> float:
    """The median of the ranks that a random order gives to all queries together: (n + 1) / 2 with one positive each."""
    found = _found_by_chance(gallery, positives)
    ends = [1 + int(np.argmax(found > half)) for half in (0.5 - HALF, 0.5 + HALF)]
    return sum(ends) / 2


def mean_by_chance(gallery: int, positives: NDArray[Any]) -> float:
    """The mean rank of a random order: the first of m positives among n stands at (n + 1) / (m + 1) on average."""
    return float(np.mean((gallery + 1) / (np.asarray(positives) + 1)))


def reciprocal_by_chance(gallery: int, positives: NDArray[Any]) -> float:
    """The MRR of a random order: the sum over k of P(rank = k) / k."""
    found = _found_by_chance(gallery, positives)
    return float((np.diff(found, prepend=0.0) / np.arange(1, gallery + 1)).sum())


def _found_by_chance(gallery: int, positives: NDArray[Any]) -> NDArray[np.float64]:
    """Share (n,) of the queries whose rank in a random order is at most 1, 2 ... n: `recall_by_chance` at every K."""
    places, found = np.arange(gallery), np.zeros(gallery)
    for number, queries in zip(*np.unique(positives, return_counts=True), strict=True):
        missed = np.cumprod(np.maximum(gallery - number - places, 0) / (gallery - places))
        found += queries / len(positives) * (1 - missed)
    return found


def _recall(cutoff: int, measured: bool = True) -> Metric:
    return Metric(
        f"R@{cutoff}",
        f"share of the queries with a positive among the first {cutoff}"
        if cutoff > 1
        else "share of the queries with a positive in the first place",
        "%",
        f"recall_at_{cutoff}",
        parts=(cutoff,),
        on_clouds=cutoff in RSUM_CUTOFFS,
        brief=cutoff in RSUM_CUTOFFS,
        measured=measured,
        chance=lambda gallery, positives: recall_by_chance(gallery, positives, cutoff),
    )


def _sum_by_chance(gallery: int, positives: NDArray[Any]) -> float:
    return sum(recall_by_chance(gallery, positives, cutoff) for cutoff in CUTOFFS)


METRICS: tuple[Metric, ...] = (
    _recall(1),
    _recall(5),
    _recall(10),
    _recall(50, measured=False),
    _recall(100),
    Metric(
        "SumR", "sum of R@1, R@5, R@10 and R@100 of one direction", "%", "sum_of_recalls",
        most=100.0 * len(CUTOFFS), parts=CUTOFFS, brief=True, chance=_sum_by_chance,
    ),
    Metric(
        "RSUM", "sum of R@1, R@5 and R@10 of both directions", "%", "rsum",
        most=100.0 * len(RSUM_CUTOFFS), parts=RSUM_CUTOFFS, on_clouds=True, brief=True,
    ),
    Metric(
        "MdR", "median rank of the best positive", "rank", "median_rank",
        least=1.0, most=float("inf"), lower_is_better=True, chance=median_by_chance,
    ),
    Metric(
        "MnR", "mean rank of the best positive", "rank", "mean_rank",
        least=1.0, most=float("inf"), lower_is_better=True, on_clouds=True, chance=mean_by_chance,
    ),
    Metric(
        "MRR", "mean of 1 / rank of the best positive", "share", "mrr",
        most=1.0, decimals=3, on_clouds=True, chance=reciprocal_by_chance,
    ),
)  # fmt: skip
"""All metrics, in the order in which tables show them."""

_BY_NAME = {metric.name: metric for metric in METRICS}


def metric(name: str) -> Metric:
    """The facts of a metric. Raises UserError for an unknown name."""
    if name not in _BY_NAME:
        raise UserError(f"unknown metric {name!r}; {nearest(name, _BY_NAME)}")
    return _BY_NAME[name]


def shown_metrics(names: Iterable[str], kind: str) -> tuple[str, ...]:
    """The names that tables of a kind of items show, each once, in their order."""
    return tuple(name for name in dict.fromkeys(names) if metric(name).shown(kind))
