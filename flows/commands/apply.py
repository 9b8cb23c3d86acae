"""apply, runs: trained runs by name, and a run on another corpus."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.applying import Applied, apply_run
from flows.commands.experiments import (
    check,
    finish_with,
    hashing,
    opened,
    print_leaderboard,
    print_result,
)
from flows.commands.terms import (
    DEFAULT_EXPERIMENT,
    Anyway,
    AsJson,
    ExperimentFile,
    RetryFailed,
    Sets,
    all_sets,
    out,
    print_json,
    print_table,
)
from flows.console import StageDisplay
from flows.project import Project
from flows.trained.listing import list_runs
from flows.trained.naming import open_run
from pipeline.run import plan


def apply(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="EXPERIMENT:METHOD@DIGEST, METHOD, or a training's folder.")
    ],
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="The manifest of the new items.")],
    experiment: Annotated[
        Path, typer.Option("--experiment", "-e", help="The experiment of a run that is named without one.")
    ] = DEFAULT_EXPERIMENT,
    split: Annotated[str, typer.Option("--split", help="Only this split of the corpus; else all items.")] = "",
    sets: Sets = [],  # noqa: B006
    retry_failed: RetryFailed = False,
    anyway: Anyway = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Rank another corpus with a trained run: extract, encode, index, and measure where there are captions.

    Extraction has the settings that the run was made with, whatever the experiment says today. `crossreel search` and
    `crossreel serve` with --corpus then search the new items.
    """
    sets = all_sets(sets, anyway)
    with StageDisplay(quiet=as_json) as display:
        project, run = open_run(name, experiment, lambda path: opened(path, sets, [], display))

        def possible(project: Project, states: plan.Survey, names: Sequence[str]) -> None:
            states.killed_before = math.inf
            check(project, states, names, display, retry_failed=retry_failed)

        applied = apply_run(project, run, corpus, split, display, retry_failed, possible, hashing(display))
    if as_json:
        print_json(applied.as_json())
    else:
        _print(applied, corpus, split)
    finish_with(applied.result)


def _print(applied: Applied, corpus: Path, split: str) -> None:
    """Print what was applied to what, the metrics, the failures, and how to search."""
    out.print(f"applied: {applied.searched.note}", markup=False)
    print_leaderboard(applied.leaderboard)
    print_result(applied.result)
    if applied.evaluated:
        out.print(f"evaluation: {applied.evaluated.folder}", markup=False)
    path = applied.searched.project.experiment.path
    if applied.searched.indexed and path.is_file():
        where = f"--corpus {corpus}" + (f" --split {split}" if split else "")
        run = applied.gallery.run.name
        out.print(f'search: crossreel search "a sentence" {path.name} --run {run} {where}', markup=False)


def runs(
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """The trained runs in an experiment's store, by the names that search, serve, compare and apply take."""
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, [], display)
        listed = list_runs(project)
    if as_json:
        print_json([run.as_json() for run in listed])
        return
    columns = ["run", "trained", "items", "evaluated on", "today"]
    print_table("", columns, [
        [run.name, run.day, str(run.items or ""), ", ".join(run.evaluated), run.today] for run in listed
    ])  # fmt: skip
    if not listed:
        out.print(f"nothing is trained in {project.store.root} yet", markup=False)
