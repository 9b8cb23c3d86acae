"""H2ARN's checkpoints in the authors' layout: both kinds of file, there and back, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import UserError
from pipeline.store.index import Index
from trainers.h2arn import official
from trainers.h2arn.config import H2arnConfig
from trainers.registry import METHODS
from trainers.stages import Train

CASE = Path(__file__).parents[2] / "fixtures" / "h2arn" / "retrieval.safetensors"


@pytest.fixture
def tensors() -> official.State:
    return load_file(CASE)


@pytest.fixture
def state(tensors: official.State) -> official.State:
    return {name.removeprefix("state."): v for name, v in tensors.items() if name.startswith("state.")}


def checkpoint(state: official.State) -> dict[str, Any]:
    """What the authors write every 25 epochs."""
    parameters = [torch.nn.Parameter(value.clone()) for value in state.values()]
    adam = torch.optim.AdamW(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return {
        "epoch": 25, "model_state_dict": state, "optimizer_state_dict": adam.state_dict(),
        "scheduler_state_dict": schedule.state_dict(), "best_recall_at_1": 0.1, "best_recall_at_5": 0.4,
        "best_recall_at_10": 0.6,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["best_r1.pth", "checkpoint.pth", "parallel.pth", "best.safetensors"])
def test_both_kinds_of_file_are_imported_and_exported_to_the_last_bit(
    tmp_path: Path, state: official.State, kind: str
) -> None:
    file, own, back = tmp_path / kind, tmp_path / "own", tmp_path / "back.pth"
    if kind.endswith("safetensors"):
        save_file(state, file)
    elif kind.startswith("parallel"):
        torch.save({f"module.{name}": value for name, value in state.items()}, file)
    else:
        torch.save(checkpoint(state) if kind.startswith("checkpoint") else state, file)
    found = official.import_checkpoint(file, own, {"nhead": 4})
    assert found == {"d_model": 16, "nhead": 4, "num_layers": 2}
    official.export_checkpoint(own, back)
    found = torch.load(back, weights_only=True)
    assert found.keys() == state.keys()
    assert all(
        torch.equal(found[name], value) and value.dtype == torch.float32 for name, value in state.items()
    )


def test_imported_weights_score_as_recorded_once_the_heads_are_given(
    tensors: official.State, state: official.State
) -> None:
    method = official.method_from(state, official.config_of(state, nhead=4)).eval()
    with torch.inference_mode():
        texts = method.encode_texts({"text": tensors["in.eval_txt"]})
        found = method.scores(texts, method.encode_items({"cloud": tensors["in.eval_pcd"]}))
    torch.testing.assert_close(found, tensors["out.sim"], rtol=1e-4, atol=2e-4)


def test_sizes_are_those_of_the_tensors(state: official.State) -> None:
    assert official.sizes(state) == {"d_model": 16, "num_layers": 2, "d_txt": 24, "d_pcd": 20}
    without = {name: value for name, value in state.items() if "input_proj" not in name}
    assert official.sizes(without)["d_txt"] == official.sizes(without)["d_pcd"] == 16


def test_heads_are_asked_for_and_never_guessed(tmp_path: Path, state: official.State) -> None:
    """Sixteen heads of four were once taken for granted, and every score was another network's."""
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"--set nhead=N, which divides its width of 16: 1, 2, 4, 8, 16 \(pub"
    ):
        official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own")
    with pytest.raises(UserError, match=r"trainers\.h2arn\.nhead = 3 is not possible: d_model, 16"):
        official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own", {"nhead": 3})
    with pytest.raises(UserError, match=r"unknown setting trainers\.h2arn\.heads"):
        official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own", {"nhead": 4, "heads": 4})
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_c": None}, "the weights do not fit: the tensor log_c is missing"),
        (
            {"pcd_encoder.1.encoder_layer.norm2.bias": None},
            "the tensor pcd_encoder.1.encoder_layer.norm2.bias is missing",
        ),
        (
            {"log_d": torch.zeros(())},
            r"the tensor log_d is not known; did you mean 'log_c'\?",
        ),
        (
            {"text_encoder.0.input_proj.bias": torch.zeros(3)},
            r"the tensor text_encoder.0.input_proj.bias is \(3,\), \(16,\) is needed",
        ),
        ({"text_encoder.0.encoder_layer.linear2.bias": None}, "these are no weights of H2ARN's authors"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, state: official.State, change: dict[str, Any], message: str
) -> None:
    torch.save({name: v for name, v in {**state, **change}.items() if v is not None}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own", {"nhead": 4})
    assert not (tmp_path / "own").exists()


def test_files_that_are_no_checkpoints_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        official.read(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(UserError, match="is not a checkpoint that can be read safely"):
        official.read(tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="has neither a state dict nor one under 'model_state_dict'"):
        official.read(tmp_path / "other.pth")


def test_settings_are_kept_with_the_weights(tmp_path: Path, state: official.State) -> None:
    torch.save(state, tmp_path / "x.pth")
    official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own", {"nhead": 4})
    saved = json.loads((tmp_path / "own" / "config.json").read_text())
    assert saved["method"] == "h2arn" and saved["config"]["num_layers"] == 2


def test_weights_run_with_another_number_of_heads_are_refused_or_reported(
    tmp_path: Path, state: official.State, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(state, tmp_path / "x.pth")
    settings = official.import_checkpoint(tmp_path / "x.pth", tmp_path / "own", {"nhead": 4})
    digests = RememberedDigests(Index(tmp_path / "index.sqlite"))

    def stage(**changes: Any) -> Train:
        return Train(
            METHODS.find("h2arn"), H2arnConfig(**{**settings, "weights": str(tmp_path / "own"), **changes})
        )

    assert "start" in stage(epochs=0).identity(digests)
    with pytest.raises(
        UserError, match=r"trainers\.h2arn\.nhead = 8, and .*own was trained with 4: no weight"
    ):
        stage(epochs=0, nhead=8).identity(digests)
    stage().require()
    assert not caplog.records
    assert "start" in stage(nhead=8).identity(digests)  # training on is the user's to choose
    stage(nhead=8).require()
    assert [record.getMessage() for record in caplog.records] == [
        f"trainers.h2arn.nhead = 8, and {tmp_path / 'own'} was trained with 4"
    ]
