"""A trained run: one training of a method that is finished in a store, named `METHOD@DIGEST`.

The digest is the beginning of the training's fingerprint, as `plan` and `status` print it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.store.store import RECORD, Store
from trainers.loop.trained import TrainedFolder

DIGITS = 8  # of a fingerprint, in the name of a run
SEPARATOR = "@"
TRAIN, EVALUATE = "train-", "evaluate-"
MOST_RUNS = 1000  # records of `crossreel run` that are searched for the last training of an experiment


@dataclass(frozen=True)
class TrainedRun:
    """A finished training in a store."""

    store: Store
    method: str
    fingerprint: str

    @property
    def stage(self) -> str:
        """The stage that trained it."""
        return TRAIN + self.method

    @property
    def name(self) -> str:
        """For instance "gare@1a2b3c4d"."""
        return f"{self.method}{SEPARATOR}{self.fingerprint[:DIGITS]}"

    @property
    def folder(self) -> TrainedFolder:
        """What the training left."""
        return TrainedFolder(self.store.run_folder(self.stage, self.fingerprint))

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """The store's record of the training."""
        return self.store.run_record(self.stage, self.fingerprint)

    @property
    def components(self) -> Mapping[str, Any]:
        """What decided its content."""
        components: Mapping[str, Any] = self.record["components"]
        return components

    @property
    def packed(self) -> tuple[str, str]:
        """Stage and fingerprint of the packed inputs that it learned from."""
        ((stage, fp),) = self.components["needs"].items()
        return stage, fp

    @property
    def made(self) -> float:
        """When the training ended, in seconds since 1970."""
        return float(self.record.get("made", 0.0))

    @property
    def day(self) -> str:
        """When the training ended, for instance "2026-03-01 14:05"."""
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(self.made))

    def learned_items(self) -> frozenset[str]:
        """The digests of the items that it was trained on; empty where its packed inputs are gone."""
        stage, fp = self.packed
        try:
            index = json.loads(
                (self.store.run_folder(stage, fp) / "splits" / "train.json").read_text("utf-8")
            )
            return frozenset(index["items"])
        except (OSError, ValueError, KeyError):
            return frozenset()


def trained_runs(store: Store, method: str = "") -> list[TrainedRun]:
    """Every finished training in a store, or of one method, the newest first."""
    found = [TrainedRun(store, stage.removeprefix(TRAIN), fp) for stage, fp in _folders(store, TRAIN, method)]
    return sorted(found, key=lambda run: -run.made)


def find_run(store: Store, method: str, digest: str) -> TrainedRun:
    """The training whose fingerprint begins with `digest`, of a method or, with "", of any.

    Raises UserError if there is none, or there are several.
    """
    runs = trained_runs(store, method)
    found = [run for run in runs if digest and run.fingerprint.startswith(digest)]
    if len(found) == 1:
        return found[0]
    word = f"{method}{SEPARATOR}{digest}" if method else digest
    if found:
        raise UserError(f"{word!r} names several trainings in {store.root}: {_names(found)}")
    known = [run.name for run in runs]
    if not known:
        raise UserError(f"no {method or 'method'} is trained in {store.root}, so there is no run {word!r}")
    raise UserError(f"no run {word!r} in {store.root}; {nearest(word, known)}")


def _names(runs: Sequence[TrainedRun]) -> str:
    return ", ".join(f"{run.method}{SEPARATOR}{run.fingerprint}" for run in runs)


def last_run(store: Store, experiment: str, method: str, evaluated: bool = False) -> TrainedRun | None:
    """The training of a method that an experiment's last run used or made; None if it has none.

    evaluated: only of trainings that were evaluated. An experiment is known by its name. Trainings of versions that
    did not record their experiment count as everybody's.
    """
    runs = [run for run in trained_runs(store, method) if not evaluated or evaluations(run)]
    by_print = {run.fingerprint: run for run in runs}
    for row in store.index.runs(MOST_RUNS):
        if row["experiment"] == experiment:
            for report in row["summary"].get("reports", []):
                if report["stage"] == TRAIN + method and report["fingerprint"] in by_print:
                    return by_print[report["fingerprint"]]
    return next((run for run in runs if run.record.get("experiment", experiment) == experiment), None)


@dataclass(frozen=True)
class Made:
    """A finished folder that was made with a training: its stage, fingerprint, components, and when it was made."""

    stage: str
    fingerprint: str
    components: Mapping[str, Any]
    made: float

    @property
    def split(self) -> str:
        """The split that it is of."""
        return str(self.components["params"]["split"])

    @property
    def packed(self) -> tuple[str, str]:
        """Stage and fingerprint of the packed inputs of that split."""
        needs: Mapping[str, str] = self.components["needs"]
        packs = [(name, fp) for name, fp in needs.items() if name.startswith("pack-")]
        own = [pair for pair in packs if pair[0].endswith(f"-{self.split}")]
        return (own or packs)[0]


def evaluations(run: TrainedRun) -> list[Made]:
    """The finished evaluations of a training on its own corpus, the newest first."""
    return made_with(run, EVALUATE)


def evaluation_on(run: TrainedRun, split: str = "") -> Made:
    """The newest finished evaluation of a training on a split of its own corpus or, with "", on any.

    Raises UserError if there is none.
    """
    made = evaluations(run)
    if not made:
        raise UserError(
            f"the run {run.name} is not evaluated; `crossreel apply` measures it on the split of a corpus"
        )
    chosen = [one for one in made if split in ("", one.split)]
    if not chosen:
        known = ", ".join(dict.fromkeys(one.split for one in made))
        raise UserError(
            f"the run {run.name} was evaluated on {known}, not on the split {split!r}; "
            "`crossreel apply` measures it there"
        )
    return chosen[0]


def made_with(run: TrainedRun, prefix: str) -> list[Made]:
    """The finished folders of the stage `<prefix><method>` that were made with a training, the newest first."""
    found = []
    for stage, fp in _folders(run.store, prefix, run.method):
        record = run.store.run_record(stage, fp)
        if record["components"].get("needs", {}).get(run.stage) == run.fingerprint:
            found.append(Made(stage, fp, record["components"], float(record.get("made", 0.0))))
    return sorted(found, key=lambda one: -one.made)


def _folders(store: Store, prefix: str, method: str) -> Iterator[tuple[str, str]]:
    """Yield the stage and fingerprint of each finished folder of a stage of a method, "" for all methods."""
    for path in sorted(Path(store.root / "runs").glob(f"{prefix}{method or '*'}/*/{RECORD}")):
        stage, fp = path.parts[-3], path.parts[-2]
        if store.has_run(stage, fp):
            yield stage, fp
