"""Entries of the worker processes that pack, train and evaluate: from folders to folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.child import Send
from pipeline.errors import UserError
from pipeline.run.engines.machine import cores
from pipeline.store.places import TablePlaces
from pipeline.store.store import REFERENCES
from trainers import compiler
from trainers.config import MethodConfig
from trainers.data import Split, SplitIndex, split_of, write_also
from trainers.loop import distributed, precision, torchrun
from trainers.loop.engine import fit
from trainers.loop.loading import worker_count
from trainers.loop.progress import Progress
from trainers.loop.seeds import seed_everything
from trainers.loop.trained import WEIGHTS, Summary, TrainedFolder
from trainers.measure.evaluate import evaluate as measure
from trainers.measure.validation import Validation, shown
from trainers.method import Method, MethodData
from trainers.packing import Keeping, Source, StoreInputs, referred
from trainers.registry import METHODS
from trainers.stages import EvaluateParams
from trainers.trained import open_trained, read_settings

TRAIN = "trainers.workers:train"  # function that each rank of a training calls


def pack(request: dict[str, Any], send: Send) -> None:
    """Read the features of some splits from the store and write them as the method wants them."""
    declared = METHODS.find(request["method"])
    config = declared.config.model_validate_json(request["params"])
    folder = _emptied(Path(request["folder"]))
    splits, also, read = _pack_inputs(request, config, folder.parents[2], send)
    declared.pack(folder, config, splits, read)
    write_also(folder, also)
    counts = {name: {"items": len(items), "captions": len(rows)} for name, (items, rows) in splits.items()}
    send({"record": {"splits": counts, REFERENCES: referred(folder)}}, {})


def _pack_inputs(
    request: Mapping[str, Any], config: MethodConfig, store: Path, send: Send
) -> tuple[dict[str, Split], dict[str, Sequence[Sequence[str]]], StoreInputs]:
    """The splits to pack, the other positives of their captions, and the inputs in the store."""
    inputs = json.loads(Path(request["inputs"]).read_bytes())
    sources = {
        stage: Source(stage, rows["field"], TablePlaces(rows)) for stage, rows in inputs["rows"].items()
    }
    kept = inputs["keeping"]
    keeping = Keeping(store, kept["stage"], kept["fingerprint"], kept["components"], TablePlaces(kept))
    splits = {name: split_of(split) for name, split in inputs["splits"].items()}
    also = {name: split["also"] for name, split in inputs["splits"].items()}
    return splits, also, StoreInputs(sources, config.inputs(), keeping, send)


def _emptied(folder: Path) -> Path:
    """The folder, emptied of files that a killed process left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def train(request: dict[str, Any], send: Send) -> None:
    """Train a method on its packed inputs, resuming where a killed process stopped.

    For a training on several processes, this process starts them and waits, and each of them calls this
    again.
    """
    if torchrun.starts_ranks(request):
        torchrun.launch(TRAIN, request, send)
        return
    declared = METHODS.find(request["method"])
    config = declared.config.model_validate_json(request["params"])
    folder = Path(request["folder"])
    if TrainedFolder(
        folder
    ).finished:  # an earlier process was killed between its last line and its publication
        _close(folder, send)
        return
    (packed,) = (Path(path) for path in request["needs"].values())
    device = torch.device(request["device"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    seed_everything(config.seed)  # decides the initial weights
    data = declared.open_data(packed, config)
    method = declared.build(config.to_be_filled() if config.weights else config, data)
    if config.weights:
        TrainedFolder(Path(config.weights)).fill(method)
    if config.epochs == 0:
        untrained = Summary(best_epoch=0, epochs=0, validation={})
        _finish(folder, request["method"], config, method, untrained, send)
        return
    if config.compile and (reason := next(compiler.reasons(distributed.world(), str(device)), "")):
        raise UserError(f"trainers.{request['method']}.compile = true is not possible: {reason}")
    if config.compile:
        note = "losses are compiled when a shape of batch first comes: the first steps take minutes (compile = true)"
        send({"log": f"  {request['stage']}: {note}"}, {})
    if effect := precision.sentence(config.precision, device):
        send({"log": f"  {request['stage']}: {effect}"}, {})
    send({"doing": "training"}, {})
    updates = -(-data.train_steps(distributed.world()) // config.accumulate)
    optimizer = declared.optimizer(config, method, updates * config.epochs)
    index = SplitIndex.read(packed / "splits" / "val.json")
    latest: dict[str, Any] = {}

    def tell(progress: Progress) -> None:
        latest.update(asdict(progress))
        send({"progress": latest}, {})

    def tell_validation(work: Mapping[str, Any]) -> None:
        if latest:  # which only the first process has
            send({"progress": shown(latest, work)}, {})

    def say(sentence: str) -> None:
        send({"log": f"  {request['stage']}: {sentence}"}, {})

    validation = Validation(request["method"], config, data, index, device, tell_validation, say)
    result = fit(
        method, data, config, optimizer, validate=validation, figure=config.figure, folder=folder, device=device,
        on_progress=tell, validation_captions=validation.captions,
        loader_workers=_loader_workers(request, device, data.train_steps(distributed.world())),
    )  # fmt: skip
    summary = Summary(
        best_epoch=result.best_epoch, epochs=result.epochs, validation=result.validation,
        stopped_early=result.stopped_early,
    )  # fmt: skip
    _finish(folder, request["method"], config, method, summary, send)


def _loader_workers(request: Mapping[str, Any], device: torch.device, steps: int) -> int:
    """Number of processes that make batches for this one, by `run.loader_workers`."""
    asked = int(request.get("loader_workers", 0))
    return worker_count(asked, device, steps, cores(), distributed.local_world())


def _finish(
    folder: Path, name: str, config: MethodConfig, method: Method, summary: Summary, send: Send
) -> None:
    """Write the final weights and settings, and delete the files that only a resumption needs.

    The settings are written after the weights and before any deletion: a folder with settings is finished.
    Of several processes, the first does this.
    """
    if distributed.rank():
        return
    TrainedFolder(folder).write(name, config, method, summary)
    _close(folder, send)


def _close(folder: Path, send: Send) -> None:
    """Delete optimizer and older weights from a finished folder, and send the summary stored in it."""
    if distributed.rank():
        return
    for path in folder.glob("*.safetensors"):
        if path.name != WEIGHTS:
            path.unlink()
    summary = TrainedFolder(folder).summary
    send({"record": summary.model_dump(mode="json", exclude_unset=True)}, {})


def evaluate(request: dict[str, Any], send: Send) -> None:
    """Measure a trained method on a packed split."""
    params = EvaluateParams.model_validate_json(request["params"])
    name = request["method"]
    needs = {stage: Path(path) for stage, path in request["needs"].items()}
    learned = needs.get(f"pack-{name}")
    packed = needs.get(f"pack-{name}-{params.split}", learned)
    if packed is None:
        raise ValueError(f"an evaluation of {params.split!r} was given {', '.join(needs)}")
    device = torch.device(request["device"])
    method, data = open_trained(needs[f"train-{name}"], packed, device)
    config = METHODS.find(name).config
    directions = {"auto": config.directions, "both": ("t2v", "v2t")}.get(
        params.directions, (params.directions,)
    )
    send({"doing": "scoring"}, {})
    index = SplitIndex.read(packed / "splits" / f"{params.split}.json")
    facts = json.loads(Path(request["inputs"]).read_text(encoding="utf-8")) if "inputs" in request else {}
    work = Path(request["folder"])
    result = measure(
        method, data, params.split, index, directions, device, memory_mb=params.memory_mb, seed=params.seed,
        v2t_rank=config.v2t_rank if params.v2t_rank == "auto" else params.v2t_rank, rerank=params.rerank,
        post_processing=params, bank=_bank(params, needs[f"train-{name}"], learned),
        folder=work, on_progress=lambda done: send({"progress": dict(done)}, {}), **facts,
    )  # fmt: skip
    result.write(_emptied(work))
    figures = {d: {k: f.value for k, f in named.items()} for d, named in result.metrics.items()}
    send({"record": {"metrics": figures}}, {})


def _bank(params: EvaluateParams, trained: Path, learned: Path | None) -> MethodData | None:
    """The training split, if its captions and items are needed; else None."""
    if "qb_norm" not in params.post_processing or learned is None:
        return None
    declared, config = read_settings(trained)
    return declared.open_data(learned, config)
