"""The recorded cases of H2ARN agree with our implementation, and a case that does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.h2arn import hashed
from trainers.verify.cases import CaseResult, Quantity, skipped, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "h2arn"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "h2arn"


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the small model's case, under another name."""
    for kind in ("json", "safetensors"):
        shutil.copy(FIXTURES / f"retrieval.{kind}", tmp_path / f"other.{kind}")
    return tmp_path


def change(folder: Path, by: dict[str, float]) -> None:
    tensors = load_file(folder / "other.safetensors")
    save_file({n: t + by[n] if n in by else t for n, t in tensors.items()}, folder / "other.safetensors")


def retold(folder: Path, part: str, **changes: object) -> None:
    told = json.loads((folder / "other.json").read_text())
    told[part] = {**told[part], **changes}
    (folder / "other.json").write_text(json.dumps(told))


def test_recorded_cases_agree_in_both_precisions() -> None:
    geometry, retrieval = verify(FIXTURES)
    assert geometry.method == retrieval.method == "h2arn" and failures([geometry, retrieval]) == []
    names = {quantity.name: quantity.tolerance for quantity in retrieval.quantities}
    recorded = load_file(FIXTURES / "retrieval.safetensors")
    wanted = {name for name in recorded if name.startswith(("out.", "grad.", "f64."))}
    assert wanted <= names.keys()
    assert names["f64.sim"] < 2e-7 and names["f64.loss_total"] < 2e-7 and names["out.loss_total"] < 2e-4
    assert {"loss.coincident_pair.distance", "f64.agg.random.grad_x"} <= {q.name for q in geometry.quantities}


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")
def test_all_recorded_cases_agree() -> None:
    results = list(verify(SHARED, "h2arn"))
    assert len(results) >= 15 and failures(results) == []


def test_every_tensor_that_differs_is_named_and_no_other(case: Path) -> None:
    changed = {"out.sim", "out.loss_p2t", "out.pcd_h"}
    exact = {"f64.traj.losses", "f64.step1.log_c", "f64.loss_entail", "f64.traj.final_sim"}
    change(case, dict.fromkeys(changed, 2e-2) | dict.fromkeys(exact, 2e-6) | {"grad.log_c": 1.0})
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert found == {*changed, *exact, "grad.log_c", "training loop losses"}  # these follow f64.traj.losses


def test_another_setting_makes_what_depends_on_it_differ(case: Path) -> None:
    retold(case, "config", loss_lambda=0.21)
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert {"out.loss_total", "f64.loss_total", "f64.traj.losses"} <= found
    assert not found & {"out.sim", "out.loss_entail", "out.loss_contrastive", "f64.sim"}


def test_another_schedule_makes_the_trajectory_differ(case: Path) -> None:
    retold(case, "trajectory", warmup_steps=3)
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert "f64.traj.lrs" in found and "f64.traj.final.log_c" in found and "f64.step1.log_c" not in found


