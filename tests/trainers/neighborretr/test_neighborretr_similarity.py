"""The token-wise score: what must not change it, and a loop over all pairs that computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.neighborretr import similarity
from trainers.neighborretr.similarity import (
    Tokens,
    local_similarity,
    prepare,
    token_maxima,
    token_weights,
    weighting_net,
)

DIMS = 8


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def made(count: int, slots: int, least: int = 1) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(least, slots + 1, (count, 1))
    return torch.randn(count, slots, DIMS), torch.arange(slots) < lengths


def nets() -> tuple[nn.Sequential, nn.Sequential]:
    return weighting_net(DIMS), weighting_net(DIMS)


def slow(net_t: nn.Module, words: Tensor, wm: Tensor, net_v: nn.Module, frames: Tensor, fm: Tensor) -> Tensor:
    """The score as the page prints it, a pair at a time."""
    rows = []
    for text, real in zip(words, wm, strict=True):
        a = torch.where(real, net_t(text).squeeze(-1), -9e15).softmax(0)
        row = []
        for video, shown in zip(frames, fm, strict=True):
            b = torch.where(shown, net_v(video).squeeze(-1), -9e15).softmax(0)
            s = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T * real[:, None] * shown
            row.append(0.5 * ((a * s.max(1).values).sum() + (b * s.max(0).values).sum()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("count", [5, 40])  # one group, and several
def test_scores_and_gradients_are_those_of_a_loop_over_pairs(count: int) -> None:
    net_t, net_v = nets()
    (words, wm), (frames, fm) = made(count, 6), made(count + 3, 4)
    words.requires_grad_(), frames.requires_grad_()
    everything = [words, frames, *net_t.parameters(), *net_v.parameters()]
    upstream = torch.randn(count, count + 3)
    wanted = slow(net_t, words, wm, net_v, frames, fm)
    found = local_similarity(prepare(net_t, words, wm), prepare(net_v, frames, fm))
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad((found * upstream).sum(), everything),
        torch.autograd.grad((wanted * upstream).sum(), everything),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def scored(
    net_t: nn.Module, texts: tuple[Tensor, Tensor], net_v: nn.Module, videos: tuple[Tensor, Tensor]
) -> Tensor:
    with torch.no_grad():
        return local_similarity(prepare(net_t, *texts), prepare(net_v, *videos))


def test_permuting_texts_and_videos_permutes_the_scores() -> None:
    net_t, net_v = nets()
    texts, videos = made(40, 6), made(33, 4)
    rows, columns = torch.randperm(40), torch.randperm(33)
    moved = scored(net_t, (texts[0][rows], texts[1][rows]), net_v, (videos[0][columns], videos[1][columns]))
    torch.testing.assert_close(moved, scored(net_t, texts, net_v, videos)[rows][:, columns])


def test_content_of_padding_never_changes_a_score() -> None:
    net_t, net_v = nets()
    (words, wm), (frames, fm) = made(20, 6), made(20, 4)
    noisy = words + 100 * torch.randn_like(words) * ~wm[..., None], frames + 100 * ~fm[..., None]
    before = scored(net_t, (words, wm), net_v, (frames, fm))
    assert torch.equal(scored(net_t, (noisy[0], wm), net_v, (noisy[1], fm)), before)


def longer(tokens: Tensor, mask: Tensor, more: int) -> tuple[Tensor, Tensor]:
    extra = torch.randn(len(tokens), more, DIMS)
    return torch.cat([tokens, extra], 1), F.pad(mask, (0, more))


def test_longer_padding_never_changes_a_score_of_a_padded_sample() -> None:
    net_t, net_v = nets()
    texts, videos = made(20, 6), made(20, 4)
    texts[1][:, -1], videos[1][:, -1] = (
        False,
        False,
    )  # all have padding already: its 0 takes part in the maxima
    before = scored(net_t, texts, net_v, videos)
    torch.testing.assert_close(scored(net_t, longer(*texts, 5), net_v, longer(*videos, 3)), before)


@pytest.mark.parametrize("count", [4, 48])
def test_padding_left_out_of_the_maxima_changes_nothing_however_long(count: int) -> None:
    net_t, net_v = nets()
    (words, wm), (frames, fm) = made(count, 6), made(count, 4)

    def found(texts: tuple[Tensor, Tensor], videos: tuple[Tensor, Tensor]) -> Tensor:
        return local_similarity(prepare(net_t, *texts, "neg_inf"), prepare(net_v, *videos, "neg_inf"))

    before = found((words, wm), (frames, fm))
    torch.testing.assert_close(found(longer(words, wm, 5), longer(frames, fm, 3)), before)
    one = found((words[:1, : wm[0].sum()], wm[:1, : wm[0].sum()]), (frames, fm))
    torch.testing.assert_close(one, before[:1])
    assert not torch.allclose(before, scored(net_t, (words, wm), net_v, (frames, fm)))


def test_opposite_tokens_score_below_zero_only_without_padding() -> None:
    net_t, net_v = nets()
    words, frames = torch.ones(1, 2, DIMS), -torch.ones(1, 2, DIMS)
    full, short = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, False]])
    assert scored(net_t, (words, full), net_v, (frames, full)).item() == pytest.approx(-1)
    assert scored(net_t, (words, short), net_v, (frames, short)).item() == 0
    assert scored(net_t, (words, short), net_v, (frames, full)).item() == pytest.approx(
        -0.5
    )  # words meet frames


def test_blocks_change_no_value_and_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    words, frames = torch.randn(21, 5, DIMS, requires_grad=True), torch.randn(17, 3, DIMS, requires_grad=True)
    upstream = torch.randn(21, 5, 17), torch.randn(21, 3, 17)

    def run() -> list[Tensor]:
        best = token_maxima(words, frames)
        total = (best[0] * upstream[0]).sum() + (best[1] * upstream[1]).sum()
        return [*best, *torch.autograd.grad(total, (words, frames))]

    whole = run()
    monkeypatch.setattr(similarity, "CPU_FLOATS", 400)
    for a, b in zip(run(), whole, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        for a, b in zip(token_maxima(words, frames), whole, strict=False):
            torch.testing.assert_close(a, b)


def test_gradient_of_equal_products_goes_to_the_first_alone() -> None:
    frame = torch.randn(1, 1, DIMS)
    frames = frame.repeat(1, 3, 1).requires_grad_()
    best_frame, _ = token_maxima(torch.randn(1, 2, DIMS), frames)
    best_frame.sum().backward()
    assert frames.grad is not None and frames.grad[0, 0].any() and not frames.grad[0, 1:].any()


def test_weights_are_those_of_the_real_tokens_and_sum_to_one() -> None:
    net, (tokens, mask) = weighting_net(DIMS), made(7, 5)
    found = token_weights(net, tokens, mask)
    assert found.shape == (7, 5) and not found[~mask].any()
    torch.testing.assert_close(found.sum(1), torch.ones(7))


def test_prepared_tokens_have_the_promised_shapes() -> None:
    tokens, mask = made(7, 5)
    found = prepare(weighting_net(DIMS), tokens, mask)
    assert isinstance(found, Tokens) and found.unit.shape == (7, 5, DIMS)
    assert torch.equal(found.length, mask.sum(1)) and found.length.dtype == torch.int64
    torch.testing.assert_close(found.unit.norm(dim=-1), mask.float())


def test_mask_with_gaps_counts_its_real_tokens_wherever_they_are() -> None:
    net_t, net_v = nets()
    (words, wm), videos = made(40, 6), made(40, 4)
    order = torch.stack([torch.randperm(6) for _ in range(40)])
    moved = words.gather(1, order[..., None].expand_as(words)), wm.gather(1, order)
    torch.testing.assert_close(scored(net_t, moved, net_v, videos), scored(net_t, (words, wm), net_v, videos))
