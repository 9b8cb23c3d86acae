"""The recorded cases of LEAN agree with our implementation, and a case that does not is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.verify.cases import CaseResult, verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "lean"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "lean"


def failures(results: list[CaseResult]) -> list[str]:
    return [str(quantity) for result in results for quantity in result.quantities if not quantity.ok]


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A copy of the small case, under another name."""
    for kind in ("json", "safetensors"):
        shutil.copy(FIXTURES / f"small.{kind}", tmp_path / f"other.{kind}")
    return tmp_path


def change(folder: Path, by: dict[str, float]) -> None:
    tensors = load_file(folder / "other.safetensors")
    save_file({n: t + by[n] if n in by else t for n, t in tensors.items()}, folder / "other.safetensors")


def retold(folder: Path, **changes: object) -> None:
    told = json.loads((folder / "other.json").read_text())
    (folder / "other.json").write_text(json.dumps(told | changes))


def test_recorded_case_agrees_in_both_precisions() -> None:
    (result,) = verify(FIXTURES)
    assert result.method == "lean" and failures([result]) == []
    names = {quantity.name: quantity.tolerance for quantity in result.quantities}
    recorded = load_file(FIXTURES / "small.safetensors")
    wanted = {name for name in recorded if name.startswith(("out.", "grad."))}
    assert names.keys() == wanted | {f"{name} (float32)" for name in wanted}
    assert max(tolerance for name, tolerance in names.items() if "float32" not in name) <= 1.001e-8
    assert names["out.pair00.mu"] == pytest.approx(1e-8) and names["out.loss (float32)"] == pytest.approx(
        1e-4
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")
def test_all_recorded_cases_agree() -> None:
    results = list(verify(SHARED, "lean"))
    assert len(results) >= 2 and failures(results) == []


def test_every_tensor_that_differs_is_named_and_no_other(case: Path) -> None:
    changed = {"out.pair00.logsigma", "out.eval_scores", "grad.layers.0.gamma", "out.loss_v2t", "out.kl"}
    change(case, dict.fromkeys(changed, 1e-6))
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert found == changed


def test_another_weight_of_a_loss_makes_the_loss_and_its_gradient_differ(case: Path) -> None:
    retold(case, weights_of_losses={"v2t": 0.5, "t2v": 0.5, "kl": 0.5})
    found = {quantity.name for result in verify(case) for quantity in result.quantities if not quantity.ok}
    assert {"out.loss", "grad.gcn.weight", "out.loss (float32)"} <= found
    assert not any("scores" in name or "loss_" in name or "kl" in name for name in found)


def test_settings_and_tensors_that_are_not_understood_are_failures(case: Path) -> None:
    tensors = load_file(case / "other.safetensors")
    save_file({**tensors, "in.mask": torch.zeros(2)}, case / "other.safetensors")
    assert any("in.mask" in line and "not understood" in line for line in failures(list(verify(case))))
    retold(case, weights_of_losses={"kl": 0.6, "margin": 1.0})
    assert "['margin'], which are not understood" in failures(list(verify(case)))[0]


def test_first_caption_may_have_padding_in_the_recorded_pair(case: Path) -> None:
    """Another caption first: what is recorded of its pair then ends in rows of padding, or before them."""
    tensors = load_file(case / "other.safetensors")
    order = torch.tensor([2, 1, 0])  # three triples of at most four
    for name in ("in.triples", "in.triple_counts", "in.eps"):
        tensors[name] = tensors[name][order].contiguous()
    kept = {n: t for n, t in tensors.items() if n.startswith(("param.", "in."))}
    save_file(kept | {"out.pair00.alpha": torch.zeros(7, dtype=torch.float64)}, case / "other.safetensors")
    first, *_ = failures(list(verify(case)))
    assert "out.pair00.alpha" in first and "shape" not in first
