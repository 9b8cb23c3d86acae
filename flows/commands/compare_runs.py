"""compare runs: evaluated methods on the same queries, with every difference and its significance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.experiments import opened
from flows.commands.terms import AsJson, Sets, out, print_json, print_table
from flows.console import StageDisplay
from flows.results.comparison import (
    Matched,
    Pair,
    ahead,
    compare,
    matched,
    meaning,
)
from flows.results.comparison import (
    as_json as comparison_json,
)
from flows.results.measured import read_measured
from flows.results.method_results import evaluated_folder
from flows.results.wording import counted, member, short_title
from flows.trained.finished import finished_evaluations
from flows.trained.naming import parse_run
from flows.trained.runs import EVALUATE, SEPARATOR, find_run
from pipeline.errors import UserError, nearest
from trainers.measure.evaluated import METRICS, EvaluatedFolder
from trainers.measure.metric_table import DIRECTIONS, metric, shown_metrics
from trainers.measure.metrics import Estimate

LEAST_P = 0.001  # smaller p values are printed as <0.001


def runs(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="EXPERIMENT:METHOD@DIGEST, EXPERIMENT:METHOD, EXPERIMENT, METHOD or the folder of a run.",
        ),
    ],
    experiment: Annotated[
        Path, typer.Option("--experiment", "-e", help="The experiment of methods that are named without one.")
    ] = Path("experiment.toml"),
    split: Annotated[
        str,
        typer.Option("--split", help="Compare evaluations on this split instead of the split in the file."),
    ] = "",
    direction: Annotated[
        str, typer.Option("--direction", help="Compare this direction alone: t2v or v2t.")
    ] = "",
    common: Annotated[
        bool,
        typer.Option(
            "--common", help="Where items failed in one run, compare the queries that all runs have."
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The seed of the bootstrap.")] = 0,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Compare evaluated methods on the same queries: every difference with its interval and significance.

    Intervals come from a paired bootstrap over items with all their captions, p values from McNemar's exact test with
    items as its units, corrected after Holm. Runs whose protocols differ are refused. Where an experiment changed
    since, its last evaluated run is compared, and one line says so.
    """
    if direction and direction not in DIRECTIONS:
        raise UserError(f"--direction {direction!r} is not possible; possible: {', '.join(DIRECTIONS)}")
    every = [*sets, *([f'evaluate.split="{split}"'] if split else [])]
    with StageDisplay(quiet=as_json) as display:
        folders = [pair for word in words for pair in _folders(word, experiment, every, display)]
    if len(folders) < 2:
        raise UserError(f"{words[0]} is one run alone; name two or more to compare")
    measured = [read_measured(folder, name) for name, folder in _named(folders)]
    for run in measured:
        if split and run.protocol.split != split:
            raise UserError(
                f"{run.folder} was evaluated on the split {run.protocol.split!r}, not on {split!r}"
            )
    matching = matched(measured, direction, common)
    pairs = compare(matching, seed)
    if as_json:
        print_json(comparison_json(matching, pairs))
    else:
        _print(matching, pairs)


