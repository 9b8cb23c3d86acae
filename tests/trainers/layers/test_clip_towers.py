"""Trainable CLIP towers against open_clip's own forward pass, their masks, their weights from a state dict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extractors.backbones.clip import ClipBackbone
from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.clip_towers import ClipTowers

LENGTHS = (9, 4, 6)
END = 49  # the highest id


def network(width: int = 64, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    vision = {"layers": 2, "width": width, "patch_size": 8, "image_size": 16}
    text = {"context_length": 12, "vocab_size": 50, "width": width, "heads": width // 64, "layers": 2}
    return import_open_clip().CLIP(width, vision, text, quick_gelu=True).eval()


def captions() -> tuple[Tensor, Tensor]:
    """Ids (3, 9) and mask of three captions."""
    ids = torch.zeros(3, 9, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(LENGTHS):
        ids[row, : length - 1] = torch.randint(1, END, (length - 1,), generator=generator)
        ids[row, length - 1] = END
    return ids, torch.arange(9) < torch.tensor(LENGTHS)[:, None]


@torch.no_grad()
def test_features_are_those_of_open_clip() -> None:
    clip = network()
    pixels, (ids, mask) = torch.randn(4, 3, 16, 16), captions()
    padded = torch.nn.functional.pad(ids, (0, 3))
    image, text = clip.encode_image(pixels), clip.encode_text(padded)
    towers = ClipTowers(clip)
    torch.testing.assert_close(towers.image(pixels), image)
    for states in (towers.text(ids), towers.text(ids, mask)):
        assert states.shape == (3, 9, 64)
        torch.testing.assert_close(towers.end(states, ids), text)


@torch.no_grad()
def test_mask_changes_the_states_of_padding_alone_and_shorter_captions_need_no_padding() -> None:
    towers, (ids, mask) = ClipTowers(network(128)), captions()
    plain, masked = towers.text(ids), towers.text(ids, mask)
    torch.testing.assert_close(masked[mask], plain[mask])
    assert not torch.allclose(masked[~mask], plain[~mask], atol=1e-3)
    torch.testing.assert_close(towers.text(ids[1:2, :4]), plain[1:2, :4])
    changed = ids.clone()
    changed[~mask] = 7
    other = towers.text(changed, mask)
    torch.testing.assert_close(other[mask], masked[mask])


def test_towers_of_a_state_dict_have_its_sizes_names_and_values() -> None:
    state = network(128).state_dict()
    towers = ClipTowers.from_state({**state, "context_length": torch.tensor(12)})
    assert set(towers.state_dict()) == {f"clip.{name}" for name in state}
    assert (towers.dims, towers.image_size, towers.context_length) == (128, 16, 12)
    assert towers.clip.visual.transformer.resblocks[0].attn.num_heads == 2
    assert towers.text_blocks[0].attn.num_heads == 2
    assert all(torch.equal(towers.state_dict()[f"clip.{name}"], value) for name, value in state.items())
    halves = ClipTowers.from_state({name: value.half() for name, value in state.items()})
    assert {p.dtype for p in halves.parameters()} == {torch.float32}


def test_state_dict_that_does_not_fit_names_the_tensor() -> None:
    state = dict(network().state_dict())
    with pytest.raises(UserError, match=r"ln_final\.bias is missing"):
        ClipTowers.from_state({name: v for name, v in state.items() if name != "ln_final.bias"})
    with pytest.raises(UserError, match="conv1"):
        ClipTowers.from_state({name: v for name, v in state.items() if "conv1" not in name})
    with pytest.raises(UserError, match="odd is not known"):
        ClipTowers.from_state({**state, "odd": torch.zeros(1)})
    with pytest.raises(UserError, match=r"ln_final\.bias is \(3,\), \(64,\) is needed"):
        ClipTowers.from_state({**state, "ln_final.bias": torch.zeros(3)})


def test_caption_longer_than_the_context_is_refused() -> None:
    with pytest.raises(UserError, match="13 tokens are longer than the 12 positions"):
        ClipTowers(network()).text(torch.zeros(1, 13, dtype=torch.int64))


def test_patches_are_frozen_unless_asked_otherwise_and_all_else_learns() -> None:
    for freeze in (True, False):
        towers = ClipTowers(network(), freeze_patches=freeze)
        frozen = {name for name, p in towers.named_parameters() if not p.requires_grad}
        assert frozen == ({"clip.visual.conv1.weight"} if freeze else set())
    tower = network()
    del tower.visual.conv1
    with pytest.raises(UserError, match="no patch convolution"):
        ClipTowers(tower)


@torch.no_grad()
def test_half_weights_are_the_matrices_alone_and_features_stay_close() -> None:
    pixels, (ids, mask) = torch.randn(2, 3, 16, 16), captions()
    exact, half = ClipTowers(network()), ClipTowers(network(), half=True)
    kinds = {name: p.dtype for name, p in half.named_parameters()}
    single = {name for name, kind in kinds.items() if kind is torch.float32}
    matrices = ("in_proj_weight", "c_fc.bias", "conv1.weight", "text_projection", "visual.proj")
    assert all(kinds[name] is torch.float16 for name in kinds if name.endswith(matrices))
    parts = ("ln_", "embedding", "logit_scale")
    assert single and all(any(part in name for part in parts) for name in single)
    for a, b in ((exact.image(pixels), half.image(pixels)), (exact.text(ids, mask), half.text(ids, mask))):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_scale_is_kept_at_100() -> None:
    towers = ClipTowers(network())
    with torch.no_grad():
        towers.clip.logit_scale.fill_(5.0)
    towers.clamp_scale_()
    assert towers.scale.item() == pytest.approx(100)
    with torch.no_grad():
        towers.clip.logit_scale.fill_(math.log(3))
    towers.clamp_scale_()
    assert towers.scale.item() == pytest.approx(3)


def test_described_network_with_a_seed_is_the_one_that_features_come_from(tmp_path: Path) -> None:
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 12, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    model = tmp_path / "tiny.json"
    model.write_text(json.dumps({"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}))
    towers, backbone = ClipTowers.load(str(model), "seed:3"), ClipBackbone(str(model), "seed:3")
    assert all(torch.equal(towers.clip.state_dict()[n], v) for n, v in backbone.network.state_dict().items())
    assert towers.text_positions.requires_grad and not backbone.network.positional_embedding.requires_grad
