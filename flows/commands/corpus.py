"""corpus import, corpus check: write a manifest from annotations and media, and check it before a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from extractors.clouds import CloudEncoder
from extractors.points import Points
from flows.commands.terms import FAILED_ITEMS, AsJson, out, print_json
from flows.console import StageDisplay
from flows.experiment import load
from flows.graph import EXTRACTORS, build
from pipeline.corpus.checking import UNCHECKED, Finding, Minimum
from pipeline.corpus.checking import check as find
from pipeline.corpus.contents import read_contents
from pipeline.corpus.importers.activitynet import ACTIVITYNET
from pipeline.corpus.importers.charades import CHARADES
from pipeline.corpus.importers.didemo import DIDEMO
from pipeline.corpus.importers.earlier import Earlier, require_unmoved
from pipeline.corpus.importers.earlier import keep_splits as keep
from pipeline.corpus.importers.folder import BOTH, kind_of, read_folder
from pipeline.corpus.importers.lsmdc import LSMDC
from pipeline.corpus.importers.msrvtt import MSRVTT
from pipeline.corpus.importers.msvd import MSVD
from pipeline.corpus.importers.published import Choice, read_published
from pipeline.corpus.importers.qvhighlights import QVHIGHLIGHTS
from pipeline.corpus.importers.t3dr_hit import SUBSETS, read_t3dr_hit
from pipeline.corpus.importers.table import Imported, read_csv, read_jsonl, read_parquet
from pipeline.corpus.importers.tvr import TVR
from pipeline.corpus.manifest import KINDS, SPLITS, Corpus, parse, protocol_path, write_manifest
from pipeline.corpus.splits import USUAL, Shares, empty_splits
from pipeline.errors import UserError, nearest
from pipeline.features.imported import imported_stages
from pipeline.run.execute import cores
from pipeline.run.stage import Stage
from pipeline.store.imports import has_imports
from pipeline.store.index import Index
from pipeline.store.store import Store

TABLES = {"csv": read_csv, "jsonl": read_jsonl, "parquet": read_parquet}
OWN = ("folder", *TABLES)
READING = {
    "columns",
    "colour_scale",
    "mesh_points",
    "seed",
}  # settings of stage points that decide how it reads a file
T3DR_HIT = "t3dr-hit"  # the one public corpus that is not made of videos
VIDEOS = {
    "msrvtt": MSRVTT,
    "msvd": MSVD,
    "lsmdc": LSMDC,
    "activitynet": ACTIVITYNET,
    "didemo": DIDEMO,
    "charades": CHARADES,
    "tvr": TVR,
    "qvhighlights": QVHIGHLIGHTS,
}
PUBLIC = (*VIDEOS, T3DR_HIT)
SHOWN = (
    20  # number of left-out entries that are printed; if there are more, a file beside the manifest lists all
)

app = typer.Typer(help="Make a corpus manifest, and check one before hours are spent.", no_args_is_help=True)


@app.command("import")
def import_(
    layout: Annotated[str, typer.Argument(metavar="LAYOUT", help=f"{', '.join(OWN)}; {', '.join(PUBLIC)}.")],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="The folder or table; of a public corpus, its annotation files (also .gz)."
        ),
    ],
    target: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.")] = Path(
        "corpus.jsonl"
    ),
    media: Annotated[
        Path | None,
        typer.Option(help="The folder of a public corpus' media, searched in depth; else SOURCE."),
    ] = None,
    no_media: Annotated[
        bool, typer.Option("--no-media", help="Take the annotations of a public corpus without its media.")
    ] = False,
    protocol: Annotated[
        str,
        typer.Option(
            help="Of msrvtt: 1k-A (or 9k), 7k, full; activitynet: val_1, val_2; tvr: prvr, release; "
            "qvhighlights: val, release."
        ),
    ] = "",
    captions: Annotated[str, typer.Option(help="Of activitynet and didemo: paragraph or moments.")] = "",
    val: Annotated[
        str,
        typer.Option(
            metavar="N|papers",
            help="`papers`: validate on the test split, as most papers do. Where the protocol has no validation split: "
            "how many training videos to hold out.",
        ),
    ] = "",
    split: Annotated[list[str], typer.Option(help="Import this split alone; may be repeated.")] = [],  # noqa: B006
    kind: Annotated[
        str,
        typer.Option(
            help=f"Of a folder or table, what its media are: {', '.join(KINDS)}, or {BOTH}, told apart by suffix."
        ),
    ] = "",
    subset: Annotated[str, typer.Option(help=f"Of t3dr-hit: {' or '.join(SUBSETS)}.")] = "",
    ratio: Annotated[
        str,
        typer.Option(
            metavar="TRAIN:VAL:TEST",
            help="Of a folder or table, how items without a split are dealt, each by a hash of its id; 70:15:15.",
        ),
    ] = "",
    keep_splits: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Leave the items of an earlier manifest in the splits that it has them in.",
        ),
    ] = None,
    move_splits: Annotated[
        bool,
        typer.Option("--move-splits", help="Allow items of the manifest at --out to change their split."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a manifest from media with captions beside them, a table of captions, or a public corpus.

    Where the source names no splits, each item is put into train, val or test by a hash of its own id, so that
    items which are added later move no other. A manifest that is there already is replaced only if no item
    changes its split, or with --move-splits. Of a public corpus the protocol is written beside the manifest, and
    figures quote it. What cannot be used is left out and listed; the exit status is then 3.
    """
    if layout not in (*OWN, *PUBLIC):
        raise UserError(f"unknown layout {layout!r}; {nearest(layout, (*OWN, *PUBLIC))}")
    if not source.exists():
        raise UserError(f"{source} does not exist")
    if media and no_media:
        raise UserError("--media and --no-media exclude each other")
    shares = Shares.parse(ratio) if ratio else USUAL
    if layout in OWN:
        given = {"--media": media, "--no-media": no_media, "--protocol": protocol, "--captions": captions,
                 "--val": val, "--split": split, "--subset": subset}  # fmt: skip
        _refuse(layout, given, f"public corpora ({', '.join(PUBLIC)})")
        imported = _own(layout, source, target.parent, kind or KINDS[0], shares)
    else:
        _refuse(
            layout,
            {"--kind": kind, "--ratio": ratio, "--keep-splits": keep_splits},
            f"the user's own media ({', '.join(OWN)})",
        )
        choice = Choice(protocol, captions, val, tuple(split) or SPLITS, media, no_media)
        if layout == T3DR_HIT:
            given = {"--protocol": protocol, "--captions": captions}
            _refuse(layout, given, f"corpora of videos ({', '.join(VIDEOS)})")
            imported = read_t3dr_hit(subset, source, target.parent, choice)
        else:
            _refuse(layout, {"--subset": subset}, T3DR_HIT)
            imported = read_published(VIDEOS[layout], source, target.parent, choice)
    if not imported.items:
        raise UserError(
            f"{source} gives no items; {imported.left_out[0] if imported.left_out else 'it is empty'}"
        )
    if keep_splits:
        imported = keep(imported, Earlier.read(keep_splits), target.parent)
    imported.notes[:0] = empty_splits(imported.dealt, imported.splits, shares)
    if not move_splits and (earlier := Earlier.at(target)):
        require_unmoved(imported.items, earlier, target.parent)
    write_manifest(target, imported.items, imported.protocol)
    if as_json:
        print_json(summary(Corpus.read(target), imported))
    else:
        print_summary(Corpus.read(target), imported)
    if imported.left_out:
        raise typer.Exit(FAILED_ITEMS)


