"""The recorded cases agree with our implementation, and a case that does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import UserError
from trainers.verify.cases import CaseResult, Quantity, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hlformer"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "hlformer"


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the small case, under another name."""
    shutil.copy(FIXTURES / "small.safetensors", tmp_path / "other.safetensors")
    content = json.loads((FIXTURES / "small.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**content, "tensors_file": "other.safetensors"}))
    return tmp_path


def change(folder: Path, by: dict[str, float]) -> None:
    tensors = load_file(folder / "other.safetensors")
    save_file({n: t + by[n] if n in by else t for n, t in tensors.items()}, folder / "other.safetensors")


@pytest.mark.slow
def test_recorded_small_case_and_loaders_agree() -> None:
    results = list(verify(FIXTURES))
    assert [result.method for result in results] == ["hlformer", "hlformer"]
    assert failures(results) == []
    names = {quantity.name for result in results for quantity in result.quantities}
    wanted = {"pre/clip/vid00", "batch/text_feat", "out/lorentz.logits", "loss_hard/total", "steps/loss"}
    wanted |= {"training loop losses", "training loop weights"}
    wanted |= {
        "grad/curv",
        "step3/curv",
        "eval/fused",
        "metric sumr",
        "gauss/L128_w2",
        "train_batch/text_mask",
    }
    assert wanted <= names


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the full recorded cases are not beside this checkout")
def test_all_recorded_cases_agree() -> None:
    results = list(verify(SHARED, "hlformer"))
    assert len(results) == 3 and failures(results) == []


@pytest.mark.slow
def test_every_tensor_that_differs_is_named_and_no_other(case: Path) -> None:
    names = {"out/clip.h2", "out/lorentz.probs", "grad/clip_encoder.layer2.weight", "step2/video_alpha"}
    names |= {"eval/frame_cos", "loss_soft/div_raw", "pre/frame/vid02", "gauss/L32_w4", "steps/loss"}
    change(case, {name: 1e-3 for name in names})
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert found == names | {"training loop losses"}  # which are compared with steps/loss too


@pytest.mark.slow
def test_weight_that_differs_makes_what_follows_differ(case: Path) -> None:
    change(case, {"state/clip_encoder.h_attns.2.self.lorentz_multiattention.linear_keys.scale": 0.01})
    lines = failures(list(verify(case)))
    assert any("out/clip.h2" in line for line in lines) and any("eval/clip_cos" in line for line in lines)
    assert not any("out/clip.h1" in line for line in lines)


def test_parts_that_a_case_does_not_hold_are_left_out_and_ranks_stand_in_for_negatives(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    gone = (
        "raw/",
        "pre/",
        "eval/",
        "metric/",
        "gauss/",
        "neg_",
        "step1_neg",
        "step2_neg",
        "step3_neg",
        "out/",
    )
    save_file({n: t for n, t in tensors.items() if not n.startswith(gone)}, case / "other.safetensors")
    results = list(verify(case))
    assert failures(results) == []
    assert {"loss_soft/total", "loss_hard/total", "steps/loss", "training loop losses"} <= {
        q.name for r in results for q in r.quantities
    }


@pytest.mark.slow
def test_unknown_tensor_is_a_failure(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    save_file(
        {**tensors, "out/clip.extra": torch.zeros(2), "more/x": torch.zeros(1)}, case / "other.safetensors"
    )
    found = failures(list(verify(case)))
    assert len(found) == 2 and all("not understood" in line for line in found)


def test_file_that_is_no_case_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"case": "of nothing"}')
    (tmp_path / "b.json").write_text("{")
    results = list(verify(tmp_path))
    assert [result.ok for result in results] == [False, False]
    assert "no case that is understood" in failures(results)[0]


def test_case_without_its_tensors_is_a_failure(case: Path) -> None:
    (case / "other.safetensors").write_bytes(b"damaged")
    assert "cannot be run" in failures(list(verify(case)))[0]
    (case / "other.safetensors").unlink()
    assert "cannot be run" in failures(list(verify(case)))[0]


@pytest.mark.slow
def test_cases_of_other_methods_are_left_out_when_a_method_is_named(case: Path) -> None:
    (case / "gare").mkdir()
    (case / "gare" / "x.json").write_text("{}")
    assert [result.path.name for result in verify(case, "hlformer")] == ["other.json"]


def test_folder_without_a_case_and_unknown_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.json file"):
        list(verify(tmp_path))
    with pytest.raises(UserError, match="did you mean 'hlformer'"):
        list(verify(tmp_path, "hlfromer"))


def test_nan_is_over_every_tolerance() -> None:
    assert not Quantity("x", float("nan"), 1.0).ok
