"""The folder of a training: what is read is what was trained, and what is damaged is named in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store
from trainers.config import Recipe
from trainers.loop.curves import Curves
from trainers.loop.trained import CONFIG, HISTORY, WEIGHTS, Summary, TrainedFolder

SUMMARY = Summary(best_epoch=1, epochs=2, validation={"SumR": 9.5}, stopped_early=False)
ROWS = [
    {"epoch": n, "steps": 4 * n, "lr": 0.1, "loss": loss, "terms": {"nce": loss}, "validation": {"SumR": 10.5 - n},
     "best": n == 1, "waiting": 0.25, "validation_captions": 40, "training_seconds": 3.5, "validation_seconds": 0.5}
    for n, loss in ((1, 2.0), (2, float("nan")))
]  # fmt: skip


def trained(folder: Path, summary: Summary | None = SUMMARY, rows: list | None = ROWS) -> nn.Linear:
    """What the loop and the worker of a training write, in their order."""
    torch.manual_seed(0)
    method = nn.Linear(3, 2)
    if rows is not None:
        curves = Curves(folder, 0, {"loss": {"total": 2.0}})
        curves.write_history(rows)
        curves.close()
    TrainedFolder(folder).write("lean", Recipe(epochs=2, lr=0.5), method, summary, {"epoch": 1})
    return method


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    method = trained(tmp_path)
    folder = TrainedFolder(tmp_path)
    assert folder.finished and folder.settings.method == "lean"
    assert folder.config(Recipe) == Recipe(epochs=2, lr=0.5)
    assert folder.summary == SUMMARY.model_copy(update={"parameters": 8})
    first, second = folder.history
    assert first.model_dump() == ROWS[0] and second.loss != second.loss
    assert next(folder.tensorboard.iterdir()).name.startswith("events.out")
    tensors, about = folder.tensors()
    assert about == {"method": "lean", "epoch": 1} and torch.equal(tensors["weight"], method.weight)
    other = nn.Linear(3, 2)
    folder.fill(other)
    assert torch.equal(other.weight, method.weight) and folder.seconds is None


def test_the_seconds_of_a_training_are_those_of_the_store_s_record(tmp_path: Path) -> None:
    store, fingerprint = Store(tmp_path), Fingerprint.of({"lr": 1})
    work = store.work_folder("train-lean", fingerprint.hex)
    work.mkdir(parents=True)
    trained(work)
    folder = TrainedFolder(store.publish("train-lean", fingerprint, 12.5, {"best_epoch": 1}))
    store.index.close()
    assert folder.seconds == 12.5 and folder.summary.best_epoch == 1


def test_a_training_of_no_epochs_has_no_history_and_an_import_no_summary(tmp_path: Path) -> None:
    trained(tmp_path / "none", Summary(best_epoch=0, epochs=0, validation={}), None)
    none = TrainedFolder(tmp_path / "none")
    assert none.history == () and none.summary.epochs == 0 and not none.tensorboard.exists()
    trained(tmp_path / "imported", None, None)
    imported = TrainedFolder(tmp_path / "imported")
    assert imported.history == () and imported.settings.summary is None
    with pytest.raises(UserError, match=r"config.json has no summary: it is an imported checkpoint"):
        _ = imported.summary


@pytest.mark.parametrize(
    ("harm", "read", "sentence"),
    [
        (lambda f: (f / CONFIG).unlink(), "settings", "config.json; .* is not the folder of a trained method"),
        (lambda f: (f / CONFIG).write_text("[]"), "settings", "config.json is damaged or not of a trained method"),
        (lambda f: (f / HISTORY).unlink(), "history", "there is no .*history.jsonl; train the method again"),
        (lambda f: (f / HISTORY).write_text('{"epoch": 1}\n'), "history", "line 1 of .* is damaged: steps: field"),
        (lambda f: (f / HISTORY).write_bytes(b"\xff"), "history", "history.jsonl cannot be read"),
    ],
)  # fmt: skip
def test_a_missing_or_damaged_file_is_named_in_one_sentence(
    tmp_path: Path, harm: Callable[[Path], object], read: str, sentence: str
) -> None:
    trained(tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=sentence) as error:
        getattr(TrainedFolder(tmp_path), read)
    assert "\n" not in str(error.value)


def test_weights_that_are_missing_or_damaged_and_settings_of_another_method_are_one_sentence(
    tmp_path: Path,
) -> None:
    trained(tmp_path)
    saved = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(saved | {"config": {"nhead": 3}}))
    with pytest.raises(UserError, match=r"config.json does not hold settings of lean: nhead: extra inputs"):
        TrainedFolder(tmp_path).config(Recipe)
    (tmp_path / WEIGHTS).write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match=r"weights.safetensors is damaged"):
        TrainedFolder(tmp_path).tensors()
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="no weights at"):
        TrainedFolder(tmp_path).tensors()
