"""The network of HLFormer: its parts against plain forms, its invariances, its behaviour at the edges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trainers.hlformer import model
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.method import HLFormer
from trainers.hlformer.model import GaussianAttention, HLFormerNetwork, LorentzAttention, PoolingAttention

SMALL = {
    "hidden_size": 8,
    "heads": 2,
    "lorentz_dim": 7,
    "blocks": 4,
    "map_size": 4,
    "max_ctx_l": 6,
    "max_desc_l": 5,
}


def config(**changes: object) -> HLFormerConfig:
    return HLFormerConfig(**{**SMALL, "dropout": 0.0, "input_dropout": 0.0, "init_std": 0.3, **changes})


def batch(
    videos: int = 3, captions: int = 5, frames: int = 6, c: HLFormerConfig | None = None
) -> dict[str, Tensor]:
    c = c or config()
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([frames, *range(frames - 1, 0, -1), 1, 1, 1])[:videos]
    frame_mask = (torch.arange(frames) < lengths[:, None]).float()
    words = torch.arange(captions) % c.max_desc_l + 1
    token_mask = (torch.arange(c.max_desc_l) < words[:, None]).float()
    return {
        "clips": torch.randn(videos, c.map_size, 9, generator=generator),
        "frames": torch.randn(videos, frames, 9, generator=generator) * frame_mask[..., None],
        "frame_mask": frame_mask,
        "tokens": torch.randn(captions, c.max_desc_l, 7, generator=generator) * token_mask[..., None],
        "token_mask": token_mask,
        "owner": torch.arange(captions) % videos,
    }


def made(**changes: object) -> HLFormer:
    torch.manual_seed(0)
    return HLFormer(config(**changes), 9, 7)


class FixedDropout(nn.Module):
    """Drops by position, the same everywhere, so that two forms of one sum can be compared."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.arange(x.shape[-1]) % 3 != 1
        return x * keep / 0.7


def test_window_is_the_published_formula_with_its_two_grids() -> None:
    length, width = 7, 2.0
    window = model.gaussian_window(length, width, torch.device("cpu"))
    assert window.shape == (length, length)
    s = width / 9
    for i in range(length):
        row = [math.exp(-((j / (length - 1) - i / length) ** 2) / (2 * s**2)) for j in range(length)]
        torch.testing.assert_close(window[i], torch.tensor(row) / max(row))


def test_window_is_built_once_and_can_be_trained_with_after_inference() -> None:
    model.gaussian_window.cache_clear()
    model.log_window.cache_clear()
    method = made()
    with torch.inference_mode():
        method.encode_items(batch())
    built = model.gaussian_window.cache_info().misses
    torch.stack(list(method.losses(batch(), 0).values())).sum().backward()
    assert model.gaussian_window.cache_info().misses == built == 2  # one for each length


def test_published_window_pushes_lorentz_attention_away_and_the_additive_one_draws_it_near() -> None:
    x = torch.randn(2, 16, 8)
    spread = {}
    for window in ("multiply", "additive"):
        torch.manual_seed(0)
        block = LorentzAttention(config(window=window), width=2.0)
        points = block.enter(block.input_proj(x))
        inner = block.lorentz_multiattention
        shares = inner.logits(inner.linear_query(points), inner.linear_keys(points), None).softmax(-1)
        distance = (torch.arange(16)[:, None] - torch.arange(16)).abs()
        spread[window] = (shares * distance).sum(-1).mean().item()
    uniform = distance.float().mean().item()
    assert spread["additive"] < uniform < spread["multiply"]


