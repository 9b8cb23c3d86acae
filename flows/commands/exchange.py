"""import and export: read published features and authors' checkpoints, and write ours in their layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.terms import (
    DEFAULT_EXPERIMENT,
    FAILED_ITEMS,
    METHOD_OPTION,
    Answer,
    AsJson,
    ExperimentFile,
    Sets,
    StageName,
    method_names,
)
from flows.console import StageDisplay
from flows.features import export, export_collection, open_tensors
from flows.imported_experiment import experiment_on
from flows.project import open_project
from flows.results.exports.parquet import export_features as export_features_table
from flows.results.exports.parquet import export_scores
from flows.results.exports.results import export_mteb
from flows.results.method_results import all_results, method_results
from flows.results.wording import counted
from flows.terminal import escaped
from flows.trained.changes import why_stale
from flows.trained.finished import note_of, usual_run
from flows.trained.recorded import recorded_stages
from pipeline.errors import UserError, nearest
from pipeline.features.importing import ImportReport, import_files, import_h2arn, import_ms_sl, require_layout
from pipeline.features.layouts.feature_files import SUFFIXES, FeatureFiles
from pipeline.features.layouts.h2arn_files import H2arnFiles
from pipeline.run.execute import Progress
from pipeline.settings import apply_sets
from pipeline.store.store import Store
from trainers.contract import OfficialLayout
from trainers.registry import METHODS

importing = typer.Typer(help="Import published features or an authors' checkpoint.", no_args_is_help=True)
exporting = typer.Typer(
    help="Write features, scores, results, a model card or a checkpoint for other programs.",
    no_args_is_help=True,
)

MethodName = Annotated[str, typer.Option(*METHOD_OPTION, help="The method.", autocompletion=method_names)]
StoreFolder = Annotated[
    Path, typer.Option("--store", help="The store to write to: the setting `store` of an experiment.")
]
COLLECTIONS = ("ms-sl", "h2arn")  # layouts that contain captions and splits, from which a manifest is written
TABLES = ("parquet",)  # layouts with one file for all items or captions of a stage
FORMATS = ("npz", "safetensors", *COLLECTIONS, *TABLES)
RESULTS = ("mteb",)
SOURCES = (*COLLECTIONS, *SUFFIXES)
SHOWN = 20


@importing.command("features")
def import_features(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="The folder of a collection, or a folder or file of arrays."),
    ],
    layout: Annotated[str, typer.Option("--layout", help=f"{', '.join(SOURCES)}.")] = "ms-sl",
    store: StoreFolder = Path("store"),
    manifest: Annotated[
        Path, typer.Option("--out", "-o", help="The manifest to write (ms-sl, h2arn).")
    ] = Path("corpus.jsonl"),
    visual_feature: Annotated[
        str | None,
        typer.Option(
            help="If there are several: the folder of FeatureData (ms-sl), NAME of pc_features_NAME.pt (h2arn)."
        ),
    ] = None,
    text_file: Annotated[
        str | None,
        typer.Option(
            help="If there are several: the HDF5 file of TextData (ms-sl), NAME of txt_features_NAME.pt (h2arn)."
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option("--subset", help="If there are several: the data set, for example S3DIS (h2arn)."),
    ] = None,
    val: Annotated[
        str,
        typer.Option(
            "--val",
            help="Validation split: `papers`, or a number of training clouds; else a tenth of them (h2arn).",
        ),
    ] = "",
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="The manifest that the features belong to; not for collections."),
    ] = None,
    of: Annotated[
        str, typer.Option("--of", help="Features of items or of captions; not for collections.")
    ] = "items",
    name: Annotated[
        str, typer.Option("--name", help="NAME of the new stage import-NAME; not for collections.")
    ] = "",
    array: Annotated[str, typer.Option("--array", help="The array to read, if a file has several.")] = "",
    dataset: Annotated[
        str, typer.Option("--dataset", help="The dataset to read, if a group has several (hdf5).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Import published features into a store: a whole collection (ms-sl, h2arn), or arrays for a corpus of yours.

    A collection contains captions and splits, from which the manifest is written. Arrays of the other layouts are named
    by item or caption id, and become a stage of the corpus that --corpus names.
    """
    require_layout(layout, SOURCES)
    if not source.exists():
        raise UserError(f"{source} does not exist")
    if (subset or val) and layout != "h2arn":
        raise UserError(f"--{'subset' if subset else 'val'} is for h2arn")
    if layout not in COLLECTIONS:
        with Answer(as_json) as answer:
            _import_files(source, layout, store, corpus, of, name, _array(layout, array, dataset), answer)
        return
    if corpus or name or array or dataset or of != "items":
        raise UserError(
            f"{layout} brings its own corpus: it takes none of --corpus, --of, --name, --array, --dataset"
        )
    with StageDisplay(quiet=as_json) as display:

        def seen(stage: str, done: int, total: int) -> None:
            display.progress(Progress(stage, done, total))

        if layout == "h2arn":
            files = H2arnFiles.open(source, open_tensors, subset, text_file, visual_feature)
            result = import_h2arn(Store(store), files, manifest, seen, val)
        else:
            result = import_ms_sl(Store(store), source, manifest, visual_feature, text_file, seen)
    with Answer(as_json) as answer:
        _print_import(result, store, "clouds" if layout == "h2arn" else "videos", answer)


