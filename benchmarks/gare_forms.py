"""GARE's head: the plain form against the factorised ones, in CPU seconds, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/gare_forms.py [--items 1000] [--batch 128] [--repeats 3]

Evaluation: scores of N captions x N videos; the plain form in blocks of 16 x 16, as the release. Training: one step
of the head with all four loss terms, forward and backward, the same dropout mask for both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainers.gare import losses
from trainers.gare.config import GareConfig
from trainers.gare.model import Head

BLOCK = 16


def inputs(count: int, frames: int, dims: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions (N, D), frames (N, F, D), mask (N, F), with a quarter of the videos padded."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(count, dims, generator=generator)
    video = text[:, None] + torch.randn(count, frames, dims, generator=generator)
    mask = torch.ones(count, frames)
    mask[::4, frames // 2 :] = 0
    return text, video, mask


def plain_scores(head: Head, text: Tensor, frames: Tensor, mask: Tensor) -> Tensor:
    """Scores (A, B) from pair-level tensors, block by block."""
    rows = []
    for part in text.split(BLOCK):
        pairs = zip(frames.split(BLOCK), mask.split(BLOCK), strict=True)
        rows.append(torch.cat([head.plain(part, f, m).sim for f, m in pairs], 1))
    return torch.cat(rows)


def total(similarity: Tensor, delta: Tensor, config: GareConfig) -> Tensor:
    """The whole loss at a temperature of 0.01."""
    terms = losses.contrastive(similarity, torch.tensor(100.0))
    terms = terms + config.beta * losses.divergence(delta, config.kl_reduction)
    terms = terms + config.lambda_dir * losses.direction(delta, config.alpha)
    return terms + config.lambda_epsilon * losses.norm(delta, config.lambda_lower)


def cpu_seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """CPU seconds of one call, and what it gave."""
    began = time.process_time()
    out = work()
    return time.process_time() - began, out


def compared(name: str, plain: Callable[[], Tensor], fast: Callable[[], Tensor], repeats: int) -> None:
    """Print the least CPU seconds of both, their ratio, and how far their results are apart."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        (a, expected), (b, found) = cpu_seconds(plain), cpu_seconds(fast)
        times[0].append(a)
        times[1].append(b)
    difference = float((found - expected).abs().max() / expected.abs().max())
    slow, quick = min(times[0]), min(times[1])
    print(
        f"{name}: plain {slow:.2f} s, factorised {quick:.2f} s, ratio {slow / quick:.1f}, difference {difference:.1e}"
    )


def main() -> None:
    """Measure both forms."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    head, config = Head(options.dims), GareConfig()

    text, frames, mask = inputs(options.items, options.frames, options.dims, 1)
    with torch.inference_mode():
        compared(
            f"evaluation {options.items} x {options.items}",
            lambda: plain_scores(head, text, frames, mask),
            lambda: head.score(text, head.prepare(frames, mask)),
            options.repeats,
        )

    text, frames, mask = inputs(options.batch, options.frames, options.dims, 2)
    keep = torch.empty(options.batch, options.batch, options.dims).bernoulli_(1 - config.psi_dropout)

    def step(plain: bool) -> Tensor:
        own, seen = text.clone().requires_grad_(), frames.clone().requires_grad_()
        if plain:
            out = head.plain(own, seen, mask, keep)
            loss = total(out.sim, out.delta, config)
        else:
            pairs = head(own, seen, mask, keep)
            loss = total(pairs.similarity, pairs.delta, config)
        head.zero_grad()
        loss.backward()
        weight = head.psi.q_proj.weight.grad
        return torch.cat([own.grad.flatten(), seen.grad.flatten(), weight.flatten()])

    compared(f"head step B = {options.batch}", lambda: step(True), lambda: step(False), options.repeats)


if __name__ == "__main__":
    main()
