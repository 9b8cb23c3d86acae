"""Checkpoints of GARE's authors, read and written: every tensor, what is unused, what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import UserError
from trainers.gare import official
from trainers.gare.config import GareConfig
from trainers.gare.method import Gare
from trainers.gare.model import GareNetwork
from trainers.layers import clip_checkpoints
from trainers.loop.trained import TrainedFolder

FIXTURES = Path(__file__).parents[2] / "fixtures" / "gare"
CONFIG = GareConfig(num_hidden_layers=2)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return load_file(FIXTURES / "full.weights.safetensors")


def test_state_dict_goes_there_and_back_with_all_its_entries(state: dict[str, Tensor]) -> None:
    network = official.network_from(state, CONFIG)
    written = official.state_of(network, official.dead(state))
    assert set(written) == set(state)
    assert all(torch.equal(written[name].float(), value.float()) for name, value in state.items())
    bare = official.state_of(network)
    assert {name: value.shape for name, value in bare.items()} == {n: v.shape for n, v in state.items()}
    assert not bare["weight_fc.0.weight"].any() and not bare["psi.log_std_proj.bias"].any()


def test_sizes_come_from_the_names(state: dict[str, Tensor]) -> None:
    assert official.sizes(state) == {"agg_module": "seqTransf", "num_hidden_layers": 2}
    plain = {n: v for n, v in state.items() if not n.startswith(("transformerClip", "frame_position"))}
    assert official.sizes(plain) == {"agg_module": "None"}
    network = official.network_from(plain, GareConfig(agg_module="None"))
    assert network.temporal is None and set(official.state_of(network)) == set(plain)


def test_recurrent_stage_carries_a_table_that_it_never_reads(state: dict[str, Tensor]) -> None:
    plain = {n: v for n, v in state.items() if not n.startswith("transformerClip")}
    lstm = torch.nn.LSTM(64, 64).state_dict()
    recurrent = {**plain, **{f"lstm_visual.{name}": value for name, value in lstm.items()}}
    assert official.sizes(recurrent) == {"agg_module": "seqLSTM"}
    network = official.network_from(recurrent, GareConfig(agg_module="seqLSTM"))
    written = official.state_of(network, official.dead(recurrent))
    assert set(written) == set(recurrent)
    assert torch.equal(
        written["frame_position_embeddings.weight"], recurrent["frame_position_embeddings.weight"].float()
    )


def test_what_does_not_fit_is_named(state: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"q_proj\.weight: it is not one of GARE's"):
        official.network_from({"x": torch.zeros(1)}, CONFIG)
    with pytest.raises(UserError, match=r"agent\.psi\.mean_proj\.bias is missing"):
        official.network_from({n: v for n, v in state.items() if "mean_proj.bias" not in n}, CONFIG)
    with pytest.raises(UserError, match=r"tensor transformerClip\.resblocks\.1\..* is not known"):
        official.network_from(state, GareConfig(num_hidden_layers=1))
    with pytest.raises(UserError, match=r"tensor agent\.psi\.mean_proj\.bias is \(3,\), \(64,\) is needed"):
        official.network_from(
            {n: v[:3] if n.endswith("psi.mean_proj.bias") else v for n, v in state.items()}, CONFIG
        )
    with pytest.raises(UserError, match="this checkpoint is damaged"):
        official.network_from({**state, "psi.mean_proj.bias": state["psi.mean_proj.bias"] + 1}, CONFIG)


def test_files_are_read_without_running_anything(tmp_path: Path, state: dict[str, Tensor]) -> None:
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save(wrapped, tmp_path / "pytorch_model.bin.4")
    assert set(official.read(tmp_path / "pytorch_model.bin.4")) == set(state)
    (tmp_path / "bad.bin").write_bytes(pickle.dumps(print, protocol=2))
    torch.save({"state": GareConfig}, tmp_path / "code.bin")
    torch.save([1, 2], tmp_path / "list.bin")
    for name in ("bad.bin", "code.bin"):
        with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
            official.read(tmp_path / name)
    with pytest.raises(UserError, match="not a state dict"):
        official.read(tmp_path / "list.bin")
    with pytest.raises(UserError, match="there is no checkpoint"):
        official.read(tmp_path / "none.bin")


def test_clip_that_is_not_of_the_release_is_refused_at_import(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    torch.save(state, tmp_path / "tiny.bin")
    with pytest.raises(UserError, match=r"width 64, patches of 16 pixels and 2 blocks; known are ViT-B/32"):
        official.import_checkpoint(tmp_path / "tiny.bin", tmp_path / "out")


def test_checkpoint_is_imported_and_exported_unchanged(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(clip_checkpoints.SIZES, (64, 16, 2), "ViT-B/16")
    torch.save(state, tmp_path / "theirs.bin")
    settings = official.import_checkpoint(tmp_path / "theirs.bin", tmp_path / "ours")
    assert settings == {"base_encoder": "ViT-B/16", "backbone_weights": "seed:0", "num_hidden_layers": 2}
    ours = TrainedFolder(tmp_path / "ours")
    assert ours.settings.method == "gare" and ours.config(GareConfig).num_hidden_layers == 2
    official.export_checkpoint(tmp_path / "ours", tmp_path / "again.bin")
    again = official.read(tmp_path / "again.bin")
    used = (
        set(state) - set(official.dead(state)) - {f"{n.removeprefix('agent.')}" for n in official.dead(state)}
    )
    assert set(again) == set(state)
    assert all(torch.equal(again[name], state[name].float()) for name in used)


def test_trained_weights_of_stored_features_are_written_with_the_scale_alone(tmp_path: Path) -> None:
    config = GareConfig(mode="frozen", agg_module="None")
    method = Gare(config, GareNetwork(config, None, 8, 77))
    TrainedFolder(tmp_path).write("gare", config, method)
    official.export_checkpoint(tmp_path, tmp_path / "head.bin")
    written = official.read(tmp_path / "head.bin")
    assert {name for name in written if name.startswith("clip.")} == {"clip.logit_scale"}
    assert torch.equal(written["psi.mean_proj.weight"], method.network.head.psi.mean_proj.weight)
