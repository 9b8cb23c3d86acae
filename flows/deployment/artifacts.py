"""Artifacts of a run in Prefect's UI: coverage, leaderboard, report, progress.

They are copies of what the store holds. If the server does not answer, an artifact is missing and the run goes on.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
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
from flows.results.report.addresses import REPORT
from flows.results.wording import titles
from flows.run import RunResult
from pipeline.run.execute import Progress
from trainers.measure.metric_table import metric, shown_metrics

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
    attempt(
        lambda: create_table_artifact(coverage(result), f"coverage-{name}", f"The stages of {experiment}")
    )
    if result.leaderboard:
        text = leaderboard_text(result)
        attempt(
            lambda: create_markdown_artifact(text, f"leaderboard-{name}", "Who is ahead, with 95 % intervals")
        )
    if result.report:
        link = report_text(result.report, experiment)
        attempt(lambda: create_markdown_artifact(link, f"report-{name}", "The report"))


def leaderboard_text(result: RunResult) -> str:
    """The verdict, and a table of every metric with its interval, as Markdown; bold what is shown to be better."""
    verdict = result.verdict
    parts = []
    if verdict is not None:
        parts = [
            "## Verdict",
            "  \n".join(verdict.sentences),
            "\n".join(f"- {line}" for line in verdict.basis),
        ]
    tables: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result.leaderboard:
        tables.setdefault((row.get("kind", "video"), row["direction"]), []).append(row)
    for (kind, direction), rows in tables.items():
        names = shown_metrics((name for row in rows for name in row["metrics"]), kind)
        lines = [["Method", *names], ["---"] * (1 + len(names))]
        for row in rows:
            cells = []
            for name in names:
                text = _with_interval(name, row["metrics"][name]) if name in row["metrics"] else ""
                best = verdict is not None and verdict.is_better(direction, name, row["method"])
                cells.append(f"**{text}**" if best else text)
            lines.append([row["method"], *cells])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [f"## {titles(kind)[direction]}, {rows[0]['split']}", table]
    return "\n\n".join(parts)


def report_text(report: Path, experiment: str) -> str:
    """Where the report is: a link that a browser follows, since it opens no file from a page, and the file."""
    return (
        f"[Open the report of {experiment}]({REPORT})\n\n"
        f"The link works while `crossreel serve` runs for this experiment on this machine. The file: `{report}`"
    )


def coverage(result: RunResult) -> list[dict[str, Any]]:
    """One row for each stage: numbers of units in total, cached, made, failed, killed, left out, and seconds."""
    return [
        {"stage": r.stage, "total": r.total, "cached": r.cached, "made": r.ran, "failed": r.failed,
         "killed": r.killed, "left out": r.blocked, "seconds": round(r.seconds, 1)}
        for r in result.reports
    ]  # fmt: skip


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

    def begin(self, text: str) -> None:
        """Show an empty bar from the first second."""
        self._move(0.0, text)

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
            self._id = attempt(lambda: create_progress_artifact(percent, self.key, text))
            self._broken = self._id is None
        else:
            artifact = self._id
            self._broken = attempt(lambda: update_progress_artifact(artifact, percent, text)) is None


def slug(name: str) -> str:
    """A name reduced to the characters that Prefect allows in a key."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment"


def attempt(make: Callable[[], Any]) -> Any:
    """What a call of the server returns, for instance the id of a new artifact; None if no server accepted it."""
    try:
        return make()
    except NO_SERVER as error:
        log.info("the Prefect server did not take it: %s", error)
        return None
