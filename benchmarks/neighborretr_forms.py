"""NeighborRetr's head at published sizes against a plain form of the same maths, in CPU seconds.

Evaluation: 1000 captions x 1000 videos. The plain form scores blocks of 64 x 64 and weighs and normalises the
tokens of both sides anew for each; goal: 4.5 CPU seconds where the plain form takes 10.1. Training step of the
head: 128 pairs against a bank of 480; the plain form keeps all products for the gradient and multiplies
padding; goal: 2.3 where it takes 2.9. Both forms run in turn, their values are compared first, the ratio is that
of medians. Captions fill 5 to 24 of their slots, videos 8 to 12; --full fills all. Usage:
python benchmarks/neighborretr_forms.py [--repeats 3] [--full]
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.neighborretr import losses, objective
from trainers.neighborretr.bank import Pairs
from trainers.neighborretr.config import NeighborRetrConfig
from trainers.neighborretr.method import NeighborRetr
from trainers.neighborretr.model import NeighborRetrHead, Side

DIMS, BLOCK, GALLERY = 512, 64, 1000
BATCH, BANK = 128, 480


def main() -> None:
    """Compare the values, time both forms in turn, print CPU seconds and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each form")
    parser.add_argument("--full", action="store_true", help="no padding at all")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = NeighborRetrConfig(density_noise=False)  # without it both forms cluster alike
    method = NeighborRetr(config, None, DIMS)
    gallery = made_pairs(GALLERY, config, arguments.full)
    batch, bank = made_pairs(BATCH, config, arguments.full), made_pairs(BANK, config, arguments.full)
    head, plain = method.network.head, copy.deepcopy(method.network.head)
    evaluations = {
        "ours": lambda: ours_scores(method, gallery),
        "plain": lambda: plain_scores(plain, gallery),
    }
    steps = {"ours": lambda: ours_step(head, batch, bank), "plain": lambda: plain_step(plain, batch, bank)}
    for title, forms in ((f"{GALLERY} x {GALLERY} scores", evaluations), ("head step", steps)):
        plain_values = forms["plain"]()
        apart = ((forms["ours"]() - plain_values).abs() / plain_values.abs().clamp_min(1e-3)).max().item()
        times: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(arguments.repeats):
            for name, form in forms.items():
                times[name].append(cpu_seconds(form))
        ours_s, plain_s = (statistics.median(times[name]) for name in ("ours", "plain"))
        print(f"{title}: ours {ours_s:.2f} CPU s, plain {plain_s:.2f} CPU s, plain / ours {plain_s / ours_s:.2f}, "
              f"greatest relative difference {apart:.1e}")  # fmt: skip


