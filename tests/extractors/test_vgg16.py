"""The stage `vgg16`: torchvision's network up to a fully connected layer's ReLU, in batches across videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from extractors.backbones import hub, seeded, torchvision_ops
from extractors.backbones.vgg16 import Vgg16Backbone
from extractors.base import Computed, Output, Unit, WorkOptions
from extractors.vgg16 import Vgg16, Vgg16Params
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import UserError
from pipeline.settings import fill
from pipeline.store.fields import Field
from pipeline.store.index import Index
from pipeline.store.segments import Damaged, SegmentWriter

DEMO = {"model": "crossreel-demo", "weights": "seed:0"}
LENGTHS = (10, 3, 10, 25, 1)


@pytest.fixture(scope="module")
def backbone() -> Vgg16Backbone:
    return Vgg16Backbone(**DEMO)


@pytest.fixture
def known(tmp_path: Path) -> RememberedDigests:
    return RememberedDigests(Index(tmp_path / "index.sqlite"))


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's folder of fetched files, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def videos(size: int = 64) -> list[np.ndarray]:
    return np.split(seeded.pictures(sum(LENGTHS), size, seed=3), np.cumsum(LENGTHS)[:-1])


def units_of(folder: Path, rgb: list[np.ndarray]) -> list[Unit]:
    """Units whose key frames lie in one segment, as the stage `keyframes` writes them."""
    fields = {"rgb": Field("uint8", (None, None, None, 3)), "time": Field("float32", (None,))}
    with SegmentWriter(folder / "keyframes", folder / "work", "keyframes", "f" * 20, {}, fields) as writer:
        for n, frames in enumerate(rgb):
            time = np.arange(len(frames), dtype=np.float32)
            writer.append(f"{n:064}", f"video {n}", {"rgb": frames, "time": time})
        path = writer.finish()
    assert path is not None
    return [Unit(f"{n:064}", f"video {n}", rows={"keyframes": (path, n)}) for n in range(len(rgb))]


def features(units: list[Unit], batch_size: int = 32, **params: str) -> dict[str, np.ndarray]:
    stage = Vgg16(Vgg16Params(**(DEMO | {"dtype": "float32"} | params)))
    stage.load(WorkOptions(device="cpu", batch_size=batch_size))
    found = {}
    for unit, output in filter(None, stage.results(units, Path())):
        assert isinstance(output, Output)
        assert all(field.fits(output.arrays[name].shape) for name, field in stage.fields.items())
        found[unit.name] = output.arrays["frame"]
    return found


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
def test_features_are_those_of_a_plain_forward_pass(layer):
    """A twin spells the network out: thirteen convolutions, five poolings, then the linear layers and their ReLU."""
    backbone = Vgg16Backbone(**DEMO, layer=layer)
    frames = seeded.pictures(3, 64, seed=1)
    state = backbone.network.state_dict()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(frames).double() / 255 - mean) / std).permute(0, 3, 1, 2)
    pooled_after = {2, 7, 14, 21, 28}  # by torchvision's numbers: the last convolution of each block
    for n in sorted(
        int(key.split(".")[1]) for key in state if key.startswith("features") and "weight" in key
    ):
        weight, bias = state[f"features.{n}.weight"].double(), state[f"features.{n}.bias"].double()
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        x = F.max_pool2d(x, 2) if n in pooled_after else x
    x = F.adaptive_avg_pool2d(x, 7).flatten(1)
    for n in {"fc6": (0,), "fc7": (0, 3)}[layer]:
        x = F.relu(x @ state[f"classifier.{n}.weight"].double().T + state[f"classifier.{n}.bias"].double())
    np.testing.assert_allclose(backbone.features(frames), x.numpy(), atol=1e-4, rtol=1e-4)
    assert (x >= 0).all() and (x > 0).any()


def test_the_published_network_is_torchvision_s_to_the_last_shape():
    torchvision_ops.ensure()
    from torchvision.models import vgg16

    from extractors.backbones import vgg16 as module

    with torch.device("meta"):
        theirs = vgg16(weights=None)
    assert str(module._build(1)) == str(theirs)


@pytest.mark.long
def test_the_published_network_gives_4096_numbers_that_tell_pictures_apart():
    found = Vgg16Backbone("vgg16", "seed:0").features(seeded.pictures(3, 64, seed=1))
    assert found.shape == (3, 4096)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(3, 1)].max() < 0.9


@pytest.mark.parametrize("size", [64, 224])
def test_seeded_features_are_neither_dead_nor_all_alike(backbone, size):
    """Without standardising the mean cosine is 0.95 at 64 pixels, and a third of the features are always zero."""
    found = backbone.features(seeded.pictures(24, size, seed=99))
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert (unit @ unit.T)[np.triu_indices(24, 1)].mean() < 0.7
    assert (found.max(axis=0) <= 0).mean() < 0.1


def test_seeded_features_vary_in_many_directions(backbone):
    """Layers that only have mean 0 and deviation 1 leave 4 of 512, and 45 as they are made white at the end."""
    found = backbone.features(seeded.pictures(64, 64, seed=7))
    variances = np.linalg.svd(found - found.mean(axis=0), compute_uv=False) ** 2
    assert variances.sum() ** 2 / (variances**2).sum() > 20


def test_seeded_weights_are_the_same_again_whatever_torchs_own_seed_is(backbone, monkeypatch):
    monkeypatch.setattr(seeded, "_drawn", {})  # so that it is drawn once more
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    frames = seeded.pictures(1, 64, seed=1)
    again = Vgg16Backbone(**DEMO).features(frames)
    np.testing.assert_array_equal(again, backbone.features(frames))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = Vgg16Backbone("crossreel-demo", "seed:1")
    assert not np.allclose(other.features(frames), again)


def test_a_network_drawn_before_in_this_process_is_the_same_and_its_own(backbone, monkeypatch):
    """Also where a layer less is read, and whatever was done to the weights of an earlier one."""
    frames = seeded.pictures(2, 64, seed=1)
    with torch.no_grad():
        Vgg16Backbone(**DEMO).network.classifier[0].weight.fill_(7)
    monkeypatch.setattr(seeded, "initialise", None)  # drawn again, it would fail
    np.testing.assert_array_equal(Vgg16Backbone(**DEMO).features(frames), backbone.features(frames))
    assert Vgg16Backbone(**DEMO | {"layer": "fc6"}).features(frames).shape == (2, 512)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_each_video_has_the_features_of_its_frames_alone_whatever_shares_their_batch(
    backbone, tmp_path, batch_size
):
    rgb = videos()
    found = features(units_of(tmp_path, rgb), batch_size)
    assert list(found) == [f"video {n}" for n in range(len(LENGTHS))]
    for name, frames in zip(found, rgb, strict=True):
        alone = np.concatenate([backbone.features(frame[None]) for frame in frames])
        np.testing.assert_allclose(found[name], alone, atol=1e-4)


def test_batches_hold_the_frames_of_several_videos_and_no_more_than_fit(tmp_path, monkeypatch):
    sizes = []

    def counted(self: Vgg16Backbone, frames: np.ndarray) -> Computed:
        sizes.append(len(frames))
        return Computed({"frame": np.ones((len(frames), 4), np.float32)})

    monkeypatch.setattr(Vgg16Backbone, "launch", counted)
    features(units_of(tmp_path, videos()), batch_size=23)
    assert sizes == [23, 23, 2, 1]  # three videos; one of 25 frames takes two; the last


def test_frames_of_another_size_are_taken_and_frames_too_small_are_refused(backbone):
    assert backbone.features(seeded.pictures(2, 100, seed=1)[:, :50]).shape == (2, 512)
    with pytest.raises(UserError, match=r"frames of 31x40 pixels are too small for VGG16, which needs 32x32"):
        backbone.features(np.zeros((1, 40, 31, 3), np.uint8))


def test_damaged_key_frames_stop_the_stage_by_name(tmp_path):
    rgb = videos()[:2]
    units = units_of(tmp_path, rgb)
    path = units[0].rows["keyframes"][0]
    raw = path.read_bytes()
    at = raw.index(rgb[1].tobytes()[:4096])
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    with pytest.raises(Damaged, match="the rows of video 1 do not have the checksum"):
        features(units)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_saved_to_a_file_give_the_same_features(backbone, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    state = dict(backbone.network.state_dict()) | {"classifier.6.weight": torch.zeros(2, 2)}  # not needed
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    frames = seeded.pictures(2, 64, seed=1)
    for layer in ("fc6", "fc7"):
        wanted = Vgg16Backbone(**DEMO, layer=layer).features(frames)
        np.testing.assert_array_equal(
            Vgg16Backbone("crossreel-demo", str(path), layer).features(frames), wanted
        )


def test_weights_that_do_not_fit_are_refused(backbone, tmp_path):
    def refused(state: object) -> str:
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(UserError, match=r"bad\.pth") as error:
            Vgg16Backbone("crossreel-demo", str(tmp_path / "bad.pth"))
        return str(error.value)

    good = dict(backbone.network.state_dict())
    assert "do not fit crossreel-demo: size mismatch" in refused(good | {"features.0.bias": torch.zeros(3)})
    assert "features.0.bias" in refused({k: v for k, v in good.items() if k != "features.0.bias"})
    assert "conv1.weight" in refused(good | {"conv1.weight": torch.zeros(3)})
    nan = torch.full_like(good["classifier.0.weight"], float("nan"))
    assert "classifier.0.weight is not finite" in refused(good | {"classifier.0.weight": nan})
    assert "it is not a table of tensors by name" in refused([torch.zeros(3)])
    assert "holds more than tensors and is not read" in refused({"features.0.bias": Path("x")})


def test_what_decides_the_features_decides_the_fingerprint(known, tmp_path):
    (tmp_path / "a.pth").write_bytes(b"a")
    (tmp_path / "b.pth").write_bytes(b"b")

    def components(**params: object) -> dict[str, object]:
        stage = Vgg16(Vgg16Params(**(DEMO | params)))
        return dict(stage.decisive()) | dict(stage.identity(known))

    one = components()
    other = [
        components(weights="seed:1"), components(layer="fc6"), components(dtype="float32"), components(model="vgg16"),
        components(weights=str(tmp_path / "a.pth")), components(weights=str(tmp_path / "b.pth")),
    ]  # fmt: skip
    assert all(a != b for n, a in enumerate(other) for b in [one, *other[:n]])
    assert components(download=True) == one
    (tmp_path / "copy.pth").write_bytes(b"a")
    assert components(weights=str(tmp_path / "copy.pth")) == components(weights=str(tmp_path / "a.pth"))
    assert Vgg16(Vgg16Params(**DEMO)).fields["frame"].dtype == "float16"


def test_published_weights_lie_where_torchvision_puts_them(no_weights, known, monkeypatch):
    torchvision_ops.ensure()
    from torchvision.models import VGG16_Weights

    assert {name: VGG16_Weights[name].url.rpartition("/")[2] for name in hub.VGG16_FILES} == hub.VGG16_FILES
    assert Path(torch.hub.get_dir()) / "checkpoints" == hub.torch_folder() == no_weights
    monkeypatch.delenv("TORCH_HOME")
    assert Path(torch.hub.get_dir()) / "checkpoints" == hub.torch_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(no_weights))
    assert Path(torch.hub.get_dir()) / "checkpoints" == hub.torch_folder()


def test_published_weights_that_are_here_are_known_by_their_bytes(no_weights, known):
    assert Vgg16(Vgg16Params()).identity(known) == {"weights": None}
    no_weights.mkdir(parents=True)
    (no_weights / "vgg16-397923af.pth").write_bytes(b"w")
    assert Vgg16(Vgg16Params()).identity(known) == {"weights": known.file(no_weights / "vgg16-397923af.pth")}
    Vgg16(Vgg16Params()).require()


def test_weights_are_fetched_only_where_the_settings_say_so(no_weights, known, monkeypatch):
    torchvision_ops.ensure()
    from torchvision.models import VGG16_Weights

    asked = []

    def fetch(self: object, **how: object) -> None:
        asked.append(how)
        raise OSError("no network")

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", fetch)
    with pytest.raises(
        UserError, match=r"were not to be downloaded; set extractors\.vgg16\.weights to a local"
    ):
        Vgg16(Vgg16Params()).require()
    assert not asked
    with pytest.raises(
        UserError, match=r"'IMAGENET1K_V1' of vgg16 .* could not be downloaded; set extractors"
    ):
        Vgg16(Vgg16Params(download=True)).identity(known)
    assert asked == [{"check_hash": True, "progress": False}]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weights": "IMAGENET1K_V2"}, "unknown weights 'IMAGENET1K_V2' of vgg16; did you mean 'IMAGENET1K_V1'?"),
        ({"model": "crossreel-demo"}, "no weights are published for crossreel-demo; set extractors.vgg16.weights"),
        ({"weights": "no/such.pth"}, "no weights file no/such.pth"),
        ({"weights": "seed:x"}, "a seed is a number, as in seed:0"),
    ],
)  # fmt: skip
def test_weights_that_do_not_exist_are_named_with_what_is_possible(known, params, message):
    for ask in (Vgg16(Vgg16Params(**params)).require, lambda: Vgg16(Vgg16Params(**params)).identity(known)):
        with pytest.raises(UserError) as error:
            ask()
        assert message in str(error.value)


def test_another_network_or_layer_is_refused_by_name():
    with pytest.raises(UserError, match=r"extractors\.vgg16\.model = 'vgg19' is not possible"):
        fill(Vgg16Params, {"model": "vgg19"}, "extractors.vgg16")
    with pytest.raises(UserError, match=r"extractors\.vgg16\.layer = 'fc8' is not possible"):
        fill(Vgg16Params, {"layer": "fc8"}, "extractors.vgg16")