@pytest.mark.parametrize("drop", [nn.Identity(), FixedDropout()])
def test_folded_pooling_attention_equals_the_plain_one_also_under_dropout(drop: nn.Module) -> None:
    torch.manual_seed(0)
    pooling = PoolingAttention(config())
    for layer in (pooling.query, pooling.key, pooling.value):
        nn.init.normal_(layer.bias)
    pooling.drop = drop
    token, outputs = torch.randn(3, 1, 8), torch.randn(3, 4, 6, 8)
    mask = batch()["frame_mask"]
    found = pooling(token, outputs, mask)
    assert found.shape == (3, 4, 8)
    for k in range(4):
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            q, key = pooling.query(token)[..., h], pooling.key(outputs[:, k])[..., h]
            logits = q @ key.transpose(1, 2) / 2 + (1 - mask[:, None]) * -10000
            heads.append(drop(logits.softmax(-1)) @ pooling.value(outputs[:, k])[..., h])
        torch.testing.assert_close(found[:, k], torch.cat(heads, -1).squeeze(1), atol=1e-5, rtol=1e-5)


def test_gaussian_attention_equals_that_of_torch_where_it_has_no_window() -> None:
    attention = GaussianAttention(config())
    x, mask = torch.randn(3, 6, 8), batch()["frame_mask"]
    q, k, v = (
        layer(x).view(3, 6, 2, 4).transpose(1, 2)
        for layer in (attention.query, attention.key, attention.value)
    )
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
    torch.testing.assert_close(attention(x, mask), expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("width", [None, 2.0])
def test_lorentz_attention_keeps_its_heads_on_the_hyperboloid_and_its_output_positive(
    width: float | None,
) -> None:
    block = LorentzAttention(config(), width)
    x = torch.randn(3, 6, 8)
    points = block.enter(block.input_proj(x))
    heads = block.lorentz_multiattention.linear_values(points)
    assert heads.shape == (3, 2, 6, 4)
    products = -(heads[..., 0] ** 2) + heads[..., 1:].square().sum(-1)
    torch.testing.assert_close(products, torch.full((3, 2, 6), -1.0), atol=1e-3, rtol=0)
    assert heads[..., 0].min() > 1.1
    out = block(x, None)
    assert out.shape == x.shape and out.min() >= 0


def test_emptied_points_give_finite_gradients_where_the_published_form_gives_nan() -> None:
    block = LorentzAttention(config())
    block.lorentz_multiattention.linear_query.drop = nn.Dropout(0.9)
    nn.init.constant_(block.input_proj.net[1].bias, -100.0)  # every ReLU output is zero
    torch.manual_seed(0)
    block.train()
    block(torch.randn(4, 6, 8), None).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_frames_beyond_a_video_change_nothing_whatever_they_hold() -> None:
    method = made().eval()
    data = batch()
    short = {
        **data,
        "frames": data["frames"][1:, :5],
        "frame_mask": data["frame_mask"][1:, :5],
        "clips": data["clips"][1:],
    }
    whole, cut = method.encode_items(data), method.encode_items(short)
    assert whole["frames"].shape == (3, 6, 8) and whole["clips"].shape == (3, 4, 8)
    torch.testing.assert_close(whole["frames"][1:], cut["frames"])
    assert (whole["frames"][2, 4:] == 0).all()


def test_tokens_beyond_a_caption_change_nothing() -> None:
    method, data = made().eval(), batch()
    one = method.encode_texts({"tokens": data["tokens"][1:2, :2], "token_mask": data["token_mask"][1:2, :2]})
    torch.testing.assert_close(one["query"], method.encode_texts(data)["query"][1:2])


def test_one_video_and_one_caption_keep_their_axes() -> None:
    method, data = made().eval(), batch(videos=1, captions=1)
    texts, items = method.encode_texts(data), method.encode_items(data)
    assert texts["query"].shape == (1, 8)
    assert method.scores(texts, items).shape == (1, 1)


def test_score_is_the_weighted_sum_of_the_best_clip_and_the_best_frame() -> None:
    method, data = made(clip_weight=0.6, frame_weight=0.4).eval(), batch()
    with torch.no_grad():
        texts, items = method.encode_texts(data), method.encode_items(data)
        scores = method.scores(texts, items)
    assert scores.shape == (5, 3)
    for q in range(5):
        for v in range(3):
            clip, frame = (
                max(float(row @ texts["query"][q]) for row in items[n][v]) for n in ("clips", "frames")
            )
            assert scores[q, v].item() == pytest.approx(0.6 * clip + 0.4 * frame, abs=1e-5)


def test_training_scores_are_maxima_of_cosines_and_of_products() -> None:
    queries, positions = torch.randn(5, 8), torch.randn(3, 6, 8)
    positions[0, 4:] = 0
    cos, dot = model.max_scores(queries, positions)
    plain = torch.einsum("qd,vld->qvl", queries, positions)
    torch.testing.assert_close(dot, plain.amax(-1))
    unit = nn.functional.normalize
    torch.testing.assert_close(
        cos, torch.einsum("qd,vld->qvl", unit(queries, dim=-1), unit(positions, dim=-1)).amax(-1)
    )
    assert (cos[:, 0] >= 0).all()  # a row of padding takes part


def test_scalars_are_clamped_in_place_before_a_step() -> None:
    method = made(curvature=2.0)
    with torch.no_grad():
        method.network.curv.fill_(9.0)
        method.network.textual_alpha.fill_(0.5)
        method.network.clip_encoder.h_attns[0].self.scale_alpha.fill_(0.5)
    method.losses(batch(), 0)
    assert method.network.curv.item() == pytest.approx(math.log(20))
    assert method.network.textual_alpha.item() == 0
    assert method.network.clip_encoder.h_attns[0].self.scale_alpha.item() == 0


def test_fixed_curvature_gets_no_gradient() -> None:
    method = made(learn_curvature=False)
    torch.stack(list(method.losses(batch(), 0).values())).sum().backward()
    assert method.network.curv.grad is None


@pytest.mark.parametrize("epoch", [0, 20])
def test_every_parameter_gets_a_finite_gradient_under_bfloat16_autocast(epoch: int) -> None:
    method = made(dropout=0.1, input_dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        terms = method.losses(batch(), epoch)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for name, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_bfloat16_scores_stay_near_those_of_float32() -> None:
    method, data = made().eval(), batch()
    exact = method.scores(method.encode_texts(data), method.encode_items(data))
    with torch.autocast("cpu", torch.bfloat16):
        texts, items = method.encode_texts(data), method.encode_items(data)
    assert texts["query"].dtype == items["frames"].dtype == torch.float32
    torch.testing.assert_close(method.scores(texts, items), exact, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("preset", "visual", "text", "millions"), [("tvr", 3072, 768, 29.91), ("act", 1024, 1024, 28.43)]
)
def test_published_network_has_the_published_number_of_parameters(
    preset: str, visual: int, text: int, millions: float
) -> None:
    with torch.device("meta"):
        network = HLFormerNetwork(HLFormerConfig(preset=preset), visual, text)
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 2) == millions


def test_initialisation_is_normal_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = HLFormerNetwork(HLFormerConfig(hidden_size=64, lorentz_dim=31), 32, 16)
    weight = network.clip_encoder.h_attns[0].self.lorentz_multiattention.linear_keys.weight.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.frame_pos_embed.position_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.clip_encoder.layer1.bias.abs().max() == 0
    assert network.clip_encoder.h_attns[0].self.scale_alpha.item() == pytest.approx(-0.5 * math.log(31))


@pytest.mark.parametrize(
    "changes", [{"blocks": 2}, {"blocks": 6}, {"map_size": 6}, {"lorentz_dim": 3, "heads": 1}]
)
def test_sizes_come_from_the_settings(changes: dict[str, int]) -> None:
    method = made(**changes)
    terms = method.losses(batch(c=method.config), 0)
    assert set(terms) == {
        "clip_nce",
        "frame_nce",
        "clip_triplet",
        "frame_triplet",
        "diversity",
        "partial_order",
    }
    assert len(method.network.clip_encoder.e_attns) == method.config.blocks // 2
