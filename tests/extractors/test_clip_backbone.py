"""The CLIP backbone against open_clip's own paths, and what it says when something is missing."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extractors.backbones import clip_configs, seeded, weights
from extractors.backbones.clip import ClipBackbone
from extractors.clip import ClipParams
from pipeline.errors import UserError

DEMO = "crossreel-demo"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes
CAPTIONS = ["a red star spins", "there is a big blue ring circling around a small green box", "hello"]


class Bare:
    """Digests that remembers nothing."""

    def file(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        return find()


@pytest.fixture(scope="module")
def backbone() -> ClipBackbone:
    return ClipBackbone(DEMO, "seed:0")


def noise(count: int, height: int = 90, width: int = 131) -> np.ndarray:
    """Smooth random frames: every pixel value occurs, edges are soft."""
    small = np.random.default_rng(0).integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in small])


@pytest.mark.parametrize(("height", "width"), [(90, 131), (144, 192), (64, 64), (40, 50), (200, 80)])
def test_preprocessing_equals_open_clips_transform_of_pictures(
    backbone: ClipBackbone, height: int, width: int
) -> None:
    open_clip = weights.import_open_clip()
    frames = noise(3, height, width)
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (OPENAI_MEAN, OPENAI_STD))
    transform = open_clip.image_transform(64, is_train=False)
    theirs = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
    ours = (torch.from_numpy(backbone.crops(frames)) / 255 - mean) / std
    assert ours.shape == (3, 3, 64, 64)
    levels = (ours - theirs).abs() * std * 255
    # Rows and columns are resized one after the other, and each time a half may round the other way.
    assert levels.max() <= 2.01 and levels.mean() < 0.4  # bilinear: 0.7 and more


def test_image_features_do_not_depend_on_the_rest_of_the_batch(backbone: ClipBackbone) -> None:
    frames = noise(9)
    together = backbone.image_features(frames)
    apart = np.concatenate([backbone.image_features(frames[i : i + 1]) for i in range(9)])
    assert together.shape == (9, backbone.dims) and together.dtype == np.float32
    np.testing.assert_allclose(together, apart, atol=1e-5, rtol=1e-5)


def test_features_of_crops_made_apart_are_those_of_the_frames(backbone: ClipBackbone) -> None:
    frames = noise(5)
    crops = np.concatenate([backbone.crops(frames[:2]), backbone.crops(frames[2:])])
    assert crops.dtype == np.uint8
    np.testing.assert_array_equal(backbone.crop_features(crops), backbone.image_features(frames))


def test_image_features_are_open_clips_own(backbone: ClipBackbone) -> None:
    crops = backbone.crops(noise(3))
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in (OPENAI_MEAN, OPENAI_STD))
    with torch.inference_mode():
        theirs = backbone.network.encode_image((torch.from_numpy(crops) / 255 - mean) / std).numpy()
    np.testing.assert_allclose(backbone.crop_features(crops), theirs, atol=1e-5, rtol=1e-5)


def test_text_states_do_not_depend_on_the_rest_of_the_batch(backbone: ClipBackbone) -> None:
    together = zip(CAPTIONS, *backbone.text_tokens(CAPTIONS), strict=True)
    for text, *rows in together:
        alone = (part[0] for part in backbone.text_tokens([text]))
        for ours, theirs in zip(rows, alone, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_token_states_stop_at_the_end_token_and_their_last_is_open_clips_text_feature(
    backbone: ClipBackbone,
) -> None:
    open_clip = weights.import_open_clip()
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    hidden, projected, pooled = backbone.text_tokens(CAPTIONS)
    lengths = [len(tokenizer.encode(text)) + 2 for text in CAPTIONS]
    width = backbone.network.token_embedding.weight.shape[1]
    assert [rows.shape for rows in hidden] == [(length, width) for length in lengths]
    assert [rows.shape for rows in projected] == [(length, backbone.dims) for length in lengths]
    assert {rows.dtype for rows in [*hidden, *projected, pooled]} == {np.dtype(np.float32)}
    with torch.inference_mode():
        theirs = backbone.network.encode_text(tokenizer(CAPTIONS)).numpy()
    np.testing.assert_allclose(pooled, theirs, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(pooled, np.stack([rows[-1] for rows in projected]))


def test_what_follows_the_end_token_is_left_out_without_changing_a_state(backbone: ClipBackbone) -> None:
    """A slow twin runs all 32 positions, as open_clip does."""
    open_clip = weights.import_open_clip()
    network, tokens = backbone.network, open_clip.SimpleTokenizer(context_length=32)(CAPTIONS)
    with torch.inference_mode():
        states = network.token_embedding(tokens) + network.positional_embedding
        full = network.ln_final(network.transformer(states, attn_mask=network.attn_mask)).numpy()
    for rows, twin in zip(backbone.text_tokens(CAPTIONS)[0], full, strict=True):
        np.testing.assert_allclose(rows, twin[: len(rows)], atol=1e-5, rtol=1e-5)


def test_a_caption_longer_than_the_context_loses_its_tail(backbone: ClipBackbone) -> None:
    (long, longer), *_ = backbone.text_tokens(["star " * 40, "star " * 40 + "ring"])
    assert len(long) == backbone.context_length == 32
    np.testing.assert_array_equal(long, longer)


def test_seeded_weights_are_the_same_again_whatever_torchs_own_seed_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seeded, "PICTURES", 64)  # which it is whitened on; 1024 take 3 CPU seconds a network

    def drawn(weights: str) -> ClipBackbone:
        monkeypatch.setattr(seeded, "_drawn", {})
        return ClipBackbone(DEMO, weights)

    first = drawn("seed:0")
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    again = drawn("seed:0")
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, ours), theirs in zip(
        first.network.state_dict().items(), again.network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    other = drawn("seed:1")
    assert not np.allclose(other.image_features(noise(1)), first.image_features(noise(1)))


@pytest.mark.slow
def test_the_demo_networks_features_of_random_pictures_are_centred_and_nearly_white(
    backbone: ClipBackbone,
) -> None:
    """On pictures it was not whitened on; without whitening the mean is as long as 4 deviations."""
    features = backbone.image_features(seeded.pictures(1000, 64, seed=99))
    spread = np.linalg.eigvalsh(np.cov(features.T))
    assert np.linalg.norm(features.mean(axis=0)) < 0.2 * np.sqrt(spread.sum())
    assert np.exp(-(shares := spread / spread.sum()) @ np.log(shares)) > 40  # directions in use; was 4


def test_weights_saved_to_a_file_give_the_same_features(backbone: ClipBackbone, tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in backbone.network.state_dict().items()}
    save_file(state, tmp_path / "demo.safetensors")
    torch.save(state, tmp_path / "demo.pt")
    for name in ("demo.safetensors", "demo.pt"):
        loaded = ClipBackbone(DEMO, str(tmp_path / name))
        np.testing.assert_array_equal(loaded.image_features(noise(2)), backbone.image_features(noise(2)))


def test_a_file_that_would_have_to_be_unpickled_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trace,)  # type: ignore[return-value]

    path = tmp_path / "trap.pt"
    torch.save({"weights": Trap()}, path)
    with pytest.raises(UserError, match=r"trap\.pt holds more than tensors and is not read"):
        ClipBackbone(DEMO, str(path))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap()))  # the trap does work where pickles are read
    assert trace.exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"visual.proj": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"the weights in .*other\.safetensors do not fit crossreel-demo"):
        ClipBackbone(DEMO, str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("model", "reference", "message"),
    [
        ("crossreel-dmeo", "seed:0", "unknown CLIP model 'crossreel-dmeo'; did you mean 'crossreel-demo'?"),
        ("ViT-B32", "openai", "unknown CLIP model 'ViT-B32'; did you mean 'ViT-B-32'?"),
        ("ViT-B-16-SigLIP", "webli", "the text tower of 'ViT-B-16-SigLIP' does not end its captions as CLIP"),
        (DEMO, "seed:x", "weights 'seed:x' are not possible: a seed is a number, as in seed:0"),
        (DEMO, "openai", "unknown weights 'openai' of crossreel-demo; no tag is published for it"),
        ("ViT-B-32", "opneai", "unknown weights 'opneai' of ViT-B-32; did you mean 'openai'?"),
        ("ViT-B-32", "openai", "set the model to 'ViT-B-32-quickgelu'"),
        (DEMO, "no/such.pt", "no weights file no/such.pt"),
        ("no/such.json", "seed:0", "no CLIP model file no/such.json"),
    ],
)
def test_what_does_not_exist_is_named_with_what_is_possible(model: str, reference: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        ClipBackbone(model, reference)
    assert message in str(error.value)


@pytest.fixture
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_missing_weights_are_not_fetched_unasked_and_one_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, empty_caches: Path
) -> None:
    def fetch(config: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(weights.import_open_clip(), "download_pretrained", fetch)
    model = "ViT-B-32-quickgelu"
    assert weights.identity(ClipParams(model=model, weights="openai"), Bare()) is None
    here = f"weights 'openai' of {model} are not on this machine and "
    network = torch.nn.Linear(1, 1)
    with pytest.raises(
        UserError,
        match=f"{here}were not to be downloaded; set extractors.clip.weights \\(of a method .* to a local",
    ):
        weights.load(network, model, "openai")
    with pytest.raises(
        UserError,
        match=f"{here}could not be downloaded; set extractors.clip.weights \\(of a method .* to a local",
    ):
        weights.load(network, model, "openai", download=True)


def test_a_tag_in_a_cache_is_known_by_the_digest_of_its_file(empty_caches: Path) -> None:
    cache = empty_caches / ".cache/clip"
    cache.mkdir(parents=True)
    (cache / "ViT-B-32.pt").write_bytes(b"")
    assert weights.identity(ClipParams(model="ViT-B-32-quickgelu", weights="openai"), Bare()) == EMPTY


def test_the_identity_of_a_file_is_that_of_its_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
        assert weights.identity(ClipParams(model=DEMO, weights=str(tmp_path / name)), Bare()) == EMPTY


def test_a_seed_and_the_users_own_network_are_distinguished(tmp_path: Path) -> None:
    own = tmp_path / "mine.json"
    own.write_bytes(b"")
    choices = [(DEMO, "seed:0"), (DEMO, "seed:1"), (str(own), "seed:0")]
    names = [weights.identity(ClipParams(model=m, weights=w), Bare()) for m, w in choices]
    assert len(set(names)) == 3 and EMPTY in str(names[2])


def test_identities_are_found_without_torch(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    code = f"""
import sys
from extractors.backbones.weights import identity
from extractors.clip import ClipParams
class Known:
    def file(self, path): return "digest"
