"""board: published figures and ours side by side with their protocols; --lint checks the published ones for errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.experiments import opened
from flows.commands.terms import METHOD_OPTION, AsJson, Sets, method_names, out, print_json, print_table
from flows.console import StageDisplay
from flows.results.board.lint import Linted, lint
from flows.results.board.published import Published, read_published
from flows.results.board.side_by_side import ORIGINS, Line, Ours, Section, sections
from flows.results.judged import verdict_of
from flows.results.method_results import MethodResults, method_results
from flows.results.verdict import Verdict
from flows.trained.finished import finished_evaluations
from pipeline.errors import UserError, nearest
from trainers.measure.metric_table import DIRECTIONS, metric

CONTRADICTED = 1  # exit status of --lint
APART, SAME = "≠", "="


def board(
    experiments: Annotated[
        list[Path],
        typer.Argument(
            metavar="[EXPERIMENT...]", help="Experiments whose figures are shown beside the published ones."
        ),
    ] = [],  # noqa: B006
    methods: Annotated[
        list[str],
        typer.Option(*METHOD_OPTION, help="Show only this method; repeatable.", autocompletion=method_names),
    ] = [],  # noqa: B006
    variants: Annotated[bool, typer.Option("--all", help="Show ablations and other settings too.")] = False,
    only_lint: Annotated[
        bool, typer.Option("--lint", help="List the published tables that contradict themselves.")
    ] = False,
    tables: Annotated[
        Path | None,
        typer.Option("--tables", help="A folder of published tables instead of the methods' own."),
    ] = None,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Published figures and ours side by side: paper, repository, ours, with the protocol of each.

    Figures of ours are put into a published table only if the corpus was imported under its protocol. They are
    marked with every reason why the run is not the published experiment, or as a repetition of it.
    """
    published = _chosen(read_published(tables), methods)
    if only_lint:
        _print_lint(lint(published), as_json)
        return
    with StageDisplay(quiet=as_json) as display:
        found = [_our_figures(path, sets, methods, display) for path in experiments]
    ours = [own for figures, _ in found for own in figures]
    all_sections = sections(published, ours, variants)
    if as_json:
        print_json([asdict(section) for section in all_sections])
        return
    for section in all_sections:
        _print(section)
    for path, (_, verdict) in zip(experiments, found, strict=True):
        if verdict is not None:
            out.print(f"\nverdict of {path}", markup=False, lines=True, style="bold")
            for sentence in verdict.lines:
                out.print(sentence, markup=False, highlight=False)
    linted = lint(published)
    for problem in (*linted.new, *(problem for problem, _ in linted.known)):
        out.print(f"contradicts itself: {problem}", markup=False)


def _chosen(published: Mapping[str, Published], methods: Sequence[str]) -> dict[str, Published]:
    for name in methods:
        if name not in published:
            raise UserError(f"there is no published table of {name!r}; {nearest(name, published)}")
    return {name: one for name, one in published.items() if not methods or name in methods}


def _print_lint(linted: Linted, as_json: bool) -> None:
    """Print the contradictions in published tables; exit status 1 if the list of known ones is not up to date."""
    if as_json:
        print_json(asdict(linted))
    else:
        for problem, note in linted.known:
            out.print(f"known: {problem} ({note})", markup=False)
        for problem in linted.new:
            out.print(f"new: {problem}", markup=False)
        for problem in linted.gone:
            out.print(f"listed, but not there any more: {problem}", markup=False)
        if linted.clean:
            out.print(f"{len(linted.known)} known contradictions, no new one")
    if not linted.clean:
        raise typer.Exit(CONTRADICTED)


def _our_figures(
    path: Path, sets: list[str], methods: Sequence[str], display: StageDisplay
) -> tuple[list[Ours], Verdict | None]:
    """The figures of an experiment's evaluated methods, limited to `methods` if any are given, and the verdict."""
    project = opened(path, sets, [], display)
    try:
        names = [name for name in project.experiment.methods if not methods or name in methods]
        states = project.states()
        finished = finished_evaluations(project, names, states=states)
        evaluated = [name for name in names if name not in finished.missing]
        if not evaluated:
            raise UserError(f"no method of {path} is evaluated yet; run `crossreel run {path}` first")
        verdict = verdict_of(finished.project, finished.states)
        ordered = sorted(evaluated, key=lambda name: verdict.rank(name) if verdict else 0)
        return [_ours(method_results(project, name, states), str(path)) for name in ordered], verdict
    finally:
        project.store.index.close()


def _ours(one: MethodResults, experiment: str) -> Ours:
    """The figures of an evaluated method, with what makes it another run than the published one."""
    metrics = one.evaluated.metrics
    beside = one.project.beside_published(one.method, metrics.protocol)
    return Ours(one.method, experiment, metrics, beside, one.note)


def _print(section: Section) -> None:
    """Print a table for each direction, and below them the source and the protocol of every line."""
    out.print(f"\n{section.dataset}, {section.protocol}", markup=False, lines=True, style="bold")
    for direction in (*DIRECTIONS, "both"):
        if names := section.metrics(direction):
            lines = [row for line in section.lines for row in _rows(line, direction, names)]
            print_table("", [direction, *(_title(name, direction) for name in names)], lines)
    _print_shared_notes(
        section.lines, lambda line: [". ".join(part for part in (line.source, line.backbone) if part)]
    )
    _print_shared_notes(section.lines, lambda line: [line.protocol], "protocol of ")
    _print_shared_notes(section.lines, lambda line: [*line.apart, *([line.note] if line.note else [])])


def _title(name: str, direction: str) -> str:
    """The name of a metric's column: papers call the sum of one direction RSUM too, which is that of both here."""
    return "R@1+5+10" if name == "RSUM" and direction in DIRECTIONS else name


def _print_shared_notes(
    lines: Sequence[Line], words: Callable[[Line], Sequence[str]], prefix: str = ""
) -> None:
    """Print each note once, with the names of all lines that it applies to."""
    names: dict[str, list[str]] = {}
    for line in lines:
        for text in words(line):
            names.setdefault(text, []).append(_name(line))
    for text, owners in names.items():
        lines_named = "all" if len(owners) == len(lines) > 1 else "; ".join(dict.fromkeys(owners))
        out.print(f"  {prefix}{lines_named}: {text}", markup=False)


def _rows(line: Line, direction: str, names: Sequence[str]) -> list[list[str]]:
    figures, intervals = line.figures.get(direction), line.intervals.get(direction, {})
    if not figures:
        return []
    rows = [[_name(line), *(metric(n).printed(figures[n]) if n in figures else "" for n in names)]]
    if intervals:
        spans = {n: f"{metric(n).short(low)}-{metric(n).short(high)}" for n, (low, high) in intervals.items()}
        rows.append(["  95 %", *(spans.get(name, "") for name in names)])
    return rows


def _name(line: Line) -> str:
    """For instance "GARE (paper)", marked where it is not comparable, and where a run repeats a published one."""
    variant = f", {line.variant}" if line.variant else ""
    mark = f" {APART}" if line.apart else f" {SAME}" if line.repetition else ""
    return f"{line.system}{variant} ({ORIGINS[line.origin]}){mark}"
