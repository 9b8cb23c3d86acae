"""import and export: published features and authors' checkpoints in, ours out in their layout."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.terms import DEFAULT_EXPERIMENT, ExperimentFile, Sets, out
from flows.console import StageDisplay
from flows.features import export
from flows.graph import METHODS
from flows.project import open_project
from pipeline.errors import UserError, nearest
from pipeline.execute import Progress
from pipeline.importing import import_ms_sl, require_layout
from pipeline.store import Store

importing = typer.Typer(help="Bring in published features or an authors' checkpoint.", no_args_is_help=True)
exporting = typer.Typer(help="Write features or a checkpoint for other programs.", no_args_is_help=True)

MethodName = Annotated[str, typer.Option("--method", help="The method it belongs to.")]
StoreFolder = Annotated[
    Path, typer.Option("--store", help="The store to fill; an experiment names it as `store`.")
]
FORMATS = ("npz", "safetensors")


@importing.command("features")
def import_features(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The collection's folder.")],
    layout: Annotated[str, typer.Option("--layout", help="ms-sl.")] = "ms-sl",
    store: StoreFolder = Path("store"),
    manifest: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.")] = Path(
        "corpus.jsonl"
    ),
    visual_feature: Annotated[
        str | None, typer.Option(help="Which folder of FeatureData, if several.")
    ] = None,
    text_file: Annotated[str | None, typer.Option(help="Which HDF5 file of TextData, if several.")] = None,
) -> None:
    """Bring the feature set a paper published into a store, with the manifest of its corpus."""
    require_layout(layout)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    with StageDisplay() as display:
        result = import_ms_sl(
            Store(store), folder, manifest, visual_feature, text_file,
            lambda stage, done, total: display.progress(Progress(stage, done, total)),
        )  # fmt: skip
    out.print(f"{result.items} videos, {result.captions} captions; manifest: {result.manifest}", markup=False)
    out.print("to train on them, set in the experiment file:\n", markup=False)
    out.print(f'corpus = "{result.manifest}"\nstore = "{store}"\nmethods = ["hlformer"]\n', markup=False)
    out.print(f'[trainers.hlformer]\nvideo_features = "{result.video_stage}"', markup=False)
    out.print(f'text_features = "{result.text_stage}"', markup=False)


@importing.command("checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' checkpoint.")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    method: MethodName = "hlformer",
) -> None:
    """Turn an authors' checkpoint into weights (safetensors) and settings of ours; nothing is unpickled unsafely."""
    settings = official(method).import_checkpoint(file, target)
    out.print(
        f"{target}: to evaluate these weights, or train on from them, set in the experiment file:\n",
        markup=False,
    )
    out.print(f'[trainers.{method}]\nweights = "{target.absolute()}"', markup=False)
    for name, value in (settings | {"epochs": 0}).items():
        note = "  # 0 evaluates them as they are" if name == "epochs" else ""
        out.print(f"{name} = {json.dumps(value)}{note}", markup=False)


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
    states = project.survey()
    if not states[name].complete:
        raise UserError(f"{name} is not done yet; run `crossreel stage {name} {experiment}` first")
    trained = project.store.run_folder(name, states[name].fingerprint.hex)
    official(method).export_checkpoint(trained, target)
    out.print(str(target), markup=False)


@exporting.command("features")
def export_features(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="clip, clip_text ...")],
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write, a file an item.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    layout: Annotated[str, typer.Option("--layout", help="npz or safetensors.")] = "npz",
    sets: Sets = [],  # noqa: B006
) -> None:
    """Write a stage's features, one file an item or caption, named by its digest, with an index of names."""
    require_layout(layout, FORMATS)
    project = open_project(experiment, sets)
    if stage not in project.stages or not project.stages[stage].fields:
        having = [name for name, known in project.stages.items() if known.fields]
        raise UserError(f"{stage!r} has no features; {nearest(stage, having)}")
    count = export(project, stage, target, layout)
    out.print(f"{target}: {count} files of {stage}, names in index.json", markup=False)


def official(method: str) -> Any:
    """The module that knows the authors' layout of a method. Imports torch."""
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; {nearest(method, METHODS)}")
    return importlib.import_module(f"trainers.{method}.official")