for weights in ("seed:0", {str(tmp_path / "a.pt")!r}):
    assert identity(ClipParams(model="crossreel-demo", weights=weights), Known())
assert not {{"torch", "open_clip"}} & set(sys.modules)
"""
    ended = run_python(code)
    assert ended.code == 0, ended.err


def test_a_network_can_be_described_by_the_users_own_file(backbone: ClipBackbone, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(clip_configs.read(DEMO)))
    mine = ClipBackbone(str(path), "seed:0")
    np.testing.assert_array_equal(mine.image_features(noise(1)), backbone.image_features(noise(1)))
    path.write_text(json.dumps(clip_configs.read(DEMO) | {"no_such_key": 1}))
    with pytest.raises(UserError, match=r"mine\.json is not a CLIP model: .*no_such_key"):
        ClipBackbone(str(path), "seed:0")
    path.write_text("{}")
    with pytest.raises(UserError, match="it lacks embed_dim, vision_cfg, text_cfg"):
        ClipBackbone(str(path), "seed:0")


def test_bf16_is_close_to_fp32(backbone: ClipBackbone) -> None:
    low, high = (
        ClipBackbone(DEMO, "seed:0", precision="bf16").image_features(noise(4)),
        backbone.image_features(noise(4)),
    )
    cosine = (low * high).sum(-1) / np.linalg.norm(low, axis=-1) / np.linalg.norm(high, axis=-1)
    assert low.dtype == np.float32 and cosine.min() > 0.99 and not np.array_equal(low, high)
