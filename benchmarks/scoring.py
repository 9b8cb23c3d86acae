"""Speed of HLFormer's scores of 1000 captions x 500 videos against a form that renormalises for every 50.

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
QUERY_BATCH = 50  # captions in a batch of the form compared with

Form = Callable[..., Tensor]


def normalised_once(method: HLFormer, texts: Tensor, clips: Tensor, frames: Tensor) -> Tensor:
    """Scores (Q, V) of the product, from encodings that are not normalised yet."""
    items = {"clips": normalize(clips, dim=-1), "frames": normalize(frames, dim=-1)}
    return method.scores({"query": normalize(texts, dim=-1)}, items)


def normalised_every_time(method: HLFormer, texts: Tensor, clips: Tensor, frames: Tensor) -> Tensor:
    """The same scores (Q, V) with all video tensors normalised again for every few captions."""
    rows, weights = [], method.config
    for batch in texts.split(QUERY_BATCH):
        score = torch.zeros(())
        for weight, vectors in ((weights.clip_weight, clips), (weights.frame_weight, frames)):
            similarity = normalize(vectors, dim=-1) @ normalize(batch, dim=-1).T  # (V, L, Q)
            score = score + weight * similarity.permute(2, 1, 0).max(dim=1).values
        rows.append(score)
    return torch.cat(rows)


def seconds(form: Form, method: HLFormer, encodings: list[Tensor]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    form(method, *encodings)
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    random = torch.Generator().manual_seed(0)
    shapes = ((1000, 384), (500, 32, 384), (500, 128, 384))
    config = HLFormerConfig.model_validate({})
    method = HLFormer(config, visual_dim=512, text_dim=512)  # its weights play no part in scores
    encodings = [torch.randn(shape, generator=random) for shape in shapes]
    forms: tuple[Form, Form] = (normalised_once, normalised_every_time)
    torch.testing.assert_close(*(form(method, *encodings) for form in forms), rtol=0, atol=1e-5)
    pairs = [[seconds(form, method, encodings) for form in forms] for _ in range(rounds)]
    once, every_time = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    print(f"normalised once {once:.3f} s, for every {QUERY_BATCH} captions {every_time:.3f} s")
    print(f"ratio {ratio:.2f} (goal {GOAL:.1f}), median of {rounds} alternating rounds")


if __name__ == "__main__":
    main()
