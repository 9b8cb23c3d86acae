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
METHOD_OPTION = (
    "--methods",
    "--method",
    "-m",
)  # every verb that takes methods, or one, takes all three spellings


def method_names(incomplete: str) -> list[str]:
    """The names of methods that begin with a word, for completion."""
    from trainers.registry import METHODS  # only completion pays for it here

    return [name for name in METHODS.names() if name.startswith(incomplete)]


def stage_names(incomplete: str) -> list[str]:
    """The names of stages that begin with a word, for completion."""
    from flows.graph import EXTRACTORS

    kinds = ("pack", "train", "evaluate")
    names = [*(kind.name for kind in EXTRACTORS), *kinds, "report"]
    names += [f"{kind}-{method}" for kind in kinds for method in method_names("")]
    return [name for name in names if name.startswith(incomplete)]


Methods = Annotated[
    list[str],
    typer.Option(*METHOD_OPTION, help="Methods to use instead of the file's.", autocompletion=method_names),
]
OneMethod = Annotated[
    str, typer.Option(*METHOD_OPTION, help="A method of the experiment.", autocompletion=method_names)
]
StageName = Annotated[
    str,
    typer.Argument(metavar="STAGE", help="A stage, or a group such as evaluate.", autocompletion=stage_names),
]
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


def store_setting(store: Path) -> str:
    """The setting, as --set gives it, that names a store relative to the working directory."""
    return f"store={json.dumps(str(store.absolute()))}"


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=1))


class Answer:
    """What a verb answers: lines for people as they come, or at its end one JSON object of facts."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.facts = as_json, dict[str, Any]()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.as_json and (kind is None or issubclass(kind, typer.Exit)):
            print_json(self.facts)

    def say(self, text: str, lines: bool = False) -> None:
        """Print a line, or with `lines` the lines of a text, unless JSON is printed."""
        if not self.as_json:
            out.print(text, markup=False, lines=lines)

    def add(self, **facts: Any) -> None:
        """Add facts to the JSON object; a Path becomes text."""
        self.facts |= {
            name: str(value) if isinstance(value, Path) else value for name, value in facts.items()
        }


def print_path(name: str, path: Path | None, as_json: bool) -> None:
    """Print the path of the one thing that a verb wrote; in JSON under its name."""
    if as_json:
        print_json({name: str(path)})
    else:
        out.print(str(path), markup=False)


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
