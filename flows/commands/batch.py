"""batch: one experiment under many settings, with a leaderboard over all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from flows.batch import Outcome, Row, Settings, Sweep, as_sets, outcomes, read_sweep, rows
from flows.commands.experiments import run_experiment
from flows.commands.terms import Anyway, AsJson, Sets, all_sets, out, print_json, print_table
from flows.console import StageDisplay
from flows.project import open_project
from flows.reporting import Stopped
from flows.run import STAGE_ERRORS, reason
from pipeline.errors import TrainingError, UserError, is_full
from trainers.measure.metric_table import DIRECTIONS, METRICS, metric, printed_figure

ALL_FAILED, SOME_FAILED = 1, 3  # exit status: every run failed; some run, or a method of it, did
STDERR_CHARACTERS = 400  # end of the error output of a run in a process of its own, quoted if it fails


def batch(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep file.")],
    sets: Sets = [],  # noqa: B006
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each in a process of its own.")
    ] = 1,
    anyway: Anyway = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment under every setting of a sweep, and compare them.

    Every run is an experiment as `crossreel run` makes it, in the same store: features are extracted once, and a
    run that was made before costs nothing. Runs are ranked by the validation split. A run that fails is
    listed with its error, and the others go on.
    """
    sweep_file = read_sweep(sweep)
    runs, sets = sweep_file.runs(), all_sets(sets, anyway)
    _require_possible(sweep_file, runs, sets)
    with StageDisplay(quiet=as_json) as display:
        all_outcomes = [
            outcome
            for run_outcomes in _run_all(sweep_file, runs, sets, jobs, display)
            for outcome in run_outcomes
        ]
    failed = [outcome for outcome in all_outcomes if outcome.error]
    if as_json:
        print_json([outcome.as_json() for outcome in all_outcomes])
    else:
        _print_tables(rows(all_outcomes), len(runs))
        for outcome in failed:
            method = f", {outcome.method}" if outcome.method else ""
            out.print(f"failed: {_in_words(outcome.settings)}{method}: {outcome.error}", markup=False)
    if failed:
        raise typer.Exit(SOME_FAILED if len(failed) < len(all_outcomes) else ALL_FAILED)


def _require_possible(sweep: Sweep, runs: list[Settings], sets: list[str]) -> None:
    """Raise UserError for a setting that is unknown or impossible, before any run begins."""
    for settings in runs:
        try:
            project = open_project(sweep.experiment_path, [*sets, *as_sets(settings)], sweep.methods)
        except UserError as error:
            raise UserError(f"{sweep.path.name}, {_in_words(settings)}: {error}") from None
        project.store.index.close()
        if not project.experiment.methods:
            raise UserError(f"{sweep.experiment_path} names no methods, so there is nothing to compare")


def _run_all(
    sweep: Sweep, runs: list[Settings], sets: list[str], jobs: int, display: StageDisplay
) -> Iterator[list[Outcome]]:
    """Yield the outcomes of every run, in order.

    With several jobs the first run still goes alone, because it makes the features that all runs share.
    """

    def outcomes_of(place: int, make: Callable[[Settings], list[Stopped]]) -> list[Outcome]:
        settings = runs[place]
        display.say(f"run {place + 1} of {len(runs)}: {_in_words(settings)}")
        try:
            stopped = make(settings)
            project = open_project(sweep.experiment_path, [*sets, *as_sets(settings)], sweep.methods)
            try:
                return outcomes(project, settings, stopped)
            finally:
                project.store.index.close()
        except STAGE_ERRORS as error:
            if is_full(error):
                raise
            return [Outcome(settings, error=reason(error))]

    def run_here(settings: Settings) -> list[Stopped]:
        every = [*sets, *as_sets(settings)]
        return run_experiment(sweep.experiment_path, every, sweep.methods, [], False, display).stopped

    def run_in_process(settings: Settings) -> list[Stopped]:
        return _run_in_process(sweep, [*sets, *as_sets(settings)])

    yield outcomes_of(0, run_here)
    if jobs == 1:
        yield from (outcomes_of(place, run_here) for place in range(1, len(runs)))
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda place: outcomes_of(place, run_in_process), range(1, len(runs)))


def _run_in_process(sweep: Sweep, sets: list[str]) -> list[Stopped]:
    """Make one run in a process of its own; returns the stages that stopped.

    Raises TrainingError with the end of its error output if it fails.
    """
    command = [sys.executable, "-m", "flows.cli", "run", str(sweep.experiment_path), "--json"]
    for text in sets:
        command += ["--set", text]
    for method in sweep.methods:
        command += ["--methods", method]
    process = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if process.returncode not in (0, 3):
        raise TrainingError(
            process.stderr.strip()[-STDERR_CHARACTERS:] or f"exit status {process.returncode}"
        )
    return [Stopped(**stage) for stage in json.loads(process.stdout)["stopped"]]


def _in_words(settings: Settings) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _print_tables(ranked: list[Row], runs: int) -> None:
    """Print a table for each method: the settings, the validation metric that ranks the runs, and the test metrics."""
    for method in dict.fromkeys(row.method for row in ranked):
        own = [row for row in ranked if row.method == method]
        keys = list(dict.fromkeys(key for row in own for key in row.settings))
        seeds = max(len(row.outcomes) for row in own)
        shown = [
            (d, one.name) for d in DIRECTIONS for one in METRICS if one.brief and own[0].figure(d, one.name)
        ]
        columns = [*(_short(key, keys) for key in keys), *(["seeds"] if seeds > 1 else [])]
        chosen_by = dict.fromkeys(o.figure for row in own for o in row.outcomes if o.figure)
        columns += [f"val {' / '.join(chosen_by)}".strip(), *(f"{d} {name}" for d, name in shown)]
        lines = [
            [
                *(json.dumps(row.settings[key]) if key in row.settings else "" for key in keys),
                *([str(len(row.outcomes))] if seeds > 1 else []),
                "" if (validation := row.validation()) is None else _validated(row, validation),
                *(_estimate(row, d, name) for d, name in shown),
            ]
            for row in own
        ]
        split = own[0].outcomes[0].split
        print_table(f"\n{method} on {split}, {runs} runs, the best on val first", columns, lines)
        if seeds > 1:
            out.print("figures of several seeds are means, with the standard deviation behind")


def _validated(row: Row, value: float) -> str:
    return printed_figure(row.outcomes[0].figure, value)


def _short(key: str, keys: list[str]) -> str:
    """The last word of a key if no other key ends with it, else the whole key."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _estimate(row: Row, direction: str, name: str) -> str:
    estimate = row.figure(direction, name)
    if estimate is None:
        return ""
    mean, deviation = (metric(name).printed(value) for value in estimate)
    return f"{mean} ±{deviation}" if len(row.outcomes) > 1 else mean
