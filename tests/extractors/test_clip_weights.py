"""OpenAI's archives against the same tensors as a state dict, and what is said of damaged or hostile ones."""

from __future__ import annotations

import json
import logging
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extractors.backbones import archives, clip_configs, clip_weights, weights
from extractors.backbones.archives import Archive, Unreadable
from extractors.backbones.clip import ClipBackbone
from extractors.clip import Clip, ClipParams
from extractors.clip_text import ClipText, ClipTextParams
from pipeline.errors import UserError

CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
RESNET = CONFIG | {"vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 32, "patch_size": None}}
INTEGERS = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.ln_1 = nn.MultiheadAttention(width, heads), nn.LayerNorm(width)
        layers = (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGelu()),
            ("c_proj", nn.Linear(4 * width, width)),
        )
        self.mlp, self.ln_2 = nn.Sequential(OrderedDict(layers)), nn.LayerNorm(width)
        self.attn_mask = torch.zeros(
            3, 3
        )  # an attribute that is neither parameter nor buffer, as OpenAI's have

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])

    def forward(self, x):
        return self.resblocks(x)


class Vision(nn.Module):
    def __init__(self, pixels: int, patch: int, width: int, layers: int, dims: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((pixels // patch) ** 2 + 1, width) * width**-0.5)
        self.proj = nn.Parameter(torch.randn(width, dims) * width**-0.5)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, layers, width // 64)

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0]) @ self.proj


class OpenAiClip(nn.Module):
    """OpenAI's network by its names, in the sizes of a description."""

    def __init__(self, config) -> None:
        super().__init__()
        vision, text, dims = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
        self.visual = Vision(
            vision["image_size"], vision["patch_size"], vision["width"], vision["layers"], dims
        )
        self.transformer = Blocks(text["width"], text["layers"], text["heads"])
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], text["width"]) * 0.01)
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.randn(text["width"], dims) * text["width"] ** -0.5)
        self.logit_scale = nn.Parameter(torch.tensor(4.6052))
        for name, value in INTEGERS.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, image, text):
        x = self.token_embedding(text) + self.positional_embedding
        x = self.ln_final(self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
        ends = x[torch.arange(x.shape[0]), text.argmax(-1)] @ self.text_projection
        return self.visual(image), ends


def traced(network: nn.Module, pixels: int = 64) -> torch.jit.ScriptModule:
    tokens = torch.randint(1, 49407, (1, 77))
    module = torch.jit.trace(network.eval(), (torch.randn(1, 3, pixels, pixels), tokens), check_trace=False)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1 or "proj" in name or "bias" in name:
                parameter.data = parameter.data.half()  # as OpenAI's are
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, its state dicts in every form that is passed around, and the description of the network."""
    folder = tmp_path_factory.mktemp("openai")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = traced(OpenAiClip(CONFIG))
    module.save(folder / "archive.pt")
    state = dict(module.state_dict())
    assert set(INTEGERS) <= set(state)
    clean = {name: value.float() for name, value in state.items() if name not in INTEGERS}
    torch.save(module.state_dict(), folder / "integers.pt")  # an OrderedDict with `_metadata`
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in clean.items()}}, folder / "nested.pt")
    save_file({name: value.contiguous() for name, value in clean.items()}, folder / "clean.safetensors")
    (folder / "small.json").write_text(json.dumps(CONFIG))
    return folder


FORMS = ("integers.pt", "legacy.pt", "nested.pt", "clean.safetensors")


def features(model: Path, file: Path) -> list[np.ndarray]:
    network = ClipBackbone(str(model), str(file))
    frames = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)
    return [network.image_features(frames), *network.text_tokens(["a red star spins", "hello"])[0]]


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_gives_the_features_of_the_same_tensors_as_a_state_dict(folder, form):
    model = folder / "small.json"
    for ours, theirs in zip(
        features(model, folder / "archive.pt"), features(model, folder / form), strict=True
    ):
        assert np.isfinite(ours).all() and np.abs(ours).max() > 0
        np.testing.assert_array_equal(ours, theirs)


def test_an_archive_gives_the_vectors_that_its_own_code_computes(folder):
    """torch runs the code here, which we wrote a moment ago."""
    module = torch.jit.load(folder / "archive.pt").float()
    network = ClipBackbone(str(folder / "small.json"), str(folder / "archive.pt"))
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    tokens = network._tokenize(["a red star spins"])
    with torch.no_grad():
        image, text = module(network._pixels(torch.from_numpy(network.crops(frames))), tokens)
    np.testing.assert_allclose(network.image_features(frames), image.numpy(), atol=1e-5, rtol=1e-4)
    assert text.shape == (
        1,
        32,
    )  # without the causal mask, which the traced code of the fault's maker lacks too


def test_the_tensors_of_an_archive_are_those_that_torch_reads_to_the_last_bit_and_name(folder):
    theirs = torch.jit.load(folder / "archive.pt").state_dict()
    ours = Archive(folder / "archive.pt").tensors()
    assert set(ours) == set(theirs)
    assert all(ours[n].dtype is v.dtype and torch.equal(ours[n], v) for n, v in theirs.items())


def test_an_archive_of_a_resnet_is_read_too(tmp_path):
    (tmp_path / "rn.json").write_text(json.dumps(RESNET))
    network = ClipBackbone(str(tmp_path / "rn.json"), "seed:0").network

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.__dict__["_modules"] = dict(network._modules)
            self._parameters.update(network._parameters)
            self.attn_mask = network.attn_mask

        def forward(self, image, text):
            return self.visual(image), self.token_embedding(text)

    traced(Both()).save(tmp_path / "RN.pt")
    torch.save(torch.jit.load(tmp_path / "RN.pt").state_dict(), tmp_path / "state.pt")
    weights.require(ClipParams(model=str(tmp_path / "rn.json"), weights=str(tmp_path / "RN.pt")))
    a, b = (features(tmp_path / "rn.json", tmp_path / name) for name in ("RN.pt", "state.pt"))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_stages_clip_and_clip_text_take_an_archive(folder):
    params = {"model": str(folder / "small.json"), "weights": str(folder / "archive.pt")}
    Clip(ClipParams(**params)).require()
    ClipText(ClipTextParams(**params)).require()


def test_the_file_that_openai_s_own_loader_keeps_is_found_and_checked(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / ".cache/clip"
    cache.mkdir(parents=True)
    (cache / "ViT-B-32.pt").write_bytes((folder / "archive.pt").read_bytes())
    wanted = ClipParams(model="ViT-B/32", weights="openai")
    assert weights.locate(wanted.model, wanted.weights) == cache / "ViT-B-32.pt"
    with pytest.raises(UserError, match=r"ViT-B-32\.pt do not fit ViT-B-32-quickgelu: .* 49408 x 64 where"):
        weights.require(wanted)


@pytest.mark.slow
def test_an_archive_of_the_published_size_runs_under_the_tag_openai(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    cache = tmp_path / ".cache/clip"
    cache.mkdir(parents=True)
    traced(OpenAiClip(clip_configs.read("ViT-B/32")), 224).save(cache / "ViT-B-32.pt")
    weights.require(ClipParams(model="ViT-B-32-quickgelu", weights="openai"))
    state = {n: v for n, v in torch.jit.load(cache / "ViT-B-32.pt").state_dict().items() if n not in INTEGERS}
    loaded = ClipBackbone("ViT-B/32", "openai").network.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in state.items())


# One spelling, and the activation ----------------------------------------------------------------------


def test_a_network_has_one_name_whatever_it_was_called_by():
    names = {ClipParams(model=name).decisive()["model"] for name in ("ViT-B/32", "ViT-B-32-quickgelu")}
    assert names == {"ViT-B-32-quickgelu"}
    assert ClipParams(model="ViT-B-32").model == "ViT-B-32"  # the same sizes, another activation
    assert set(clip_configs.OPENAI.values()) <= set(clip_configs.names())
    with pytest.raises(UserError, match=r"unknown CLIP model 'ViT-B/33'; did you mean 'ViT-B/32'\?"):
        clip_configs.path_of("ViT-B/33")


def test_the_code_of_an_archive_and_openai_s_integers_show_the_activation(folder, tmp_path):
    found = {name: clip_weights.quick_gelu(folder / name) for name in ("archive.pt", *FORMS)}
    assert found == {
        "archive.pt": True, "integers.pt": True, "legacy.pt": None, "nested.pt": None, "clean.safetensors": None,
    }  # fmt: skip
    plain = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    torch.jit.trace(plain, torch.zeros(1, 2)).save(tmp_path / "plain.pt")
    assert clip_weights.quick_gelu(tmp_path / "plain.pt") is False


def small_quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network under two names, as open_clip has its own."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "small-quickgelu.json").write_text(json.dumps(CONFIG))
    (own / "small.json").write_text(json.dumps(CONFIG | {"quick_gelu": False}))
    monkeypatch.setattr(clip_configs, "OWN_FOLDER", own)


def test_the_wrong_activation_is_refused_for_a_file_that_shows_its_own(folder, monkeypatch):
    small_quick(folder, monkeypatch)
    weights.require(ClipParams(model="small-quickgelu", weights=str(folder / "archive.pt")))
    for ask in (
        lambda: weights.require(ClipParams(model="small", weights=str(folder / "archive.pt"))),
        lambda: ClipBackbone("small", str(folder / "integers.pt")),
    ):
        with pytest.raises(UserError, match=r"activation of small; set the model to 'small-quickgelu' \(ext"):
            ask()


def test_a_file_that_does_not_show_its_activation_is_one_warning(folder, monkeypatch, caplog):
    small_quick(folder, monkeypatch)
    params = {"model": "small-quickgelu", "weights": str(folder / "clean.safetensors")}
    with caplog.at_level(logging.WARNING):
        Clip(ClipParams(**params)).require()
        ClipText(ClipTextParams(**params)).require()
    (record,) = caplog.records
    assert "clean.safetensors does not show its activation; small-quickgelu computes QuickGELU" in (
        record.getMessage()
    )


def test_a_described_network_of_another_activation_is_one_warning(folder, tmp_path, caplog):
    (tmp_path / "gelu.json").write_text(json.dumps(CONFIG | {"quick_gelu": False}))
    with caplog.at_level(logging.WARNING):
        weights.require(ClipParams(model=str(tmp_path / "gelu.json"), weights=str(folder / "archive.pt")))
    (record,) = caplog.records
    assert "archive.pt was trained with QuickGELU (OpenAI's), and" in record.getMessage()


# What is wrong with a file -----------------------------------------------------------------------------


def refused(path: Path, model: str = "crossreel-demo") -> str:
    """What `require` says, which is what loading says too; not a traceback and no second line."""
    with pytest.raises(UserError) as early:
        weights.require(ClipParams(model=model, weights=str(path)))
    with pytest.raises(UserError) as late:
        ClipBackbone(model, str(path))
    assert "\n" not in str(early.value) and "\n" not in str(late.value)
    return str(early.value)


def test_an_archive_of_another_size_is_refused_with_the_shapes(folder):
    said = refused(folder / "archive.pt")
    assert said.endswith(
        "do not fit crossreel-demo: token_embedding.weight is 49408 x 64 where 49408 x 256 is needed"
    )


def test_weights_of_a_published_network_are_named(folder):
    shapes = dict(clip_weights.expected("ViT-L/14"))
    assert clip_weights._instead(shapes) == "; they are those of ViT-L/14"
    assert clip_weights.fits(shapes, "ViT-L-14") and not clip_weights.fits(shapes, "ViT-L/14@336px")


def test_an_archive_that_is_no_clip_is_refused(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "linear.pt")
    assert "token_embedding.weight is missing; they are not those of a CLIP network" in refused(
        tmp_path / "linear.pt"
    )


@pytest.mark.parametrize("name", ["archive.pt", "integers.pt", "clean.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_before_a_run(folder, tmp_path, name, share):
    whole = (folder / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    said = refused(path, str(folder / "small.json"))
    assert f"{path} cannot be read as weights of" in said and ("truncated" in said or "empty" in said)


def test_a_damaged_tensor_is_refused_when_it_is_read(folder, tmp_path):
    whole = bytearray((folder / "archive.pt").read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "flipped.pt").write_bytes(whole)
    with pytest.raises(UserError, match=r"flipped\.pt cannot be read as weights of .*: data/\d+ is damaged"):
        ClipBackbone(str(folder / "small.json"), str(tmp_path / "flipped.pt"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>", "it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a Git LFS pointer"),
        (b"\x1f\x8b", "it is a gzip archive"),
        (b"", r"it is empty (0 bytes)"),
    ],
)
def test_a_web_page_or_a_pointer_is_no_weights_file(tmp_path, content, words, suffix):
    path = tmp_path / f"page.{suffix}"
    path.write_bytes(content)
    assert f"{path.name} cannot be read as weights of crossreel-demo: {words}" in refused(path)


class Trap:
    """Unpickled freely, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def archive_of(path: Path, description: bytes, **members: bytes) -> Path:
    """A TorchScript archive with a description of our own."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("x/data.pkl", description)
        out.writestr("x/constants.pkl", b"\x80\x02).")
        for name, content in members.items():
            out.writestr(f"x/data/{name.removeprefix('_')}", content)
    return path


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%stQ"
BUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def number(value: int) -> bytes:
    return pickle.dumps(value, 0)[:-1]


def described(count: int, offset: int, size: list[int], stride: list[int]) -> bytes:
    """A scripted module with one tensor "w"."""
    view = b"".join(b"(" + b"".join(map(number, part)) + b"t" for part in (size, stride))
    tensor = BUILD + b"(" + STORAGE % number(count) + number(offset) + view + b"\x89)tR"
    return b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb."


def test_nothing_in_an_archive_is_run(tmp_path):
    trace = tmp_path / "ran"
    path = archive_of(tmp_path / "trap.pt", pickle.dumps({"w": Trap(trace)}, 2))
    assert "it holds a __builtin__.getattr" in refused(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))  # the trap does work where pickles are read
    assert trace.exists()


def test_a_handmade_archive_is_read_as_torch_would_lay_it_out(tmp_path):
    raw = struct.pack("<6f", *range(6))
    path = archive_of(tmp_path / "a.pt", described(6, 1, [2, 2], [1, 2]), _0=raw)
    found = Archive(path).tensors()["w"]
    assert torch.equal(found, torch.tensor([[1.0, 3.0], [2.0, 4.0]]))


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (described(6, 0, [7], [1]), "w reaches beyond its storage"),
        (described(6, 5, [2], [1]), "w reaches beyond its storage"),
        (described(6, 0, [2**40], [0]), "w reaches beyond its storage"),
        (described(10**9, 0, [1], [1]), "the bytes of w are not all there"),
        (described(6, 0, [-1], [1]), "in a way that is not known"),
        (described(6, 0, [6], [1]).replace(b"FloatStorage", b"LongStorage"), "are not all there"),
        (b"\x80\x02cos\nsystem\n.", "it holds a os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "it holds a builtins.eval"),
        (b"\x80\x02\x82\x01.", "it holds the extension 1"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.", "it changes a function"),
        (b"\x80\x02c__torch__\nM\n)\x81Nb.", "not a table by name"),
        (b"\x80\x02].", "it is not a table of tensors by name"),
        (b"\x80\x02}X\x01\x00\x00\x00ar\xff\xff\xff\x7f", "its description is not that of tensors"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "more than 100000 tensors and modules"),
        (b"", "its description is not that of tensors"),
    ],
)  # fmt: skip
def test_a_hostile_description_is_refused(tmp_path, description, reason):
    path = archive_of(tmp_path / "bad.pt", description, _0=struct.pack("<6f", *range(6)))
    with pytest.raises(Unreadable, match=reason):
        Archive(path).described()
    assert "bad.pt cannot be read as weights of crossreel-demo" in refused(path)


def test_a_compressed_archive_that_would_unfold_without_end_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x/data.pkl", described(2**24, 0, [2**24], [1]))
        out.writestr("x/constants.pkl", b"")
        out.writestr("x/data/0", bytes(2**26))
    assert path.stat().st_size < 2**18
    assert "the bytes of w are compressed" in refused(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x/data.pkl", bytes(archives.PICKLE_BYTES + 1))
    with pytest.raises(Unreadable, match=r"data\.pkl has 33554433 bytes, 33554432 at most are read"):
        Archive(path).described()


def test_names_and_shapes_are_read_without_torch(folder, run_python):
    code = f"""
import sys
from pathlib import Path
from extractors.backbones import clip_weights
found = [clip_weights.shapes(Path({str(folder)!r}) / n) for n in ("archive.pt", "nested.pt", "clean.safetensors")]
assert found[0] == found[1] == found[2] and len(found[0]) > 50
clip_weights.require_fit(Path({str(folder / "archive.pt")!r}), {str(folder / "small.json")!r})
assert "torch" not in sys.modules
"""
    ended = run_python(code)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("model", ["RN50", "RN101", "RN50x4", "ViT-B-32", "ViT-L-14-336", "crossreel-demo"])
def test_the_expected_shapes_are_those_of_the_network(model):
    from extractors.backbones.clip import _build

    with torch.device("meta"):
        state = _build(model, clip_configs.read(model)).state_dict()
    expected = clip_weights.expected(model)
    assert len(expected) >= 6
    assert {name: tuple(state[name].shape) for name in expected} == expected
