"""Options that many verbs share, and functions with which verbs print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.measure import Measurement
from rich.table import Table

from flows.terminal import Terminal, in_one_line

ExperimentFile = Annotated[Path, typer.Argument(help="The experiment file.", metavar="EXPERIMENT")]
Sets = Annotated[
    list[str], typer.Option("--set", metavar="A.B=C", help="Change a setting of the experiment.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Redo = Annotated[list[str], typer.Option("--redo", metavar="STAGE", help="Make this stage again.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try failed items again.")]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Start although a problem is known that stops a stage.")
]
Methods = Annotated[list[str], typer.Option("--methods", "-m", help="Methods to use instead of the file's.")]
RunOption = Annotated[
    str, typer.Option("--run", metavar="RUN", help="METHOD@DIGEST or DIGEST, as `crossreel runs` lists them.")
]
GalleryCorpus = Annotated[
    Path | None,
    typer.Option(
        "--corpus", metavar="FILE", help="A corpus that the run was applied to, instead of its own."
    ),
]
DEFAULT_EXPERIMENT = Path("experiment.toml")

ANYWAY = "run.anyway=true"  # the setting that --anyway sets, which flows and sweeps take as well
UNFOLDED = 10_000  # columns of text, more than any line has
FAILED_ITEMS = 3  # exit status of a command that is done although some items failed

out = Terminal(soft_wrap=True, highlight=False)


def all_sets(sets: list[str], anyway: bool) -> list[str]:
    """The settings of --set, and the one of --anyway."""
    return [*sets, ANYWAY] if anyway else sets


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=1))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table: the first column aligned left, the others right.

    In a terminal that is too narrow for it cells are folded; in a file or a pipe it has the width that it needs.
    """
    heading = "\n" * (len(title) - len(title.lstrip("\n"))) + in_one_line(title.lstrip("\n"))
    table = Table(
        title=heading or None,
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=number == 0
        )
    for row in rows:
        table.add_row(*map(in_one_line, row))
    if out.is_terminal:
        out.print(table)
        return
    if title:
        out.print(
            heading, markup=False, soft_wrap=True, lines=True
        )  # above the table, not padded to its width
        table.title = None
    needed = Measurement.get(out, out.options.update(max_width=UNFOLDED), table).maximum
    Terminal(file=out.file, width=needed, highlight=False).print(table)


def human_bytes(size: float) -> str:
    """A size in words, for instance "3.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """A duration in words, for instance "2 min 5 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {seconds % 60:.0f} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
