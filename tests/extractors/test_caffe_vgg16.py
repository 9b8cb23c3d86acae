"""Caffe's VGG16 from the files of tensorflow-vgg and Keras, against a slow twin that never turns a kernel round."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from extractors.backbones import caffe_vgg16, seeded
from extractors.backbones.archives import Unreadable
from extractors.backbones.vgg16 import Vgg16Backbone
from extractors.vgg16 import Vgg16, Vgg16Params
from pipeline.errors import UserError

MODEL = "crossreel-demo"  # an eighth of the published width everywhere
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
Layers = dict[str, list[NDArray]]


@pytest.fixture(scope="module")
def layers() -> Layers:
    """Kernels (h, w, in, out) and biases as tensorflow-vgg names them."""
    rng, out, width = np.random.default_rng(0), {}, 3
    for block, (wide, count) in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            kernel = rng.normal(0, (2 / (9 * width)) ** 0.5, (3, 3, width, wide // 8))
            out[f"conv{block}_{number}"] = [kernel, rng.normal(0, 0.1, wide // 8)]
            width = wide // 8
    for name, inputs in (("fc6", 49 * width), ("fc7", 512), ("fc8", 512)):
        outputs = 1000 if name == "fc8" else 512
        out[name] = [rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs)), rng.normal(0, 0.1, outputs)]
    return {name: [array.astype(np.float32) for array in pair] for name, pair in out.items()}


def save_npy(path: Path, layers: Layers) -> Path:
    np.save(path, layers, allow_pickle=True)
    return path


def save_keras(path: Path, layers: Layers, root: str = "", old: bool = True) -> Path:
    kernel, bias = ("{}_W_1:0", "{}_b_1:0") if old else ("{}/kernel:0", "{}/bias:0")
    with h5py.File(path, "w") as file:
        for name, pair in layers.items():
            block, _, number = name.removeprefix("conv").partition("_")
            keras = {"fc6": "fc1", "fc7": "fc2", "fc8": "predictions"}.get(name, f"block{block}_conv{number}")
            group = file.create_group(f"{root}{keras}")
            for pattern, array in zip((kernel, bias), pair, strict=True):
                group[pattern.format(keras)] = array
        file.create_group(f"{root}block1_pool")
    return path


WRITERS: dict[str, Callable[[Path, Layers], Path]] = {
    "vgg16.npy": save_npy,
    "keras.h5": save_keras,
    "model.h5": lambda path, layers: save_keras(path, layers, "model_weights/", old=False),
}


def twin(layers: Layers, frames: NDArray[np.uint8], last: str) -> NDArray:
    """tensorflow-vgg's own steps in float64: BGR minus means, NHWC, a flattened picture times fc6."""
    blue_first = frames[..., ::-1].astype(np.float64) - np.array([103.939, 116.779, 123.68])
    x = torch.from_numpy(blue_first.copy()).permute(0, 3, 1, 2)
    for block, (_, count) in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            kernel, bias = (torch.from_numpy(a).double() for a in layers[f"conv{block}_{number}"])
            x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
        x = F.max_pool2d(x, 2)
    rows = x.permute(0, 2, 3, 1).flatten(1).numpy()
    for name in ("fc6", "fc7"):
        rows = np.maximum(rows @ layers[name][0].astype(np.float64) + layers[name][1], 0)
        if name == last:
            break
    return rows


@pytest.mark.parametrize("layer", ["fc6", "fc7"])
@pytest.mark.parametrize("name", WRITERS)
def test_features_are_those_of_the_published_layout(layers, tmp_path, name, layer):
    path = WRITERS[name](tmp_path / name, layers)
    frames = seeded.pictures(2, 224, seed=1)
    found = Vgg16Backbone(MODEL, str(path), layer, convention="caffe").features(frames)
    expected = twin(layers, frames, layer)
    assert found.shape == (2, 512) and expected.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_a_state_dict_of_caffe_s_weights_takes_the_same_pictures(layers, tmp_path):
    path = save_npy(tmp_path / "vgg16.npy", layers)
    network = Vgg16Backbone(MODEL, str(path), convention="caffe")
    torch.save(network.network.state_dict(), tmp_path / "converted.pth")
    frames = seeded.pictures(2, 64, seed=1)
    again = Vgg16Backbone(MODEL, str(tmp_path / "converted.pth"), convention="caffe")
    np.testing.assert_array_equal(again.features(frames), network.features(frames))
    other = Vgg16Backbone(MODEL, str(tmp_path / "converted.pth")).features(frames)
    assert not np.allclose(other, network.features(frames), rtol=0.1)


def test_the_file_that_python_2_wrote_is_read():
    """Its strings are bytes: SHORT_BINSTRING and BINSTRING, which Python 3 does not write."""
    raw = np.arange(6, dtype="<f4").tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02K\x03t"
        + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )  # fmt: skip
    from io import BytesIO

    found = caffe_vgg16._Reader(BytesIO(b"\x80\x02}U\x07conv1_1" + array + b"s."), encoding="bytes").load()
    np.testing.assert_array_equal(found[b"conv1_1"].values, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_numpy_has_saved_objects_with_is_read(layers, tmp_path, protocol):
    path = save_npy(tmp_path / "a.npy", layers)
    with path.open("rb") as file:
        caffe_vgg16._skip_header(file)
        head = path.read_bytes()[: file.tell()]
    table = np.empty((), object)
    table[()] = layers
    path.write_bytes(head + pickle.dumps(table, protocol))
    found = caffe_vgg16.read(path)
    np.testing.assert_array_equal(found["classifier.3.weight"], layers["fc7"][0].T)


def test_nothing_in_a_file_is_run(tmp_path):
    trace = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trace,)

    np.save(tmp_path / "trap.npy", {"conv1_1": Trap()}, allow_pickle=True)
    with pytest.raises(
        UserError, match=r"trap\.npy cannot be read as weights of crossreel-demo: it holds a "
    ):
        Vgg16Backbone(MODEL, str(tmp_path / "trap.npy"), convention="caffe")
    assert not trace.exists()
    np.load(tmp_path / "trap.npy", allow_pickle=True)  # the trap does work where pickles are read
    assert trace.exists()


