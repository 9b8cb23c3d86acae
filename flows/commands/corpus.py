"""corpus import, corpus check: from a folder or table of captions to a manifest that is worth running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terms import FAILED_ITEMS, AsJson, out, print_json
from flows.console import StageDisplay
from pipeline.checking import check as find
from pipeline.contents import read_contents
from pipeline.corpus import Corpus, parse, write_manifest
from pipeline.datasets.folder import read_folder
from pipeline.datasets.table import read_csv, read_jsonl
from pipeline.errors import UserError, nearest
from pipeline.execute import cores
from pipeline.index import Index

LAYOUTS = {"folder": read_folder, "csv": read_csv, "jsonl": read_jsonl}
LEFT_OUT_SHOWN = 20

app = typer.Typer(help="Make a corpus manifest, and check one before hours are spent.", no_args_is_help=True)


@app.command("import")
def import_(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help="folder, csv or jsonl.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="The folder or table.")],
    target: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.")] = Path(
        "corpus.jsonl"
    ),
) -> None:
    """Write a manifest from a folder of media with captions beside them, or a table of captions.

    Where the source names no splits, items are put into train, val and test by a digest of their id.
    """
    if layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; {nearest(layout, LAYOUTS)}")
    if not source.exists():
        raise UserError(f"{source} does not exist")
    found = LAYOUTS[layout](source, target.parent)
    if not found.items:
        raise UserError(f"{source} gives no items; {found.left_out[0] if found.left_out else 'it is empty'}")
    write_manifest(target, found.items)
    corpus = Corpus.read(target)
    splits = ", ".join(f"{split} {len(corpus.gallery(split))}" for split in corpus.splits)
    captions = sum(len(item.captions) for item in corpus.items)
    out.print(f"{target}: {len(corpus.items)} items ({splits}), {captions} captions", markup=False)
    for line in found.left_out[:LEFT_OUT_SHOWN]:
        out.print(f"left out: {line}", markup=False)
    if len(found.left_out) > LEFT_OUT_SHOWN:
        out.print(f"... and {len(found.left_out) - LEFT_OUT_SHOWN} more left out")
    if found.left_out:
        raise typer.Exit(FAILED_ITEMS)


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST")],
    as_json: AsJson = False,
) -> None:
    """Open every file of a corpus; say what is missing, unreadable, doubled, or leaked between splits."""
    items, problems = parse(manifest)
    for problem in problems:
        out.print(f"error: {manifest}, {problem}", markup=False)
    if problems:
        raise typer.Exit(2)
    with StageDisplay(quiet=as_json) as display:
        index = Index(Path(":memory:"))
        contents = read_contents(Corpus(manifest, tuple(items)), index)

        def seen(done: int, total: int) -> None:
            if done == total or done % 500 == 0:
                display.say(f"opened {done} of {total} files")

        findings = find(contents, cores(), seen)
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            out.print(f"{finding.level}: {finding.sentence}", markup=False)
        errors = sum(finding.level == "error" for finding in findings)
        out.print(f"{len(items)} items, {errors} errors, {len(findings) - errors} warnings")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(FAILED_ITEMS)
