"""A training step of HLFormer at published sizes against a plain form of the same maths, on the CPU.

The plain form loops over videos in its losses, builds every window anew, projects all keys and values of the
pooling attention and loops over parameters in its optimizer. Both run in turn; the ratio of their times is
that of medians, and their losses are compared first. Usage: python benchmarks/hlformer_step.py [--steps 3]
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.geometry.cone import exterior_angle, half_aperture
from trainers.hlformer import losses, model
from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.losses import Negatives
from trainers.hlformer.method import HLFormer, TrainingOutputs, optimizer
from trainers.hlformer.model import PoolingAttention
from trainers.loop.optim import warmup_linear
from trainers.method import Batch

VIDEOS, CAPTIONS = 24, 5
VISUAL_DIM, TEXT_DIM = 3072, 768  # feature sizes of TVR
TOTAL_STEPS = 1000


def main() -> None:
    """Compare the losses, time both forms in turn, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each form")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # Without dropout the losses can be compared; both forms would drop alike.
    config = HLFormerConfig.model_validate({"dropout": 0.0, "input_dropout": 0.0})
    ours = HLFormer(config, VISUAL_DIM, TEXT_DIM)
    plain = copy.deepcopy(ours)
    batch = made_batch(config)
    compare(ours, plain, batch)
    fast, slow = optimizer(config, ours, TOTAL_STEPS), PlainBertAdam(plain, config)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for step in range(arguments.steps + 1):  # the first warms up
        for name, run in (
            ("ours", lambda: our_step(ours, fast, batch)),
            ("plain", lambda: plain_step(plain, slow, batch)),
        ):
            began = time.perf_counter()
            run()
            if step:
                times[name].append(time.perf_counter() - began)
    ours_s, plain_s = (statistics.median(times[name]) for name in ("ours", "plain"))
    print(
        f"{VIDEOS} videos x {CAPTIONS} captions, {torch.get_num_threads()} threads, {arguments.steps} steps each"
    )
    print(f"ours {ours_s:.3f} s, plain {plain_s:.3f} s, plain / ours {plain_s / ours_s:.2f}")


def made_batch(config: HLFormerConfig) -> Batch:
    """A batch of unit rows; the lengths of videos and captions vary."""
    lengths = (
        torch.randint(config.max_ctx_l // 4, config.max_ctx_l + 1, (VIDEOS,)).sort(descending=True).values
    )
    words = torch.randint(5, config.max_desc_l + 1, (VIDEOS * CAPTIONS,))
    frame_mask = (torch.arange(int(lengths.max())) < lengths[:, None]).float()
    token_mask = (torch.arange(int(words.max())) < words[:, None]).float()
    return {
        "clips": F.normalize(torch.randn(VIDEOS, config.map_size, VISUAL_DIM), dim=-1),
        "frames": F.normalize(torch.randn(*frame_mask.shape, VISUAL_DIM), dim=-1) * frame_mask[..., None],
        "frame_mask": frame_mask,
        "tokens": F.normalize(torch.randn(*token_mask.shape, TEXT_DIM), dim=-1) * token_mask[..., None],
        "token_mask": token_mask,
        "owner": torch.arange(VIDEOS).repeat_interleave(CAPTIONS),
    }


def compare(ours: HLFormer, plain: HLFormer, batch: Batch) -> None:
    """Refuse to time forms whose losses differ."""
    owner = batch["owner"]
    with torch.no_grad():
        out = ours.outputs(batch)
        negatives = [losses.draw_negatives(scores.cos, owner, False, 20) for scores in (out.clip, out.frame)]
        a = sum(ours.terms(out, owner, *negatives).values())
        b = plain_loss(plain, batch, negatives)
    if abs(float(a - b)) > 1e-5 * abs(float(b)):
        raise SystemExit(f"the losses differ: ours {float(a)}, plain {float(b)}")
    print(f"loss: ours {float(a):.7f}, plain {float(b):.7f}")


def our_step(method: HLFormer, adam: torch.optim.Optimizer, batch: Batch) -> None:
    """A step as the engine takes it."""
    torch.stack(list(method.losses(batch, 0).values())).sum().backward()
    adam.step()
    adam.zero_grad()


def plain_step(method: HLFormer, adam: PlainBertAdam, batch: Batch) -> None:
    """The same step in the plain form."""
    plain_loss(method, batch, None).backward()
    adam.step()
    method.zero_grad()


def plain_loss(method: HLFormer, batch: Batch, negatives: list[Negatives] | None) -> Tensor:
    """The total of all terms, by loops; negatives are drawn by rank where none are given."""
    c, owner = method.config, batch["owner"].tolist()
    with (
        mock.patch.object(model, "windowed", plain_windowed),
        mock.patch.object(PoolingAttention, "forward", plain_pooling),
        mock.patch("trainers.hlformer.method.max_scores", plain_scores),
    ):
        out = method.outputs(batch)
    total = c.clip_nce_weight * plain_nce(out.clip.dot, owner) + c.frame_nce_weight * plain_nce(
        out.frame.dot, owner
    )
    for number, scores in enumerate((out.clip.cos, out.frame.cos)):
        total = total + plain_triplet(scores, owner, c.margin, negatives[number] if negatives else None)
    total = total + c.diversity_weight * plain_diversity(out.queries, owner, c.mu, c.diversity_scale)
    return total + c.partial_order_weight * plain_order(out, owner)


def plain_windowed(logits: Tensor, width: float | None, form: str) -> Tensor:
    """The window from its formula, each time."""
    if width is None:
        return logits
    length = logits.shape[-1]
    centre, grid = torch.arange(length) / length, torch.linspace(0, 1, length)
    window = torch.exp(-((grid[None] - centre[:, None]) ** 2) / (2 * (max(width, 0.01) / 9) ** 2))
    return logits * (window / window.max(1, keepdim=True).values).to(logits.device)


def plain_pooling(self: PoolingAttention, token: Tensor, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Keys and values of all blocks' outputs projected, for the one query."""
    pooled = []
    for k in range(outputs.shape[1]):
        x = outputs[:, k]
        q, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(token), self.key(x), self.value(x))
        )
        logits = q @ key.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits + (1 - mask[:, None, None]) * model.MASKED_LOGIT
        pooled.append((self.drop(logits.softmax(-1)) @ value).transpose(1, 2).flatten(2))
    return torch.cat(pooled, 1)