def test_what_is_wrong_with_a_file_is_one_sentence(layers, tmp_path):
    def said(path: Path) -> str:
        with pytest.raises(UserError) as error:
            Vgg16Backbone(MODEL, str(path), convention="caffe")
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = save_npy(tmp_path / "vgg16.npy", layers).read_bytes()
    (tmp_path / "half.npy").write_bytes(whole[: len(whole) // 2])
    assert "half.npy cannot be read as weights of crossreel-demo: it is damaged" in said(
        tmp_path / "half.npy"
    )
    (tmp_path / "short.npy").write_bytes(whole[:20])
    assert "it is truncated, or no .npy file" in said(tmp_path / "short.npy")
    np.save(tmp_path / "plain.npy", np.zeros((2, 3)))
    assert "it is an array (2, 3) of float64, not a table of layers" in said(tmp_path / "plain.npy")
    lacking = {name: pair for name, pair in layers.items() if name != "conv4_2"}
    assert "no kernel and bias of the layer conv4_2" in said(save_npy(tmp_path / "a.npy", lacking))
    assert "it has no layer block4_conv2" in said(save_keras(tmp_path / "a.h5", lacking))
    turned = layers | {"conv1_1": [layers["conv1_1"][0].reshape(27, -1), layers["conv1_1"][1]]}
    assert "conv1_1 is not a kernel of 4 axes" in said(save_npy(tmp_path / "b.npy", turned))
    (tmp_path / "web.h5").write_bytes(b"<!DOCTYPE html>")
    assert "web.h5 cannot be read as weights of crossreel-demo: it is an HTML page" in said(
        tmp_path / "web.h5"
    )
    (tmp_path / "other.h5").write_bytes(b"\1" * 100)
    assert "other.h5 cannot be read as weights of crossreel-demo: it is no HDF5 file" in said(
        tmp_path / "other.h5"
    )
    values = np.ones((3, 3, 3, 8), np.float32)
    (tmp_path / "secret.bin").write_bytes(values.tobytes())
    with h5py.File(save_keras(tmp_path / "reads.h5", layers), "a") as file:
        del file["block1_conv1/block1_conv1_W_1:0"]
        file.create_dataset(
            "block1_conv1/block1_conv1_W_1:0",
            values.shape,
            "f4",
            external=[(str(tmp_path / "secret.bin"), 0, values.nbytes)],
        )
    assert "keeps its values in another file (external storage)" in said(tmp_path / "reads.h5")
    wide = layers | {"fc7": [np.zeros((512, 4), np.float32), np.zeros(4, np.float32)]}
    assert "do not fit crossreel-demo: size mismatch" in said(save_npy(tmp_path / "c.npy", wide))
    nan = layers | {"fc7": [np.full((512, 512), np.nan, np.float32), layers["fc7"][1]]}
    assert "classifier.3.weight is not finite" in said(save_npy(tmp_path / "d.npy", nan))


def test_files_and_names_of_the_other_convention_are_refused_before_a_run(layers, tmp_path):
    path = save_npy(tmp_path / "vgg16.npy", layers)
    with pytest.raises(UserError, match=r"vgg16\.npy is in a layout of Caffe's .*convention to 'caffe'"):
        Vgg16(Vgg16Params(model=MODEL, weights=str(path))).require()
    with pytest.raises(UserError, match=r"no weights file vgg16\.npy"):
        Vgg16(Vgg16Params(weights="vgg16.npy", convention="caffe")).require()
    Vgg16(Vgg16Params(model=MODEL, weights=str(path), convention="caffe")).require()


def test_torchvision_s_weights_are_not_taken_for_caffe_s(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    here = tmp_path / "hub/checkpoints"
    here.mkdir(parents=True)
    (here / "vgg16-397923af.pth").write_bytes(b"w")
    Vgg16(Vgg16Params()).require()
    with pytest.raises(
        UserError, match=r"'IMAGENET1K_V1' are torchvision's, and extractors\.vgg16\.convention"
    ):
        Vgg16(Vgg16Params(convention="caffe")).require()


def test_the_convention_is_part_of_the_fingerprint_and_the_usual_one_is_as_before():
    assert "convention" not in Vgg16Params().decisive()
    assert Vgg16Params(convention="caffe").decisive()["convention"] == "caffe"


def test_a_hostile_table_is_refused(tmp_path):
    from io import BytesIO

    for description, reason in (
        (b"\x80\x02cos\nsystem\n.", "it holds a os.system"),
        (b"\x80\x02cnumpy\ndtype\n(U\x02V8tR.", "it holds an array of 'V8'"),
        (b"\x80\x02\x82\x01.", "it holds the extension 1"),
        (b"\x80\x02cnumpy\ndtype\n}b.", "it changes a function"),
    ):
        with pytest.raises(Unreadable, match=reason):
            caffe_vgg16._Reader(BytesIO(description), encoding="bytes").load()
