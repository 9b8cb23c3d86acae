"""NeighborRetr as the engine meets it: batches in, terms, encodings and scores out, and the bank behind them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extractors.backbones.weights import import_open_clip
from pipeline.errors import UserError
from trainers.layers.clip_towers import ClipTowers
from trainers.method import Batch
from trainers.neighborretr.bank import Bank, Pairs
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr, optimizer
from trainers.neighborretr.official import official_name

DIMS, B = 64, 7
SMALL = {
    "max_words": 6,
    "max_frames": 4,
    "num_neighbors": 3,
    "batch_size": B,
    "bank_size": 10,
    "temporal_layers": 1,
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def config(**more: object) -> NeighborRetrConfig:
    return NeighborRetrConfig.model_validate({**SMALL, "mode": "frozen", "density_noise": False, **more})


def masks(slots: int, count: int = B) -> Tensor:
    return torch.arange(slots) < torch.randint(3, slots + 1, (count, 1))


def features(count: int = B) -> dict[str, Tensor]:
    return {
        "words": torch.randn(count, 6, DIMS),
        "word_mask": masks(6, count),
        "frames": torch.randn(count, 4, DIMS),
        "frame_mask": masks(4, count),
    }


def whole(**more: object) -> NeighborRetr:
    """A method around the smallest CLIP network there is."""
    vision = {"layers": 1, "width": DIMS, "head_width": DIMS, "patch_size": 8, "image_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": DIMS, "heads": 1, "layers": 1}
    network = import_open_clip().CLIP(DIMS, vision, text, quick_gelu=True)
    own = ClipTowers(network, half=more.get("precision") == "fp16-legacy")
    return NeighborRetr(config(mode="finetune", **more), own, own.dims)


def clips(method: NeighborRetr) -> Batch:
    assert method.network.towers is not None
    side = method.network.towers.image_size
    return {
        "tokens": torch.randint(1, 50, (B, 6)),
        "word_mask": masks(6),
        "frames": torch.randint(0, 256, (B, 4, side, side, 3), dtype=torch.uint8),
        "frame_mask": masks(4),
    }


def values(terms: dict[str, Tensor]) -> list[float]:
    return [term.item() for term in terms.values()]


def test_terms_are_named_finite_and_carry_a_gradient() -> None:
    method = NeighborRetr(config(), None, DIMS)
    terms = method.losses(features(), 0)
    assert list(terms) == ["centrality", "uniform", "neighbor", "kl"]
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_permuting_pairs_changes_no_term() -> None:
    method, batch, order = NeighborRetr(config(), None, DIMS), features(), torch.randperm(B)
    first = values(method.losses(batch, 0))
    method.bank.filled.zero_()
    again = values(method.losses({name: part[order] for name, part in batch.items()}, 0))
    assert again == pytest.approx(first, rel=1e-4)


def test_order_of_the_bank_changes_no_term() -> None:
    method, batch, older = NeighborRetr(config(), None, DIMS), features(), features(10)
    order = torch.randperm(10)
    found = []
    for rows in (torch.arange(10), order):
        parts = [older[name][rows] for name in Pairs._fields]
        method.bank.push(Pairs(*parts))
        found.append(values(method.losses(batch, 0)))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_bank_does_not_hold_the_batch_that_is_measured_against_it() -> None:
    method, first, second = NeighborRetr(config(), None, DIMS), features(), features()
    method.losses(first, 0)
    kept = method.bank.content()
    assert kept is not None and torch.equal(kept.words, first["words"])
    method.losses(second, 0)
    kept = method.bank.content()
    assert kept is not None and torch.equal(kept.words, torch.cat([second["words"], first["words"]])[:10])


def test_bank_is_part_of_the_state_so_that_a_resumed_run_goes_on_alike() -> None:
    method, batch = NeighborRetr(config(), None, DIMS), features()
    method.losses(features(), 0)
    other = NeighborRetr(config(), None, DIMS)
    other.load_state_dict(method.state_dict())
    assert values(other.losses(batch, 0)) == values(method.losses(batch, 0))


def test_bank_is_emptied_between_epochs_only_if_it_is_not_carried_over() -> None:
    for carry, left in ((True, 10), (False, B)):
        method = NeighborRetr(config(carry_over=carry), None, DIMS)
        for epoch in (0, 1):
            method.losses(features(), epoch)
        assert int(method.bank.filled) == left


def test_bank_smaller_than_a_batch_keeps_its_first_pairs() -> None:
    bank, pairs = Bank(3, 6, 4, DIMS), Pairs(*(features()[name] for name in Pairs._fields))
    assert bank.content() is None
    bank.push(pairs)
    kept = bank.content()
    assert kept is not None and torch.equal(kept.frames, pairs.frames[:3])


def test_scores_are_those_of_the_token_wise_similarity_in_training() -> None:
    method, batch = NeighborRetr(config(), None, DIMS).eval(), features(40)
    with torch.inference_mode():
        texts, items = method.encode_texts(batch), method.encode_items(batch)
        together = method.scores(texts, items)
        row = method.scores({n: t[3:4] for n, t in texts.items()}, {n: t[5:9] for n, t in items.items()})
    assert all(len(part) == 40 for part in (*texts.values(), *items.values()))
    torch.testing.assert_close(row, together[3:4, 5:9])


def test_padding_of_features_never_changes_a_score_but_through_the_frames_around_it() -> None:
    method, batch = NeighborRetr(config(temporal_layers=0), None, DIMS).eval(), features()
    noisy = {**batch, "words": batch["words"] + 9 * ~batch["word_mask"][..., None]}
    with torch.inference_mode():
        items = method.encode_items(batch)
        found = [method.scores(method.encode_texts(b), items) for b in (batch, noisy)]
    assert torch.equal(*found)


@pytest.mark.parametrize("slots", [24, 64])
def test_longer_inputs_train(slots: int) -> None:
    method = NeighborRetr(config(max_words=slots, max_frames=slots), None, DIMS)
    batch = {
        "words": torch.randn(B, slots, DIMS),
        "word_mask": masks(slots),
        "frames": torch.randn(B, slots, DIMS),
        "frame_mask": masks(slots),
    }
    torch.stack(list(method.losses(batch, 0).values())).sum().backward()
    weight = method.get_parameter("network.head.text_ctm0.conv.conv.weight").grad
    assert weight is not None and weight.isfinite().all() and weight.any()


def test_clips_and_captions_train_towers_but_not_the_patch_convolution() -> None:
    method = whole()
    torch.stack(list(method.losses(clips(method), 0).values())).sum().backward()
    gone = {name for name, p in method.named_parameters() if p.grad is None}
    assert gone == {"network.towers.clip.visual.conv1.weight"}


def test_token_embedding_can_be_frozen() -> None:
    method = whole(train_token_embedding=False)
    assert not method.get_parameter("network.towers.clip.token_embedding.weight").requires_grad


def test_optimizer_gives_clip_its_share_of_the_rate_and_spares_biases_alone_from_decay() -> None:
    method = whole()
    groups = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer(method.config, method, 10).param_groups
        for p in group["params"]
    }
    found = {name: groups.get(id(p)) for name, p in method.named_parameters()}
    assert found["network.towers.clip.visual.conv1.weight"] is None
    assert found["network.towers.clip.ln_final.weight"] == (pytest.approx(1e-7), 0.2)
    assert found["network.towers.clip.ln_final.bias"] == (pytest.approx(1e-7), 0.0)
    assert found["network.temporal.transformerClip.resblocks.0.ln_1.weight"] == (1e-4, 0.2)
    assert found["network.head.text_weight_fc.0.bias"] == (1e-4, 0.0)


def test_legacy_precision_trains_half_weights_of_clip_and_nothing_else() -> None:
    method = whole(precision="fp16-legacy")
    adam = optimizer(method.config, method, 10)
    for _ in range(2):  # the first update has a rate of 0
        torch.stack(list(method.losses(clips(method), 0).values())).sum().backward()
        adam.step()
        adam.zero_grad()
    half = {official_name(n) for n, p in method.named_parameters() if p.dtype is torch.float16}
    assert "clip.text_projection" in half and all(name.startswith("clip.") for name in half)
    assert "clip.ln_final.weight" not in half and "clip.token_embedding.weight" not in half
    assert all(p.isfinite().all() for p in method.parameters())


def test_unused_nets_change_no_term_and_get_a_gradient_of_exactly_zero() -> None:
    plain, carrying = (NeighborRetr(config(unused_nets=unused), None, DIMS) for unused in (False, True))
    carrying.load_state_dict(plain.state_dict(), strict=False)
    batch = features()
    terms = carrying.losses(batch, 0)
    assert values(terms) == pytest.approx(values(plain.losses(batch, 0)), rel=1e-5)
    torch.stack(list(terms.values())).sum().backward()
    first = carrying.get_parameter("network.head.text_weight_fc1.0.weight").grad
    assert first is not None and not first.any()
    assert carrying.get_parameter("network.head.text_weight_fc0.0.weight").grad is None


def test_cosines_as_global_scores_forget_the_length_of_features() -> None:
    method = NeighborRetr(config(global_similarity="cosine"), None, DIMS)
    texts, videos = torch.randn(2, B, DIMS)
    torch.testing.assert_close(
        method.network.head.overall(5 * texts, videos), method.network.head.overall(texts, videos)
    )


def test_logit_scale_is_kept_at_a_hundred_at_most() -> None:
    method = NeighborRetr(config(), None, DIMS)
    with torch.no_grad():
        method.network.logit_scale.fill_(9.0)
    method.losses(features(), 0)
    assert method.network.scale.item() == pytest.approx(100)


def test_batch_with_too_few_others_is_refused_with_what_to_do() -> None:
    method = NeighborRetr(config(), None, DIMS)
    with pytest.raises(UserError, match="a batch of 5 pairs is too small for 3 neighbours, which take 6"):
        method.losses(features(5), 0)
