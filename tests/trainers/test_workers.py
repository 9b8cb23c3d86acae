"""The worker processes of a training and an evaluation, from packed inputs to their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from trainers import workers
from trainers.loop.trained import TrainedFolder
from trainers.measure import score_rows
from trainers.measure.evaluated import EvaluatedFolder
from trainers.registry import METHODS
from trainers.stages import EvaluateParams

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, CAPTIONS = 9, 2
SMALL = {
    "frames": 4, "max_triples": 3, "hidden": 8, "latent": 8, "attention_hidden": 8, "batch_size": 4,
    "nodes": "sentence", "keyframes": "", "lr": 1e-3, "epochs": 2, "validation_captions": 5,
}  # fmt: skip


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """LEAN's inputs of three splits."""
    names = {split: [f"{split}{n}" for n in range(ITEMS)] for split in ("train", "val", "test")}
    splits = {
        split: (items, [(f"{item}#{n}", "a dog", item) for item in items for n in range(CAPTIONS)])
        for split, items in names.items()
    }

    def rows(key: str) -> np.ndarray:
        return np.random.default_rng(list(key.encode())).normal(size=(4, 6)).astype(np.float32)

    folder = tmp_path / "packed"
    folder.mkdir()
    lean = METHODS.find("lean")
    lean.pack(folder, lean.config(**SMALL), splits, {"frame": rows, "token": rows})
    return folder


def request(packed: Path, folder: Path, params: str, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {
        "stage": "of a test", "method": "lean", "params": params, "folder": str(folder), "device": "cpu",
        "needs": {"pack-lean": str(packed)}, **more,
    }  # fmt: skip


def trained(packed: Path, folder: Path, loader_workers: int, **changed: Any) -> list[Mapping[str, Any]]:
    """Train, and what was sent meanwhile."""
    sent: list[Mapping[str, Any]] = []
    params = METHODS.find("lean").config(**{**SMALL, **changed}).model_dump_json()
    asked = request(packed, folder, params, loader_workers=loader_workers, processes=1)
    workers.train(asked, lambda header, arrays: sent.append(header))
    return sent


def test_a_training_with_loader_workers_leaves_the_weights_of_one_without_and_tells_its_validation(
    packed: Path, tmp_path: Path
) -> None:
    sent = trained(packed, tmp_path / "none", 0)
    trained(packed, tmp_path / "one", 1)
    none, one = TrainedFolder(tmp_path / "none"), TrainedFolder(tmp_path / "one")
    assert none.weights.read_bytes() == one.weights.read_bytes()
    for epoch in (*none.history, *one.history):
        assert epoch.validation_captions == 5 and epoch.waiting is not None and 0 <= epoch.waiting < 1
    shown = [header["progress"] for header in sent if "progress" in header]
    doing = {work["validating"]["doing"]: work["validating"] for work in shown if "validating" in work}
    assert doing["scoring"]["total"] == 5 * ITEMS and all(work["steps"] == 5 for work in shown)
    trained(packed, tmp_path / "all", 0, validation_captions=0)
    assert [epoch.validation_captions for epoch in TrainedFolder(tmp_path / "all").history] == [0, 0]


def test_a_precision_that_changes_anything_is_told(packed: Path, tmp_path: Path) -> None:
    told = [
        header["log"] for header in trained(packed, tmp_path / "run", 0, precision="bf16") if "log" in header
    ]
    assert len(told) == 1 and told[0].startswith("  of a test: layers compute in bfloat16")


def test_a_training_without_the_compiler_that_it_asks_for_says_so_in_a_sentence(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"^trainers\.lean\.compile = true is not possible: torch compiles for a CPU"
    ):
        trained(packed, tmp_path / "run", 0, compile=True)
    monkeypatch.setattr("trainers.loop.distributed.world", lambda: 2)
    with pytest.raises(
        UserError, match=r"^trainers\.lean\.compile = true is not possible: compiled .* 2 processes"
    ):
        trained(packed, tmp_path / "run", 0, compile=True)


def test_a_training_that_compiles_says_that_its_first_steps_take_long(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda function: function)
    monkeypatch.setattr("trainers.compiler.lack", lambda device: "")
    told = [row["log"] for row in trained(packed, tmp_path / "run", 0, compile=True) if "log" in row]
    assert sum("the first steps take minutes (compile = true)" in line for line in told) == 1
    assert not [row for row in trained(packed, tmp_path / "plain", 0) if "compile" in row.get("log", "")]


def test_more_loader_workers_than_cores_are_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.loader_workers = 999 is not possible"):
        trained(packed, tmp_path / "run", 999)


def test_an_evaluation_that_was_killed_goes_on_in_its_folder_and_leaves_its_results_alone(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(packed, tmp_path / "trained", 0)
    sent: list[Mapping[str, Any]] = []
    needs = {"train-lean": str(tmp_path / "trained"), "pack-lean": str(packed), "pack-lean-test": str(packed)}

    def evaluated(name: str) -> EvaluatedFolder:
        asked = request(packed, tmp_path / name, EvaluateParams().model_dump_json(), needs=needs)
        workers.evaluate(asked, lambda header, arrays: sent.append(header))
        return EvaluatedFolder(tmp_path / name)

    whole = evaluated("whole")
    assert {"scoring", "ranking", "encoding items"} <= {
        header["progress"]["doing"] for header in sent if "progress" in header
    }
    with monkeypatch.context() as killing:

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        killing.setattr(score_rows.ScoreRows, "explanation", die)  # after all is scored
        with pytest.raises(KeyboardInterrupt):
            evaluated("killed")
    monkeypatch.setattr(score_rows.ScoreRows, "_block", die)  # nothing may be scored again
    found = evaluated("killed")
    assert found.metrics == whole.metrics
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
    assert (
        json.loads((tmp_path / "killed/metrics.json").read_text())["protocol"]["captions"] == ITEMS * CAPTIONS
    )
