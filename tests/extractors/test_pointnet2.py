"""PointNet++: as a network against its literal form, and as a stage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from extractors.backbones import cloud_weights
from extractors.backbones.pointnet2 import MEMBERS, RADII, SAMPLES, PointNet2, starts_of
from extractors.base import Output, Unit, WorkOptions
from extractors.pointnet2 import Pointnet2, Pointnet2Params
from pipeline.store.fields import Field
from pipeline.store.segments import SegmentWriter

STARTS = (5, 17, 0, 3)


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    """Coordinates on a grid: squared distances are exact in float32."""
    points = torch.rand(count, 9, generator=torch.Generator().manual_seed(seed))
    points[:, :3] = (points[:, :3] * 256).round() / 256
    return points


@pytest.fixture(scope="module")
def network() -> PointNet2:
    """Random weights, and norms with statistics and scales of both signs."""
    out = PointNet2().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, value in out.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim:
            value.copy_(torch.randn(value.shape, generator=generator))
    return out


def literal(network: PointNet2, points: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The twin, in float64: greedy sampling, sorted masks of all distances, convolutions of whole groups."""
    state = {key: value.double() for key, value in network.state_dict().items()}
    xyz, features, sampled = points[:, :3].double(), points.double(), []
    for level, (count, radii, start) in enumerate(zip(SAMPLES, RADII, STARTS, strict=True), 1):
        least, chosen = torch.full((len(xyz),), 1e10, dtype=torch.float64), [start]
        while len(chosen) < count:
            least = torch.minimum(least, ((xyz - xyz[chosen[-1]]) ** 2).sum(1))
            chosen.append(int(np.argmax(least.numpy())))  # the first of the greatest
        sampled.append(torch.tensor(chosen))
        centres, scales = xyz[sampled[-1]], []
        squares = ((centres[:, None] - xyz[None]) ** 2).sum(2)
        for scale, (radius, members) in enumerate(zip(radii, MEMBERS, strict=True)):
            index = torch.arange(len(xyz)).expand(len(centres), -1).clone()
            index[squares > radius**2] = len(xyz)
            index = index.sort(1).values[:, :members]
            index = torch.where(index == len(xyz), index[:, :1], index)
            x = torch.cat([features[index], xyz[index] - centres[:, None]], 2).permute(2, 0, 1)[None]
            for layer in range(3):
                conv, norm = f"sa{level}.conv_blocks.{scale}.{layer}", f"sa{level}.bn_blocks.{scale}.{layer}"
                parts = [
                    state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
                ]
                x = F.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"])
                x = F.relu(F.batch_norm(x, *parts, training=False))
            scales.append(x.amax(3)[0].T)
        xyz, features = centres, torch.cat(scales, 1)
    return features.float(), sampled


@pytest.mark.slow
@pytest.mark.parametrize("count", [2300, 900])
def test_network_is_its_literal_form_also_of_fewer_points_than_samples(network, count):
    levels = network(cloud(count), STARTS)
    tokens, sampled = literal(network, cloud(count))
    assert [level.features.shape for level in levels] == [(2048, 96), (512, 256), (256, 512), (100, 512)]
    for level, samples in zip(levels, sampled, strict=True):
        assert torch.equal(level.samples, samples)
    torch.testing.assert_close(levels[-1].features, tokens, atol=2e-4, rtol=1e-4)


def test_clouds_that_are_moved_have_the_same_groups(network):
    moved = cloud(300)
    moved[:, :3] += 16
    for one, other in zip(network(cloud(300), STARTS), network(moved, STARTS), strict=True):
        assert torch.equal(one.samples, other.samples)
        assert all(torch.equal(a, b) for a, b in zip(one.groups, other.groups, strict=True))


def test_starts_are_those_of_the_seed_and_the_cloud_and_lie_in_it():
    assert starts_of(500, 0, "a") == starts_of(500, 0, "a")
    assert len({tuple(starts_of(500, seed, key)) for seed in (0, 1) for key in "abc"}) == 6
    many = np.array([starts_of(30, 0, str(n)) for n in range(400)])
    np.testing.assert_array_equal(many.min(0) >= 0, True)
    assert (many.max(0) < [30, 2048, 512, 256]).all() and many[:, 0].max() == 29 and many[:, 1].max() > 1900


@pytest.mark.slow
def test_stage_gives_the_same_tokens_again_and_others_for_another_seed(network, tmp_path):
    weights = tmp_path / "pointnet2.pth"
    torch.save(network.state_dict(), weights)
    fields = {"points": Field("float32", (None, 9))}
    with SegmentWriter(tmp_path / "s", tmp_path / "w", "points", "f" * 20, {}, fields) as writer:
        writer.append("0" * 64, "cloud", {"points": cloud(300).numpy()})
        path = writer.finish()
    unit = Unit("0" * 64, "cloud", rows={"points": (path, 0)})

    def tokens(seed: int) -> np.ndarray:
        stage = Pointnet2(Pointnet2Params(weights=str(weights), seed=seed))
        stage.load(WorkOptions(device="cpu"))
        ((_, output),) = stage.results([unit], tmp_path)
        assert isinstance(output, Output)
        return output.arrays["token"]

    once = tokens(0)
    np.testing.assert_array_equal(once, network(cloud(300), starts_of(300, 0, unit.key))[-1].features)
    np.testing.assert_array_equal(tokens(0), once)
    assert once.shape == (100, 512) and not np.array_equal(tokens(1), once)


@pytest.mark.slow
def test_seeded_weights_tell_clouds_apart():
    net = PointNet2().eval()
    cloud_weights.draw(net, 0, lambda points: net(points, (0, 0, 0, 0)))
    one, other = (
        net(cloud(400, seed) * torch.tensor([1.0] * 3 + [200.0] * 3 + [1.0] * 3), STARTS)[-1].features.mean(0)
        for seed in (0, 1)
    )
    assert (one > 0).float().mean() > 0.5 and F.cosine_similarity(one, other, dim=0) < 0.999
