"""What HLFormer, GARE and NeighborRetr say of a match agrees with the scores that rank it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trainers.gare.config import GareConfig
from trainers.gare.method import Gare
from trainers.gare.model import GareNetwork
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.method import HLFormer
from trainers.method import Encoded, Method
from trainers.neighborretr.bank import Pairs
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr

Q, V, DIMS = 3, 4, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks(counts: list[int], slots: int) -> Tensor:
    return torch.arange(slots) < torch.tensor(counts)[:, None]


def hlformer() -> tuple[Method, Encoded, Encoded]:
    config = HLFormerConfig(
        hidden_size=32, heads=4, lorentz_dim=15, blocks=2, max_ctx_l=12, map_size=6, max_desc_l=5
    )
    torch.manual_seed(0)
    method = HLFormer(config, DIMS, DIMS).eval()
    mask = masks([12, 7, 5, 1], 12).float()
    with torch.no_grad():
        items = method.encode_items(
            {"clips": random(V, 6, DIMS), "frames": random(V, 12, DIMS) * mask[..., None], "frame_mask": mask}
        )
        texts = method.encode_texts({"tokens": random(Q, 5, DIMS), "token_mask": torch.ones(Q, 5)})
    return method, texts, items


def gare(mask_padding: bool = False) -> tuple[Gare, Encoded, Encoded]:
    config = GareConfig(mode="frozen", num_hidden_layers=1, max_frames=5, mask_padding=mask_padding)
    torch.manual_seed(0)
    method = Gare(config, GareNetwork(config, None, 64, 77)).eval()
    for name, values in method.network.head.named_parameters():  # sizes at which no part vanishes
        values.data += 0.2 * random(*values.shape, seed=len(name))
    mask = masks([5, 3, 2, 1], 5)
    with torch.no_grad():
        items = method.encode_items({"frames": random(V, 5, 64) * mask[..., None], "frame_mask": mask})
        texts = method.encode_texts({"words": random(Q, 1, 64, seed=1)})
    return method, texts, items


def neighborretr(pairs: int) -> tuple[NeighborRetr, Encoded, Encoded]:
    config = NeighborRetrConfig(
        mode="frozen",
        max_words=6,
        max_frames=4,
        bank_size=8,
        temporal_layers=1,
        num_neighbors=1,
        batch_size=8,
    )
    torch.manual_seed(0)
    method = NeighborRetr(config, None, 64).eval()
    if pairs:
        words, frames = random(pairs, 6, 64, seed=2), random(pairs, 4, 64, seed=3)
        method.bank.push(Pairs(words, masks([6, 3] * (pairs // 2), 6), frames, masks([4] * pairs, 4)))
    with torch.no_grad():
        items = method.encode_items({"frames": random(V, 4, 64), "frame_mask": masks([4, 3, 2, 1], 4)})
        texts = method.encode_texts({"words": random(Q, 6, 64, seed=1), "word_mask": masks([6, 4, 1], 6)})
    return method, texts, items


def test_hlformers_best_clip_and_frame_make_the_score_that_ranks() -> None:
    method, texts, items = hlformer()
    said = method.explain(texts, items)
    assert said["clip_scores"].shape == (Q, V, 6) and said["frame_scores"].shape == (Q, V, 12)
    best = torch.stack([said["clip_scores"].amax(-1), said["frame_scores"].amax(-1)], -1)
    torch.testing.assert_close((said["shares"] * best).sum(-1), method.scores(texts, items))
    assert said["frame_count"].tolist() == [[12, 7, 5, 1]] * Q
    for column, count in enumerate([12, 7, 5, 1]):
        assert (said["frame_scores"][:, column, count:] == 0).all()
        assert (said["frame_scores"][:, column, :count] != 0).all()


@pytest.mark.parametrize("mask_padding", [False, True])
def test_gares_parts_are_those_of_the_plain_increment(mask_padding: bool) -> None:
    method, texts, items = gare(mask_padding)
    head, frames, mask = method.network.head, items["frames"], items["mask"]
    with torch.no_grad():
        said = method.explain(texts, items)
        plain = head.plain(texts["text"], frames, mask)
        share = head.increments(texts["text"], items)
    summed = torch.einsum("bra,brd->abd", share, items["basis"])
    torch.testing.assert_close(summed, plain.delta, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(said["increment"], plain.delta.norm(dim=-1), rtol=2e-3, atol=2e-4)
    parts = share[:, :-2, :, None] * items["basis"][:, :-2, None]
    torch.testing.assert_close(
        said["frame_increments"], parts.norm(dim=-1).permute(2, 0, 1), rtol=2e-3, atol=2e-4
    )
    assert said["increment"].shape == said["text"].shape == (Q, V)
    torch.testing.assert_close(said["pool_weights"].sum(-1), torch.ones(Q, V))
    assert (said["pool_weights"][~mask.expand(Q, -1, -1)] == 0).all()
    pooled = plain.pool_weight / plain.pool_weight.sum(-1, keepdim=True)
    torch.testing.assert_close(said["pool_weights"], pooled)
    assert said["real"].sum(-1).tolist() == [[5, 3, 2, 1]] * Q
    if mask_padding:
        assert (said["frame_increments"][~mask.expand(Q, -1, -1)] == 0).all()


def test_neighborretrs_centrality_is_the_mean_score_with_every_caption_of_the_bank() -> None:
    method, texts, items = neighborretr(pairs=4)
    bank = method.bank.content()
    assert bank is not None
    with torch.no_grad():
        said = method.explain(texts, items)
        asking = method.encode_texts({"words": bank.words, "word_mask": bank.word_mask})
        wanted = method.scores(asking, items).mean(0)
    assert set(said) == {"centrality"} and said["centrality"].shape == (Q, V)
    torch.testing.assert_close(said["centrality"], wanted.expand(Q, -1))


def test_neighborretr_says_nothing_of_an_empty_bank_and_looks_again_after_training() -> None:
    method, texts, items = neighborretr(pairs=0)
    assert method.explain(texts, items) == {}
    method, texts, items = neighborretr(pairs=4)
    with torch.no_grad():
        before = method.explain(texts, items)["centrality"]
        method.train()
        method.bank.push(
            Pairs(random(4, 6, 64, seed=7), masks([6] * 4, 6), random(4, 4, 64), masks([4] * 4, 4))
        )
        method.eval()
        after = method.explain(texts, items)["centrality"]
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("make", [hlformer, gare, lambda: neighborretr(4)])
def test_a_pair_is_explained_alike_alone_and_among_others(make) -> None:  # type: ignore[no-untyped-def]
    method, texts, items = make()
    with torch.no_grad():
        every = method.explain(texts, items)
        one = method.explain({n: v[1:2] for n, v in texts.items()}, {n: v[2:3] for n, v in items.items()})
    for name, values in one.items():
        np.testing.assert_allclose(values[0, 0], every[name][1, 2], rtol=1e-3, atol=1e-5)
