"""The metrics of a score matrix of one's own, as crossreel's evaluations compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossreel.tables import METRIC_COLUMNS, Table
from trainers.measure.estimates import MeasuredScores, measure_scores
from trainers.measure.metric_table import DIRECTIONS
from trainers.measure.metrics import Estimate


@dataclass(frozen=True)
class Metrics:
    """Metrics with their 95 % intervals: `metrics["t2v"]["R@1"]` has `value`, `low` and `high`.

    Values are those under the realistic rank of ties, as leaderboards show them: `optimistic` has the others, and
    `tied` says whether there is any difference. "both" has RSUM where both directions are measured.
    """

    measured: MeasuredScores

    @property
    def tied(self) -> bool:
        """Whether the positive of any query is tied with another candidate."""
        return bool(self.measured.mean)

    @property
    def optimistic(self) -> Mapping[str, Mapping[str, Estimate]]:
        """The metrics if every tie is decided in favour of the positive."""
        return self.measured.strict

    @property
    def chance(self) -> Mapping[str, Mapping[str, float]]:
        """The expected metrics of a random order, by direction."""
        return self.measured.chance

    def __getitem__(self, direction: str) -> Mapping[str, Estimate]:
        return (self.measured.mean or self.measured.strict)[direction]

    def ranks(self, direction: str = "t2v") -> NDArray[np.float64]:
        """The realistic rank of each query, 1 is best: of captions with a positive, or of items with a caption."""
        return self.measured.ranks[direction].mean.astype(np.float64)

    @property
    def table(self) -> Table:
        """A row for each metric and direction."""
        return Table(self._rows(), METRIC_COLUMNS[2:])

    def _rows(self) -> list[dict[str, Any]]:
        m = self.measured
        return [
            {
                "direction": direction, "metric": name, "value": one.value, "low": one.low, "high": one.high,
                "chance": m.chance.get(direction, {}).get(name), "queries": m.queries.get(direction),
                "gallery": m.gallery.get(direction),
            }
            for direction, estimates in (m.mean or m.strict).items()
            for name, one in estimates.items()
        ]  # fmt: skip

    def __repr__(self) -> str:
        return repr(self.table)


def metrics(
    scores: Any, relevance: Any = None, *, directions: Sequence[str] = DIRECTIONS,
    v2t_rank: str = "all_captions", seed: int = 0,
) -> Metrics:  # fmt: skip
    """The metrics of scores (captions, items), higher is more alike, with ties and intervals as in an evaluation.

    scores: an array of NumPy, a tensor, or lists. relevance: the column of each caption's item, a list of columns for
    each caption, or a matrix of booleans; left out, caption n describes item n. v2t_rank: "all_captions", or
    "caption_groups", in which an item ranks the captions of each item as one. seed: that of the bootstrap. Raises Error
    for what does not fit, and for scores that are not finite.
    """
    return Metrics(measure_scores(_host(scores), _host(relevance), directions, v2t_rank, seed))


def _host(values: Any) -> Any:
    """A tensor of torch as an array, which NumPy cannot make of one that is on a GPU or has a gradient."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values