def _own(layout: str, source: Path, relative_to: Path, kind: str, shares: Shares) -> Imported:
    """The items of the user's own folder or table, of one kind or of both. Raises UserError."""
    if kind not in (*KINDS, BOTH):
        raise UserError(f"unknown --kind {kind!r}; {nearest(kind, (*KINDS, BOTH))}")
    if layout == "folder":
        return read_folder(source, relative_to, kind, shares)
    imported = TABLES[layout](source, relative_to, shares)
    items = [
        replace(item, kind=kind if kind != BOTH else kind_of(item.media or "") or KINDS[0])
        for item in imported.items
    ]
    return replace(imported, items=items)


def _refuse(layout: str, given: Mapping[str, object], having: str) -> None:
    """Raise UserError for an option that this layout does not have; `having` names the layouts that have it."""
    for option, value in given.items():
        if value:
            raise UserError(f"{option} is for {having}, not for {layout}")


def summary(corpus: Corpus, imported: Imported) -> dict[str, Any]:
    """What an import wrote and left out, as plain data."""
    return {
        "manifest": str(corpus.path), "items": len(corpus.items),
        "captions": sum(len(item.captions) for item in corpus.items),
        "splits": {split: len(corpus.gallery(split)) for split in corpus.splits},
        "protocol": imported.protocol.sentence if imported.protocol else None,
        "notes": [_printable(line) for line in imported.notes],
        "left_out": [_printable(line) for line in imported.left_out],
    }  # fmt: skip


