"""PointNet: as a network against its literal form, and as a stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from extractors.backbones import cloud_weights
from extractors.backbones.pointnet import PointNet
from extractors.base import Output, Unit, WorkOptions
from extractors.pointnet import Pointnet, PointnetParams
from pipeline.errors import UserError
from pipeline.store.fields import Field
from pipeline.store.segments import SegmentWriter


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 9, generator=torch.Generator().manual_seed(seed))


def network(width: int = 8, feature_transform: bool = False) -> PointNet:
    """Random weights, and norms with statistics and scales of both signs."""
    out = PointNet(width, feature_transform).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in out.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim:
            value.copy_(torch.randn(value.shape, generator=generator))
    return out


class Literal:
    """The twin, in float64: convolutions, norms and pooling as the network is written down."""

    def __init__(self, network: PointNet) -> None:
        self.state = {key: value.double() for key, value in network.state_dict().items()}
        self.feature_transform = network.fstn is not None

    def layer(self, x: torch.Tensor, matrix: str, norm: str) -> torch.Tensor:
        """(B, C, N) or (B, C)."""
        weight, bias = self.state[f"{matrix}.weight"], self.state[f"{matrix}.bias"]
        x = F.linear(x, weight, bias) if weight.ndim == 2 else F.conv1d(x, weight, bias)
        parts = [self.state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False)

    def transform(self, x: torch.Tensor, name: str, size: int) -> torch.Tensor:
        for n in (1, 2, 3):
            x = F.relu(self.layer(x, f"{name}.conv{n}", f"{name}.bn{n}"))
        x = x.amax(2)
        for n in (1, 2):
            x = F.relu(self.layer(x, f"{name}.fc{n}", f"{name}.bn{n + 3}"))
        x = F.linear(x, self.state[f"{name}.fc3.weight"], self.state[f"{name}.fc3.bias"])
        return x.view(-1, size, size) + torch.eye(size)

    def tokens(self, points: torch.Tensor) -> torch.Tensor:
        """(B, 100, D) of points (B, N, 9)."""
        x = points.double().transpose(1, 2)
        turned = torch.bmm(x[:, :3].transpose(1, 2), self.transform(x[:, :3], "stn", 3)).transpose(1, 2)
        x = F.relu(self.layer(torch.cat([turned, x[:, 3:]], 1), "conv1", "bn1"))
        if self.feature_transform:
            x = torch.bmm(x.transpose(1, 2), self.transform(x, "fstn", 64)).transpose(1, 2)
        x = self.layer(F.relu(self.layer(x, "conv2", "bn2")), "conv3", "bn3")
        x = F.adaptive_max_pool1d(x, 100).transpose(1, 2)
        return F.linear(x, self.state["fc.weight"], self.state["fc.bias"])


@pytest.mark.parametrize("feature_transform", [False, True])
@pytest.mark.parametrize(("count", "width"), [(150, 8), (60, 512), (301, 3), (1, 8)])
def test_network_is_its_literal_form_whatever_the_signs_of_its_norms(count, width, feature_transform):
    net = network(width, feature_transform)
    found = net(cloud(count))
    expected = Literal(net).tokens(torch.stack([cloud(count), cloud(count, 1)]))
    assert found.tokens.shape == (100, width)
    torch.testing.assert_close(found.tokens, expected[0].float(), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(net(cloud(count, 1)).tokens, expected[1].float(), atol=2e-4, rtol=1e-4)
    assert (found.feature_transform is not None) == feature_transform


def test_order_of_points_moves_the_tokens_and_not_the_transform():
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    one, other = network()(cloud(300)), network()(cloud(300)[order])
    torch.testing.assert_close(one.transform, other.transform, atol=1e-5, rtol=1e-5)
    assert (one.tokens - other.tokens).abs().max() > 0.1
    within = torch.cat([torch.randperm(3) + 3 * n for n in range(100)])  # of each token's own points
    torch.testing.assert_close(network()(cloud(300)[within]).tokens, one.tokens, atol=1e-4, rtol=1e-5)


def test_points_that_coincide_have_one_description():
    found = network()(cloud(50).repeat_interleave(2, 0))
    torch.testing.assert_close(found.tokens[::2], found.tokens[1::2])


def test_weights_of_another_form_are_refused_with_the_key(tmp_path):
    path = tmp_path / "pointnet.pt"
    torch.save({"state_dict": network(8, True).state_dict()}, path)
    with pytest.raises(UserError, match=r"do not fit pointnet: fstn\.bn1\.bias is not known, and so are"):
        cloud_weights.fill(PointNet(8), path, "pointnet")
    with pytest.raises(UserError, match=r"fc\.bias is 8 where 16 is needed, and so are 1 more"):
        cloud_weights.fill(PointNet(16, True), path, "pointnet")


def test_stage_gives_each_cloud_the_tokens_it_has_alone(tmp_path):
    weights = tmp_path / "pointnet.pth"
    torch.save(network(16, True).state_dict(), weights)
    clouds = [cloud(120), cloud(40, 1)]
    fields = {"points": Field("float32", (None, 9))}
    with SegmentWriter(tmp_path / "s", tmp_path / "w", "points", "f" * 20, {}, fields) as writer:
        for n, points in enumerate(clouds):
            writer.append(f"{n:064}", f"cloud {n}", {"points": points.numpy()})
        path = writer.finish()
    stage = Pointnet(PointnetParams(weights=str(weights), d_pcd=16, feature_transform=True))
    stage.load(WorkOptions(device="cpu"))
    units = [Unit(f"{n:064}", f"cloud {n}", rows={"points": (path, n)}) for n in range(2)]
    for points, (_, output) in zip(clouds, stage.results(units, tmp_path), strict=True):
        assert isinstance(output, Output)
        np.testing.assert_array_equal(output.arrays["token"], network(16, True)(points).tokens)


def test_seeded_weights_tell_clouds_apart():
    stage = Pointnet(PointnetParams(weights="seed:0"))
    net = stage.build().eval()
    cloud_weights.draw(net, 0, net)
    one, other = (net(cloud(200, seed) * (1 + seed)).tokens.mean(0) for seed in (0, 1))
    assert one.shape == (512,) and F.cosine_similarity(one, other, dim=0) < 0.98
