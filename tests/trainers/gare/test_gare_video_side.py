"""GARE that corrects videos: a loop over pairs, what padding and blocks do not change, training and scoring."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from extractors.backbones.weights import import_open_clip
from trainers.gare.config import GareConfig
from trainers.gare.model import GareNetwork
from trainers.gare.video_side import VideoGare, VideoHead
from trainers.layers.clip_towers import ClipTowers

DIMS, A, W, B, FRAMES = 16, 5, 7, 4, 6
MASK = torch.arange(FRAMES) < torch.tensor([6, 3, 1, 6])[:, None]
WORDS = torch.arange(W) < torch.tensor([7, 2, 5, 1, 7])[:, None]


def made() -> VideoHead:
    torch.manual_seed(0)
    head = VideoHead(DIMS).double()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return head.eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    return (
        torch.randn(A, DIMS, **options),
        torch.randn(A, W, DIMS, **options),
        torch.randn(B, FRAMES, DIMS, **options),
    )


def pair(head: VideoHead, c: Tensor, words: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Increment and score of a caption (D,) with its real words (n, D) and a video (F, D)."""
    psi, real = head.psi, v[mask]
    z = (real @ c / head.temp).softmax(0) @ real
    u = psi.layer_norm1(c - v.mean(0))
    context = [psi.layer_norm1(word) for word in words]
    logits = torch.stack([psi.q_proj(u) @ psi.k_proj(word) / math.sqrt(DIMS) for word in context])
    o = psi.out_proj(sum(a * psi.v_proj(word) for a, word in zip(logits.softmax(0), context, strict=True)))
    h = psi.layer_norm2(o)
    delta = psi.mean_proj(psi.layer_norm3(h + psi.linear1(h)))
    return delta, c @ (z + delta) / (c.norm() * (z + delta).norm())


@torch.no_grad()
def test_increments_and_scores_are_those_of_a_loop_over_pairs() -> None:
    head, (text, words, frames) = made(), inputs()
    found = head.pairs(text, words, WORDS, frames, MASK)
    for i in range(A):
        for j in range(B):
            delta, score = pair(head, text[i], words[i][WORDS[i]], frames[j], MASK[j])
            torch.testing.assert_close(found.delta[i, j], delta)
            torch.testing.assert_close(found.similarity[i, j], score)


@torch.no_grad()
def test_padded_words_and_blocks_of_captions_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    head, (text, words, frames) = made(), inputs()
    items = {"frames": frames, "mask": MASK}
    whole = head.score_videos({"text": text, "words": words, "word_mask": WORDS}, items)
    other = torch.where(WORDS[..., None], words, 9.0)
    monkeypatch.setattr("trainers.gare.video_side.PAIR_FLOATS", 2 * B * DIMS)
    parts = head.score_videos({"text": text, "words": other, "word_mask": WORDS}, items)
    torch.testing.assert_close(parts, whole)


def towers() -> ClipTowers:
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    return ClipTowers(import_open_clip().CLIP(64, vision, text, quick_gelu=True))


def batch(a: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(1, 49, (a, 5), generator=generator)
    tokens[0, 2:] = 0
    tokens[0, 2] = tokens[1:, -1] = 49
    frame_mask = torch.ones(a, 2, dtype=torch.bool)
    frame_mask[0, 1] = False
    frames = torch.randint(0, 256, (a, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    word_mask = torch.arange(5) < torch.tensor([3, 5, 5, 5])[:a, None]
    return {"tokens": tokens, "word_mask": word_mask, "frames": frames, "frame_mask": frame_mask}


def test_training_reaches_towers_and_head_and_lowers_the_loss() -> None:
    config = GareConfig(increment="video", num_hidden_layers=1, max_words=5, max_frames=2)
    method = VideoGare(config, GareNetwork(config, towers(), 64, 8, VideoHead)).train()
    adam = torch.optim.Adam(method.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        adam.zero_grad()
        terms = method.losses(batch(), 0)
        loss = sum(terms.values(), torch.zeros(()))
        loss.backward()
        adam.step()
        losses.append(float(terms["contrastive"].detach()))
    assert set(terms) == {"contrastive", "divergence", "direction", "norm"}
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in method.named_parameters():
        if "conv1" not in name and "temporal" not in name and "k_proj.bias" not in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_scores_of_encoded_parts_do_not_depend_on_the_batch_they_were_encoded_in() -> None:
    config = GareConfig(increment="video", num_hidden_layers=1, max_words=5, max_frames=2)
    method = VideoGare(config, GareNetwork(config, towers(), 64, 8, VideoHead)).eval()
    whole = batch()
    one = {name: values[:1] for name, values in whole.items()}
    all_scores = method.scores(method.encode_texts(whole), method.encode_items(whole))
    alone = method.scores(method.encode_texts(one), method.encode_items(whole))
    torch.testing.assert_close(alone, all_scores[:1], rtol=1e-5, atol=1e-5)


def test_frozen_captions_are_read_with_all_their_words() -> None:
    text, video = GareConfig(mode="frozen"), GareConfig(mode="frozen", increment="video")
    assert text.inputs()["text"] == ("clip_text", "pooled")
    assert video.inputs()["text"] == ("clip_text", "projected")
    assert video.packed_by() and not text.packed_by()


def test_the_choice_of_the_side_leaves_older_fingerprints_as_they_were() -> None:
    assert "increment" not in GareConfig().decisive()
    assert GareConfig(increment="video").decisive()["increment"] == "video"