def _print_import(result: ImportReport, store: Path, items: str, answer: Answer) -> None:
    """Print the numbers of imported items and captions, and an experiment file that trains methods on them."""
    unlinked = f" ({result.unlinked} texts that belong to none were left out)" if result.unlinked else ""
    answer.add(
        items=result.items, captions=result.captions, unlinked=result.unlinked, manifest=result.manifest,
        item_stage=result.video_stage, caption_stage=result.text_stage, failed=dict(result.failed),
    )  # fmt: skip
    answer.say(f"{result.items} {items}, {result.captions} captions{unlinked}; manifest: {result.manifest}")
    if result.validated:
        answer.say(result.validated)
    stages = {"items": result.video_stage, "captions": result.text_stage}
    _print_experiment(result.manifest, store, stages, answer)
    _list(answer, "failed", [f"{name}: {reason}" for name, reason in result.failed.items()])
    if result.failed:
        raise typer.Exit(FAILED_ITEMS)


def _array(layout: str, array: str, dataset: str) -> str:
    """Name of the array or dataset to read, from the option that fits the layout."""
    if array and layout == "hdf5":
        raise UserError("--array is for files of arrays; of hdf5, --dataset names the dataset of each group")
    if dataset and layout != "hdf5":
        raise UserError(f"--dataset is for hdf5; of {layout} files, --array names the array of each")
    return array or dataset


def _import_files(
    source: Path,
    layout: str,
    store: Path,
    corpus: Path | None,
    of: str,
    name: str,
    array: str,
    answer: Answer,
) -> None:
    if corpus is None:
        raise UserError(f"{layout} knows features only: name the manifest of their corpus with --corpus")
    if of not in ("items", "captions"):
        raise UserError(f"--of {of!r} is not possible; possible: captions, items")
    over: Literal["items", "captions"] = "items" if of == "items" else "captions"
    with (
        FeatureFiles.open(source, layout, array, open_tensors) as files,
        StageDisplay(answer.as_json) as display,
    ):
        result = import_files(
            Store(store), files, layout, array, corpus, over, name or source.stem,
            lambda stage, done, total: display.progress(Progress(stage, done, total)),
        )  # fmt: skip
    share = "items of the same bytes" if of == "items" else "captions of the same text"
    stored = result.arrays + len(result.failed)
    shared = f" as {stored} arrays ({share} share one)" if stored < result.matched else ""
    by_stem = f" ({result.by_stem} by the stem of their id)" if result.by_stem else ""
    answer.add(
        stage=result.stage, matched=result.matched, total=result.total, missing=list(result.missing),
        unused=result.unused, failed=dict(result.failed), unreadable=result.unreadable,
    )  # fmt: skip
    answer.say(
        f"{result.stage}: {result.matched} of the {result.total} {of} of {corpus} are in the features{shared}"
        f"{by_stem}, {len(result.missing)} are not; {result.unused} features are of none of them"
    )
    if result.zeros:
        answer.add(zeros=list(result.zeros))
        answer.say(
            f"note: {counted(len(result.zeros), 'array')} of nothing but zeros, as an extraction leaves that failed: "
            f"{', '.join(result.zeros[:SHOWN])}"
        )
    _print_experiment(corpus, store, {of: result.stage}, answer)
    _list(answer, "not in the features", result.missing)
    _list(answer, "failed", [f"{name}: {reason}" for name, reason in result.failed.items()])
    if result.unreadable:
        answer.say(
            f"{result.unreadable} items have no readable media, and so no digest to keep features under"
        )
    if result.missing or result.failed or result.unreadable:
        raise typer.Exit(FAILED_ITEMS)


