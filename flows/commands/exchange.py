"""import and export: read published features and authors' checkpoints, and write ours in their layouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.terms import DEFAULT_EXPERIMENT, FAILED_ITEMS, ExperimentFile, Sets, out
from flows.console import StageDisplay
from flows.features import export, export_collection, open_tensors
from flows.imported_experiment import experiment_on
from flows.project import open_project
from flows.results.exports.parquet import export_features as export_features_table
from flows.results.exports.parquet import export_scores
from flows.results.exports.results import export_mteb
from flows.results.method_results import all_results, method_results
from flows.results.report.wording import counted
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

MethodName = Annotated[str, typer.Option("--method", help="The method.")]
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
        _import_files(source, layout, store, corpus, of, name, _array(layout, array, dataset))
        return
    if corpus or name or array or dataset or of != "items":
        raise UserError(
            f"{layout} brings its own corpus: it takes none of --corpus, --of, --name, --array, --dataset"
        )
    with StageDisplay() as display:

        def seen(stage: str, done: int, total: int) -> None:
            display.progress(Progress(stage, done, total))

        if layout == "h2arn":
            files = H2arnFiles.open(source, open_tensors, subset, text_file, visual_feature)
            result = import_h2arn(Store(store), files, manifest, seen, val)
        else:
            result = import_ms_sl(Store(store), source, manifest, visual_feature, text_file, seen)
    _print_import(result, store, "clouds" if layout == "h2arn" else "videos")


def _print_import(result: ImportReport, store: Path, items: str) -> None:
    """Print the numbers of imported items and captions, and an experiment file that trains methods on them."""
    unlinked = f" ({result.unlinked} texts that belong to none were left out)" if result.unlinked else ""
    out.print(
        f"{result.items} {items}, {result.captions} captions{unlinked}; manifest: {result.manifest}",
        markup=False,
    )
    if result.validated:
        out.print(result.validated, markup=False)
    _print_experiment(result.manifest, store, {"items": result.video_stage, "captions": result.text_stage})
    _list("failed", [f"{name}: {reason}" for name, reason in result.failed.items()])
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
    source: Path, layout: str, store: Path, corpus: Path | None, of: str, name: str, array: str
) -> None:
    if corpus is None:
        raise UserError(f"{layout} knows features only: name the manifest of their corpus with --corpus")
    if of not in ("items", "captions"):
        raise UserError(f"--of {of!r} is not possible; possible: captions, items")
    over: Literal["items", "captions"] = "items" if of == "items" else "captions"
    with FeatureFiles.open(source, layout, array, open_tensors) as files, StageDisplay() as display:
        result = import_files(
            Store(store), files, layout, array, corpus, over, name or source.stem,
            lambda stage, done, total: display.progress(Progress(stage, done, total)),
        )  # fmt: skip
    share = "items of the same bytes" if of == "items" else "captions of the same text"
    stored = result.arrays + len(result.failed)
    shared = f" as {stored} arrays ({share} share one)" if stored < result.matched else ""
    by_stem = f" ({result.by_stem} by the stem of their id)" if result.by_stem else ""
    out.print(
        f"{result.stage}: {result.matched} of the {result.total} {of} of {corpus} are in the features{shared}"
        f"{by_stem}, {len(result.missing)} are not; {result.unused} features are of none of them",
        markup=False,
    )
    if result.zeros:
        out.print(
            f"note: {counted(len(result.zeros), 'array')} of nothing but zeros, as an extraction leaves that failed: "
            f"{', '.join(result.zeros[:SHOWN])}",
            markup=False,
        )
    _print_experiment(corpus, store, {of: result.stage})
    _list("not in the features", result.missing)
    _list("failed", [f"{name}: {reason}" for name, reason in result.failed.items()])
    if result.unreadable:
        out.print(
            f"{result.unreadable} items have no readable media, and so no digest to keep features under"
        )
    if result.missing or result.failed or result.unreadable:
        raise typer.Exit(FAILED_ITEMS)


def _print_experiment(manifest: Path, store: Path, stages: Mapping[str, str]) -> None:
    """Print a complete experiment file on imported features, and the reason for each method that it leaves out."""
    proposed = experiment_on(manifest, store, stages)
    if proposed.text:
        out.print(
            "to train on them, an experiment file (every other setting has its default):\n",
            markup=False,
            lines=True,
        )
        out.print(proposed.text, markup=False, lines=True)
    if proposed.impossible:
        out.print(f"no method can be trained on them yet: {proposed.impossible}", markup=False)
    for method, reason in proposed.refused.items():
        out.print(
            f"# {method} cannot be trained on them: {reason}", markup=False
        )  # a TOML comment, so that it may be copied with the file


def _list(what: str, lines: Sequence[str]) -> None:
    """Print the first lines, and the number of those left out."""
    for line in lines[:SHOWN]:
        out.print(f"{what}: {line}", markup=False)
    if len(lines) > SHOWN:
        out.print(f"... and {len(lines) - SHOWN} more {what}")


@importing.command("checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    method: MethodName = "hlformer",
    sets: Annotated[
        list[str],
        typer.Option("--set", help="A setting that the checkpoint does not show: nhead=8; repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Convert an authors' checkpoint to weights (safetensors) and settings of ours, without unpickling objects."""
    layout, given = official(method), apply_sets({}, sets)
    settings = layout.import_checkpoint(file, target, given)
    out.print(
        f"{target}: to evaluate these weights, or train on from them, set in the experiment file:\n",
        markup=False,
        lines=True,
    )
    out.print(f'[trainers.{method}]\nweights = "{target.absolute()}"', markup=False, lines=True)
    for name, value in (settings | {"epochs": 0}).items():
        note = "  # 0 evaluates them as they are" if name == "epochs" else ""
        out.print(f"{name} = {json.dumps(value)}{note}", markup=False)
    usual = METHODS.find(method).config().model_dump(mode="json")
    for name in sorted(set(getattr(layout, "NOT_SHOWN", ())) - set(settings)):
        out.print(
            f"# {name} = {json.dumps(usual[name])}  is the default; the checkpoint does not show it (--set {name}=...)",
            markup=False,
        )


