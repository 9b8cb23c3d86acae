"""The losses of H2ARN against literal forms that build every pair."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.geometry import lorentz
from trainers.h2arn import losses

OWNERS = ([0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(texts: Tensor, clouds: Tensor, positive: Tensor, c: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Contrastive term and entailment from tensors of all pairs (B, B, D + 1), as the release computes them."""
    pairs = texts[:, None, 1:] * clouds[None, :, 1:]
    inner = pairs.sum(-1) - texts[:, None, 0] * clouds[None, :, 0]
    logits = inner / tau
    ways = []
    for rows, own in ((logits, positive), (logits.T, positive.T)):
        share = (rows.softmax(1) * own).sum(1)
        ways.append(-share.log().mean())
    norm = texts[:, None, 1:].expand_as(pairs).norm(dim=-1).clamp_min(1e-8)
    q = c * inner
    below = (norm * (q**2 - 1).clamp_min(1e-8).sqrt()).clamp_min(1e-8)
    cosine = (clouds[None, :, 0] + texts[:, None, 0] * q) / below
    angle = cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()
    aperture = (0.2 / (c.sqrt() * norm)).clamp(-1 + 1e-7, 1 - 1e-7).asin()
    outside = (angle - aperture).relu() * positive
    return (ways[0] + ways[1]) / 2, outside.sum() / positive.sum().clamp_min(1)


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_values_and_gradients_are_those_of_all_pairs(owner: list[int], c: float) -> None:
    rows = torch.tensor(owner)
    positive = rows[:, None] == rows

    def run(plain: bool) -> list[Tensor]:
        leaves = [0.6 * draw(6, 5, seed=0), 0.8 * draw(6, 5, seed=1), torch.tensor(c, dtype=torch.float64)]
        for leaf in leaves:
            leaf.requires_grad_()
        texts, clouds = (lorentz.lift(space, leaves[2]) for space in leaves[:2])
        if plain:
            terms = literal(texts, clouds, positive, leaves[2], 0.07)
        else:
            inner = lorentz.pairwise_inner(texts, clouds)
            both = [losses.contrastive(s, positive, 0.07) for s in (inner, inner.T)]
            terms = (both[0] + both[1]) / 2, losses.entailment(texts, clouds, inner, positive, leaves[2], 0.1)
        (terms[0] + 0.7 * terms[1]).backward()
        return [*terms, *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for found, expected in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_contrastive_of_scores_that_tell_nothing_is_the_log_of_the_share_that_is_right() -> None:
    rows = torch.tensor([0, 0, 1, 2])
    found = losses.contrastive(torch.zeros(4, 4), rows[:, None] == rows, 0.07)
    assert found.item() == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4)


def test_a_further_cloud_that_a_caption_describes_is_no_negative() -> None:
    """Captions 0 and 1 describe cloud 1 too, or caption 0 alone: the two directions then differ."""
    scores = draw(3, 3, seed=2)
    positive = torch.eye(3, dtype=torch.bool)
    positive[0, 1] = True
    share = scores.div(0.5).softmax(1)
    expected = -(share[0, :2].sum().log() + share[1, 1].log() + share[2, 2].log()) / 3
    torch.testing.assert_close(losses.contrastive(scores, positive, 0.5), expected)


def test_entailment_is_zero_inside_the_cone_and_a_half_space_near_the_origin_holds_much() -> None:
    c = torch.tensor(1.0, dtype=torch.float64)
    text = torch.tensor([[1.0, 2.0], [0.05, 0.0]], dtype=torch.float64)
    cloud = torch.tensor([[2.0, 4.0], [3.0, 0.5]], dtype=torch.float64)
    points = lorentz.lift(text, c), lorentz.lift(cloud, c)
    inner = lorentz.pairwise_inner(*points)
    own = torch.eye(2, dtype=torch.bool)
    assert losses.entailment(*points, inner, own, c, 0.1).item() == 0
    angle, aperture = losses.cone_terms(*points, inner, own, c, 0.1)
    assert angle[0] < 1e-3 and aperture[1].item() == pytest.approx(math.pi / 2, abs=1e-3)
    wrong = own.flip(0)
    assert losses.entailment(*points, inner, wrong, c, 0.1) > 0


def test_coincident_pairs_and_captions_at_the_origin_have_finite_gradients_in_float32() -> None:
    text = torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    cloud = torch.tensor([[0.3, 0.4], [0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    c = torch.tensor(1.0)
    points = lorentz.lift(text, c), lorentz.lift(cloud, c)
    inner = lorentz.pairwise_inner(*points)
    losses.entailment(*points, inner, torch.eye(3, dtype=torch.bool), c, 0.1).backward()
    for leaf in (text, cloud):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
