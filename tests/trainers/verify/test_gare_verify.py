"""The recorded cases of GARE agree with our implementation, and a case that does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.verify.cases import CaseResult, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gare"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "gare"
beside = pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


def failed(folder: Path) -> set[str]:
    return {q.name for result in verify(folder) for q in result.quantities if not q.ok}


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the small case, under another name."""
    for file in FIXTURES.glob("full.*"):
        shutil.copy(file, tmp_path / file.name.replace("full", "other"))
    return tmp_path


def change(folder: Path, part: str, by: dict[str, float]) -> None:
    file = folder / f"other.{part}.safetensors"
    save_file({n: (t + by[n]) if n in by else t for n, t in load_file(file).items()}, file)


def rewrite(folder: Path, **content: Any) -> None:
    file = folder / "other.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def test_recorded_small_case_agrees() -> None:
    (result,) = verify(FIXTURES)
    assert result.method == "gare" and failures([result]) == []
    names = {quantity.name for quantity in result.quantities}
    wanted = {
        "eval/text_hidden",
        "eval/frame_feat",
        "eval/video_feat",
        "eval/psi_attn_weight",
        "eval/sim (evaluation form)",
    }
    wanted |= {"train_drop/delta", "train_drop/total", "train_nodrop norm of clip.token_embedding.weight"}
    wanted |= {"ddp_w2/grad/clip.logit_scale", "update 3 loss", "update 1 lr_per_group", "param_groups"}
    wanted |= {"checkpoint values", "eval_metrics_v2t MeanR", "eval/dead_log_std", "ddp_w2_loss"}
    assert wanted <= names


@beside
def test_all_recorded_cases_agree() -> None:
    results = list(verify(SHARED, "gare"))
    assert len(results) == 3 and failures(results) == []
    names = {quantity.name for result in results for quantity in result.quantities}
    wanted = {
        "opt/after4/clip.text_projection",
        "opt/after12/clip.logit_scale",
        "eval_rect/sim (training form)",
    }
    wanted |= {"iso/grad_delta/norm_raw", "dir_by_alpha 5.0", "train_drop/grad_delta", "tokens max_words_12"}
    wanted |= {"frame_positions 12", "augment neg ShearY", "transform 4", "metrics ties v2t R1"}
    assert wanted <= names


def test_every_tensor_that_differs_is_named_and_no_other(case: Path) -> None:
    names = {"eval/frame_feat", "eval/psi_ln2", "train_drop/delta", "ddp_w2/grad/clip.logit_scale"}
    names |= {"train_nodrop/grad/clip.ln_final.weight"}
    change(case, "expected", dict.fromkeys(names, 0.05))
    found = {name.removesuffix(" (training form)") for name in failed(case)}
    assert found == names


def test_weight_that_differs_makes_what_follows_differ(case: Path) -> None:
    name = "psi.layers.0.layer_norm3.weight"
    change(case, "weights", {name: 0.1, f"agent.{name}": 0.1})
    found = failed(case)
    assert {"eval/psi_ln3", "eval/sim", "train_nodrop/total", "update 0 loss"} <= found
    assert not {"eval/text_hidden", "eval/video_feat", "eval/psi_ln2"} & found


def test_parts_that_a_case_does_not_hold_are_left_out(case: Path) -> None:
    tensors = load_file(case / "other.expected.safetensors")
    save_file({"eval/sim": tensors["eval/sim"]}, case / "other.expected.safetensors")
    content = json.loads((case / "other.json").read_text())
    kept = {name: content[name] for name in ("case", "spec", "tensors")}
    (case / "other.json").write_text(json.dumps(kept))
    assert failures(list(verify(case))) == []


def test_what_is_not_understood_is_a_failure(case: Path) -> None:
    tensors = load_file(case / "other.expected.safetensors")
    save_file({**tensors, "eval/more": torch.zeros(2)}, case / "other.expected.safetensors")
    content = json.loads((case / "other.json").read_text())
    content["scalars"]["train_drop"]["odd"] = 1.0
    content["scalars"]["train_twice"] = {}
    rewrite(case, scalars=content["scalars"])
    lines = failures(list(verify(case)))
    assert len(lines) == 3 and all("not understood" in line for line in lines)


def test_option_that_is_not_understood_is_a_failure(case: Path) -> None:
    content = json.loads((case / "other.json").read_text())
    content["spec"]["cfg"]["lambda_dri"] = 1.0
    rewrite(case, spec=content["spec"])
    assert "did you mean 'lambda_dir'" in failures(list(verify(case)))[0]


def test_damaged_case_is_a_failure(case: Path) -> None:
    (case / "other.weights.safetensors").write_bytes(b"damaged")
    assert "cannot be run" in failures(list(verify(case)))[0]
    (case / "other.weights.safetensors").unlink()
    assert "there is no" in failures(list(verify(case)))[0]


def test_small_preprocessing_case_is_run_and_its_mistakes_are_reported(tmp_path: Path) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.3, 0.4], [0.0, 0.5, 0.6]])
    save_file({"metrics/plain": scores}, tmp_path / "p.tensors.safetensors")
    positions = {"n": 37, "fps": 3.0, "max_frames": 4, "framerate": 1, "start": 2, "end": 9}
    positions |= {"positions": [6, 12, 18, 27], "mask": [1, 1, 1, 1]}
    fails = {**positions, "start": 40, "end": 50, "positions": None, "mask": "TypeError"}
    # of the first row the ranks 1 and 2, of the second 2, of the third 1
    metrics = {"R1": 50.0, "R5": 100.0, "MR": 1.5, "MeanR": 1.5}
    case = {
        "compress_dims": [{"src": [1280, 720], "dst": [398, 224]}, {"src": [720, 1280], "dst": [224, 126]}],
        "frame_positions": [positions, fails],
        "tokens": {"max_words_4": [{"caption": "!", "ids": [49406, 256, 49407, 0], "mask": [1, 1, 1, 0]}]},
        "metrics": {"plain": {"t2v": metrics}},
    }
    (tmp_path / "p.json").write_text(json.dumps(case))
    assert failures(list(verify(tmp_path))) == []
    case["compress_dims"][1]["dst"] = [224, 398]
    case["frame_positions"][0]["positions"] = [6, 12, 18, 24]
    metrics["R1"] = 60.0
    (tmp_path / "p.json").write_text(json.dumps(case))
    assert failed(tmp_path) == {"compress_dims [720, 1280]", "frame_positions 0", "metrics plain t2v R1"}
