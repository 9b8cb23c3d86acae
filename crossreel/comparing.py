"""Whether one run is better than another, on the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossreel.runs import Run
from crossreel.tables import Table
from flows.results import comparison
from flows.results.measured import Measured, read_measured
from flows.trained.runs import EVALUATE
from flows.troubles import in_sentences
from pipeline.errors import UserError, nearest
from trainers.measure.evaluated import METRICS, EvaluatedFolder
from trainers.measure.metric_table import DIRECTIONS


@dataclass(frozen=True)
class Comparison:
    """Two or more runs on the same queries, pair by pair, as `crossreel compare runs` shows them."""

    matched: comparison.Matched
    pairs: Sequence[comparison.Pair]

    @property
    def meaning(self) -> list[str]:
        """A sentence for each pair and direction: who is ahead, by how much, and whether that is significant."""
        return [pair["meaning"] for pair in self.as_json()["pairs"]]

    @property
    def significant(self) -> bool:
        """Whether any tested difference is significant after the correction for all tests."""
        return any(test.corrected < comparison.ALPHA for pair in self.pairs for test in pair.tests.values())

    @property
    def notes(self) -> list[str]:
        """Sentences about what had to be left out so that the runs have the same queries."""
        return list(self.matched.notes)

    @property
    def table(self) -> Table:
        """A row for each pair, direction and metric: both values, `difference` A - B with its 95 % interval, `p`.

        `p` is corrected for all tests; None for a metric that is not tested.
        """
        rows = [
            {
                "a": pair.a, "b": pair.b, "direction": pair.direction, "metric": name, "value_a": one.a,
                "value_b": one.b, "difference": one.value, "low": one.low, "high": one.high,
                "p": pair.tests[name].corrected if name in pair.tests else None,
            }
            for pair in self.pairs for name, one in pair.differences.items()
        ]  # fmt: skip
        return Table(rows, COLUMNS)

    def as_json(self) -> dict[str, Any]:
        """Plain data, as `crossreel compare runs --json` prints it."""
        return comparison.as_json(self.matched, self.pairs)

    def __repr__(self) -> str:
        return "\n".join([*self.notes, *self.meaning])


COLUMNS = ("a", "b", "direction", "metric", "value_a", "value_b", "difference", "low", "high", "p")


@in_sentences()
def compare(
    *runs: Run | str | Path, split: str = "", direction: str = "", common: bool = False, seed: int = 0
) -> Comparison:  # fmt: skip
    """The differences of evaluated runs, with intervals and significance, on the same queries.

    runs: trained runs, or folders of evaluations. split: of runs that were evaluated on several. common: take the
    queries that all have, where items failed in one. Raises Error where the runs were measured under different
    protocols, naming the differences.
    """
    if len(runs) < 2:
        raise UserError("name two or more runs to compare")
    if direction and direction not in DIRECTIONS:
        raise UserError(f"unknown direction {direction!r}; {nearest(direction, DIRECTIONS)}")
    matched = comparison.matched(_named(runs, split), direction, common)
    return Comparison(matched, comparison.compare(matched, seed))


def _named(runs: Sequence[Run | str | Path], split: str) -> list[Measured]:
    """The evaluations of the runs, each with a name of its own."""
    found = [_evaluation(run, split) for run in runs]
    times: dict[str, int] = {}
    out = []
    for name, folder in found:
        times[name] = times.get(name, 0) + 1
        out.append(read_measured(folder, f"{name} ({times[name]})" if times[name] > 1 else name))
    return out


def _evaluation(run: Run | str | Path, split: str) -> tuple[str, Path]:
    if isinstance(run, Run):
        return run.name, run.evaluation(split)
    folder = Path(run).absolute()
    if not EvaluatedFolder(folder).exists:
        raise UserError(f"{run} is not the folder of an evaluated method: there is no {METRICS} in it")
    return f"{folder.parent.name.removeprefix(EVALUATE)} {folder.name[:8]}", folder
