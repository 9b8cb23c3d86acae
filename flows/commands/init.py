"""init: import a corpus under a published protocol and write its experiment file; list what was published."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from flows.commands.corpus import T3DR_HIT, VIDEOS, print_summary, summary
from flows.commands.terms import FAILED_ITEMS, METHOD_OPTION, Answer, AsJson, method_names, out, print_json
from flows.console import StageDisplay
from flows.drafting import own, published
from flows.drafting.expected import Estimate, estimate
from flows.drafting.published import (
    Draft,
    experiment_name,
    features_manifest,
    find_row,
    manifest_name,
    usual_val,
)
from pipeline.corpus.importers.published import PAPERS, Choice, read_published
from pipeline.corpus.importers.t3dr_hit import read_t3dr_hit
from pipeline.corpus.importers.table import Imported
from pipeline.corpus.manifest import Corpus, protocol_path, write_manifest
from pipeline.errors import UserError, nearest
from pipeline.features.importing import import_ms_sl
from pipeline.run.execute import Progress
from pipeline.store.store import Store
from trainers.recipes import TRAJECTORIES, PublishedRecipe, Trajectory, every_recipe, of_corpus, protocol_name

STORE = "store"  # beside the experiment file


def init(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[METHOD/RECIPE]", help="A published experiment, gare/msrvtt; --list shows all."
        ),
    ] = "",
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The annotation files of its corpus, as they are published."),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of its media, searched in depth; else DIR of --annotations."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Of hlformer, the published feature collection, in place of annotations and media.",
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="A manifest that is there: of your own data, or imported under the protocol.",
        ),
    ] = None,
    methods: Annotated[
        list[str],
        typer.Option(
            *METHOD_OPTION,
            metavar="A,B",
            help="The methods to train on your own data, with --corpus.",
            autocompletion=method_names,
        ),
    ] = [],  # noqa: B006
    val: Annotated[
        str,
        typer.Option(
            metavar="N|papers|own",
            help="Validation: papers, the test split (usual, as nearly all papers did); N training videos; own, the "
            "corpus' own validation videos, or a tenth of the training videos.",
        ),
    ] = "",
    trajectory: Annotated[
        str,
        typer.Option(
            help=f"{TRAJECTORIES[0]}, as the authors trained, or {TRAJECTORIES[1]}, as we recommend."
        ),
    ] = TRAJECTORIES[0],
    target: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The experiment file to write; the manifest is written beside it.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    list_all: Annotated[
        bool, typer.Option("--list", help="Print every published experiment and what it takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a complete, commented experiment file: of a published experiment, or for your own corpus.

    `crossreel init gare/msrvtt --annotations DIR --media DIR` imports the corpus under the protocol of the paper and
    names the recipe; `crossreel init --corpus corpus.jsonl --methods gare,hlformer` takes your own data. No file is
    replaced without --force. Media or annotations that are missing are listed, and the exit status is then 3.
    """
    if list_all:
        _list(as_json)
        return
    if trajectory not in TRAJECTORIES:
        raise UserError(f"unknown --trajectory {trajectory!r}; {nearest(trajectory, TRAJECTORIES)}")
    with Answer(as_json) as answer:
        if bool(name) == bool(methods):
            raise UserError(
                "name a published experiment (METHOD/RECIPE; --list shows all), or --methods and --corpus for your own "
                "data"
            )
        if methods:
            given = {"--annotations": annotations, "--media": media, "--features": features, "--val": val}
            _refuse(given, "a published experiment, not for --methods")
            _own(
                corpus,
                [part for word in methods for part in word.replace(",", " ").split()],
                target,
                force,
                answer,
            )
            return
        row, way = find_row(name), cast(Trajectory, trajectory)
        given_val, val = val, {"": usual_val(row), "own": ""}.get(val, val)
        sources = {"--annotations": annotations, "--features": features, "--corpus": corpus}
        if sum(source is not None for source in sources.values()) != 1:
            raise UserError(f"{name} needs one of {', '.join(sources)}: where its corpus comes from")
        if annotations is None:
            _refuse({"--media": media, "--val": given_val}, "--annotations, whose corpus is imported")
        target = target or Path(experiment_name(row))
        if features is not None:
            _on_features(row, features, target, way, force, answer)
        elif corpus is not None:
            _require_protocol(row, corpus)
            _require_free([target], force)
            _write(row, target, Draft(row, _beside(corpus, target), STORE, _validated(corpus), way), answer)
        else:
            assert annotations is not None
            _imported(row, annotations, media, val, target, way, force, answer)