@exporting.command("checkpoint")
def export_checkpoint(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The checkpoint to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    method: MethodName = "hlformer",
    sets: Sets = [],  # noqa: B006
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
    out.print(str(target), markup=False)


def _say(note: str) -> None:
    """Print the sentence about a run that is not today's, where there is one, on standard error."""
    if note:
        typer.echo(escaped(note), err=True)


@exporting.command("features")
def export_features(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage: clip, clip_text ...")],
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
) -> None:
    """Write a stage's features: one file for each item or caption, one table, or a whole collection."""
    require_layout(layout, FORMATS)
    project = open_project(experiment, sets)
    if subset and layout != "h2arn":
        raise UserError("--subset is for h2arn")
    if layout in COLLECTIONS:
        report = export_collection(project, stage, text_stage, field, target, layout, subset)
        items = "clouds" if layout == "h2arn" else "videos"
        out.print(
            f"{target}: {report.videos} {items} ({report.rows} rows), {report.captions} captions",
            markup=False,
        )
        _list("left out", [f"{name}: {reason}" for name, reason in report.left_out.items()])
        if report.left_out:
            raise typer.Exit(FAILED_ITEMS)
        return
    if text_stage or field:
        raise UserError(
            f"--text-stage and --field are for {' and '.join(COLLECTIONS)}; {layout} holds every output of one stage"
        )
    if layout in TABLES:
        path, rows = export_features_table(project, stage, target)
        out.print(f"{path}: {rows} rows of {stage}", markup=False)
        return
    count = export(project, stage, target, layout)
    out.print(f"{target}: {count} files of {stage}, names in index.json", markup=False)


@exporting.command("scores")
def export_first_places(
    target: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="The table to write.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    method: MethodName = "hlformer",
    sets: Sets = [],  # noqa: B006
) -> None:
    """Write the first results of every caption of an evaluated method, one row each; other scores are not stored."""
    if target.suffix != ".parquet":
        raise UserError(f"{target} is no name of a table: it ends in .parquet")
    results = method_results(open_project(experiment, sets), method)
    _say(results.note)
    rows = export_scores(results, target)
    out.print(f"{target}: {rows} places of {method}", markup=False)


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
) -> None:
    """Write the metrics of every method in MTEB's result format, one file for each method and direction."""
    require_layout(layout, RESULTS)
    results = all_results(open_project(experiment, sets))
    for one in results:
        _say(one.note)
    report = export_mteb(results, target, languages)
    for path in report.files:
        out.print(str(path), markup=False)
    _list("left out", [f"{name}: {reason}" for name, reason in report.left_out.items()])


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
) -> None:
    """Write a model card of a trained method: data, protocol, metrics with intervals, settings, backbones, limits."""
    from flows.results.exports.card import export_card  # the hub's library: only a card pays for it

    results = method_results(open_project(experiment, sets), method)
    _say(results.note)
    path = export_card(results, target, license_name)
    out.print(str(path), markup=False)
    if not license_name:
        out.print("the licence is left as unknown; --license names it", markup=False)


def official(method: str) -> OfficialLayout:
    """The module that reads and writes the authors' layout of a method. Imports torch."""
    layout = METHODS.find(method).official_layout()
    if layout is None:
        raise UserError(
            f"no checkpoint of {method} was ever published, so there is no layout to import or export"
        )
    return layout
