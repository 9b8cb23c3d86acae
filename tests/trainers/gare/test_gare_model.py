"""GARE's head: a loop over pairs, the three forms of it, what scores do and do not depend on; the network around."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.gare.config import GareConfig
from trainers.gare.method import Gare
from trainers.gare.model import PAIR_FLOATS, GareNetwork, Head, RecurrentFrames
from trainers.layers.clip_input import pixels
from trainers.layers.clip_towers import ClipTowers

DIMS, A, B, FRAMES = 16, 5, 4, 6
MASK = (torch.arange(FRAMES) < torch.tensor([6, 3, 1, 6])[:, None]).int()


def made(seed: int = 0, **options: float | bool) -> Head:
    torch.manual_seed(seed)
    head = Head(DIMS, **options).double()
    with torch.no_grad():
        for p in head.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return head.eval()


def inputs(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    return torch.randn(A, DIMS, **options), torch.randn(B, FRAMES, DIMS, **options)


def pair(head: Head, c: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The page's section 5 for one caption (D,) and one video (F, D): increment and score."""
    psi = head.psi
    weights = (v @ c / head.temp).softmax(0) * mask
    z = sum(w * row for w, row in zip(weights, v, strict=True))
    u, context = psi.layer_norm1(v.mean(0) - c), psi.layer_norm1(v)
    logits = torch.stack([psi.q_proj(u) @ psi.k_proj(row) / math.sqrt(DIMS) for row in context])
    o = psi.out_proj(sum(a * psi.v_proj(row) for a, row in zip(logits.softmax(0), context, strict=True)))
    h = psi.layer_norm2(o)
    delta = psi.mean_proj(psi.layer_norm3(h + psi.linear1(h)))
    t = c + delta
    return delta, t @ z / (t.norm() * z.norm())


@torch.no_grad()
def test_plain_form_is_that_of_a_loop_over_pairs() -> None:
    head, (text, frames) = made(), inputs()
    found = head.plain(text, frames, MASK)
    for i in range(A):
        for j in range(B):
            delta, score = pair(head, text[i], frames[j], MASK[j])
            torch.testing.assert_close(found.delta[i, j], delta)
            torch.testing.assert_close(found.sim[i, j], score)


@pytest.mark.parametrize("options", [{}, {"mask_padding": True}, {"temp": 0.5}])
@torch.no_grad()
def test_all_forms_give_the_same_values(options: dict[str, float | bool]) -> None:
    head, (text, frames) = made(**options), inputs()
    plain, pairs = head.plain(text, frames, MASK), head(text, frames, MASK)
    torch.testing.assert_close(pairs.delta, plain.delta)
    torch.testing.assert_close(pairs.similarity, plain.sim)
    torch.testing.assert_close(head.score(text, head.prepare(frames, MASK)), plain.sim)


@torch.no_grad()
def test_forms_agree_in_single_precision_to_a_millionth() -> None:
    torch.manual_seed(0)
    head, text, frames = Head(512), torch.randn(40, 512), torch.randn(30, 12, 512)
    mask = torch.ones(30, 12)
    plain = head.plain(text, frames, mask).sim
    assert (head(text, frames, mask).similarity - plain).abs().max() < 1e-6
    assert (head.score(text, head.prepare(frames, mask)) - plain).abs().max() < 1e-6


@pytest.mark.parametrize("options", [{}, {"gap_detach_text": True}, {"mask_padding": True}])
def test_training_form_has_the_gradients_of_the_plain_one_with_the_same_dropout(
    options: dict[str, bool],
) -> None:
    keep = torch.empty(A, B, DIMS, dtype=torch.float64).bernoulli_(
        0.7, generator=torch.Generator().manual_seed(2)
    )
    found = []
    for plain in (True, False):
        head, (text, frames) = made(**options), inputs()
        text.requires_grad_(), frames.requires_grad_()
        out = head.plain(text, frames, MASK, keep) if plain else head(text, frames, MASK, keep)
        similarity = out.sim if plain else out.similarity
        (similarity.square().sum() + out.delta.sin().mean()).backward()
        found.append(
            {"text": text.grad, "frames": frames.grad} | {n: p.grad for n, p in head.named_parameters()}
        )
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_detached_gap_leaves_the_values_and_changes_the_gradient_of_the_text() -> None:
    gradients = []
    for detach in (False, True):
        head, (text, frames) = made(gap_detach_text=detach), inputs()
        text.requires_grad_()
        delta = head(text, frames, MASK).delta
        gradients.append(torch.autograd.grad(delta.sum(), text, allow_unused=True)[0])
    assert gradients[0].abs().max() > 1e-3
    assert gradients[1] is None or gradients[1].abs().max() == 0


@torch.no_grad()
def test_scores_do_not_depend_on_the_block_nor_on_the_order_of_frames() -> None:
    head, (text, frames) = made(), inputs()
    whole = head.score(text, head.prepare(frames, MASK))
    part = head.score(text[1:3], head.prepare(frames[2:], MASK[2:]))
    torch.testing.assert_close(part, whole[1:3, 2:])
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))
    shuffled = head.score(text, head.prepare(frames[:, order], MASK[:, order]))
    torch.testing.assert_close(shuffled, whole)
    assert whole.abs().max() <= 1


@torch.no_grad()
def test_long_galleries_are_scored_a_few_captions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head, (text, frames) = made(), inputs()
    whole = head.score(text, head.prepare(frames, MASK))
    assert PAIR_FLOATS > 1
    monkeypatch.setattr("trainers.gare.model.PAIR_FLOATS", 1)
    torch.testing.assert_close(head.score(text, head.prepare(frames, MASK)), whole)


