"""How much faster HLFormer scores 1000 captions x 500 videos than a form that renormalises for every 50.

Run `python benchmarks/scoring.py`; both forms alternate in one process, so that a busy machine slows
both. Axes: Q captions, V videos, L vectors of a video (32 clips, 128 frames), D = 384.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from trainers.hlformer.config import HLFormerConfig
from trainers.hlformer.method import HLFormer

GOAL = 3.0
CONFIG = HLFormerConfig()
QUERY_BATCH = 50  # of the form compared with


def normalised_once(method: HLFormer, texts: Tensor, clips: Tensor, frames: Tensor) -> Tensor:
    """Scores (Q, V) of the product, from encodings that are not normalised yet."""
    items = {"clips": normalize(clips, dim=-1), "frames": normalize(frames, dim=-1)}
    return method.scores({"query": normalize(texts, dim=-1)}, items)


def normalised_every_time(_: HLFormer, texts: Tensor, clips: Tensor, frames: Tensor) -> Tensor:
    """The same scores (Q, V) with all video tensors normalised again for every few captions."""
    rows = []
    for batch in texts.split(QUERY_BATCH):
        score = torch.zeros(())
        for weight, vectors in ((CONFIG.clip_weight, clips), (CONFIG.frame_weight, frames)):
            similarity = normalize(vectors, dim=-1) @ normalize(batch, dim=-1).T  # (V, L, Q)
            score = score + weight * similarity.permute(2, 1, 0).max(dim=1).values
        rows.append(score)
    return torch.cat(rows)


def seconds(form: Callable[..., Tensor], inputs: tuple[HLFormer | Tensor, ...]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    form(*inputs)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    random = torch.Generator().manual_seed(0)
    shapes = ((1000, 384), (500, 32, 384), (500, 128, 384))
    method = HLFormer(CONFIG, visual_dim=512, text_dim=512).eval()  # its weights play no part in scores
    inputs = (method, *(torch.randn(shape, generator=random) for shape in shapes))
    torch.testing.assert_close(normalised_once(*inputs), normalised_every_time(*inputs), rtol=0, atol=1e-5)
    pairs = [
        (seconds(normalised_once, inputs), seconds(normalised_every_time, inputs)) for _ in range(rounds)
    ]
    once, every_time = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    print(f"normalised once {once:.3f} s, for every {QUERY_BATCH} captions {every_time:.3f} s")
    print(f"ratio {ratio:.2f} (goal {GOAL:.1f}), median of {rounds} alternating rounds")


if __name__ == "__main__":
    main()
