"""DGCNN: as a network against its literal form, as a stage, and the weights that files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch_geometric.nn import EdgeConv

from extractors.backbones import cloud_weights, seeded_clouds
from extractors.backbones.dgcnn import EDGE_BLOCKS, Dgcnn, edge_block
from extractors.backbones.grouped import Layer, bins, pooled
from extractors.base import Output, Unit, WorkOptions
from extractors.dgcnn import Dgcnn as Stage
from extractors.dgcnn import DgcnnParams
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import ItemError, UserError
from pipeline.settings import fill
from pipeline.store.fields import Field
from pipeline.store.index import Index
from pipeline.store.segments import SegmentWriter

PUBLIC = Path(__file__).parents[3] / "shared/data/weights/dgcnn_semseg_s3dis_area6.t7"


def cloud(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator)
    return torch.cat([3 * xyz, torch.rand(count, 3, generator=generator), xyz], 1)


def network(k: int = 20, seed: int = 0) -> Dgcnn:
    """Random weights, and statistics and scales of both signs."""
    out = Dgcnn(k).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in out.state_dict().items():
        if value.ndim > 1:
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.ndim:
            value.copy_(torch.randn(value.shape, generator=generator))
    assert (out.state_dict()["conv5.1.weight"] < 0).any()
    return out


def literal(network: Dgcnn, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The twin, in float64 and as it is written down: all distances, all edges, norms apart."""
    layers = network.double()
    x, blocks = points.double().T[None], []
    for block in EDGE_BLOCKS:
        by = blocks[-1][0].T if blocks else points[:, 6:].double()
        index = torch.cdist(by, by, compute_mode="donot_use_mm_for_euclid_dist").topk(
            network.k, largest=False
        )[1]
        near = x[0].T[index]
        own = x[0].T[:, None].expand_as(near)
        x = torch.cat([near - own, own], 2).permute(2, 0, 1)[None]
        for name, _ in block:
            x = layers.get_submodule(name)(x)
        x = x.amax(-1)
        blocks.append(x)
    joint = torch.cat(blocks, 1)
    overall = layers.get_submodule("conv6")(joint).amax(-1, keepdim=True)
    last = layers.get_submodule("conv7")(torch.cat([overall.expand(-1, -1, joint.shape[-1]), joint], 1))
    return F.adaptive_max_pool1d(last, 100)[0].T.float(), overall[0, :, 0].float()


@pytest.mark.parametrize(("count", "k"), [(64, 20), (60, 1), (250, 7), (317, 20), (20, 20)])
def test_network_is_its_literal_form_whatever_the_signs_of_its_norms(count, k):
    found = network(k)(cloud(count))
    tokens, overall = literal(network(k), cloud(count))
    torch.testing.assert_close(found.tokens, tokens, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(found.overall, overall, atol=2e-4, rtol=1e-4)
    assert [graph.shape for graph in found.graphs] == [(count, k)] * 3


def test_edge_block_is_the_edge_convolution_of_torch_geometric():
    net, points = network(), cloud(90)
    graph = net(points).graphs[0]
    block = nn.Sequential(nn.Linear(18, 64, bias=False), nn.BatchNorm1d(64), nn.LeakyReLU(0.2)).eval()
    theirs = EdgeConv(block, aggr="max").requires_grad_(False)  # draws the weights anew
    conv, norm, _ = net.get_submodule("conv1").children()
    matrix = conv.get_parameter("weight").flatten(1)
    block[0].weight.copy_(torch.cat([matrix[:, 9:], matrix[:, :9]], 1))  # theirs are [x_i, x_j - x_i]
    block[1].load_state_dict(norm.state_dict())
    edges = torch.stack([graph.flatten(), torch.arange(90).repeat_interleave(20)])  # from j to i
    found = edge_block(points, graph, [net.layer("conv1")])
    torch.testing.assert_close(found, theirs(points, edges), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 37, 100, 101, 199, 300, 317])