def _folders(
    word: str, experiment: Path, sets: list[str], display: StageDisplay
) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Yield the evaluation folders that a word names, each with its possible names, the shortest first."""
    path = Path(word)
    if path.is_dir():
        if not EvaluatedFolder(path).exists:
            raise UserError(f"{word} is not the folder of an evaluated method: there is no {METRICS} in it")
        method = path.absolute().parent.name.removeprefix(EVALUATE)
        yield (f"{method} {path.absolute().name[:8]}", word), path
        return
    name = parse_run(word, experiment)
    owner, method = name.experiment, name.method
    project = opened(owner, sets, [], display)
    try:
        known = project.experiment.methods
        if method and method not in known:
            raise UserError(f"{method!r} is not a method of {owner}; {nearest(method, known)}")
        if not known:
            raise UserError(f"{owner} names no methods, so there is nothing to compare")
        methods = [method] if method else known
        if name.digest and not method:
            methods = [find_run(project.store, "", name.digest).method]
        finished = finished_evaluations(project, methods, dict.fromkeys(methods, name.digest))
        for each in methods:
            if each in finished.missing:
                raise UserError(f"{each} of {owner} is not evaluated yet; run `crossreel run {owner}` first")
            if each in finished.notes:
                display.say(finished.notes[each])
            state = finished.states[f"evaluate-{each}"]
            run = f"{each}{SEPARATOR}{name.digest}" if name.digest else each
            names = (run, f"{owner.stem}:{run}", f"{owner}:{run}")
            yield names, evaluated_folder(finished.project, state).folder
    finally:
        project.store.index.close()


def _named(folders: Sequence[tuple[tuple[str, ...], Path]]) -> list[tuple[str, Path]]:
    """The folders with the shortest names that tell different runs apart; a run that is named twice gets a number."""
    many, different = (
        max(len(names) for names, _ in folders),
        len({folder.resolve() for _, folder in folders}),
    )
    chosen: list[str] = []
    for length in range(many):
        chosen = [names[min(length, len(names) - 1)] for names, _ in folders]
        if len(set(chosen)) == different:
            break
    again = [
        f"{name} ({chosen[:n].count(name) + 1})" if name in chosen[:n] else name
        for n, name in enumerate(chosen)
    ]
    return [(name, folder) for name, (_, folder) in zip(again, folders, strict=True)]


def _print(matching: Matched, pairs: Sequence[Pair]) -> None:
    """Print a table for each pair and direction, and a sentence on what it means."""
    protocol = matching.runs[0].protocol
    kind, tests = protocol.kind, sum(len(pair.tests) for pair in pairs)
    for note in matching.notes:
        out.print(note, markup=False)
    for pair in pairs:
        if pair.direction != "both":
            _print_table(pair, kind)
        out.print(f"{meaning(pair, tests, protocol)}.", markup=False)
    clustered = any(pair.units < pair.queries for pair in pairs)
    noun = member(kind)
    words = f"Resampled and exchanged are {noun}s" + (
        f" with all their captions, which are not independent; p of McNemar's test with {noun}s as units"
        if clustered
        else "; p of McNemar's test"
    )
    out.print(
        f"\n{words}, then corrected for {tests} tests (Holm). "
        "Another seed of training may differ by more: `crossreel batch` gives means over seeds.",
        markup=False,
        lines=True,
    )


def _print_table(pair: Pair, kind: str) -> None:
    names = shown_metrics(pair.differences, kind)
    lines = []
    for name in names:
        d, test = pair.differences[name], pair.tests.get(name)
        facts = metric(name)
        cells = [facts.printed(d.a), facts.printed(d.b), facts.signed(d.value)]
        cells += [f"{facts.signed(d.low)} to {facts.signed(d.high)}", _side(pair, name)]
        if test:
            cells += [f"{test.only_a}:{test.only_b}", _p(test.p), _p(test.corrected)]
        lines.append([facts.name, *cells, *([""] * 3 if not test else [])])
        interval_cells = [_interval(name, estimates[name]) for estimates in (pair.of_a, pair.of_b)]
        lines.append(["  95 %", *interval_cells, *[""] * 6])
    over = counted(pair.queries, "query")
    if pair.units < pair.queries:
        over += f" of {counted(pair.units, member(kind))}"
    out.print(
        f"\nA {pair.a}, B {pair.b}, {short_title(pair.direction, kind)}: {over}",
        markup=False,
        style="bold",
        lines=True,
    )
    columns = ["", "A", "B", "A - B", "95 %", "ahead", "only A:B", "p", "corrected"]
    print_table("", columns, lines)


def _interval(name: str, estimate: Estimate) -> str:
    """The interval of one run's metric, for instance "20-26", as the report shows it."""
    return f"{metric(name).short(estimate.low)}-{metric(name).short(estimate.high)}"


def _side(pair: Pair, name: str) -> str:
    return {pair.a: "A", pair.b: "B"}.get(ahead(pair, name), "")


def _p(value: float) -> str:
    return f"<{LEAST_P}" if value < LEAST_P else f"{value:.3f}"