@torch.no_grad()
def test_padded_frames_count_as_published_unless_they_are_masked() -> None:
    text, frames = inputs()
    other = torch.where(MASK.bool()[..., None], frames, frames.flip(-1))
    published, masked = made(), made(mask_padding=True)
    assert (
        published(text, frames, MASK).similarity - published(text, other, MASK).similarity
    ).abs().max() > 1e-3
    torch.testing.assert_close(masked(text, other, MASK).similarity, masked(text, frames, MASK).similarity)
    kept = masked(text, frames[1:2, :3], MASK[1:2, :3])
    torch.testing.assert_close(masked(text, frames[1:2], MASK[1:2]).delta, kept.delta)


@torch.no_grad()
def test_pooled_video_is_a_sum_whose_scale_does_not_matter() -> None:
    head, (text, frames) = made(), inputs()
    found = head.plain(text, frames, MASK)
    assert found.pool_weight[:, 1].sum(-1).max() < 1 and found.pool_weight[:, 0].sum(-1).min() > 1 - 1e-9
    scaled = F.cosine_similarity(found.text_corrected, 7 * found.video_pooled, dim=-1)
    torch.testing.assert_close(found.sim, scaled)


def towers(seed: int = 0) -> ClipTowers:
    torch.manual_seed(seed)
    vision = {"layers": 1, "width": 64, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
    return ClipTowers(import_open_clip().CLIP(64, vision, text, quick_gelu=True))


def network(**options: object) -> GareNetwork:
    return GareNetwork(GareConfig(num_hidden_layers=1, **options), towers(), 64, 8).eval()


@torch.no_grad()
def test_empty_slots_are_encoded_once_and_have_the_features_of_a_frame_of_the_mean_colour() -> None:
    net, seen = network(), []
    frames = torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    net.towers.clip.visual.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    found = net.frames(frames, mask)
    assert seen == [4]
    expected = net.towers.image(pixels(frames, mask).flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_caption_vector_does_not_depend_on_its_padding() -> None:
    net = network()
    tokens = torch.tensor([[3, 7, 49, 0, 0], [3, 8, 9, 4, 49]])
    short = net.texts(tokens[:1, :3])
    torch.testing.assert_close(net.texts(tokens)[:1], short)


@torch.no_grad()
def test_frames_of_a_recurrent_stage_depend_on_those_before_and_are_doubled_behind_the_longest() -> None:
    torch.manual_seed(0)
    stage, frames = RecurrentFrames(8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    found = stage(frames, mask)
    changed = frames.clone()
    changed[0, 2] += 1
    other = stage(changed, mask)
    torch.testing.assert_close(other[0, :2], found[0, :2])
    assert not torch.allclose(other[0, 2], found[0, 2] + 1)
    torch.testing.assert_close(found[1, 1:3], frames[1, 1:3])
    torch.testing.assert_close(found[:, 3:], 2 * frames[:, 3:])


def test_temporal_stage_starts_from_the_text_tower_and_new_layers_are_small() -> None:
    net = network()
    assert torch.equal(net.temporal.frame_position_embeddings.weight, net.towers.text_positions)
    weights = torch.cat([p.flatten() for n, p in net.head.named_parameters() if n.endswith("proj.weight")])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all((p == 0).all() for n, p in net.head.named_parameters() if n.endswith("proj.bias"))


def test_network_for_stored_features_cannot_encode() -> None:
    net = GareNetwork(GareConfig(mode="frozen", agg_module="None"), None, 16, 77)
    assert net.towers.scale.item() == pytest.approx(100)
    with pytest.raises(UserError, match="mode = 'frozen'"):
        net.texts(torch.zeros(1, 3, dtype=torch.int64))


def batch(a: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (a, 2, 16, 16, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(1, 49, (a, 5), generator=generator)
    tokens[:, -1] = 49
    mask = torch.ones(a, 2, dtype=torch.bool)
    mask[0, 1] = False
    return {"tokens": tokens, "frames": frames, "frame_mask": mask}


def test_terms_are_weighted_and_dropout_repeats_with_the_seed() -> None:
    method = Gare(GareConfig(num_hidden_layers=1), network()).train()
    torch.manual_seed(3)
    first = method.losses(batch(), 0)
    torch.manual_seed(3)
    second = method.losses(batch(), 0)
    third = method.losses(batch(), 0)
    assert set(first) == {"contrastive", "divergence", "direction", "norm"}
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["contrastive"], third["contrastive"])
    without = Gare(method.config.model_copy(update={"beta": 0.0}), method.network).train()
    assert without.losses(batch(), 0)["divergence"] == 0


@torch.no_grad()
def test_scores_of_encoded_parts_are_the_similarities_of_the_head() -> None:
    method, made_batch = Gare(GareConfig(num_hidden_layers=1), network()).eval(), batch()
    texts, items = method.encode_texts(made_batch), method.encode_items(made_batch)
    frames = method.network.videos(
        method.network.frames(made_batch["frames"], made_batch["frame_mask"]), made_batch["frame_mask"]
    )
    expected = method.network.head.plain(texts["text"], frames, made_batch["frame_mask"]).sim
    torch.testing.assert_close(method.scores(texts, items), expected, rtol=1e-5, atol=1e-5)
    assert {len(values) for values in items.values()} == {3}


def test_logit_scale_is_clamped_before_a_step() -> None:
    method = Gare(GareConfig(num_hidden_layers=1), network()).train()
    with torch.no_grad():
        method.network.towers.clip.logit_scale.fill_(9.0)
    method.losses(batch(), 0)
    assert method.network.towers.scale.item() == pytest.approx(100)
