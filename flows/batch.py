"""A sweep: one experiment under many settings. Stages that no varied setting reaches are made once for all runs.

    experiment = "experiment.toml"

    [grid] # every combination of these
    "trainers.gare.lr" = [1e-4, 5e-5]
    "trainers.gare.seed" = [0, 1, 2]

    [[points]] # and these runs too, each by itself
    "trainers.gare.num_hidden_layers" = 2

Knows no Prefect. Runs whose settings differ only in seeds become one row with means.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.project import Project
from flows.reporting import Stopped
from flows.results.leaderboard import leaderboard
from flows.results.method_results import trained_folder
from pipeline.errors import UserError
from pipeline.settings import Options, fill, read_toml

MOST_RUNS = 10_000
SEED = ".seed"  # a key with this ending is a seed: its values are repetitions, not choices

Settings = dict[str, Any]
"""Values by key, in the form of `--set key=value`."""


class Sweep(Options):
    """A sweep file. The experiment's path is relative to it."""

    experiment: str  # the experiment file
    methods: list[str] = Field(default_factory=list)  # if given, replaces the experiment's methods
    grid: dict[str, Any] = Field(default_factory=dict)  # lists of values: each combination is a run
    points: list[dict[str, Any]] = Field(default_factory=list)  # settings of further runs, each by itself
    path: Path = Path()

    @property
    def experiment_path(self) -> Path:
        """The path of the experiment file."""
        return self.path.parent / self.experiment

    def runs(self) -> list[Settings]:
        """The settings of every run: all of the grid, in the order of the file, then the points.

        Raises UserError for a grid whose values are no lists, and for a sweep without a run or with too many.
        """
        grid = dict(_flat(self.grid))
        for key, values in grid.items():
            if not isinstance(values, list) or not values:
                raise UserError(f"{self.path}: grid.{key} = {values!r} is not a list of values to try")
        combinations = 1
        for values in grid.values():
            combinations *= len(values)
        if combinations > MOST_RUNS:
            raise UserError(
                f"{self.path}: the grid has {combinations:,} combinations, {MOST_RUNS:,} are possible"
            )
        combined = itertools.product(*grid.values()) if grid else ()
        runs = [dict(zip(grid, values, strict=True)) for values in combined]
        runs += [dict(_flat(point)) for point in self.points]
        if not runs:
            raise UserError(f"{self.path}: neither grid nor points names a setting to try")
        return runs


def read_sweep(path: Path) -> Sweep:
    """The sweep in a file. Raises UserError naming the key or value that is not possible."""
    return fill(Sweep, read_toml(path), "").model_copy(update={"path": path.absolute()})


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield full keys with their values: `"a.b" = 1` and `a.b = 1` are the same setting."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def as_sets(settings: Settings) -> list[str]:
    """Settings in the form of `--set`: JSON values are valid TOML, except null."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@dataclass(frozen=True)
class Outcome:
    """The result of one method under one run's settings; `error` is the reason if the run failed."""

    settings: Settings
    method: str = ""
    validation: float | None = (
        None  # the figure of its best epoch, by which runs are compared; None: no epoch was trained
    )
    figures: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # direction -> metric -> value, low, high
    split: str = ""
    error: str = ""
    figure: str = ""  # what `validation` is, for instance "SumR" (`trainers.<method>.select_by`)

    def as_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return dict(vars(self))


def outcomes(project: Project, settings: Settings, stopped: Sequence[Stopped] = ()) -> list[Outcome]:
    """The metrics of every method of a finished run, and the error of each method that a stopped stage left out."""
    states = project.survey()
    by_method: dict[str, Outcome] = {}
    for row in leaderboard(project, states):
        method = row["method"]
        if method not in by_method:
            summary = trained_folder(project, states[f"train-{method}"]).summary
            name, value = next(iter(summary.validation.items()), ("", None))
            by_method[method] = Outcome(settings, method, value, split=row["split"], figure=name)
        by_method[method].figures[row["direction"]] = row["metrics"]
    for stage in stopped:
        for name in (stage.stage, *stage.left_out):
            method = project.stages[name].method
            if method and method not in by_method:
                by_method[method] = Outcome(settings, method, error=f"{stage.stage} stopped: {stage.reason}")
    return list(by_method.values())


@dataclass(frozen=True)
class Row:
    """Runs of one method that differ in their seeds alone."""

    method: str
    settings: Settings  # settings without the seeds
    outcomes: Sequence[Outcome]

    def validation(self) -> float | None:
        """The mean validation metric over the seeds; None if no epoch was trained, so that there is no validation."""
        values = [o.validation for o in self.outcomes if o.validation is not None]
        return statistics.fmean(values) if values else None

    def figure(self, direction: str, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation over the seeds (0 for one seed); None if the metric was not measured."""
        values = [
            found[metric]["value"] for o in self.outcomes if metric in (found := o.figures.get(direction, {}))
        ]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rows(found: Sequence[Outcome]) -> list[Row]:
    """The runs by method, the best on the validation split first; test metrics do not influence the order."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in found:
        if not outcome.error:
            own = {key: value for key, value in outcome.settings.items() if not key.endswith(SEED)}
            groups.setdefault((outcome.method, json.dumps(own)), []).append(outcome)
    out = [Row(method, json.loads(own), group) for (method, own), group in groups.items()]
    methods = list(dict.fromkeys(row.method for row in out))
    return sorted(out, key=lambda row: (methods.index(row.method), *_worst_last(row.validation())))


def _worst_last(validation: float | None) -> tuple[bool, float]:
    """A sort key that puts the best validation first, and runs without validation last."""
    return validation is None, -(validation or 0.0)