def print_summary(corpus: Corpus, imported: Imported) -> None:
    """Print the counts of the manifest, its protocol, and what was left out."""
    splits = ", ".join(f"{split} {len(corpus.gallery(split))}" for split in corpus.splits)
    captions = sum(len(item.captions) for item in corpus.items)
    out.print(f"{corpus.path}: {len(corpus.items)} items ({splits}), {captions} captions", markup=False)
    if imported.protocol:
        out.print(f"protocol: {imported.protocol.sentence}", markup=False)
        for split, facts in corpus.describe().items():
            out.print(
                f"{split}: {facts['queries']} queries, gallery {facts['gallery']}, digest {facts['digest']}",
                markup=False,
            )
    for line in imported.notes[:SHOWN]:
        _print_line("note", line)
    if len(imported.notes) > SHOWN:
        out.print(f"... and {len(imported.notes) - SHOWN} more: note")
    for line in imported.left_out[:SHOWN]:
        _print_line("left out", line)
    every = corpus.path.with_name(f"{corpus.path.stem}.left-out.txt")
    every.unlink(missing_ok=True)
    if len(imported.left_out) > SHOWN:
        every.write_text("\n".join(map(_printable, imported.left_out)) + "\n", encoding="utf-8")
        out.print(f"... and {len(imported.left_out) - SHOWN} more: left out; {every} lists all", markup=False)


def _print_line(word: str, line: str) -> None:
    out.print(f"{word}: {_printable(line)}", markup=False)


def _printable(line: str) -> str:
    """The line with characters that cannot be encoded escaped: a name may hold half a surrogate pair."""
    return line.encode(errors="backslashreplace").decode()


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST")],
    experiment: Annotated[
        Path | None,
        typer.Option(
            "--experiment",
            "-e",
            metavar="FILE",
            help="An experiment whose settings count: how its stage points reads clouds, and how many points its "
            "stages need; else the defaults of all stages.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Open every file of a corpus; say what is missing, unreadable, too short, doubled, or leaked between splits."""
    reading, minima = _settings(experiment)
    items, problems = parse(manifest)
    if problems and as_json:
        print_json([vars(Finding("error", f"{manifest}, {problem}")) for problem in problems])
    elif problems:
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

        findings = [*find(contents, cores(), seen, reading, minima), *_altered(contents.corpus)]
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            out.print(f"{finding.level}: {finding.sentence}", markup=False)
        count = Counter(finding.level for finding in findings)
        unchecked = f", {count[UNCHECKED]} not looked at" if count[UNCHECKED] else ""
        out.print(f"{len(items)} items, {count['error']} errors, {count['warning']} warnings{unchecked}")
    if any(finding.level in ("error", UNCHECKED) for finding in findings):
        raise typer.Exit(FAILED_ITEMS)


def _settings(experiment: Path | None) -> tuple[dict[str, Any], list[Minimum]]:
    """The settings with which stage points reads a cloud, and the smallest number of points that each encoder needs.

    Taken from the experiment; without one, the defaults of all encoders, which a corpus may not need at all.
    """
    stages: Mapping[str, Stage[Any]] = {kind.name: kind(kind.settings()) for kind in EXTRACTORS}
    if experiment:
        loaded = load(experiment)
        store = loaded.store_path
        stages = build(loaded, imported_stages(Store(store).index) if has_imports(store) else {})
    points = stages.get(Points.name)
    reading = points.params.model_dump(include=READING) if points else {}
    encoders = [
        stage for stage in stages.values() if isinstance(stage, CloudEncoder) and stage.least_points > 1
    ]
    level = "error" if experiment else "warning"
    return reading, [Minimum(stage.name, stage.least_points, level) for stage in encoders]


def _altered(corpus: Corpus) -> list[Finding]:
    """A warning if the manifest was changed since its import, so that its protocol no longer describes it."""
    beside = protocol_path(corpus.path)
    if not beside.exists() or any(corpus.protocol(split) for split in corpus.splits):
        return []
    return [Finding("warning", f"it was changed since its import, so figures do not quote {beside.name}")]
