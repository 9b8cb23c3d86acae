"""Features as plain files: exports of a stage for other programs, and other people's features, opened."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from extractors.backbones import tensor_files
from flows.project import Project
from pipeline.errors import ItemError, UserError, nearest
from pipeline.features.exporting import Exported, Output, export_ms_sl
from pipeline.features.imported import imported_stages
from pipeline.features.layouts.feature_files import INDEX, Entry, no_numbers
from pipeline.features.layouts.h2arn_files import export_h2arn
from pipeline.run.plan import State, Survey, survey
from pipeline.store.segments import Array
from pipeline.store.store import write_json
from trainers.config import MethodConfig


class StageFeatures:
    """One output of a stage of an experiment, by the ids of its items or captions."""

    def __init__(self, project: Project, stage: str, field: str = "") -> None:
        self.state = having_features(project, stage)
        self.output = Output(
            stage, _field(self.state, field), project.store.reader(stage, self.state.fingerprint.hex)
        )
        names = project.contents_of(self.state).names(self.state.stage.over)
        self._keys = {name: key for name, key in names.items() if key in self.state.places}
        self.failed = {failure.name: failure.reason for failure in self.state.failed.values()}
        if not self._keys:
            raise UserError(f"{stage} has made nothing yet; run `crossreel stage {stage}` first")

    @property
    def names(self) -> Collection[str]:
        """The ids of the items or captions that have features."""
        return self._keys

    def rows(self, name: str) -> Array:
        """The rows (T, D) of an item or caption, as they are stored."""
        return self.output.reader.rows(self._keys[name], self.output.field, check=True)


def having_features(project: Project, stage: str, states: Survey | None = None) -> State:
    """The state of a stage that has features, also of an imported one that no method reads; `states`: a survey so far.

    Raises UserError for any other.
    """
    if stage in project.stages and project.stages[stage].fields:
        return (project.states() if states is None else states)[stage]
    imported = imported_stages(project.store.index)
    if stage in imported:
        return survey({stage: imported[stage]}, project.contents, project.store, project.known)[stage]
    having = {*imported, *(name for name, known in project.stages.items() if known.fields)}
    raise UserError(f"{stage!r} has no features in {project.experiment.path}; {nearest(stage, having)}")


def _field(state: State, field: str) -> str:
    """The named output of a stage, else its first, which is the one that methods read."""
    fields = state.stage.fields
    if field and field not in fields:
        raise UserError(f"stage {state.stage.name} has no output {field!r}; {nearest(field, fields)}")
    return field or next(iter(fields))


def export(project: Project, stage: str, target: Path, layout: str) -> int:
    """Write one file for each item or caption, and an index of their names; return the number of files.

    Raises UserError where some are still to be made; those that failed are left out.
    """
    state = _whole(project, stage)
    reader = project.store.reader(stage, state.fingerprint.hex)
    target.mkdir(parents=True, exist_ok=True)
    for key in state.places:
        arrays = {field: np.array(reader.rows(key, field, check=True)) for field in state.stage.fields}
        path = target / f"{key}.{layout}"
        if layout == "npz":
            np.savez(path, allow_pickle=False, **arrays)
        else:
            save_file(arrays, path)
    names = project.contents_of(state).names(state.stage.over)
    index = {name: f"{key}.{layout}" for name, key in names.items() if key in state.places}
    write_json(target / INDEX, {"stage": stage, "fingerprint": state.fingerprint.hex, "files": index})
    return len(state.places)


def export_collection(
    project: Project, stage: str, text_stage: str, field: str, target: Path, layout: str = "ms-sl",
    subset: str = "",
) -> Exported:  # fmt: skip
    """Write a stage of items and one of captions in the layout ms-sl or h2arn; without a name, the method's text stage.

    `subset` names the data set in h2arn's files; else it is called as the manifest is. Raises UserError where
    some are still to be made, and for what the layout cannot express.
    """
    text_stage = text_stage or _text_stage(project, stage)
    outputs, contents = {}, project.contents
    for name, over, chosen in ((stage, "items", field), (text_stage, "captions", "")):
        state = _whole(project, name)
        if state.stage.over != over:
            raise UserError(
                f"{name} is of {state.stage.over}; {layout} needs one stage of items, one of captions"
            )
        contents = contents.of_kind(state.kind)
        reader = project.store.reader(name, state.fingerprint.hex)
        outputs[over] = Output(name, _field(state, chosen), reader)
    if layout == "h2arn":
        subset = subset or project.contents.corpus.path.stem
        return export_h2arn(target, contents, subset, outputs["items"], outputs["captions"], _save_tensor)
    return export_ms_sl(target, contents, outputs["items"], outputs["captions"])


def _save_tensor(path: Path, array: Array) -> None:
    import torch  # only what asks for .pt files pays for it

    torch.save(torch.from_numpy(array), path)


def _whole(project: Project, stage: str) -> State:
    state = having_features(project, stage)
    if state.missing:
        raise UserError(
            f"{stage} lacks {len(state.missing)} of {len(state.keys)} {state.stage.over}; "
            f"run `crossreel stage {stage} {project.experiment.path}` first"
        )
    return state


def _text_stage(project: Project, stage: str) -> str:
    """The text features that a method reads beside this stage, or else `clip_text`."""
    methods = [s.params for s in project.stages.values() if isinstance(s.params, MethodConfig)]
    beside = {config.text_features for config in methods if stage in config.features()}
    beside = beside or {config.text_features for config in methods}
    return beside.pop() if len(beside) == 1 else "clip_text"


def open_tensors(path: Path, stack: ExitStack) -> dict[str, Entry]:
    """The tensors of a .pt file, memory-mapped; a single one has the name "". No object is unpickled."""
    import torch  # only what asks for .pt files pays for it

    try:
        found = tensor_files.read(path, mapped=True)
    except tensor_files.NotTensors as error:
        raise ItemError(path.name, str(error)) from None
    named = found if isinstance(found, dict) else {"": found}
    entries = {
        str(name): _entry(tensor) for name, tensor in named.items() if isinstance(tensor, torch.Tensor)
    }
    if not entries:
        raise ItemError(path.name, f"it holds no tensors but a {type(found).__name__}")
    return entries


def _entry(tensor: Any) -> Entry:
    """A tensor in a dtype that numpy has: bfloat16 and smaller ones as float32."""
    tensor = tensor.detach()
    name = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_sparse or tensor.is_quantized or tensor.is_complex():
        return no_numbers(tuple(tensor.shape))
    if tensor.is_floating_point() and name not in ("float16", "float32", "float64"):
        return Entry(tuple(tensor.shape), np.dtype(np.float32), lambda: tensor.float().numpy())
    return Entry(tuple(tensor.shape), np.dtype(name), tensor.numpy)
