"""The recorded cases of NeighborRetr agree with our implementation, and one that does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.verify.cases import CaseResult, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "neighborretr"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "neighborretr"


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


def failed(folder: Path) -> set[str]:
    return {q.name for result in verify(folder, "neighborretr") for q in result.quantities if not q.ok}


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the case of the head."""
    for file in FIXTURES.glob("head.*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def change(file: Path, by: dict[str, float]) -> None:
    save_file({n: t + by.get(n, 0) if n in by else t for n, t in load_file(file).items()}, file)


def test_recorded_head_inputs_and_metrics_agree() -> None:
    results = list(verify(FIXTURES))
    assert [result.method for result in results] == ["neighborretr", "neighborretr"]
    assert failures(results) == []
    names = {quantity.name for result in results for quantity in result.quantities}
    wanted = {"local_t2v", "bank_v2t", "plan_t2v", "losses total", "grad.text_feat", "grad_stats", "eval_sim"}
    wanted |= {"bank_after2.ind", "schedule", "tokenizer 0 ids", "frame_sampling 5 uniform"}
    assert wanted <= names


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the full recorded cases are not beside this checkout")
def test_all_recorded_cases_agree() -> None:
    results = list(verify(SHARED, "neighborretr"))
    assert len(results) == 3 and failures(results) == []
    names = {quantity.name for result in results for quantity in result.quantities}
    assert {
        "step 2 losses total",
        "delta.clip.text_projection",
        "eval_sim_after",
        "checkpoint values",
    } <= names


def test_every_tensor_that_differs_is_named_and_no_other(case: Path) -> None:
    names = {"local_t2v", "plan_v2t", "nbr_posw_t2v", "text_ctm0.merged", "bank_after2.ind", "eval_sim"}
    change(case / "head.expected.safetensors", {**dict.fromkeys(names, 1e-3), "bank_after2.ind": 1})
    assert failed(case) == names


def test_gradient_that_differs_is_named(case: Path) -> None:
    change(case / "head.expected.safetensors", {"grad.video_ctm0.score.weight": 0.1})
    assert failed(case) == {"grad.video_ctm0.score.weight"}


def test_rounding_noise_of_zero_gradients_is_not_compared(case: Path) -> None:
    change(case / "head.expected.safetensors", {"grad.text_weight_fc.2.bias": 1.0})
    assert failed(case) == set()


def test_weight_that_differs_makes_what_follows_differ(case: Path) -> None:
    change(case / "head.state.safetensors", {"video_ctm0.norm.weight": 0.01})
    found = failed(case)
    assert {"video_ctm0.merged", "video_block0.out", "global_t2v"} <= found
    assert not found & {"text_ctm0.merged", "local_t2v", "bank_t2v", "losses neighbor"}


def test_tensor_setting_and_loss_that_are_unknown_are_failures(case: Path) -> None:
    expected = case / "head.expected.safetensors"
    save_file({**load_file(expected), "extra": torch.zeros(2)}, expected)
    content = json.loads((case / "head.json").read_text())
    content["config"]["charm"] = 3
    content["loss_order"][-1] = "beauty"
    (case / "head.json").write_text(json.dumps(content))
    found = failed(case)
    assert {"extra", "config charm", "losses beauty"} <= found


def test_setting_that_is_another_changes_what_it_should(case: Path) -> None:
    content = json.loads((case / "head.json").read_text())
    content["config"]["temperature"] = 2.0
    (case / "head.json").write_text(json.dumps(content))
    found = failed(case)
    assert {"nbr_posw_t2v", "losses uniform", "losses neighbor"} <= found
    assert not found & {"plan_t2v", "losses kl", "local_t2v", "losses centrality"}


def test_part_of_inputs_and_metrics_that_differs_or_is_unknown_is_named(tmp_path: Path) -> None:
    content = json.loads((FIXTURES / "misc.json").read_text())
    content["tokenizer"][1]["ids"][2] += 1
    content["frame_sampling"][2]["uniform"][-1] += 1
    content["cluster_counts"][0]["level0"] += 1
    content["metrics_multi"]["t2v"]["Std_Rank"] += 0.1
    content["metrics_single"]["v2t"]["Charm"] = 1.0
    content["more"] = []
    (tmp_path / "misc.json").write_text(json.dumps(content))
    wanted = {
        "tokenizer 1 ids",
        "frame_sampling 2 uniform",
        "cluster_counts text 13",
        "metrics_multi t2v Std_Rank",
    }
    assert failed(tmp_path) == wanted | {"metrics_single v2t Charm", "more"}


def test_cases_of_other_methods_are_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"case": "preproc", "tokens": [], "metrics": {}}')
    (tmp_path / "b.json").write_text('{"kind": "head", "config": {"n_heads": 2}}')
    assert [r.ok for r in verify(tmp_path, "neighborretr")] == [False, False]
    assert all(
        "no case that is understood" in line for line in failures(list(verify(tmp_path, "neighborretr")))
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_terms_are_compared_with_or_without_weights_as_the_case_records_them(
    case: Path, weighted: bool
) -> None:
    content = json.loads((case / "head.json").read_text())
    weights = {"centrality": 1.0, "uniform": 0.5, "neighbor": 2.0, "kl": 0.25}
    terms = dict(zip(content["loss_order"], content["losses"], strict=True))
    terms["total"] = sum(weights[name] * terms[name] for name in weights)
    if weighted:
        terms |= {name: weight * terms[name] for name, weight in weights.items()}
    content["losses"] = [terms[name] for name in content["loss_order"]]
    content["config"]["weights"] = weights
    (case / "head.json").write_text(json.dumps(content))
    assert not any(name.startswith("losses") for name in failed(case))
    content["losses"][2] *= 1.001
    (case / "head.json").write_text(json.dumps(content))
    assert "losses uniform" in failed(case)
