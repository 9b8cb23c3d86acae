"""The recorded cases of CLIP4Clip agree with our implementation, and one that is changed is a failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.verify.cases import CaseResult, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "clip4clip"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "clip4clip"
beside = pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


def failed(folder: Path) -> set[str]:
    return {q.name for result in verify(folder) for q in result.quantities if not q.ok}


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of one case under another name."""
    for suffix in (".json", ".safetensors"):
        shutil.copy(FIXTURES / f"seqlstm_a{suffix}", tmp_path / f"other{suffix}")
    rewrite(tmp_path, files="other.safetensors")
    return tmp_path


def rewrite(folder: Path, **content: Any) -> None:
    file = folder / "other.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def test_recorded_cases_of_every_header_agree() -> None:
    results = list(verify(FIXTURES))
    assert {result.method for result in results} == {"clip4clip"} and failures(results) == []
    assert [result.path.stem for result in results] == ["meanp_a", "meanp_rect_a", "seqlstm_a", "seqtransf_a"]
    names = {quantity.name for result in results for quantity in result.quantities}
    assert {"logits", "logits_eval", "loss_t2v", "loss_v2t", "loss", "grad.frames", "grad.text"} <= names
    assert "grad.transformerClip.resblocks.1.mlp.c_proj.weight" in names
    assert {"grad.lstm_visual.weight_hh_l0", "grad.clip.logit_scale"} <= names


@beside
def test_all_recorded_cases_agree() -> None:
    assert failures(list(verify(SHARED, "clip4clip"))) == []


@pytest.mark.parametrize(
    ("tensor", "fails"),
    [
        ("weight/lstm_visual.bias_ih_l0", {"logits", "logits_eval", "loss"}),
        ("in/text", {"logits", "logits_eval"}),
        ("expected/logits_eval", {"logits_eval"}),
        ("expected/grad.frames", {"grad.frames"}),
    ],
)
def test_a_changed_tensor_is_a_failure(case: Path, tensor: str, fails: set[str]) -> None:
    tensors = load_file(case / "other.safetensors")
    tensors[tensor] = tensors[tensor] + torch.linspace(-0.5, 0.5, tensors[tensor].numel()).view_as(
        tensors[tensor]
    )
    save_file(tensors, case / "other.safetensors")
    assert fails <= failed(case)
    if tensor.startswith("expected"):
        assert failed(case) == fails


def test_what_is_not_understood_is_a_failure(case: Path) -> None:
    assert failed(case) == set()
    rewrite(case, losses={"loss_x": 1.0})
    assert failed(case) == {"loss_x"}
    rewrite(case, kind="towers")
    assert failed(case) == {"kind"}
    rewrite(case, kind="head", losses={}, sim_header="seqTransf")
    (result,) = verify(case)
    assert "the case is of 'seqTransf', and its weights of 'seqLSTM'" in failures([result])[0]


def test_a_tensor_that_no_check_reads_is_a_failure(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    save_file({**tensors, "expected/attention": torch.zeros(2)}, case / "other.safetensors")
    assert failed(case) == {"expected/attention"}


def test_a_case_is_run_whatever_its_json_is_called(case: Path) -> None:
    (case / "other.json").rename(case / "third.json")
    assert failures(list(verify(case))) == []
    (case / "other.safetensors").unlink()
    assert "there is no" in failures(list(verify(case)))[0]