def test_settings_and_tensors_that_are_not_understood_are_failures(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    save_file({**tensors, "in.mask": torch.zeros(2)}, case / "other.safetensors")
    assert any("in.mask" in line and "not understood" in line for line in failures(list(verify(case))))
    retold(case, "config", margin=1.0)
    assert "['margin'], which are not understood" in failures(list(verify(case)))[0]
    retold(case, "optimizer", name="SGD")
    assert "the optimizer 'SGD'; possible: AdamW" in failures(list(verify(case)))[0]


def test_a_missing_weight_is_a_failure(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    del tensors["state.log_c"]
    save_file(tensors, case / "other.safetensors")
    assert "the tensor log_c is missing" in failures(list(verify(case)))[0]


def test_a_list_of_cases_is_a_case_whose_files_must_be_there(case: Path) -> None:
    row = {"case": "other", "kind": "retrieval_model", "json": "other.json", "tensors": "gone.safetensors"}
    (case / "index.json").write_text(json.dumps({"method": "h2arn", "cases": [row]}))
    (line,) = failures(list(verify(case)))
    assert "other: gone.safetensors" in line


def test_data_of_a_case_are_no_cases_and_all_else_in_its_folder_is(tmp_path: Path) -> None:
    for name in ("clip/config.json", "data/Elephant/captions.json", "other/config.json", "clip/inner.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    kind = {"kind": "feature_extraction_end_to_end", "case": "x"}
    (tmp_path / "case.json").write_text(json.dumps(kind))
    (tmp_path / "clip" / "inner.json").write_text(json.dumps({"kind": "evaluation", "cases": []}))
    found = [result.path.relative_to(tmp_path).as_posix() for result in verify(tmp_path, "h2arn")]
    assert found == ["case.json", "clip/inner.json", "other/config.json"]


def evaluation(
    folder: Path, links: list[tuple[int, int]], ranks: dict[str, list[int]], **row: Any
) -> CaseResult:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.8], [0.3, 0.3, 0.3]])
    told = {"tag": "x", "t2c": {}, "c2t": {}, **row}
    (folder / "e.json").write_text(json.dumps({"kind": "evaluation", "cases": [told]}))
    tensors = {"x.sims": scores, "x.link": torch.tensor(links, dtype=torch.int32).reshape(-1, 2)}
    tensors |= {f"x.{name}.ranks": torch.tensor(values, dtype=torch.int32) for name, values in ranks.items()}
    save_file(tensors, folder / "e.safetensors")
    (result,) = verify(folder, "h2arn")
    return result


def test_ranks_of_any_links_are_compared(tmp_path: Path) -> None:
    """Caption 0 describes clouds 1 and 2, of which 2 is second; caption 2 none; ties cost nothing."""
    links = [(0, 1), (0, 2), (1, 2)]
    right = {"t2c": [2, 1], "c2t": [3, 1]}
    figures = {"R@1": 0.5, "MR": 1.5, "MRR": 0.75, "queries": 2}
    assert failures([evaluation(tmp_path, links, right, t2c=figures)]) == []
    assert len(failures([evaluation(tmp_path, links, {**right, "c2t": [2, 1]}, t2c={"MR": 2.0})])) == 2


def test_one_linked_caption_is_enough(tmp_path: Path) -> None:
    assert failures([evaluation(tmp_path, [(2, 0)], {"t2c": [1], "c2t": [2]}, Rsum_percent=500.0)]) == []


def test_numbers_of_the_hash_are_murmur_s() -> None:
    def fmix32(u: int) -> int:
        u ^= u >> 16
        u = u * 0x85EBCA6B & 0xFFFFFFFF
        u ^= u >> 13
        u = u * 0xC2B2AE35 & 0xFFFFFFFF
        return u ^ u >> 16

    found = hashed.tensor(5000, (3, 4), 0.5, 1.0)
    for i, value in enumerate(found.flatten().tolist()):
        u = fmix32((i + 0x9E3779B9 * 5001) & 0xFFFFFFFF)
        assert value == pytest.approx((u / 2**31 - 1) * 0.5 + 1, abs=1e-7)
    shapes = {"b.weight": (4, 9), "a.bias": (7,), "n.weight": (5,), "log_c": ()}
    state = hashed.state(shapes, 5000)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        name: shape for name, shape in shapes.items() if shape
    }
    assert torch.equal(state["a.bias"], hashed.tensor(5000, (7,), 0.05))
    assert torch.equal(state["b.weight"], hashed.tensor(5001, (4, 9), (3 / 9) ** 0.5))
    assert torch.equal(state["n.weight"], hashed.tensor(5003, (5,), 0.2, 1.0))


def test_what_is_skipped_is_reported_and_no_failure() -> None:
    found = skipped("tokens", "model_1.t7 is not on this machine")
    assert found.ok and str(found).startswith("skip  tokens")
    assert str(found).endswith("skipped: model_1.t7 is not on this machine")
    assert str(Quantity("tokens", 0.0, 0.0)).startswith("ok    tokens")