def test_tokens_are_adaptive_max_pooling_over_the_order_of_points(count):
    values = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    found = pooled(values, Layer(torch.eye(5), torch.zeros(5), nn.Identity()))
    torch.testing.assert_close(found, F.adaptive_max_pool1d(values.T[None], 100)[0].T)
    assert all(rows.stop > rows.start for rows in bins(count))


def test_order_of_points_moves_the_tokens_and_not_the_global_vector():
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    one, other = network()(cloud(300)), network()(cloud(300)[order])
    torch.testing.assert_close(one.overall, other.overall, atol=1e-5, rtol=1e-5)
    assert (one.tokens - other.tokens).abs().max() > 0.1
    within = torch.cat([torch.randperm(3) + 3 * n for n in range(100)])  # of each token's own points
    torch.testing.assert_close(network()(cloud(300)[within]).tokens, one.tokens, atol=1e-5, rtol=1e-5)


def test_neighbours_are_by_the_normalised_coordinates_alone():
    moved = cloud(150)
    moved[:, :6] = torch.randn(150, 6) * 100
    assert torch.equal(network()(moved).graphs[0], network()(cloud(150)).graphs[0])


def test_points_that_coincide_have_one_description():
    found = network(4)(cloud(50).repeat_interleave(2, 0))
    assert found.tokens.isfinite().all()
    torch.testing.assert_close(found.tokens[::2], found.tokens[1::2])


def test_coordinates_far_from_the_origin_cost_no_digits_of_differences():
    points = (cloud(200) * 1024).round() / 1024
    net, far = network(), points + torch.tensor([1000.0] * 3 + [0.0] * 6)
    layer, graph = net.layer("conv1"), net(points).graphs[0]
    layer.weight[:, 9:] = 0  # what is said of x_i itself
    found = edge_block(far, graph, [layer])
    torch.testing.assert_close(found, edge_block(points, graph, [layer]), atol=5e-4, rtol=0)


# weights -----------------------------------------------------------------------------------------


def theirs(net: Dgcnn) -> dict[str, torch.Tensor]:
    """The weights as a public file holds them: under `module.`, norms twice, with layers that are not used."""
    state = dict(net.state_dict())
    for alias, own in Dgcnn.aliases.items():
        state |= {alias + key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
    state |= {"conv8.0.weight": torch.zeros(2), "bn8.bias": torch.zeros(2), "conv9.weight": torch.zeros(2)}
    return {f"module.{key}": value for key, value in state.items()}


def written(path: Path, state: object) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix != ".t7")
    return path


@pytest.mark.parametrize("name", ["model_1.t7", "scannet.pth", "mine.safetensors", "trained.pt"])
def test_weights_are_read_from_every_layout(tmp_path, name):
    state = theirs(network())
    if name == "scannet.pth":
        state = {"epoch": 3, "opt": {"lr": 0.1}, "state_dict": state}
    elif name == "trained.pt":
        state = {"model_state_dict": network().state_dict(), "epoch": 3}
    elif name == "mine.safetensors":
        state = network().state_dict()
    read = Dgcnn().eval()
    cloud_weights.fill(read, written(tmp_path / name, state), "dgcnn")
    assert torch.equal(read(cloud(80)).tokens, network()(cloud(80)).tokens)


