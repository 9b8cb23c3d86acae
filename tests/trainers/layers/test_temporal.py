"""The temporal transformer against a slow twin, its mask, its start from CLIP's text tower."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.clip_towers import ClipTowers
from trainers.layers.temporal import TemporalTransformer

WIDTH = 128
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])


def made(layers: int = 2, seed: int = 0, **options: float) -> TemporalTransformer:
    torch.manual_seed(seed)
    stage = TemporalTransformer(WIDTH, layers, 6, **options)
    for p in stage.parameters():
        nn.init.normal_(p, mean=1.0 if p.ndim == 1 else 0.0, std=0.1)
    return stage.eval()


def norm(x: Tensor, layer: nn.LayerNorm, eps: float) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + eps).sqrt() * layer.weight + layer.bias


def twin(stage: TemporalTransformer, frames: Tensor, mask: Tensor, eps: float, padded: float) -> Tensor:
    """One video (F, D), a head and a query at a time."""
    x = frames + stage.frame_position_embeddings.weight[: len(frames)]
    for block in stage.transformerClip.resblocks:
        u = torch.stack([norm(row, block.ln_1, eps) for row in x])
        q, k, v = (u @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(WIDTH, 1)
        heads = []
        for head in range(WIDTH // 64):
            part = slice(64 * head, 64 * head + 64)
            logits = q[:, part] @ k[:, part].T / math.sqrt(64) + (1 - mask) * padded
            heads.append(logits.softmax(1) @ v[:, part])
        x = x + block.attn.out_proj(torch.cat(heads, 1))
        h = block.mlp.c_fc(torch.stack([norm(row, block.ln_2, eps) for row in x]))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    return frames + x


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"eps": 1e-2, "padded": -2.0}])
def test_frames_in_context_are_those_of_a_slow_twin(options: dict[str, float]) -> None:
    stage, frames = made(**options), torch.randn(3, 4, WIDTH)
    found = stage(frames, MASK)
    eps, padded = options.get("eps", 1e-12), options.get("padded", -1e6)
    for video in range(2):
        expected = twin(stage, frames[video], MASK[video].float(), eps, padded)
        torch.testing.assert_close(found[video], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padded_frames_are_no_keys_and_a_video_without_frames_stays_finite() -> None:
    stage, frames = made(), torch.randn(3, 4, WIDTH)
    other = torch.where(MASK.bool()[..., None], frames, frames + 5)
    found, changed = stage(frames, MASK), stage(other, MASK.bool())
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[MASK.bool()], changed[MASK.bool()])


@torch.no_grad()
def test_it_computes_in_float32_under_autocast() -> None:
    stage, frames = made(), torch.randn(3, 4, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = stage(frames.bfloat16(), MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, stage(frames.bfloat16().float(), MASK))


def text_tower(width: int, layers: int) -> ClipTowers:
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 6, "vocab_size": 50, "width": width, "heads": width // 64, "layers": layers}
    return ClipTowers(import_open_clip().CLIP(WIDTH, vision, text, quick_gelu=True))


def test_it_starts_from_the_text_tower_as_far_as_that_reaches() -> None:
    towers, stage = text_tower(WIDTH, 2), TemporalTransformer(WIDTH, 3, 6)
    before = {name: value.clone() for name, value in stage.transformerClip.resblocks[2].state_dict().items()}
    stage.start_from(towers)
    assert torch.equal(stage.frame_position_embeddings.weight, towers.text_positions)
    for block, source in zip(stage.transformerClip.resblocks, towers.text_blocks, strict=False):
        assert all(torch.equal(block.state_dict()[n], v) for n, v in source.state_dict().items())
    assert all(torch.equal(stage.transformerClip.resblocks[2].state_dict()[n], v) for n, v in before.items())
    with torch.no_grad():
        towers.text_positions.zero_()
    assert stage.frame_position_embeddings.weight.abs().sum() > 0  # copied, not shared


def test_text_tower_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="text width, 64, must be the embedding size, 128"):
        TemporalTransformer(WIDTH, 1, 6).start_from(text_tower(64, 1))
