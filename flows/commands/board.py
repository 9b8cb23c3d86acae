"""board: published figures and ours side by side, with the protocol of each; and whether the published ones add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.experiments import opened
from flows.commands.terms import AsJson, Sets, out, print_json, print_table
from flows.console import StageDisplay
from flows.results.board.lint import Linted, lint
from flows.results.board.published import Published, read_published
from flows.results.board.side_by_side import ORIGINS, Line, Ours, Section, sections
from flows.results.method_results import evaluated_folder
from pipeline.errors import UserError, nearest
from trainers.measure.metric_table import DIRECTIONS, metric

CONTRADICTED = 1  # exit status of --lint
APART = "≠"


def board(
    experiments: Annotated[
        list[Path],
        typer.Argument(metavar="[EXPERIMENT...]", help="Whose figures stand beside the published ones."),
    ] = [],  # noqa: B006
    methods: Annotated[list[str], typer.Option("--method", "-m", help="These methods alone.")] = [],  # noqa: B006
    variants: Annotated[bool, typer.Option("--all", help="With ablations and other settings.")] = False,
    only_lint: Annotated[
        bool, typer.Option("--lint", help="Say which published tables contradict themselves.")
    ] = False,
    tables: Annotated[
        Path | None,
        typer.Option("--tables", help="A folder of published tables instead of the methods' own."),
    ] = None,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Published figures and ours side by side: paper, repository, ours, with the protocol of each.

    Figures of ours stand in a published table only where the corpus was imported under that protocol, and are
    marked where something else keeps them apart.
    """
    published = _chosen(read_published(tables), methods)
    if only_lint:
        _lint(lint(published), as_json)
        return
    with StageDisplay(quiet=as_json) as display:
        ours = [own for path in experiments for own in _ours(path, sets, methods, display)]
    found = sections(published, ours, variants)
    if as_json:
        print_json([asdict(section) for section in found])
        return
    for section in found:
        _print(section)
    told = lint(published)
    for problem in (*told.new, *(problem for problem, _ in told.known)):
        out.print(f"contradicts itself: {problem}", markup=False)


def _chosen(published: Mapping[str, Published], methods: Sequence[str]) -> dict[str, Published]:
    for name in methods:
        if name not in published:
            raise UserError(f"there is no published table of {name!r}; {nearest(name, published)}")
    return {name: one for name, one in published.items() if not methods or name in methods}


def _lint(told: Linted, as_json: bool) -> None:
    """Print what contradicts itself; exit status 1 for what no file lists."""
    if as_json:
        print_json(asdict(told))
    else:
        for problem, note in told.known:
            out.print(f"known: {problem} ({note})", markup=False)
        for problem in told.new:
            out.print(f"new: {problem}", markup=False)
        for problem in told.gone:
            out.print(f"listed, but not there any more: {problem}", markup=False)
        if told.clean:
            out.print(f"{len(told.known)} known contradictions, no new one")
    if not told.clean:
        raise typer.Exit(CONTRADICTED)


def _ours(path: Path, sets: list[str], methods: Sequence[str], display: StageDisplay) -> list[Ours]:
    """The evaluated methods of an experiment, of those that are asked for."""
    project = opened(path, sets, [], display)
    try:
        states = project.survey()
        names = [name for name in project.experiment.methods if not methods or name in methods]
        done = {name: state for name in names if (state := states[f"evaluate-{name}"]).complete}
        if not done:
            raise UserError(f"no method of {path} is evaluated yet; run `crossreel run {path}` first")
        return [Ours(n, str(path), evaluated_folder(project, state).metrics) for n, state in done.items()]
    finally:
        project.store.index.close()


def _print(section: Section) -> None:
    """A table a direction, and below them the source and the protocol of every line."""
    out.print(f"\n{section.dataset}, {section.protocol}", markup=False, style="bold")
    for direction in (*DIRECTIONS, "both"):
        if names := section.metrics(direction):
            lines = [row for line in section.lines for row in _rows(line, direction, names)]
            print_table("", [direction, *names], lines)
    _told(section.lines, lambda line: [". ".join(part for part in (line.source, line.backbone) if part)])
    _told(section.lines, lambda line: [line.protocol], "protocol of ")
    _told(section.lines, lambda line: [*line.apart, *([line.note] if line.note else [])])


def _told(lines: Sequence[Line], words: Callable[[Line], Sequence[str]], what: str = "") -> None:
    """What is to be said of lines, once for all of whom it is true."""
    names: dict[str, list[str]] = {}
    for line in lines:
        for text in words(line):
            names.setdefault(text, []).append(_name(line))
    for text, those in names.items():
        who = "all" if len(those) == len(lines) > 1 else "; ".join(dict.fromkeys(those))
        out.print(f"  {what}{who}: {text}", markup=False)


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
    """For instance "GARE (paper)", marked where it is not comparable."""
    variant = f", {line.variant}" if line.variant else ""
    mark = f" {APART}" if line.apart else ""
    return f"{line.system}{variant} ({ORIGINS[line.origin]}){mark}"
