"""The evaluated runs of a store: every training with an evaluation on a split, by the name that the pages use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.trained.runs import EVALUATE, TrainedRun, made_with, trained_runs
from pipeline.store.store import Store

APPLY = "apply-"
MOST_DIFFERENCES = 3  # settings that are named of those in which two runs differ


@dataclass(frozen=True)
class EvaluatedRun:
    """A training with its evaluations on a split, the newest first.

    name: the method's name for the run that usually answers for it, METHOD@DIGEST for the others. differs: the
    settings in which it differs from that usual run, "" for the usual run itself.
    """

    name: str
    method: str
    fingerprint: str
    day: str
    differs: str
    folders: tuple[Path, ...]


def evaluated_runs(store: Store, split: str, usual: Mapping[str, str]) -> list[EvaluatedRun]:
    """Every run of a store that was evaluated on a split, those of `usual` first, then the newest first.

    usual: the fingerprint of the training that answers for a method, by method; of a method that is not among them, the
    newest run has the method's name. A run whose record another process removes meanwhile is left out.
    """
    found: list[tuple[TrainedRun, tuple[Path, ...]]] = []
    for run in trained_runs(store):
        try:
            made = [*made_with(run, EVALUATE), *made_with(run, APPLY)]
            folders = tuple(
                store.run_folder(one.stage, one.fingerprint) for one in made if one.split == split
            )
        except (OSError, ValueError, KeyError):  # it was removed, or is being replaced, at this moment
            continue
        if folders:
            found.append((run, folders))
    chosen = _usual([run for run, _ in found], usual)
    order = {method: place for place, method in enumerate(dict.fromkeys([*usual, *chosen]))}
    runs = [_described(run, folders, chosen[run.method]) for run, folders in found]
    return sorted(runs, key=lambda run: (run.name != run.method, order.get(run.method, len(order))))


def _usual(runs: Sequence[TrainedRun], usual: Mapping[str, str]) -> dict[str, TrainedRun]:
    """The run of each method that has the method's name; runs: the newest first."""
    out: dict[str, TrainedRun] = {}
    for run in runs:
        if run.fingerprint == usual.get(run.method) or run.method not in out:
            out[run.method] = run
    return out


def _described(run: TrainedRun, folders: tuple[Path, ...], usual: TrainedRun) -> EvaluatedRun:
    own = run.fingerprint == usual.fingerprint
    name = run.method if own else run.name
    differs = "" if own else differing_settings(run.components, usual.components)
    return EvaluatedRun(name, run.method, run.fingerprint, run.day, differs, folders)


def differing_settings(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """The settings of a training that another one has otherwise, for instance "seed 1 (0)"; theirs in brackets."""
    ours, others = mine.get("params", {}), theirs.get("params", {})
    changed = [name for name in ours if ours[name] != others.get(name)]
    words = [
        f"{name} {_short(ours[name])} ({_short(others.get(name))})" for name in changed[:MOST_DIFFERENCES]
    ]
    if len(changed) > MOST_DIFFERENCES:
        words.append(f"{len(changed) - MOST_DIFFERENCES} more settings")
    if mine.get("needs") != theirs.get("needs"):
        words.append("other inputs")
    if mine.get("version") != theirs.get("version"):
        words.append("another version of the method")
    return ", ".join(words)


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"