def _imported(
    row: PublishedRecipe,
    annotations: Path,
    media: Path | None,
    val: str,
    target: Path,
    trajectory: Trajectory,
    force: bool,
    answer: Answer,
) -> None:
    """Import the corpus under the protocol of the row, and write its experiment file."""
    for folder in (annotations, media):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
    manifest = target.with_name(manifest_name(row, val))
    _require_free([target], force)
    _require_free([manifest], force, f"; if it is the same corpus, name it with --corpus {manifest}")
    imported = _read(row, annotations, media, val, manifest)
    if not imported.items:
        raise UserError(
            f"{annotations} gives no items; {imported.left_out[0] if imported.left_out else 'it is empty'}"
        )
    write_manifest(manifest, imported.items, imported.protocol)
    answer.add(**summary(Corpus.read(manifest), imported))
    if not answer.as_json:
        print_summary(Corpus.read(manifest), imported)
    _write(row, target, Draft(row, manifest.name, STORE, val, trajectory), answer)
    if imported.left_out:
        answer.say(
            "what was left out is missing from the experiment too: its figures are not the published ones"
        )
        raise typer.Exit(FAILED_ITEMS)


def _read(row: PublishedRecipe, annotations: Path, media: Path | None, val: str, manifest: Path) -> Imported:
    if row.dataset == T3DR_HIT:
        choice = Choice(val=val, media=media)
        return read_t3dr_hit(row.protocols[0], annotations, manifest.parent, choice)
    choice = Choice(row.protocols[0], row.captions, val, media=media)
    return read_published(VIDEOS[row.dataset], annotations, manifest.parent, choice)


def _on_features(
    row: PublishedRecipe, source: Path, target: Path, trajectory: Trajectory, force: bool, answer: Answer
) -> None:
    """Import the published features of a row, which bring their corpus, and write its experiment file."""
    if not row.imported:
        raise UserError(
            f"--features is for experiments on published features (hlformer), not for {row.method}/{row.name}"
        )
    if not source.is_dir():
        raise UserError(f"{source} is not a folder")
    manifest = target.with_name(features_manifest(row))
    _require_free([target, manifest], force)
    store = Store(target.with_name(STORE))
    with StageDisplay(quiet=answer.as_json) as display:
        result = import_ms_sl(
            store, source, manifest, None, None,
            lambda stage, done, total: display.progress(Progress(stage, done, total)),
        )  # fmt: skip
    answer.add(manifest=manifest, items=result.items, captions=result.captions, failed=dict(result.failed))
    answer.say(f"{manifest}: {result.items} videos, {result.captions} captions")
    stages = (result.video_stage, result.text_stage)
    _write(row, target, Draft(row, manifest.name, STORE, PAPERS, trajectory, stages), answer)
    for item, reason in result.failed.items():
        answer.say(f"failed: {item}: {reason}")
    if result.failed:
        raise typer.Exit(FAILED_ITEMS)


def _own(
    corpus: Path | None, methods: Sequence[str], target: Path | None, force: bool, answer: Answer
) -> None:
    """Write the experiment file of one's own corpus."""
    if corpus is None:
        raise UserError(
            "--methods needs --corpus: the manifest of your data, which `crossreel corpus import` writes"
        )
    target = target or Path(f"{corpus.stem}-{'-'.join(methods)}.toml")
    _require_free([target], force)
    text = own.written(Corpus.read(corpus), methods, target, _beside(corpus, target))
    target.write_text(text, encoding="utf-8")
    answer.add(manifest=corpus)
    _next(target, answer)


def _write(row: PublishedRecipe, target: Path, draft: Draft, answer: Answer) -> None:
    target.write_text(published.written(replace(draft, name=target.name)), encoding="utf-8")
    if row.imported and draft.features is None:
        answer.say(
            f"note: {row.method}/{row.name} was published on features that its authors extracted with other networks; "
            "--features DIR takes those"
        )
    _next(target, answer)


