"""compare: evaluated runs against each other (the first word names one), or two sets of features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from flows.commands.compare_runs import runs
from flows.commands.terms import FAILED_ITEMS, AsJson, out, print_json, print_table
from flows.console import StageDisplay
from flows.features import StageFeatures, open_tensors
from flows.project import open_project
from pipeline.errors import ItemError, UserError
from pipeline.features.comparing import Comparison
from pipeline.features.comparing import compare as compare_rows
from pipeline.features.layouts.feature_files import FeatureFiles, as_rows, layout_of, match
from pipeline.features.layouts.ms_sl import MsSl
from pipeline.run.execute import Progress
from pipeline.store.segments import Array

WORST = 20

RUNS = "runs"  # the default verb, if the first word is none


class RunsUnlessNamed(TyperGroup):
    """`compare A B` is `compare runs A B`: the most frequent comparison needs no verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the default verb, unless the arguments begin with a verb or a help option."""
        if args and args[0] not in {*self.commands, *self.get_help_option_names(ctx)}:
            args = [RUNS, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=RunsUnlessNamed,
    help="Compare evaluated runs on the same queries: `crossreel compare A B` is `compare runs A B`. "
    "`compare features A B` says whether two sets of features are the same.",
    no_args_is_help=True,
)
app.command(RUNS)(runs)


class Side(Protocol):
    """Rows by name, of items or captions."""

    @property
    def names(self) -> Collection[str]:
        """The names of the rows."""
        ...

    def rows(self, name: str) -> Array:
        """The rows (T, D) of one name. Raises ItemError."""
        ...


class Collected:
    """The videos or the captions of an MS-SL collection."""

    def __init__(self, source: MsSl, captions: bool) -> None:
        lists = source.splits.values()
        self.names = dict.fromkeys(
            [name for _, rows in lists for name, _, _ in rows]
            if captions
            else [video for videos, _ in lists for video in videos]
        )
        self.rows = source.tokens if captions else source.video


@app.command("features")
def features(
    a: Annotated[str, typer.Argument(metavar="A", help="EXPERIMENT:STAGE, a stage, a folder or a file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    experiment: Annotated[
        Path, typer.Option("--experiment", "-e", help="The experiment of stages that are named without one.")
    ] = Path("experiment.toml"),
    of: Annotated[str, typer.Option("--of", help="items or captions, of an ms-sl collection.")] = "items",
    field: Annotated[str, typer.Option("--field", help="Which output of a stage; else its first.")] = "",
    array: Annotated[str, typer.Option("--array", help="Which array of each file, if several.")] = "",
    dataset: Annotated[str, typer.Option("--dataset", help="Which dataset of each group of HDF5.")] = "",
    as_json: AsJson = False,
) -> None:
    """Compare two sets of features by item: equal, equal at another rate, or different.

    A and B are each a stage of an experiment, a folder of features (exported, .npy, .npz, .pt,
    .safetensors, ms-sl) or a file (HDF5, or a map of arrays).
    """
    if of not in ("items", "captions"):
        raise UserError(f"--of {of!r} is not possible; possible: captions, items")
    with ExitStack() as stack, StageDisplay(quiet=as_json) as display:
        one, other = (_open(word, experiment, of, field, array, dataset, stack) for word in (a, b))
        pairs = match(one.names, other.names)
        if not pairs:
            raise UserError(f"{a} ({_first(one)}) and {b} ({_first(other)}) have no name in common")
        found: dict[str, Comparison] = {}
        failed: dict[str, str] = {}
        for number, (name, theirs) in enumerate(pairs.items(), start=1):
            try:
                found[name] = compare_rows(as_rows(name, one.rows(name)), as_rows(name, other.rows(theirs)))
            except ItemError as error:
                failed[name] = error.reason
            display.progress(Progress("compare", number, len(pairs)))
    alone = {"only_a": len(one.names) - len(pairs), "only_b": len(other.names) - len({*pairs.values()})}
    if as_json:
        items = [{"name": name, **asdict(compared)} for name, compared in found.items()]
        print_json({"a": a, "b": b, **alone, "summary": _summary(found), "failed": failed, "items": items})
    else:
        _print(found, failed, alone)
    if failed:
        raise typer.Exit(FAILED_ITEMS)


def _open(
    word: str, experiment: Path, of: str, field: str, array: str, dataset: str, stack: ExitStack
) -> Side:
    """The features that a word names: a folder or file of features if it exists, else a stage."""
    path = Path(word)
    if path.is_dir() and (path / "FeatureData").is_dir():
        return Collected(stack.enter_context(MsSl.open(path)), of == "captions")
    if path.exists() and path.suffix != ".toml":
        layout = layout_of(path)
        chosen = dataset if layout == "hdf5" else array
        return stack.enter_context(FeatureFiles.open(path, layout, chosen, open_tensors))
    file, colon, stage = word.rpartition(":")
    owner = Path(file) if colon else experiment
    if not owner.is_file():
        raise UserError(
            f"{word!r} is neither a folder or file of features nor a stage: there is no experiment {owner}; "
            "write EXPERIMENT:STAGE, or name it with --experiment"
        )
    return StageFeatures(open_project(owner), stage, field)


def _first(side: Side) -> str:
    name = next(iter(side.names), None)
    return "nothing there" if name is None else f"{name!r} is the first of {len(side.names)}"


def _summary(found: Mapping[str, Comparison]) -> dict[str, Any]:
    """Counts and cosines over the items, the commonest kind first."""
    cosines = [c.cosine for c in found.values() if c.cosine is not None]
    return {
        "items": len(found),
        "kinds": dict(Counter(c.kind for c in found.values()).most_common()),
        "mean_cosine": sum(cosines) / len(cosines) if cosines else None,
        "worst_cosine": min(cosines, default=None),
        "largest_difference": max(
            (c.difference for c in found.values() if c.difference is not None), default=None
        ),
    }


def _print(found: Mapping[str, Comparison], failed: Mapping[str, str], alone: Mapping[str, int]) -> None:
    worst = sorted(found, key=lambda name: (found[name].cosine is not None, found[name].cosine or 0.0))
    rows = [[name, *_cells(found[name])] for name in worst[:WORST]]
    title = f"the worst {WORST} of {len(found)} items" if len(found) > WORST else ""
    print_table(title, ["item", "rows A", "rows B", "cosine", "max diff", "verdict"], rows)
    summary = _summary(found)
    out.print("")
    for kind, count in summary["kinds"].items():
        verdict, times = Counter(c.verdict for c in found.values() if c.kind == kind).most_common(1)[0]
        more = "" if times == count else " and the like"
        out.print(f"{count} of {len(found)}: {verdict}{more}", markup=False)
    if summary["mean_cosine"] is not None:
        out.print(f"mean cosine {summary['mean_cosine']:.5f}, worst {summary['worst_cosine']:.5f}")
    if any(alone.values()):
        out.print(f"only in A: {alone['only_a']}, only in B: {alone['only_b']}")
    for name, reason in list(failed.items())[:WORST]:
        out.print(f"cannot be compared: {name}: {reason}", markup=False)


def _cells(c: Comparison) -> list[str]:
    cosine = "" if c.cosine is None else f"{c.cosine:.5f}"
    difference = "" if c.difference is None else f"{c.difference:.3g}"
    return [str(c.rows_a), str(c.rows_b), cosine, difference, c.verdict]
