"""The losses of HLFormer against loops written from their formulas."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from trainers.hlformer import losses
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.losses import Negatives
from trainers.hlformer.method import HLFormer

OWNER = torch.tensor([0, 0, 1, 2, 2, 2, 3])
MIXED = torch.tensor([2, 0, 3, 2, 1, 0, 2])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def own(owner: Tensor, video: int) -> list[int]:
    return [q for q, item in enumerate(owner.tolist()) if item == video]


@pytest.mark.parametrize("owner", [OWNER, MIXED])
def test_contrastive_loss_is_that_of_a_loop(owner: Tensor) -> None:
    scores = random(7, 4)
    e = scores.double().exp()
    texts = [-math.log(e[q, v] / e[q].sum()) for q, v in enumerate(owner.tolist())]
    videos = [-math.log(e[own(owner, v), v].sum() / e[:, v].sum()) for v in range(4)]
    expected = sum(texts) / 7 + sum(videos) / 4
    assert losses.nce(scores, owner).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("owner", [OWNER, MIXED])
def test_triplet_loss_is_that_of_a_loop(owner: Tensor) -> None:
    scores = random(7, 4)
    negatives = losses.draw_negatives(scores, owner, hard=False, pool=20)
    expected = 0.0
    for v in range(4):
        mean = sum(scores[q, v].item() for q in own(owner, v)) / len(own(owner, v))
        expected += max(0.0, 0.2 + scores[negatives.captions[v], v].item() - mean) / 4
    for q, v in enumerate(owner.tolist()):
        expected += max(0.0, 0.2 + scores[q, negatives.videos[q]].item() - scores[q, v].item()) / 7
    assert losses.triplet(scores, owner, negatives, 0.2).item() == pytest.approx(expected, rel=1e-5)


def test_soft_negatives_are_never_positives_and_reach_every_other() -> None:
    scores = random(7, 4)
    captions: list[set[int]] = [set() for _ in range(4)]
    videos: list[set[int]] = [set() for _ in range(7)]
    torch.manual_seed(0)
    for _ in range(200):
        drawn = losses.draw_negatives(scores, MIXED, hard=False, pool=20)
        for v, q in enumerate(drawn.captions.tolist()):
            captions[v].add(q)
        for q, v in enumerate(drawn.videos.tolist()):
            videos[q].add(v)
    assert captions == [set(range(7)) - set(own(MIXED, v)) for v in range(4)]
    assert videos == [set(range(4)) - {v} for v in MIXED.tolist()]


def test_hard_negatives_are_the_best_caption_and_one_of_the_best_videos() -> None:
    scores = random(7, 4)
    for _ in range(50):
        drawn = losses.draw_negatives(scores, MIXED, hard=True, pool=2)
        for v, q in enumerate(drawn.captions.tolist()):
            others = [other for other in range(7) if MIXED[other] != v]
            assert q == max(others, key=lambda other: scores[other, v].item())
        for q, v in enumerate(drawn.videos.tolist()):
            others = [other for other in range(4) if MIXED[q] != other]
            assert v in sorted(others, key=lambda other: -scores[q, other].item())[:2]


def test_hard_pool_larger_than_the_batch_takes_all_other_videos() -> None:
    scores, seen = random(7, 4), set()
    for _ in range(100):
        seen |= set(losses.draw_negatives(scores, MIXED, hard=True, pool=20).videos[:1].tolist())
    assert seen == {0, 1, 3}


def test_draws_carry_no_gradient_but_the_loss_does() -> None:
    scores = random(7, 4).requires_grad_()
    drawn = losses.draw_negatives(scores, OWNER, hard=True, pool=20)
    losses.triplet(scores, OWNER, drawn, 5.0).backward()
    assert not drawn.captions.requires_grad
    assert scores.grad is not None and scores.grad.abs().sum() > 0


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_diversity_loss_is_that_of_a_loop(power: float) -> None:
    queries = random(7, 5)
    expected = 0.0
    for a in range(7):
        for b in range(7):
            if a != b and MIXED[a] == MIXED[b]:
                cosine = torch.cosine_similarity(queries[a], queries[b], dim=0).item()
                expected += (1 + cosine) ** power * math.log1p(math.exp(32 * (cosine + 0.15))) / 7
    assert losses.diversity(queries, MIXED, 0.15, 32, power).item() == pytest.approx(expected, rel=1e-4)


def test_losses_do_not_depend_on_the_order_of_captions() -> None:
    scores, queries, order = random(7, 4), random(7, 5, seed=1), torch.randperm(7)
    torch.testing.assert_close(losses.nce(scores[order], MIXED[order]), losses.nce(scores, MIXED))
    a, b = (losses.diversity(queries[o], MIXED[o], 0.15, 32, 1) for o in (order, torch.arange(7)))
    torch.testing.assert_close(a, b)


def test_partial_order_is_zero_inside_the_cones_and_grows_outside() -> None:
    videos, c = torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.tensor(1.0)
    owner = torch.tensor([0, 1])
    assert losses.partial_order(2 * videos, videos, owner, c).item() == 0
    assert losses.partial_order(2 * videos.flip(0), videos, owner, c).item() > 1


def test_batch_of_one_video_has_no_triplet_term_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    method = HLFormer(
        HLFormerConfig(
            hidden_size=8, heads=2, lorentz_dim=7, blocks=4, map_size=4, max_ctx_l=6, max_desc_l=5
        ),
        5,
        3,
    )
    batch = {
        "clips": random(1, 4, 5),
        "frames": random(1, 3, 5),
        "frame_mask": torch.ones(1, 3),
        "tokens": random(2, 5, 3),
        "token_mask": torch.ones(2, 5),
        "owner": torch.tensor([0, 0]),
    }
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            terms = method.losses(batch, epoch=0)
    assert terms["clip_triplet"].item() == terms["frame_triplet"].item() == 0
    assert len(caplog.records) == 1 and "1 video" in caplog.text
    torch.stack(list(terms.values())).sum().backward()


def test_negatives_given_explicitly_are_the_ones_used() -> None:
    scores, owner = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1, 2])
    negatives = Negatives(captions=torch.tensor([1, 0, 1]), videos=torch.tensor([2, 2, 0]))
    # videos: 0 + 0 - 0, 0 + 1 - 0, 0 + 3 - 0; captions: 2 - 0, 3 - 0, 0 - 0
    assert losses.triplet(scores, owner, negatives, 0.0).item() == pytest.approx(
        (0 + 1 + 3) / 3 + (2 + 3 + 0) / 3
    )
