"""Clustering of tokens: a slow twin of the density peaks, the merge, and what must not change them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.neighborretr.clustering import (
    ClusterAttention,
    TokenClustering,
    cluster_count,
    density_peaks,
    initialise_clustering,
    merge,
)
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.model import NeighborRetrHead, shared_noise


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def slow_peaks(tokens: Tensor, mask: Tensor, clusters: int, knn: int) -> list[list[int]]:
    """The assignment as the page prints it, a token at a time."""
    count, width = tokens.shape[1:]
    apart = [[[(a - b).norm().item() / width**0.5 for b in sample] for a in sample] for sample in tokens]
    furthest = max(value for sample in apart for row in sample for value in row)
    out = []
    for distances, real in zip(apart, mask.tolist(), strict=True):
        d = [[row[j] if real[j] else furthest + 1 for j in range(count)] for row in distances]
        near = [sorted(row)[:knn] for row in d]
        rho = [
            torch.tensor(-sum(x * x for x in n) / knn).exp().item() * r
            for n, r in zip(near, real, strict=True)
        ]
        most = max(value for row in d for value in row)
        delta = [min([d[i][j] for j in range(count) if rho[j] > rho[i]], default=most) for i in range(count)]
        centres = sorted(range(count), key=lambda i: -delta[i] * rho[i])[:clusters]
        joined = [min(range(clusters), key=lambda c: d[centres[c]][j]) for j in range(count)]
        for number, centre in enumerate(centres):
            joined[centre] = number
        out.append(joined)
    return out


def test_clusters_are_those_of_a_loop_over_tokens() -> None:
    tokens, mask = torch.randn(6, 9, 5), torch.arange(9) < torch.tensor([[9], [8], [7], [6], [5], [4]])
    assert density_peaks(tokens, mask, 3, 3).tolist() == slow_peaks(tokens, mask, 3, 3)


def test_permuting_samples_permutes_their_clusters() -> None:
    tokens, mask, order = torch.randn(8, 9, 5), torch.ones(8, 9, dtype=torch.bool), torch.randperm(8)
    found = density_peaks(tokens, mask, 3, 3)
    assert torch.equal(density_peaks(tokens[order], mask, 3, 3), found[order])


def test_noise_below_the_differences_of_densities_changes_no_cluster() -> None:
    tokens, mask = torch.randn(8, 9, 5), torch.ones(8, 9, dtype=torch.bool)
    noise = shared_noise(mask.shape, torch.device("cpu"))
    assert noise.shape == (8, 9) and noise.min() >= 0 and noise.max() < 1e-6 and noise.unique().numel() > 60
    assert torch.equal(density_peaks(tokens, mask, 3, 3, noise), density_peaks(tokens, mask, 3, 3))


def test_single_cluster_takes_any_number_of_tokens() -> None:
    assert not density_peaks(torch.randn(2, 1, 5), None, 1, 3).any()


def test_merge_is_the_plain_weighted_mean_and_a_cluster_without_real_tokens_is_zero() -> None:
    tokens, score = torch.randn(1, 4, 5), torch.tensor([[0.3, -1.0, 2.0, -torch.inf]])
    found = merge(tokens, score, torch.tensor([[0, 0, 1, 2]]), 3)
    w = score.exp()[0]
    first = (tokens[0, 0] * w[0] + tokens[0, 1] * w[1]) / (w[0] + w[1] + 1e-6)
    torch.testing.assert_close(found[0], torch.stack([first, tokens[0, 2] * w[2] / (w[2] + 1e-6), 0 * first]))


def test_merge_of_great_and_small_scores_stays_finite() -> None:
    tokens = torch.randn(1, 4, 5)
    found = merge(tokens, torch.tensor([[200.0, 199.0, -200.0, -201.0]]), torch.tensor([[0, 0, 1, 1]]), 2)
    shares = torch.tensor([1.0, -1.0]).mul(0.5).softmax(0)
    torch.testing.assert_close(found[0, 0], shares @ tokens[0, :2])
    assert not found[0, 1].any()  # 1e-6 outweighs exp(-200), as it does in exact arithmetic


@pytest.mark.parametrize(
    ("tokens", "ratio", "count"), [(24, 1 / 6, 4), (12, 1 / 4, 3), (3, 1 / 3, 1), (1, 0.1, 1)]
)
def test_count_of_clusters_is_rounded_up(tokens: int, ratio: float, count: int) -> None:
    assert cluster_count(tokens, ratio) == count


def test_stage_has_the_promised_shapes_and_hides_padding() -> None:
    stage, attend = TokenClustering(16), ClusterAttention(16, 4)
    initialise_clustering(attend)
    assert not attend.attn.kv.bias.any()
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    tokens = torch.randn(2, 7, 16, requires_grad=True)
    clusters = stage(tokens, mask, 3, 3, None)
    assert clusters.tokens.shape == (2, 7, 16) and clusters.merged.shape == (2, 3, 16)
    assert torch.equal(clusters.score.isinf(), ~mask) and clusters.assign.max() < 3
    attend(clusters).sum().backward()
    assert tokens.grad is not None and tokens.grad.isfinite().all()


@pytest.mark.parametrize("slots", [3, 24, 64])
def test_summary_is_one_vector_for_any_number_of_tokens(slots: int) -> None:
    head = NeighborRetrHead(NeighborRetrConfig(max_words=slots), 16)
    mask = torch.arange(slots) < torch.tensor([[slots], [max(3, slots // 2)]])
    found = head.summary("text", torch.randn(2, slots, 16), mask)
    assert found.vectors.shape == (2, 16) and found.vectors.isfinite().all()
