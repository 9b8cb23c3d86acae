"""Killed with -9 at many moments and started again, a run ends with the store of one that was left alone."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from flows.project import open_project
from pipeline.child import resolve

pytestmark = pytest.mark.slow

ROWS = ("compress", "clip", "clip_text")


def content(toml: Path) -> dict[str, object]:
    """Everything a store holds that must not depend on how it came about: rows by item, files, weights."""
    project = open_project(toml)
    out: dict[str, object] = {}
    for name, state in project.survey().items():
        fp = state.fingerprint.hex
        if name in ROWS:
            reader = project.store.reader(name, fp)
            for key in state.places:
                rows = {field: reader.rows(key, field, check=True) for field in state.stage.fields}
                out[f"{name} {key}"] = {f: (r.shape, r.tobytes()) for f, r in rows.items()}
                if state.stage.file_suffix:
                    out[f"file {key}"] = project.store.item_file(name, fp, key, ".mp4").read_bytes()
        elif name.startswith("train") and state.complete:
            folder = project.store.run_folder(name, fp)
            out["weights"] = (folder / "weights.safetensors").read_bytes()
            record = json.loads((folder / "artifact.json").read_text())
            out["record"] = {k: record[k] for k in ("best_epoch", "epochs", "validation", "parameters")}
    project.store.index.close()
    return out


def at(seconds: float):
    """True so many seconds after it was first asked."""
    began: list[float] = []

    def due() -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] >= seconds

    return due


def appears(folder: Path, pattern: str, count: int = 1):
    """True once so many files of a pattern exist."""
    return lambda: len(list(folder.rglob(pattern))) >= count


@pytest.fixture
def untouched(made_once, tmp_path_factory) -> dict[str, object]:
    """The content of a store that one run made from beginning to end."""
    folder = tmp_path_factory.mktemp("untouched") / "lab"
    shutil.copytree(made_once, folder)
    return content(folder / "experiment.toml")


def test_a_run_killed_again_and_again_ends_like_one_left_alone(lab, untouched):
    moments = [
        appears(lab.store / "work", "*.mp4"),
        appears(lab.store / "files", "*.mp4"),
        appears(lab.store / "segments/compress", "*.h5", 2),
        appears(lab.store / "segments/clip", "*.h5"),
        at(1.5),
        appears(lab.store / "segments/clip", "*.h5", 6),
        appears(lab.store / "segments/clip_text", "*.h5"),
        appears(lab.store / "work/pack-hlformer", "*.npy"),
        appears(lab.store / "work/train-hlformer", "last.safetensors"),
        appears(lab.store / "runs/train-hlformer", "artifact.json"),
    ]
    kills = 0
    for moment in moments:
        kills += lab.killed(moment, "stage", "evaluate", lab.toml)
        assert lab.gone_within(30) == []
    assert kills >= 5
    ended = lab.run("stage", "evaluate", lab.toml)
    assert ended.code == 0, ended.err
    assert content(lab.toml) == untouched
    assert lab.run("store", "verify", lab.store).code == 0


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.7, 1.0, 1.5])
def test_a_run_killed_after_some_seconds_goes_on(small, seconds):
    small.killed(at(seconds), "stage", "compress", small.toml)
    ended = small.run("stage", "compress", small.toml)
    assert ended.code == 0, ended.err
    assert small.plan()["compress"]["cached"] == 3
    assert small.run("store", "verify", small.store).code == 0


def test_sigterm_ends_a_training_with_a_checkpoint_and_nothing_left(lab):
    process = lab.start("stage", "train", lab.toml, "--set", "trainers.hlformer.epochs=500")
    history = appears(lab.store / "work/train-hlformer", "last.safetensors")
    deadline = time.monotonic() + 120
    while not history() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert lab.gone_within(30) == []
    checkpoint = next((lab.store / "work/train-hlformer").rglob("last.safetensors"))
    assert resolve("trainers.loop.checkpoint:load")(checkpoint)[1]