def cpu_seconds(form: Callable[[], Tensor]) -> float:
    """CPU seconds of one call, over all threads: wall time would say how busy the machine is."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    form()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def made_pairs(count: int, config: NeighborRetrConfig, full: bool) -> Pairs:
    """Pairs of random features; the lengths of captions and videos vary."""
    words = torch.randint(config.max_words if full else 5, config.max_words + 1, (count, 1))
    frames = torch.randint(config.max_frames if full else 8, config.max_frames + 1, (count, 1))
    return Pairs(
        torch.randn(count, config.max_words, DIMS),
        torch.arange(config.max_words) < words,
        torch.randn(count, config.max_frames, DIMS),
        torch.arange(config.max_frames) < frames,
    )


@torch.inference_mode()
def ours_scores(method: NeighborRetr, pairs: Pairs) -> Tensor:
    """Scores (A, V), each caption and video prepared once."""
    texts = method.encode_texts({"words": pairs.words, "word_mask": pairs.word_mask})
    videos = method.network.head.tokens("video", pairs.frames, pairs.frame_mask)
    encoded = {"unit": videos.unit, "weights": videos.weights, "length": videos.length}
    return method.scores(texts, encoded)


@torch.inference_mode()
def plain_scores(head: NeighborRetrHead, pairs: Pairs) -> Tensor:
    """The same scores, block by block."""
    rows = []
    for words, word_mask in zip(pairs.words.split(BLOCK), pairs.word_mask.split(BLOCK), strict=True):
        columns = zip(pairs.frames.split(BLOCK), pairs.frame_mask.split(BLOCK), strict=True)
        rows.append(torch.cat([plain_local(head, words, word_mask, *column) for column in columns], 1))
    return torch.cat(rows)


def plain_local(
    head: NeighborRetrHead, words: Tensor, word_mask: Tensor, frames: Tensor, frame_mask: Tensor
) -> Tensor:
    """L (A, V) with all products in memory."""
    a, b = plain_weights(head, "text", words, word_mask), plain_weights(head, "video", frames, frame_mask)
    unit = (F.normalize(words, dim=-1) * word_mask[..., None]).flatten(0, 1)
    other = (F.normalize(frames, dim=-1) * frame_mask[..., None]).flatten(0, 1)
    products = (unit @ other.T).view(*words.shape[:2], *frames.shape[:2])  # (A, P, V, Q)
    best_frame, best_word = products.max(3).values, products.max(1).values
    return 0.5 * (torch.einsum("ap,apv->av", a, best_frame) + torch.einsum("vq,avq->av", b, best_word))


def plain_weights(head: NeighborRetrHead, side: Side, tokens: Tensor, mask: Tensor) -> Tensor:
    """Weights (N, L) of all tokens, padded ones computed and thrown away."""
    logits = getattr(head, f"{side}_weight_fc")(tokens).squeeze(-1)
    return logits.masked_fill(~mask, -9e15).softmax(-1)


def trainable(batch: Pairs) -> Pairs:
    """The batch with features that take a gradient."""
    return batch._replace(
        words=batch.words.clone().requires_grad_(), frames=batch.frames.clone().requires_grad_()
    )


def gradients(head: NeighborRetrHead, batch: Pairs, terms: dict[str, Tensor]) -> Tensor:
    """Backward pass; the loss terms and the sizes of gradients, of the features and of the weighting nets."""
    head.zero_grad()
    values = torch.stack(list(terms.values()))
    values.sum().backward()
    nets = [p for name, p in head.named_parameters() if "_weight_fc" in name]  # what L alone trains
    sizes = [part.grad.norm() for part in (batch.words, batch.frames, *nets) if part.grad is not None]
    return torch.cat([values.detach(), torch.stack(sizes)])


def ours_step(head: NeighborRetrHead, batch: Pairs, bank: Pairs) -> Tensor:
    """Losses and gradients of a step."""
    batch = trainable(batch)
    out = objective.outputs(head, batch, bank)
    return gradients(head, batch, objective.terms(head, out, torch.tensor(100.0)))


def plain_step(head: NeighborRetrHead, batch: Pairs, bank: Pairs) -> Tensor:
    """The same step with the plain token-wise scores."""
    batch = trainable(batch)
    words, word_mask, frames, frame_mask = batch
    text = head.summary("text", words, word_mask)
    video = head.summary("video", frames, frame_mask)
    bank_texts = plain_local(head, bank.words, bank.word_mask, frames, frame_mask)
    bank_videos = plain_local(head, words, word_mask, bank.frames, bank.frame_mask)
    scale = head.config.centrality_scale
    out = objective.Outputs(
        text=text,
        video=video,
        local=plain_local(head, words, word_mask, frames, frame_mask),
        overall=head.overall(text.vectors, video.vectors),
        bank_texts=bank_texts,
        bank_videos=bank_videos,
        text_hubness=bank_videos.mean(1),
        video_hubness=bank_texts.mean(0),
        text_centrality=losses.centrality(text.vectors, words, scale),
        video_centrality=losses.centrality(video.vectors, frames, scale),
    )
    return gradients(head, batch, objective.terms(head, out, torch.tensor(100.0)))


if __name__ == "__main__":
    main()
