"""The four losses against loops written from the page, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.neighborretr import losses

B = 9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_centrality_is_the_mean_cosine_with_every_token() -> None:
    vectors, tokens = torch.randn(4, 6), torch.randn(4, 3, 6)
    cosines = F.cosine_similarity(vectors[:, None], tokens.flatten(0, 1)[None], dim=-1)
    torch.testing.assert_close(losses.centrality(vectors, tokens, 0.3), (0.3 * cosines.mean(1)).exp())


def test_plan_is_doubly_stochastic_and_moves_with_the_pairs() -> None:
    scores, order = torch.randn(B, B) * 5, torch.randperm(B)
    plan = losses.transport_plan(scores, 500)
    torch.testing.assert_close(plan.sum(0), torch.ones(B))
    torch.testing.assert_close(plan.sum(1), torch.ones(B), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.transport_plan(scores[order][:, order], 500), plan[order][:, order])


def slow_neighbors(scores: Tensor, hubness: Tensor, count: int, temperature: float) -> float:
    """N of the rows as the page prints it, a row at a time."""
    total = 0.0
    for i in range(B):
        row, z = scores[i].tolist(), hubness.tolist()
        near = sorted((j for j in range(B) if j != i), key=lambda j: -row[j])[:count]
        rest = [j for j in range(B) if j != i and j not in near]

        def scaled(values: list[float], j: int, rest: list[int] = rest) -> float:
            low, high = min(values[r] for r in rest), max(values[r] for r in rest)
            return (values[j] - low) / (high - low)

        logits = [temperature * (scaled(row, j) - scaled(z, j)) for j in near]
        p = [math.exp(x) / sum(map(math.exp, logits)) for x in logits] + [1.0]
        chosen = [*near, i]
        below = math.log(sum(math.exp(row[j]) for j in chosen))
        total -= sum(w * (row[j] - below) for w, j in zip(p, chosen, strict=True)) / sum(p)
    return total / B


def test_neighbour_loss_is_that_of_a_loop_over_rows() -> None:
    scores, hubness = torch.randn(B, B), torch.randn(B)
    found = losses.neighbors(scores, hubness, 4, 3.0)
    assert found.loss.item() == pytest.approx(slow_neighbors(scores, hubness, 4, 3.0), rel=1e-5)
    assert torch.equal(found.mask.sum(1), torch.full((B,), 4)) and not found.mask.diagonal().any()
    torch.testing.assert_close(found.weights.sum(1), torch.full((B,), 2.0))


def test_neighbours_that_are_hubs_weigh_less() -> None:
    scores, hubness = torch.randn(B, B), torch.rand(B)
    before = losses.neighbors(scores, hubness, 4, 3.0)
    hub = int(before.mask[0].nonzero()[0])
    after = losses.neighbors(scores, hubness + F.one_hot(torch.tensor(hub), B), 4, 3.0)
    assert after.weights[0, hub] < before.weights[0, hub]


def test_scale_and_shift_of_hubness_change_nothing() -> None:
    scores, hubness = torch.randn(B, B), torch.rand(B)
    first, second = (losses.neighbors(scores, h, 4, 3.0).loss for h in (hubness, 7 * hubness - 3))
    torch.testing.assert_close(first, second)


def all_losses(local: Tensor, overall: Tensor, hubness: Tensor, weights: Tensor) -> Tensor:
    return torch.stack(
        [
            losses.weighted_nce(local, weights, weights, torch.tensor(30.0)),
            losses.uniform(overall, 0.7, 3.0, 50),
            losses.neighbors(local, hubness, 4, 3.0).loss,
            losses.divergence(local, overall),
        ]
    )


def test_permuting_the_pairs_changes_no_loss() -> None:
    local, overall, hubness, weights = torch.randn(B, B), torch.randn(B, B), torch.randn(B), torch.rand(B)
    order = torch.randperm(B)
    moved = all_losses(local[order][:, order], overall[order][:, order], hubness[order], weights[order])
    torch.testing.assert_close(moved, all_losses(local, overall, hubness, weights), rtol=1e-5, atol=1e-6)


def test_every_loss_has_a_finite_gradient() -> None:
    tensors = [torch.randn(B, B), 100 * torch.randn(B, B), torch.randn(B), torch.rand(B)]
    for tensor in tensors:
        tensor.requires_grad_()
    all_losses(*tensors).sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() and t.grad.any() for t in tensors)


def test_divergence_of_scores_that_differ_by_a_constant_is_zero() -> None:
    scores = torch.randn(B, B)
    assert losses.divergence(scores, scores + 5).item() == pytest.approx(0, abs=1e-7)
    p, q = scores.softmax(1), (2 * scores).softmax(1)
    pt, qt = scores.T.softmax(1), (2 * scores.T).softmax(1)
    slow = 0.5 * ((p * (p / q).log()).sum() + (pt * (pt / qt).log()).sum()) / B**2
    torch.testing.assert_close(losses.divergence(scores, 2 * scores), slow)


def test_weighted_nce_with_equal_weights_is_the_mean_of_both_cross_entropies() -> None:
    scores, pairs = torch.randn(B, B), torch.arange(B)
    wanted = 0.5 * (F.cross_entropy(30 * scores, pairs) + F.cross_entropy(30 * scores.T, pairs))
    ones = torch.ones(B)
    torch.testing.assert_close(losses.weighted_nce(scores, ones, ones, torch.tensor(30.0)), wanted)