def _print_experiment(manifest: Path, store: Path, stages: Mapping[str, str], answer: Answer) -> None:
    """Print a complete experiment file on imported features, and the reason for each method that it leaves out."""
    proposed = experiment_on(manifest, store, stages)
    answer.add(experiment=proposed.text, impossible=proposed.impossible, refused=dict(proposed.refused))
    if proposed.text:
        answer.say(
            "to train on them, an experiment file (every other setting has its default):\n", lines=True
        )
        answer.say(proposed.text, lines=True)
    if proposed.impossible:
        answer.say(f"no method can be trained on them yet: {proposed.impossible}")
    for method, reason in proposed.refused.items():  # a TOML comment, so that it may be copied with the file
        answer.say(f"# {method} cannot be trained on them: {reason}")


def _list(answer: Answer, what: str, lines: Sequence[str]) -> None:
    """Print the first lines, and the number of those left out."""
    for line in lines[:SHOWN]:
        answer.say(f"{what}: {line}")
    if len(lines) > SHOWN:
        answer.say(f"... and {len(lines) - SHOWN} more {what}")


@importing.command("checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    method: MethodName = "hlformer",
    sets: Annotated[
        list[str],
        typer.Option("--set", help="A setting that the checkpoint does not show: nhead=8; repeatable."),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Convert an authors' checkpoint to weights (safetensors) and settings of ours, without unpickling objects."""
    layout, given = official(method), apply_sets({}, sets)
    settings = layout.import_checkpoint(file, target, given) | {"epochs": 0}
    usual = METHODS.find(method).config().model_dump(mode="json")
    unseen = {name: usual[name] for name in sorted(set(getattr(layout, "NOT_SHOWN", ())) - set(settings))}
    with Answer(as_json) as answer:
        answer.add(folder=target, method=method, settings=settings, assumed=unseen)
        answer.say(f"{target}: to evaluate these weights, or train on from them, set in the experiment file:")
        answer.say("")
        answer.say(f"[trainers.{method}]")
        answer.say(f'weights = "{target.absolute()}"')
        for name, value in settings.items():
            note = "  # 0 evaluates them as they are" if name == "epochs" else ""
            answer.say(f"{name} = {json.dumps(value)}{note}")
        for name, value in unseen.items():
            shown = f"# {name} = {json.dumps(value)}  is the default"
            answer.say(f"{shown}; the checkpoint does not show it (--set {name}=...)")


@exporting.command("checkpoint")
def export_checkpoint(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    method: MethodName = "hlformer",
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write a trained method as a checkpoint that its authors' code loads."""
    project = open_project(experiment, sets)
    name = f"train-{method}"
    if name not in project.stages:
        raise UserError(
            f"{experiment} does not train {method!r}; {nearest(method, project.experiment.methods)}"
        )
    states = project.states()
    run = usual_run(project, method, states)
    if run.fingerprint != states[name].fingerprint.hex:
        _say(note_of(run, why_stale(run, recorded_stages(run, project.stages), states)))
    official(method).export_checkpoint(run.folder.folder, target)
    _wrote(target, as_json, method=method)


def _say(note: str) -> None:
    """Print the sentence about a run that is not today's, where there is one, on standard error."""
    if note:
        typer.echo(escaped(note), err=True)


@exporting.command("features")
def export_features(
    stage: StageName,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    layout: Annotated[str, typer.Option("--layout", help=f"{', '.join(FORMATS)}.")] = "npz",
    text_stage: Annotated[
        str,
        typer.Option(
            "--text-stage",
            help="The stage of the captions' features; else the one that the method reads (collections).",
        ),
    ] = "",
    field: Annotated[
        str, typer.Option("--field", help="The output of the stage to write; else its first (collections).")
    ] = "",
    subset: Annotated[
        str,
        typer.Option("--subset", help="Name of the data set in the collection; else the manifest's (h2arn)."),
    ] = "",
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write a stage's features: one file for each item or caption, one table, or a whole collection."""
    require_layout(layout, FORMATS)
    project = open_project(experiment, sets)
    if subset and layout != "h2arn":
        raise UserError("--subset is for h2arn")
    if layout in COLLECTIONS:
        report = export_collection(project, stage, text_stage, field, target, layout, subset)
        items = "clouds" if layout == "h2arn" else "videos"
        with Answer(as_json) as answer:
            answer.add(
                written=target, items=report.videos, rows=report.rows, captions=report.captions,
                left_out=dict(report.left_out),
            )  # fmt: skip
            answer.say(f"{target}: {report.videos} {items} ({report.rows} rows), {report.captions} captions")
            _list(answer, "left out", [f"{name}: {reason}" for name, reason in report.left_out.items()])
        if report.left_out:
            raise typer.Exit(FAILED_ITEMS)
        return
    if text_stage or field:
        raise UserError(
            f"--text-stage and --field are for {' and '.join(COLLECTIONS)}; {layout} holds every output of one stage"
        )
    if layout in TABLES:
        path, rows = export_features_table(project, stage, target)
        _wrote(path, as_json, f": {rows} rows of {stage}", rows=rows, stage=stage)
        return
    count = export(project, stage, target, layout)
    _wrote(target, as_json, f": {count} files of {stage}, names in index.json", files=count, stage=stage)


@exporting.command("scores")
def export_first_places(
    target: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="The table to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    method: MethodName = "hlformer",
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write the first results of every caption of an evaluated method, one row each; other scores are not stored."""
    if target.suffix != ".parquet":
        raise UserError(f"{target} is no name of a table: it ends in .parquet")
    results = method_results(open_project(experiment, sets), method)
    _say(results.note)
    rows = export_scores(results, target)
    _wrote(target, as_json, f": {rows} places of {method}", rows=rows, method=method)


@exporting.command("results")
def export_results(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    layout: Annotated[str, typer.Option("--layout", help=f"{', '.join(RESULTS)}.")] = "mteb",
    languages: Annotated[
        list[str],
        typer.Option("--language", help="Language of the captions, which no manifest gives: eng-Latn."),
    ] = [],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write the metrics of every method in MTEB's result format, one file for each method and direction."""
    require_layout(layout, RESULTS)
    results = all_results(open_project(experiment, sets))
    for one in results:
        _say(one.note)
    report = export_mteb(results, target, languages)
    with Answer(as_json) as answer:
        answer.add(files=[str(path) for path in report.files], left_out=dict(report.left_out))
        for path in report.files:
            answer.say(str(path))
        _list(answer, "left out", [f"{name}: {reason}" for name, reason in report.left_out.items()])


@exporting.command("card")
def export_model_card(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write README.md to.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    method: MethodName = "hlformer",
    license_name: Annotated[
        str,
        typer.Option(
            "--license", help="Licence of the weights, in the hub's spelling: apache-2.0, cc-by-4.0 ..."
        ),
    ] = "",
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write a model card of a trained method: data, protocol, metrics with intervals, settings, backbones, limits."""
    from flows.results.exports.card import export_card  # the hub's library: only a card pays for it

    results = method_results(open_project(experiment, sets), method)
    _say(results.note)
    path = export_card(results, target, license_name)
    _wrote(path, as_json, method=method, license=license_name or "unknown")
    if not license_name and not as_json:
        typer.echo("the licence is left as unknown; --license names it")


def _wrote(path: Path, as_json: bool, words: str = "", **facts: object) -> None:
    """Say what was written, and what is in it."""
    with Answer(as_json) as answer:
        answer.add(written=path, **facts)
        answer.say(f"{path}{words}")


def official(method: str) -> OfficialLayout:
    """The module that reads and writes the authors' layout of a method. Imports torch."""
    layout = METHODS.find(method).official_layout()
    if layout is None:
        raise UserError(
            f"no checkpoint of {method} was ever published, so there is no layout to import or export"
        )
    return layout