def test_weights_that_do_not_fit_are_refused_with_the_key(tmp_path):
    good = theirs(network())

    def refused(state: object) -> str:
        with pytest.raises(
            UserError, match=r"the weights in .*bad\.t7 do not fit dgcnn|bad\.t7 holds"
        ) as error:
            cloud_weights.fill(Dgcnn(), written(tmp_path / "bad.t7", state), "dgcnn")
        return str(error.value)

    without = {key: value for key, value in good.items() if key != "module.conv7.0.weight"}
    assert refused(without).endswith("conv7.0.weight is missing")
    assert refused({}).endswith("conv1.0.weight is missing, and so are 34 more")
    assert refused(good | {"conv10.weight": torch.zeros(1)}).endswith("conv10.weight is not known")
    inside = {key.replace("conv1.", "conv1.module."): value for key, value in good.items()}
    assert "conv1.0.weight is missing" in refused(inside)  # only a leading module. is stripped
    assert refused(good | {"module.conv6.0.weight": torch.zeros(8, 192, 1)}).endswith(
        "conv6.0.weight is 8 x 192 x 1 where 1024 x 192 x 1 is needed"
    )
    assert refused(good | {"module.bn3.bias": torch.ones(64)}).endswith(
        "bn3.bias and its other name hold different values"
    )
    nan = torch.full((64, 18, 1, 1), torch.nan)
    assert refused(good | {"module.conv1.0.weight": nan}).endswith("conv1.0.weight is not finite")
    assert "not a table of tensors" in refused([torch.zeros(1)])
    assert "holds more than tensors" in refused({"conv1.0.weight": Path("x")})


@pytest.mark.skipif(not PUBLIC.is_file(), reason="the public weights are not beside this checkout")
def test_public_weights_tell_clouds_apart():
    net = Dgcnn().eval()
    cloud_weights.fill(net, PUBLIC, "dgcnn")
    one, other = net(cloud(200, 1)).overall, net(cloud(200, 2)).overall
    assert one.isfinite().all() and F.cosine_similarity(one, other, dim=0) < 0.999


def test_seeded_weights_are_the_same_again_and_tell_clouds_apart():
    """With norms that change nothing the mean cosine of these clouds is 0.98; it is 0.57."""
    nets = [Dgcnn().eval() for _ in range(2)]
    state = torch.random.get_rng_state()
    for net in nets:
        cloud_weights.draw(net, 3, net)
    assert torch.equal(torch.random.get_rng_state(), state)
    found = torch.stack([nets[0](torch.from_numpy(c)).tokens.mean(0) for c in seeded_clouds.clouds(99, 300)])
    again = torch.stack([nets[1](torch.from_numpy(c)).tokens.mean(0) for c in seeded_clouds.clouds(99, 300)])
    assert torch.equal(found, again)
    unit = F.normalize(found, dim=1)
    assert (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)].mean() < 0.75
    assert (found.std(0) > 0.01).all()


# the stage ---------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path) -> RememberedDigests:
    return RememberedDigests(Index(tmp_path / "index.sqlite"))


def units_of(folder: Path, clouds: dict[str, torch.Tensor]) -> list[Unit]:
    """Units whose prepared points lie in one segment, as the stage `points` writes them."""
    fields = {"points": Field("float32", (None, 9))}
    with SegmentWriter(folder / "points", folder / "work", "points", "f" * 20, {}, fields) as writer:
        for n, (name, points) in enumerate(clouds.items()):
            writer.append(f"{n:064}", name, {"points": points.numpy()})
        path = writer.finish()
    assert path is not None
    return [Unit(f"{n:064}", name, rows={"points": (path, n)}) for n, name in enumerate(clouds)]


def results(units: list[Unit], **params: object) -> dict[str, Output | ItemError]:
    stage = Stage(DgcnnParams(**params))
    stage.load(WorkOptions(device="cpu"))
    return {unit.name: output for unit, output in filter(None, stage.results(units, Path()))}


def test_each_cloud_has_tokens_and_a_global_vector_of_its_own(tmp_path):
    path = written(tmp_path / "model.t7", theirs(network()))
    clouds = {"chair": cloud(150), "table": cloud(70, 1)}
    found = results(units_of(tmp_path, clouds), weights=str(path))
    fields = Stage(DgcnnParams(weights=str(path))).fields
    for name, points in clouds.items():
        arrays = found[name].arrays
        assert {key: value.shape for key, value in arrays.items()} == {
            "token": (100, 512),
            "global": (1, 1024),
        }
        assert all(
            fields[key].fits(value.shape) and value.dtype == "float32" for key, value in arrays.items()
        )
        np.testing.assert_array_equal(arrays["token"], network()(points).tokens)
        np.testing.assert_array_equal(arrays["global"][0], network()(points).overall)
    half = results(units_of(tmp_path / "half", clouds), weights=str(path), dtype="float16")
    assert half["chair"].arrays["token"].dtype == "float16"


