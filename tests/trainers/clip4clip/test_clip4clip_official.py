"""CLIP4Clip's checkpoints in the authors' layout: there and back, and what does not fit."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from trainers.clip4clip import official
from trainers.clip4clip.config import Clip4ClipConfig
from trainers.clip4clip.method import Clip4Clip
from trainers.clip4clip.model import Clip4ClipNetwork
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.checkpoint import load

HEADERS = ("meanP", "seqTransf", "seqLSTM")


@functools.cache
def theirs(header: str) -> dict[str, Tensor]:
    """A state dict by the release's names: CLIP under `clip.`, half of it in float16, and the header beside it."""
    torch.manual_seed(0)
    towers = ClipTowers.load("crossreel-demo", "seed:0")
    config = Clip4ClipConfig(sim_header=header, cross_num_hidden_layers=2)
    network = Clip4ClipNetwork(config, towers, towers.dims, towers.context_length)
    state = {}
    for own, value in network.state_dict().items():
        name = own.removeprefix("temporal.").removeprefix("towers.")
        state[name] = value.half().clone() if name.startswith("clip.") and value.ndim > 1 else value.clone()
    state |= {"clip.input_resolution": torch.tensor(64), "clip.vocab_size": torch.tensor(49408)}
    if header == "seqLSTM":
        state["frame_position_embeddings.weight"] = torch.randn(32, towers.dims)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("header", HEADERS)
def test_a_checkpoint_is_imported_and_exported_to_the_last_bit(tmp_path: Path, header: str) -> None:
    state = theirs(header)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "pytorch_model.bin.3")
    settings = official.import_checkpoint(tmp_path / "pytorch_model.bin.3", tmp_path / "own")
    assert settings.get("sim_header", "meanP") == header
    assert settings["base_encoder"] == "crossreel-demo" and settings["backbone_weights"] == "seed:0"
    saved = json.loads((tmp_path / "own/config.json").read_text())
    assert saved["method"] == "clip4clip" and Clip4ClipConfig(**saved["config"]) == Clip4ClipConfig(
        **settings
    )
    official.export_checkpoint(tmp_path / "own", tmp_path / "back.bin")
    back = torch.load(tmp_path / "back.bin", weights_only=True)
    integers = {"clip.input_resolution", "clip.vocab_size"}
    assert set(back) == set(state) - integers
    for name, value in back.items():
        expected = torch.zeros_like(value) if header == "seqLSTM" and "position_emb" in name else state[name]
        assert torch.equal(value, expected.float()), name


def test_an_imported_checkpoint_fills_the_method_it_was_imported_for(tmp_path: Path) -> None:
    state = theirs("seqTransf")
    torch.save(state, tmp_path / "model.bin")
    config = Clip4ClipConfig(**official.import_checkpoint(tmp_path / "model.bin", tmp_path / "own"))
    tensors, _ = load(tmp_path / "own/weights.safetensors")
    method = Clip4Clip(config, official.network_from(state, config))
    assert tensors.keys() == method.state_dict().keys()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = theirs("seqTransf")

    def said(change: dict[str, Tensor | None]) -> str:
        torch.save({n: v for n, v in {**state, **change}.items() if v is not None}, tmp_path / "x.bin")
        with pytest.raises(UserError) as error:
            official.import_checkpoint(tmp_path / "x.bin", tmp_path / "own")
        assert not (tmp_path / "own").exists()
        return str(error.value)

    first = "transformerClip.resblocks.0.ln_1.bias"
    assert f"tensor {first} is missing" in said({first: None})
    assert "tensor transformerClip.resblocks.0.x is not known" in said(
        {"transformerClip.resblocks.0.x": torch.zeros(1)}
    )
    assert f"tensor {first} is (3,), (256,) is needed" in said({first: torch.zeros(3)})
    assert "sim_header = 'tightTransf', which is not built here" in said(
        {"cross.pooler.weight": torch.zeros(1)}
    )
    assert "the checkpoint has no CLIP in it: it is not one of CLIP4Clip's authors" in said(
        {name: None for name in state if name.startswith("clip.")}
    )
    torch.save([1], tmp_path / "list.bin")
    with pytest.raises(UserError, match="is not a state dict: CLIP4Clip's checkpoints hold named tensors"):
        official.read(tmp_path / "list.bin")


def test_one_that_was_trained_on_features_is_not_exported(tmp_path: Path) -> None:
    config = Clip4ClipConfig(mode="frozen").model_dump(mode="json")
    (tmp_path / "config.json").write_text(json.dumps({"method": "clip4clip", "config": config}))
    with pytest.raises(UserError, match="was trained on features and has no CLIP"):
        official.export_checkpoint(tmp_path, tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["frames_of_zero", "unknown"])
def test_given_settings_are_checked(tmp_path: Path, name: str) -> None:
    torch.save(theirs("meanP"), tmp_path / "model.bin")
    with pytest.raises(UserError, match=rf"unknown setting trainers\.clip4clip\.{name}"):
        official.import_checkpoint(tmp_path / "model.bin", tmp_path / "own", {name: 1})
    settings = official.import_checkpoint(
        tmp_path / "model.bin", tmp_path / "own", {"normalise_frames": False}
    )
    assert settings["normalise_frames"] is False
