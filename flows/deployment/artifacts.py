"""Artifacts of a run in Prefect's UI: coverage, leaderboard, report, progress.

They are copies of what the store holds. If the server does not answer, an artifact is missing and the run goes on.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.console import describe, position
from flows.results.wording import short_title
from flows.run import RunResult
from pipeline.run.execute import Progress
from trainers.measure.metric_table import metric

SECONDS_BETWEEN_UPDATES = 2.0
NO_SERVER = (
    httpx.HTTPError,
    PrefectException,
    OSError,
    RuntimeError,
    ValueError,
)  # ValueError: no URL is set

log = logging.getLogger(__name__)


def publish(result: RunResult, experiment: str) -> None:
    """Publish the outcome of a run: a table of its stages, the leaderboard, and the path of the report."""
    name = slug(experiment)
    _attempt(
        lambda: create_table_artifact(coverage(result), f"coverage-{name}", f"The stages of {experiment}")
    )
    if result.leaderboard:
        table = leaderboard_table(result.leaderboard)
        _attempt(lambda: create_table_artifact(table, f"leaderboard-{name}", "Metrics with 95 % intervals"))
    if result.report:
        text = f"[{result.report.name}]({result.report.as_uri()})\n\n`{result.report}`"
        _attempt(
            lambda: create_markdown_artifact(text, f"report-{name}", "The report, on the machine of the run")
        )


def coverage(result: RunResult) -> list[dict[str, Any]]:
    """One row for each stage: numbers of units in total, cached, made, failed, killed, left out, and seconds."""
    return [
        {"stage": r.stage, "total": r.total, "cached": r.cached, "made": r.ran, "failed": r.failed,
         "killed": r.killed, "left out": r.blocked, "seconds": round(r.seconds, 1)}
        for r in result.reports
    ]  # fmt: skip


def leaderboard_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method, split and direction, with intervals: "23.1 [20.0, 26.3]"."""
    return [
        {
            "method": row["method"],
            "split": row["split"],
            "direction": short_title(row["direction"], row.get("kind", "video")),
        }
        | {name: _with_interval(name, estimate) for name, estimate in row["metrics"].items()}
        for row in rows
    ]


def _with_interval(name: str, estimate: dict[str, float]) -> str:
    value, low, high = (metric(name).printed(estimate[end]) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


class ProgressBar:
    """The progress of one stage as an artifact, updated at most every two seconds."""

    def __init__(self, experiment: str, stage: str) -> None:
        self.key = f"progress-{slug(experiment)}-{slug(stage)}"
        self._id: UUID | None = None
        self._at = 0.0
        self._broken = False

    def show(self, progress: Progress) -> None:
        """Update the bar, unless the last update was less than two seconds ago."""
        if self._broken or time.monotonic() - self._at < SECONDS_BETWEEN_UPDATES:
            return
        self._at = time.monotonic()
        done, total = position(progress)
        text = describe(progress) or f"{progress.stage}: {done} of {total}"
        self._move(100.0 * done / max(total, 1), text)

    def finish(self) -> None:
        """Fill the bar of a finished stage, if it has one."""
        if self._id is not None and not self._broken:
            self._move(100.0, "done")

    def _move(self, percent: float, text: str) -> None:
        if self._id is None:
            self._id = _attempt(lambda: create_progress_artifact(percent, self.key, text))
            self._broken = self._id is None
        else:
            artifact = self._id
            self._broken = _attempt(lambda: update_progress_artifact(artifact, percent, text)) is None


def slug(name: str) -> str:
    """A name reduced to the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"


def _attempt(make: Callable[[], Any]) -> UUID | None:
    """The id of a new artifact, or None if no server accepted it."""
    try:
        made: UUID = make()
    except NO_SERVER as error:
        log.info("no artifact: %s", error)
        return None
    return made
