"""A stage's features as plain files, for programs that know nothing of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from flows.project import Project
from pipeline.store import write_json


def export(project: Project, stage: str, target: Path, layout: str) -> int:
    """Write one file an item or caption and an index of their names; returns how many."""
    state = project.survey()[stage]
    reader = project.store.reader(stage, state.fingerprint.hex)
    if state.stage.over == "captions":
        names = {key: caption.id for key, caption in project.contents.captions().items()}
    else:
        names = {key: item.id for key, item in project.contents.items().items()}
    target.mkdir(parents=True, exist_ok=True)
    index = {}
    for key in state.places:
        arrays = {field: np.array(reader.rows(key, field, check=True)) for field in state.stage.fields}
        path = target / f"{key}.{layout}"
        if layout == "npz":
            np.savez(path, allow_pickle=False, **arrays)
        else:
            save_file(arrays, path)
        index[names[key]] = path.name
    write_json(target / "index.json", {"stage": stage, "fingerprint": state.fingerprint.hex, "files": index})
    return len(index)
