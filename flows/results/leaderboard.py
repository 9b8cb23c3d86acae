"""The leaderboard of an experiment as rows of plain data: for the command line, its JSON, Prefect and sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flows.project import Project
from flows.results.method_results import evaluated_folder
from pipeline.run.plan import State
from trainers.measure.evaluated import EvaluatedFolder, Measures


def leaderboard(project: Project, states: Mapping[str, State]) -> list[dict[str, Any]]:
    """The estimates of every evaluated method: method, split, direction, and metrics with intervals.

    Where positives are tied with other candidates, those under the mean rank of ties. A row of an evaluation that
    post-processed its scores has `post_processed` too: the same metrics by option, and the note they must be read with.
    Raises UserError naming a damaged file.
    """
    rows: list[dict[str, Any]] = []
    for name, state in states.items():
        if name.startswith("evaluate-") and state.complete:
            rows += leaderboard_rows(state.stage.method, evaluated_folder(project, state))
    return rows


def leaderboard_rows(method: str, evaluated: EvaluatedFolder) -> Iterator[dict[str, Any]]:
    """One row for each direction, and one for the sums over both."""
    metrics, protocol = evaluated.metrics, evaluated.metrics.protocol
    for direction in metrics.estimates:
        side = protocol.side(direction)
        row: dict[str, Any] = {
            "method": method,
            "split": protocol.split,
            "kind": protocol.kind,
            "direction": direction,
            "metrics": _plain(metrics, direction),
            "chance": dict(protocol.chance(direction)),
            "queries": side.queries if side else None,
            "gallery": side.gallery if side else None,
        }
        if metrics.post_processed:
            row["post_processed"] = {
                name: {"metrics": _plain(block, direction), "note": block.note}
                for name, block in metrics.post_processed.items()
            }
        yield row


def _plain(measures: Measures, direction: str) -> dict[str, dict[str, float]]:
    return {name: asdict(estimate) for name, estimate in measures.estimates[direction].items()}
