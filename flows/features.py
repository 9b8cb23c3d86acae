"""A stage's features as plain files, for programs that know nothing of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from flows.project import Project
from pipeline.errors import UserError
from pipeline.store import write_json


def export(project: Project, stage: str, target: Path, layout: str) -> int:
    """Write one file an item or caption, and an index of all their names; returns how many files.

    Raises UserError where some are still to be made; those that failed are left out.
    """
    state = project.survey()[stage]
    if state.missing:
        raise UserError(
            f"{stage} lacks {len(state.missing)} of {len(state.keys)} {state.stage.over}; "
            f"run `crossreel stage {stage} {project.experiment.path}` first"
        )
    reader = project.store.reader(stage, state.fingerprint.hex)
    target.mkdir(parents=True, exist_ok=True)
    for key in state.places:
        arrays = {field: np.array(reader.rows(key, field, check=True)) for field in state.stage.fields}
        path = target / f"{key}.{layout}"
        if layout == "npz":
            np.savez(path, allow_pickle=False, **arrays)
        else:
            save_file(arrays, path)
    names = project.contents.names(state.stage.over)
    index = {name: f"{key}.{layout}" for name, key in names.items() if key in state.places}
    write_json(target / "index.json", {"stage": stage, "fingerprint": state.fingerprint.hex, "files": index})
    return len(state.places)
