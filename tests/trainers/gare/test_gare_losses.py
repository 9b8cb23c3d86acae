"""GARE's loss terms against loops, and what they do not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainers.gare import losses


def increments(seed: int = 0, a: int = 5, b: int = 4, dims: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(a, b, dims, generator=generator, dtype=torch.float64)


def test_contrastive_is_the_mean_of_both_directions() -> None:
    scores = torch.randn(4, 4, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        expected -= (3 * scores[i, i] - torch.logsumexp(3 * scores[i], 0)).item() / 8
        expected -= (3 * scores[i, i] - torch.logsumexp(3 * scores[:, i], 0)).item() / 8
    assert losses.contrastive(scores, torch.tensor(3.0)).item() == pytest.approx(expected)


def test_divergence_is_that_of_each_videos_normal_and_dim_is_its_mean() -> None:
    delta, total = increments(), 0.0
    for j in range(delta.shape[1]):
        for d in range(delta.shape[2]):
            values = delta[:, j, d]
            mu, sd = values.mean().item(), values.std().item() + 1e-6
            total += (sd**2 + mu**2 - 1) / 2 - math.log(sd)
    assert losses.divergence(delta, "event").item() == pytest.approx(total / 4)
    assert losses.divergence(delta, "dim").item() == pytest.approx(total / 4 / 6)


def test_divergence_vanishes_for_standard_normal_increments() -> None:
    assert losses.divergence(increments(a=20000, b=1), "event").item() == pytest.approx(0, abs=0.01)


def test_direction_is_over_all_ordered_pairs_of_videos() -> None:
    delta, expected = increments(), 0.0
    for row in delta:
        total = 0.0
        for first in row:
            for second in row:
                total += math.exp(-2.5 * (1 - torch.cosine_similarity(first, second, dim=0).item()))
        expected += math.log(total / 16 + 1e-8) / 5
    assert losses.direction(delta, 2.5).item() == pytest.approx(expected)


def test_direction_knows_no_lengths_and_is_greatest_where_all_agree() -> None:
    delta = increments()
    lengths = torch.rand(5, 4, 1, dtype=torch.float64) + 0.1
    assert losses.direction(delta * lengths, 2.0).item() == pytest.approx(losses.direction(delta, 2.0).item())
    same = delta[:, :1].expand(-1, 4, -1)
    assert losses.direction(same, 2.0).item() == pytest.approx(0, abs=1e-7)
    assert losses.direction(delta, 2.0).item() < 0


def test_norm_is_minus_the_variance_up_to_the_bound_and_then_has_no_gradient() -> None:
    delta = increments().requires_grad_()
    variance = sum(row.norm(dim=-1).var().item() for row in delta) / 5
    assert losses.norm_variance(delta).item() == pytest.approx(variance)
    inside, outside = losses.norm(delta, variance * 1.01), losses.norm(delta, variance * 0.99)
    assert inside.item() == pytest.approx(-variance) and outside.item() == 0
    (gradient,) = torch.autograd.grad(inside, delta)
    assert gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(outside, delta)
    assert gradient.abs().max() == 0