def plain_scores(queries: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Both kinds of score by a product of their own."""
    cos = torch.einsum("qd,vld->qvl", F.normalize(queries, dim=-1), F.normalize(positions, dim=-1))
    return cos.max(-1).values, torch.einsum("qd,vld->qvl", queries, positions).max(-1).values


def plain_nce(scores: Tensor, owner: list[int]) -> Tensor:
    """The contrastive loss, a video and a caption at a time."""
    texts = [torch.logsumexp(scores[q], 0) - scores[q, v] for q, v in enumerate(owner)]
    videos = []
    for v in range(scores.shape[1]):
        own = [q for q, item in enumerate(owner) if item == v]
        videos.append(torch.logsumexp(scores[:, v], 0) - torch.logsumexp(scores[own, v], 0))
    return torch.stack(texts).mean() + torch.stack(videos).mean()


def plain_triplet(scores: Tensor, owner: list[int], margin: float, negatives: Negatives | None) -> Tensor:
    """The triplet loss, a video and a caption at a time, negatives by their rank in a sorted list."""
    videos, texts = [], []
    for v in range(scores.shape[1]):
        own = [q for q, item in enumerate(owner) if item == v]
        others = [q for q, item in enumerate(owner) if item != v]
        ranked = torch.argsort(scores.detach()[others, v], descending=True)
        drawn = others[int(ranked[torch.randint(len(others), ())])]
        wrong = drawn if negatives is None else int(negatives.captions[v])
        videos.append((margin + scores[wrong, v] - scores[own, v].mean()).relu())
    raised = scores.detach().clone()
    for q, v in enumerate(owner):
        raised[q, v] = 999.0
    ranked = torch.argsort(raised, dim=1, descending=True)
    for q, v in enumerate(owner):
        drawn = int(ranked[q, torch.randint(1, scores.shape[1], ())])
        wrong = drawn if negatives is None else int(negatives.videos[q])
        texts.append((margin + scores[q, wrong] - scores[q, v]).relu())
    return torch.stack(videos).mean() + torch.stack(texts).mean()


def plain_diversity(queries: Tensor, owner: list[int], mu: float, scale: float) -> Tensor:
    """The diversity loss with a one-hot table built on the host."""
    unit = F.normalize(queries, dim=-1)
    cosine = unit @ unit.T
    pairs = torch.zeros_like(cosine)
    for a, v in enumerate(owner):
        for b, other in enumerate(owner):
            pairs[a, b] = float(a != b and v == other)
    return (pairs * (1 + cosine) * F.softplus(scale * (cosine + mu))).sum() / len(owner)


def plain_order(out: TrainingOutputs, owner: list[int]) -> Tensor:
    """The partial-order loss."""
    apex = torch.stack([out.videos_space[v] for v in owner])
    return (exterior_angle(apex, out.texts_space, out.c) - half_aperture(apex, out.c)).relu().mean()


class PlainBertAdam:
    """The published optimizer as a loop over parameters."""

    def __init__(self, method: HLFormer, config: HLFormerConfig) -> None:
        self.named, self.config, self.updates = list(method.named_parameters()), config, 0
        self.state = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.named}

    @torch.no_grad()
    def step(self) -> None:
        """One update."""
        rate = self.config.lr * warmup_linear(self.updates / TOTAL_STEPS, self.config.warmup)
        for name, p in self.named:
            if p.grad is None:
                continue
            torch.nn.utils.clip_grad_norm_(p, self.config.max_grad_norm)
            first, second = self.state[name]
            first.mul_(0.9).add_(p.grad, alpha=0.1)
            second.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            update = first / (second.sqrt() + 1e-6)
            if "bias" not in name and "LayerNorm.weight" not in name:
                update += self.config.weight_decay * p
            p.add_(-rate * update)
        self.updates += 1


if __name__ == "__main__":
    main()