def _next(target: Path, answer: Answer) -> None:
    answer.add(experiment=target)
    answer.say(f"{target} is written; next: crossreel plan {target}")


def _require_free(paths: Sequence[Path], force: bool, remedy: str = "") -> None:
    """Raise UserError for a file that is there and may not be replaced, or whose folder is missing."""
    for path in paths:
        if path.exists() and not force:
            raise UserError(f"{path} is there already; --force replaces it{remedy}")
        if not path.parent.is_dir():
            raise UserError(f"{path.parent} is not a folder; {path.name} cannot be written there")


def _require_protocol(row: PublishedRecipe, manifest: Path) -> None:
    """Raise UserError unless a manifest was imported under the protocol of a row and not changed since."""
    corpus = Corpus.read(manifest)
    protocol = corpus.protocol(corpus.splits[0])
    if not of_corpus(row, protocol):
        having = (
            protocol["name"]
            if protocol
            else f"of no published protocol, or changed since ({protocol_path(manifest)})"
        )
        raise UserError(f"{row.method}/{row.name} is of {protocol_name(row)}, and {manifest} is {having}")


def _validated(manifest: Path) -> str:
    """How the validation split of an imported corpus came about: "papers", or "" for any other way."""
    corpus = Corpus.read(manifest)
    val, test = ({caption.text for _, caption in corpus.captions(split)} for split in ("val", "test"))
    return PAPERS if val and val == test else ""


def _beside(path: Path, target: Path) -> str:
    """A path as an experiment file in the folder of `target` names it."""
    return os.path.relpath(path, target.parent)


def _refuse(given: Mapping[str, object], having: str) -> None:
    """Raise UserError for an option that has no meaning here; `having` says what has it."""
    for option, value in given.items():
        if value:
            raise UserError(f"{option} is for {having}")


def _list(as_json: bool) -> None:
    """Print all rows of the published experiments, with what each takes."""
    rows = [(row, estimate(row)) for row in every_recipe()]
    if as_json:
        print_json([
            {
                "name": f"{row.method}/{row.name}", "data": protocol_name(row), "published": row.published,
                "status": row.status, "source": row.source, "note": row.note, "backbone": row.backbone,
                "sizes": {s: getattr(row, s).model_dump() for s in ("train", "val", "test")},
                "selection": row.selection.model_dump(), "estimated": expected.as_json(),
            }
            for row, expected in rows
        ])  # fmt: skip
        return
    for row, expected in rows:
        source = (
            f"{row.status}: {row.source}"
            if row.source
            else "nobody published how it was run; the settings are ours"
        )
        out.print(f"{row.method}/{row.name}: {protocol_name(row)}", markup=False)
        out.print(f"    {', '.join(_sizes(row, expected))}", markup=False)
        out.print(f"    {source}{f' ({row.note})' if row.note else ''}", markup=False)
    out.print(
        "~: estimated. To decode: CPU time of one core to compress and decode all videos once; disk: all that "
        "the store then holds. Training is not in it."
    )


def _sizes(row: PublishedRecipe, expected: Estimate) -> Iterator[str]:
    """The published numbers of items, and the estimated hours, time and disk, marked with ~."""
    counts = [(split, getattr(row, split).items) for split in ("train", "val", "test")]
    stated = [f"{split} {count:,}" for split, count in counts if count]
    yield " / ".join(stated) if stated else "sizes not stated"
    if expected.hours is not None:
        yield f"~{expected.hours:g} h of video"
    if expected.decode_seconds is not None and expected.bytes is not None:
        yield f"~{_hours(expected.decode_seconds)} to decode"
        yield f"~{expected.bytes / 1e9:.0f} GB of disk"
    elif row.imported:
        yield "published features, nothing is decoded"


def _hours(seconds: float) -> str:
    """An estimated time, in whole minutes or hours."""
    return f"{seconds / 3600:.0f} h" if seconds >= 3600 * 1.5 else f"{seconds / 60:.0f} min"
