"""LEAN's losses against plain forms."""

from __future__ import annotations

import math

import torch

from trainers.lean.losses import contrastive, divergence


def test_pairs_of_one_video_are_no_negatives_of_each_other() -> None:
    scores, video = torch.randn(5, 5), [4, 2, 4, 9, 2]
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if j == i or video[j] != video[i]]
        expected += math.log(sum(math.exp(scores[i, j]) for j in others)) - float(scores[i, i])
    found = contrastive(scores, torch.tensor(video))
    torch.testing.assert_close(found, torch.tensor(expected / 5))
    raised = scores.clone()
    raised[0, 2] += 50
    assert torch.equal(contrastive(raised, torch.tensor(video)), found)
    assert contrastive(raised, torch.arange(5)) > found + 5


def test_a_batch_of_one_video_has_no_loss() -> None:
    assert contrastive(torch.randn(3, 3), torch.zeros(3)) == 0


def test_divergence_is_torchs_averaged_over_the_nodes_each_row_stands_for() -> None:
    mean, log_sigma = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    counts = torch.tensor([[4.0, 2, 1, 1], [3, 3, 1, 1]])
    normal = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    each = torch.distributions.kl_divergence(torch.distributions.Normal(mean, log_sigma.exp()), normal)
    found = divergence(mean, log_sigma, counts)
    for v in range(2):
        rows = each[v].repeat_interleave(counts[v].long(), 1)  # (Q, N, Z)
        torch.testing.assert_close(found[v], rows.mean((1, 2)))


def test_divergence_falls_to_zero_at_the_standard_normal() -> None:
    assert divergence(torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), torch.ones(1, 2)) == 0
