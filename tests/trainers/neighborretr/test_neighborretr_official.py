"""The authors' checkpoints: both ways without loss, and refused with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.clip_towers import ClipTowers
from trainers.loop.trained import TrainedFolder
from trainers.neighborretr import official
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr

FIXTURES = Path(__file__).parents[2] / "fixtures" / "neighborretr"
SMALL = {"max_words": 6, "max_frames": 4, "temporal_layers": 1, "bank_size": 8}


def config(**more: object) -> NeighborRetrConfig:
    return NeighborRetrConfig.model_validate({**SMALL, **more})


def made(**more: object) -> NeighborRetr:
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    towers = ClipTowers(import_open_clip().CLIP(64, vision, text, quick_gelu=True))
    return NeighborRetr(config(**more), towers, towers.dims)


def test_round_trip_keeps_every_tensor_and_every_name() -> None:
    state = official.state_of(made(unused_nets=True))
    back = official.state_of(official.method_from(state, config()))
    assert list(back) == list(state) and all(torch.equal(back[name], state[name]) for name in state)
    wanted = {"clip.logit_scale", "clip.visual.conv1.weight", "frame_position_embeddings.weight"}
    wanted |= {"transformerClip.resblocks.0.attn.in_proj_weight", "text_weight_fc0.0.weight"}
    wanted |= {"video_ctm1.conv.conv.weight", "text_block0.attn.kv.weight", "text_weight_fc.2.bias"}
    assert wanted <= set(state) and not any("bank" in name for name in state)


def test_checkpoint_of_a_gpu_is_taken_up_in_full_precision(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in official.state_of(made()).items()}
    torch.save(state | {"module.clip.input_resolution": torch.tensor(16)}, tmp_path / "best.pth")
    found = official.read(tmp_path / "best.pth")
    assert all(tensor.dtype is torch.float32 for tensor in found.values())
    assert not official.method_from(found, config()).config.unused_nets


def test_head_alone_fills_a_method_without_towers() -> None:
    state = load_file(FIXTURES / "head.state.safetensors")
    method = NeighborRetr(config(mode="frozen"), None, official.width(state))
    own = official.state_of(method)
    official.load_state(method, {**own, **state})
    assert method.network.scale.item() == pytest.approx(30, rel=1e-4)


def refused(state: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as error:
        official.method_from(state, config())
    return str(error.value)


def test_checkpoint_that_does_not_fit_is_refused_by_name() -> None:
    state = official.state_of(made())
    assert "no tensor 'text_weight_fc.0.weight'" in refused({})
    assert "text_block0.norm1.bias is missing" in refused(
        {n: t for n, t in state.items() if n != "text_block0.norm1.bias"}
    )
    assert "tensor more is not known" in refused({**state, "more": torch.zeros(1)})
    short = {**state, "text_ctm0.score.weight": torch.zeros(1, 3)}
    assert "text_ctm0.score.weight is (1, 3), (1, 64) is needed" in refused(short)


class Trap:
    """What a hostile file would run when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_hostile_damaged_and_missing_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, tmp_path / "hostile.pth")
    (tmp_path / "damaged.pth").write_bytes(b"damaged")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    for name, reason in (
        ("hostile", "read safely"),
        ("damaged", "read safely"),
        ("other", "not a plain state dict"),
        ("gone", "there is no checkpoint"),
    ):
        with pytest.raises(UserError, match=reason):
            official.read(tmp_path / f"{name}.pth")
    assert not (tmp_path / "trapped").exists()


def test_trained_folder_is_exported_under_the_authors_names(tmp_path: Path) -> None:
    method = made()
    TrainedFolder(tmp_path).write("neighborretr", method.config, method)
    official.export_checkpoint(tmp_path, tmp_path / "out.bin")
    found, wanted = official.read(tmp_path / "out.bin"), official.state_of(method)
    assert set(found) == set(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)
    TrainedFolder(tmp_path).write("neighborretr", config(mode="frozen"), method)
    with pytest.raises(UserError, match="has no CLIP"):
        official.export_checkpoint(tmp_path, tmp_path / "out.bin")


def test_import_of_a_network_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    torch.save(official.state_of(made()), tmp_path / "best.pth")
    with pytest.raises(UserError, match="no ViT-B/32 or ViT-B/16"):
        official.import_checkpoint(tmp_path / "best.pth", tmp_path / "out")
