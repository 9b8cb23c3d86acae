"""A folder of training curves that TensorBoard shows under readable names, with settings and final figures.

    STORE/tensorboard/EXPERIMENT/hlformer seed 0 1a2b3c4d/

A run's folder holds links to the curves in the store, and a file with the settings (TensorBoard's hyper-parameters)
and the figures on the evaluated split. Imports no torch.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.project import Project
from flows.results.method_results import evaluated_folder, trained_folder
from pipeline.run.plan import State
from trainers.loop.trained import Summary, TrainedFolder
from trainers.measure.evaluated import EvaluatedFolder

FOLDER = "tensorboard"
EVENTS = "events.out.tfevents."
LAST = f"{EVENTS}9999999999."  # sorts after the curves, which TensorBoard reads in the order of their names
DIGITS = 8
VERSION = "brain.Event:2"  # of TensorBoard's file format

log = logging.getLogger(__name__)


def link_curves(project: Project, states: Mapping[str, State]) -> Path | None:
    """Bring the folder of an experiment's curves up to date and return it; None where no method was trained.

    A store that cannot be written to has no such folder either.
    """
    folder = project.store.root / FOLDER / slug(project.experiment.name)
    try:
        # A run that is applied to another corpus has no training of its own among its stages.
        methods = [method for method in project.experiment.methods if f"train-{method}" in states]
        made = [_link(project, folder, method, states) for method in methods]
        if not any(made):
            return None
        _drop_dangling(folder)
    except OSError as error:
        log.info("no folder of curves: %s", error)
        return None
    return folder


def slug(name: str) -> str:
    """A name that is possible for a folder everywhere."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "experiment"


def _link(project: Project, folder: Path, method: str, states: Mapping[str, State]) -> bool:
    """Make the folder of one run; returns whether it has curves."""
    training, evaluation = states[f"train-{method}"], states.get(f"evaluate-{method}")
    if not training.complete:
        return False
    trained = trained_folder(project, training)
    if not trained.tensorboard.is_dir():
        return False
    seed, digest = trained.settings.config.get("seed"), training.fingerprint.hex[:DIGITS]
    own = folder / f"{method} seed {seed} {digest}"
    own.mkdir(parents=True, exist_ok=True)
    for path in trained.tensorboard.glob(f"{EVENTS}*"):
        _refer(own / path.name, path)
    if evaluation is not None and evaluation.complete:
        target = own / f"{LAST}{evaluation.fingerprint.hex[:DIGITS]}"
        if not target.exists():
            for old in own.glob(f"{LAST}*"):
                old.unlink()
            _write(target, trained, evaluated_folder(project, evaluation))
    return True


def _refer(link: Path, path: Path) -> None:
    """A relative link to a file, or a copy on a file system without links."""
    if link.is_symlink() or link.exists():
        return
    try:
        link.symlink_to(os.path.relpath(path, link.parent))
    except OSError:
        shutil.copyfile(path, link)


def _drop_dangling(folder: Path) -> None:
    """Remove the folders of runs whose curves the store has dropped."""
    for own in folder.iterdir():
        if any(path.is_symlink() and not path.exists() for path in own.iterdir()):
            shutil.rmtree(own)


def _write(target: Path, trained: TrainedFolder, evaluated: EvaluatedFolder) -> None:
    """Write settings and final figures as TensorBoard reads them: aside, then renamed."""
    from tensorboard.compat.proto.event_pb2 import (
        Event,
    )  # 1.7 s of imports: only a new evaluation pays for them
    from tensorboard.compat.proto.summary_pb2 import Summary as Written
    from tensorboard.plugins.hparams import summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    figures = dict(final_figures(trained.summary, evaluated))
    parameters = dict(_flat(trained.settings.config))
    summaries = [
        summary_v2.hparams_config_pb(
            [summary_v2.HParam(name) for name in parameters], [summary_v2.Metric(name) for name in figures]
        ),
        summary_v2.hparams_pb(parameters, trial_id=target.parent.name),
        Written(value=[Written.Value(tag=name, simple_value=value) for name, value in figures.items()]),
    ]
    steps, now = trained.history[-1].steps if trained.history else 0, time.time()
    aside = target.with_name(f".{target.name}")
    with aside.open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version=VERSION).SerializeToString())
        for summary in summaries:
            writer.write(Event(wall_time=now, step=steps, summary=summary).SerializeToString())
        writer.flush()
    aside.replace(target)


def final_figures(summary: Summary, evaluated: EvaluatedFolder) -> Iterator[tuple[str, float]]:
    """Yield the figures of the best epoch, "best validation/SumR", and those of the evaluated split, "test/t2v R@1"."""
    yield from ((f"best validation/{name}", value) for name, value in summary.validation.items())
    split = evaluated.metrics.protocol.split
    for direction, estimates in evaluated.metrics.estimates.items():
        prefix = "" if direction == "both" else f"{direction} "
        yield from ((f"{split}/{prefix}{name}", estimate.value) for name, estimate in estimates.items())


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings under their full names; what is no number, text or truth value as text."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, bool | int | float | str) else str(value)
