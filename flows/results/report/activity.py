"""The report's account of a run: stages that ran or were cached, failures with their reasons, and settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.results.wording import counted, duration, plain
from pipeline.corpus.manifest import SPLITS
from pipeline.run.time_spent import TimeSpent

# Limit on the table of failures: a row has up to 500 bytes, and a corpus that fails as a whole would make 100 MB.
MOST_FAILURES = 2000
MOST_REASON = 400  # characters of a reason


@dataclass(frozen=True)
class StageRow:
    """One row of the table of stages."""

    name: str
    state: str  # "ran", "cached", or "" if it had no units
    total: int
    ran: int
    cached: int
    failed: int
    blocked: int
    decodes: int
    duration: str
    fingerprint: str


@dataclass(frozen=True)
class Failure:
    """An item, caption or medium that a stage could not process."""

    stage: str
    name: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A method beside the published experiment of its corpus: the verdict, the reasons against it, the settings.

    differences: name, value here, and the published value or, where no source states one, the usual one.
    """

    method: str
    recipe: str  # "" where nobody published one for the corpus
    verdict: str
    reasons: tuple[str, ...]
    differences: tuple[tuple[str, str, str], ...]


def stage_rows(reports: list[Mapping[str, Any]]) -> list[StageRow]:
    """The stages in the order in which they were brought up to date."""
    return [
        StageRow(
            name=report["stage"], state="ran" if report["ran"] else "cached" if report["cached"] else "",
            total=report["total"], ran=report["ran"], cached=report["cached"], 
            failed=report["failed"] + report.get("killed", 0),
            blocked=report["blocked"], decodes=report["decodes"],
            duration=duration(report["seconds"]), fingerprint=report["fingerprint"],
        )
        for report in reports
    ]  # fmt: skip


def time_spent(reports: list[Mapping[str, Any]]) -> list[str]:
    """One sentence for each pass of workers: the seconds and shares of decoding, network and other parts."""
    lines = []
    for report in reports:
        along = [other["stage"] for other in reports if other.get("shared_with") == report["stage"]]
        lines.append(TimeSpent(dict(report.get("parts", {}))).line(" + ".join([report["stage"], *along])))
    return [line for line in lines if line]


def failures(inputs: Mapping[str, Any]) -> list[Failure]:
    """Unreadable media, then the failures of each stage."""
    rows = [("corpus", name, reason) for name, reason in inputs["corpus"]["unreadable"].items()]
    for report in inputs["stages"]:
        rows += [(report["stage"], failed["name"], failed["reason"]) for failed in report["failures"]]
    return [
        Failure(stage, name, reason[:MOST_REASON] + ("…" if len(reason) > MOST_REASON else ""))
        for stage, name, reason in rows
    ]


def splits(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The size of each split in words, the usual splits first."""
    order = [name for name in SPLITS if name in sizes] + [name for name in sizes if name not in SPLITS]
    return [
        f"{name} {counted(sizes[name]['items'], 'item')}, {counted(sizes[name]['captions'], 'caption')}"
        for name in order
    ]


def settings(
    tree: Mapping[str, Mapping[str, Any]], reports: list[Mapping[str, Any]]
) -> dict[str, list[tuple[str, str]]]:
    """Settings (dotted name, value) by stage in the order of the run; stages with equal settings share an entry."""
    shared: dict[str, list[str]] = {}
    for stage in dict.fromkeys([*(report["stage"] for report in reports), *tree]):
        if tree.get(stage):
            shared.setdefault(json.dumps(tree[stage], sort_keys=True), []).append(stage)
    return {
        ", ".join(stages): [(name, plain(value)) for name, value in _flat(tree[stages[0]])]
        for stages in shared.values()
    }


def recipes(methods: Sequence[Mapping[str, Any]]) -> list[Recipe]:
    """Each method beside the published experiment of its corpus; nothing of methods whose brief does not say it."""
    return [
        Recipe(
            entry["method"],
            entry["published"]["recipe"],
            entry["published"]["verdict"],
            tuple(entry["published"]["reasons"]),
            tuple(
                (
                    row["setting"],
                    plain(row["here"]),
                    plain(row["published"]) + ("" if row["stated"] else " (usual)"),
                )
                for row in entry["published"]["differences"]
            ),
        )
        for entry in methods
        if "published" in entry
    ]


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