def test_a_cloud_of_fewer_points_than_neighbours_fails_by_name(tmp_path):
    units = units_of(tmp_path, {"chair": cloud(19), "table": cloud(20)})
    found = results(units, weights="seed:0")
    assert str(found["chair"]) == "chair: 19 points are too few: 20 are needed"
    assert isinstance(found["table"], Output)


def test_each_scene_takes_the_weights_of_its_area(tmp_path):
    for area in (1, 6):
        written(tmp_path / f"model_{area}.t7", theirs(network(seed=area)))
    clouds = dict.fromkeys(["Area_1_office_3", "Area_6_hallway", "Area_2_office", "office"], cloud(60))
    found = results(units_of(tmp_path, clouds), weights=str(tmp_path / "model_{area}.t7"))
    for name, seed in (("Area_1_office_3", 1), ("Area_6_hallway", 6)):
        np.testing.assert_array_equal(found[name].arrays["token"], network(seed=seed)(cloud(60)).tokens)
    assert str(found["Area_2_office"]).endswith(f"no weights file {tmp_path}/model_2.t7 for its area 2")
    assert "office: its id names no area, as Area_<n>_... or Area_<n>/..., to choose the weights" in str(
        found["office"]
    )


def test_what_decides_the_features_decides_the_fingerprint(known, tmp_path):
    for n in range(3):
        (tmp_path / f"model_{n}.t7").write_bytes(b"%d" % n)

    def components(**params: object) -> dict[str, object]:
        stage = Stage(DgcnnParams(**params))
        return dict(stage.decisive()) | dict(stage.identity(known))

    one, areas = components(weights="seed:0"), {"weights": str(tmp_path / "model_{area}.t7")}
    other = [components(weights="seed:1"), components(weights="seed:0", k=10), components(**areas),
             components(weights="seed:0", dtype="float16"), components(weights=f"{tmp_path}/model_1.t7")]  # fmt: skip
    assert all(a != b for n, a in enumerate(other) for b in [one, *other[:n]])
    assert "tree" in one["neighbours"]
    before = components(**areas)
    assert set(before["weights"]) == {"0", "1", "2"}
    (tmp_path / "model_1.t7").write_bytes(b"new")
    assert components(**areas) != before
    (tmp_path / "copy.t7").write_bytes(b"2")
    assert components(weights=f"{tmp_path}/copy.t7") == components(weights=f"{tmp_path}/model_2.t7")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "extractors.dgcnn.weights is not set; give the path of a weights file"),
        ("no/such.t7", "no weights file no/such.t7"),
        ("no/model_{area}.t7", "no weights file no/model_{area}.t7, whatever the area"),
        ("scannet", "weights 'scannet' are not possible: a file ends in .safetensors, .pt, .pth, .bin, .t7"),
        ("seed:x", "a seed is a number, as in seed:0"),
    ],
)
def test_weights_that_do_not_exist_are_named_with_what_is_possible(known, weights, message):
    stage = Stage(DgcnnParams(weights=weights))
    for ask in (stage.require, lambda: stage.identity(known)):
        with pytest.raises(UserError) as error:
            ask()
        assert message in str(error.value)


def test_fewer_bits_are_refused_by_name():
    with pytest.raises(UserError, match=r"extractors\.dgcnn\.precision = 'fp16' is not possible"):
        fill(DgcnnParams, {"precision": "fp16"}, "extractors.dgcnn")


def test_declarations_of_the_encoders_import_no_torch(run_python):
    code = "import sys, extractors.dgcnn, extractors.pointnet, extractors.pointnet2; print('torch' in sys.modules)"
    assert run_python(code).out.strip() == "False"
