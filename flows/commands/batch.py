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

from flows.batch import WATCHED, Outcome, Row, Settings, Sweep, as_sets, outcomes, read_sweep, rows
from flows.commands.experiments import run_experiment
from flows.commands.terms import AsJson, Sets, out, print_json, print_table
from flows.console import StageDisplay
from flows.project import open_project
from flows.reporting import Stopped
from flows.run import STAGE_ERRORS, reason
from pipeline.errors import TrainingError, UserError, is_full
from trainers.measure.metric_table import DIRECTIONS, METRICS, metric

NOTHING, IN_PART = 1, 3  # exit status: every run came to nothing; a method of some run did
LAST_WORDS = 400  # characters of a run that failed in a process of its own


def batch(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The sweep file.")],
    sets: Sets = [],  # noqa: B006
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Runs at a time, each in a process of its own.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Run an experiment under every setting of a sweep, and compare them.

    Every run is an experiment as `crossreel run` makes it, in the same store: features are extracted once, and a
    run that was made before costs nothing. Runs are ranked by the validation split. One that fails is told, and
    the others go on.
    """
    asked = read_sweep(sweep)
    runs = asked.runs()
    _require_possible(asked, runs, sets)
    with StageDisplay(quiet=as_json) as display:
        found = [outcome for done in _all(asked, runs, sets, jobs, display) for outcome in done]
    failed = [outcome for outcome in found if outcome.error]
    if as_json:
        print_json([outcome.as_json() for outcome in found])
    else:
        _print(rows(found), len(runs))
        for outcome in failed:
            method = f", {outcome.method}" if outcome.method else ""
            out.print(f"failed: {_words(outcome.settings)}{method}: {outcome.error}", markup=False)
    if failed:
        raise typer.Exit(IN_PART if len(failed) < len(found) else NOTHING)


def _require_possible(asked: Sweep, runs: list[Settings], sets: list[str]) -> None:
    """Raise UserError for a setting that is unknown or impossible, before any run begins."""
    for settings in runs:
        try:
            project = open_project(asked.experiment_path, [*sets, *as_sets(settings)], asked.methods)
        except UserError as error:
            raise UserError(f"{asked.path.name}, {_words(settings)}: {error}") from None
        project.store.index.close()
        if not project.experiment.methods:
            raise UserError(f"{asked.experiment_path} names no methods, so there is nothing to compare")


def _all(
    asked: Sweep, runs: list[Settings], sets: list[str], jobs: int, display: StageDisplay
) -> Iterator[list[Outcome]]:
    """The outcomes of every run, in order. Of several at a time the first goes alone: it makes what they share."""

    def told(place: int, make: Callable[[Settings], list[Stopped]]) -> list[Outcome]:
        settings = runs[place]
        display.say(f"run {place + 1} of {len(runs)}: {_words(settings)}")
        try:
            stopped = make(settings)
            project = open_project(asked.experiment_path, [*sets, *as_sets(settings)], asked.methods)
            try:
                return outcomes(project, settings, stopped)
            finally:
                project.store.index.close()
        except STAGE_ERRORS as error:
            if is_full(error):
                raise
            return [Outcome(settings, error=reason(error))]

    def here(settings: Settings) -> list[Stopped]:
        every = [*sets, *as_sets(settings)]
        return run_experiment(asked.experiment_path, every, asked.methods, [], False, display).stopped

    def apart(settings: Settings) -> list[Stopped]:
        return _in_a_process(asked, [*sets, *as_sets(settings)])

    yield told(0, here)
    if jobs == 1:
        yield from (told(place, here) for place in range(1, len(runs)))
        return
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda place: told(place, apart), range(1, len(runs)))


def _in_a_process(asked: Sweep, sets: list[str]) -> list[Stopped]:
    """Make one run as a command of its own; return the stages that stopped.

    Raises TrainingError with its last words if it came to nothing.
    """
    command = [sys.executable, "-m", "flows.cli", "run", str(asked.experiment_path), "--json"]
    for text in sets:
        command += ["--set", text]
    for method in asked.methods:
        command += ["--methods", method]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in (0, 3):
        raise TrainingError(done.stderr.strip()[-LAST_WORDS:] or f"exit status {done.returncode}")
    return [Stopped(**stage) for stage in json.loads(done.stdout)["stopped"]]


def _words(settings: Settings) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _print(ranked: list[Row], runs: int) -> None:
    """A table a method: what was tried, the validation figure that ranks it, and the test figures."""
    for method in dict.fromkeys(row.method for row in ranked):
        own = [row for row in ranked if row.method == method]
        keys = list(dict.fromkeys(key for row in own for key in row.settings))
        seeds = max(len(row.outcomes) for row in own)
        shown = [
            (d, one.name) for d in DIRECTIONS for one in METRICS if one.brief and own[0].figure(d, one.name)
        ]
        columns = [*(_short(key, keys) for key in keys), *(["seeds"] if seeds > 1 else [])]
        columns += [f"val {WATCHED}", *(f"{d} {name}" for d, name in shown)]
        lines = [
            [
                *(json.dumps(row.settings[key]) if key in row.settings else "" for key in keys),
                *([str(len(row.outcomes))] if seeds > 1 else []),
                "" if (found := row.validation()) is None else metric(WATCHED).printed(found),
                *(_estimate(row, d, name) for d, name in shown),
            ]
            for row in own
        ]
        split = own[0].outcomes[0].split
        print_table(f"\n{method} on {split}, {runs} runs, the best on val first", columns, lines)
        if seeds > 1:
            out.print("figures of several seeds are means, with the standard deviation behind")


def _short(key: str, keys: list[str]) -> str:
    """The last word of a key, where no other key ends like it."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


def _estimate(row: Row, direction: str, name: str) -> str:
    found = row.figure(direction, name)
    if found is None:
        return ""
    mean, deviation = (metric(name).printed(value) for value in found)
    return f"{mean} ±{deviation}" if len(row.outcomes) > 1 else mean
