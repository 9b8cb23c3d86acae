"""The recorded cases of the encoders of point clouds agree with our networks, and one that does not is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from extractors.backbones.dgcnn import Dgcnn
from extractors.backbones.pointnet import PointNet
from trainers.verify.cases import Quantity
from trainers.verify.h2arn_encoders import KINDS

SHARED = Path(__file__).parents[4] / "shared/golden/h2arn"


def run(path: Path) -> list[Quantity]:
    case = json.loads(path.read_text())
    return list(KINDS[case["kind"]](path, case))


def failures(path: Path) -> set[str]:
    return {quantity.name for quantity in run(path) if not quantity.ok}


def write(folder: Path, tensors: dict[str, torch.Tensor], **case: object) -> Path:
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / "a.safetensors")
    (folder / "a.json").write_text(json.dumps(case))
    return folder / "a.json"


def change(path: Path, name: str, by: float) -> None:
    tensors = load_file(path.with_suffix(".safetensors"))
    tensors[name].view(-1)[7] += by
    save_file(tensors, path.with_suffix(".safetensors"))


def cloud(count: int) -> torch.Tensor:
    return torch.rand(count, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def dgcnn_case(tmp_path: Path) -> Path:
    """A case with another k, and a cloud with fewer points than tokens."""
    torch.manual_seed(0)
    network = Dgcnn(7).eval()
    tensors = {f"state.{name}": value for name, value in network.state_dict().items()}
    for name, points in (("cloud0", cloud(60)), ("cloud1", cloud(130))):
        found = network(points)
        tensors |= {f"in.{name}": points, f"out.{name}.tokens": found.tokens}
        tensors |= {f"out.{name}.knn{n}": graph.int() for n, graph in enumerate(found.graphs, 1)}
    return write(tmp_path, tensors, kind="dgcnn_encoder", k=7)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_all_recorded_cases_agree(kind: str) -> None:
    cases = [path for path in SHARED.glob("*.json") if json.loads(path.read_text()).get("kind") == kind]
    assert cases and not any(failures(path) for path in cases)


def test_every_tensor_that_differs_is_named_and_no_other(dgcnn_case: Path) -> None:
    assert len(run(dgcnn_case)) == 8 and failures(dgcnn_case) == set()
    change(dgcnn_case, "out.cloud1.tokens", 1e-3)
    change(dgcnn_case, "out.cloud0.knn2", 60)
    assert failures(dgcnn_case) == {"cloud1.tokens", "cloud0.knn2"}


def test_tensors_that_are_not_understood_and_weights_that_do_not_fit_are_reported(dgcnn_case: Path) -> None:
    tensors = load_file(dgcnn_case.with_suffix(".safetensors"))
    more = tensors | {"out.cloud0.overall": torch.zeros(3)}
    write(dgcnn_case.parent, more, kind="dgcnn_encoder", k=7)
    (found,) = [quantity for quantity in run(dgcnn_case) if not quantity.ok]
    assert "out.cloud0.overall" in found.name and "not understood" in found.note
    del tensors["state.conv7.1.bias"]
    write(dgcnn_case.parent, tensors, kind="dgcnn_encoder", k=7)
    with pytest.raises(Exception, match=r"the recorded weights do not fit: conv7\.1\.bias is missing"):
        run(dgcnn_case)


def test_tokens_that_are_not_numbers_fail(dgcnn_case: Path) -> None:
    change(dgcnn_case, "out.cloud1.tokens", float("nan"))
    assert failures(dgcnn_case) == {"cloud1.tokens"}


def test_public_weights_are_known_by_their_digest_and_reported_where_they_are_absent(tmp_path: Path) -> None:
    network, points = Dgcnn(5).eval(), cloud(50)
    file = tmp_path / "data/weights/renamed.t7"
    file.parent.mkdir(parents=True)
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, file)
    folder = tmp_path / "golden/h2arn"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    models = [
        {"area": n, "file": f"model_{n}.t7", "sha256": value} for n, value in ((1, "0" * 64), (2, digest))
    ]
    tokens = network(points).tokens
    tensors = {f"in.area{n}": points for n in (1, 2)} | {f"out.area{n}.tokens": tokens for n in (1, 2)}
    path = write(folder, tensors, kind="dgcnn_public_weights", k=5, models=models)
    one, two = run(path)
    assert one.ok and one.skipped and one.note == "skipped: model_1.t7 is not on this machine"
    assert two.ok and two.tolerance == 1 and not two.skipped
    file.unlink()
    assert "none of the case's weights files is on this machine" in run(path)[-1].note


@pytest.mark.parametrize("feature_transform", [False, True])
def test_pointnet_cases_of_other_sizes_agree_with_their_transforms(
    tmp_path: Path, feature_transform: bool
) -> None:
    network = PointNet(12, feature_transform).eval()
    clouds = [network(points) for points in (cloud(70), cloud(70) * 2)]
    tensors = {f"state.{name}": value for name, value in network.state_dict().items()}
    tensors |= {
        "in.batch0": torch.stack([cloud(70), cloud(70) * 2]),
        "out.batch0.tokens": torch.stack([found.tokens for found in clouds]),
        "out.batch0.transform": torch.stack([found.transform for found in clouds]),
    }
    if feature_transform:
        tensors["out.batch0.trans_feat"] = torch.stack([found.feature_transform for found in clouds])
    sizes = {"d_pcd": 12, "feature_transform": feature_transform, "input_dim": 9}
    path = write(tmp_path, tensors, kind="pointnet_encoder", **sizes)
    assert len(run(path)) == 2 + feature_transform and failures(path) == set()
    change(path, "out.batch0.transform", 0.1)
    assert failures(path) == {"batch0.transform"}


def test_samples_in_another_order_fail(tmp_path: Path) -> None:
    xyz = torch.tensor([[0.0, 0, 0], [4, 0, 0], [1, 0, 0]])
    batch = {"batched.xyz": xyz[None], "batched.indices": torch.tensor([[1, 0]])}
    path = write(tmp_path, {"line.xyz": xyz, "line.indices": torch.tensor([1, 0, 2])} | batch,
                 kind="farthest_point_sampling")  # fmt: skip
    assert failures(path) == set()
    write(tmp_path, {"line.xyz": xyz, "line.indices": torch.tensor([1, 2, 0])} | batch,
          kind="farthest_point_sampling")  # fmt: skip
    (wrong,) = [quantity for quantity in run(path) if not quantity.ok]
    assert wrong.name == "line.indices" and np.isclose(wrong.error, 2 / 3)
