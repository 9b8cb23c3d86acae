"""Floating-point operations of a training update of each method at published settings, as torch counts them.

    python benchmarks/operations.py [METHOD ...]

An update of B pairs costs a B + b B^2: towers work on each caption and item, scores on each pair of them. Two small
batches give both numbers; of HLFormer, whose batch is V videos with C captions, three give a V + c C + b V C. What is
printed stands in `flows/drafting/bounds.py`, from which docs/hardware.md is made. Towers of CLIP are not counted here:
what is counted stands behind them, on stored features of published widths.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.published_inputs import opened

SETTINGS: dict[str, dict[str, Any]] = {
    "lean": {}, "h2arn": {}, "gare": {"mode": "frozen"},
    "neighborretr": {"mode": "frozen", "num_neighbors": 1, "bank_size": 16},
    "clip4clip": {"mode": "frozen", "sim_header": "seqTransf"},
}  # fmt: skip
BATCHES = (4, 8)  # pairs
VIDEOS_AND_CAPTIONS = ((4, 1), (4, 5), (8, 5))  # of HLFormer: videos of a batch, captions of each


def operations(name: str, items: int, captions: int, **settings: Any) -> int:
    """Operations of losses and backward pass of one batch of all these items and captions."""
    with tempfile.TemporaryDirectory() as folder:
        size = items if name == "hlformer" else items * captions
        declared, config, data = opened(
            Path(folder), name, items, captions, **settings, batch_size=size, epochs=1
        )
        torch.manual_seed(0)
        method = declared.build(config, data).train()
        batch = next(iter(data.train_batches(0, config.seed)))
        with FlopCounterMode(display=False) as counter:
            sum(method.losses(batch, 0).values()).backward()
    return int(counter.get_total_flops())


def main() -> None:
    """Print the numbers of every method, or of those that are named."""
    named = sys.argv[1:] or [*SETTINGS, "hlformer"]
    for name, settings in ((name, SETTINGS[name]) for name in named if name in SETTINGS):
        found = [operations(name, size, 1, **settings) for size in BATCHES]
        a, b = np.linalg.solve([[size, size**2] for size in BATCHES], found)
        print(f"{name}: {a:.3g} a pair and {b:.3g} a scored pair", flush=True)
    if "hlformer" not in named:
        return
    sizes = [(videos, videos * each) for videos, each in VIDEOS_AND_CAPTIONS]
    found = [operations("hlformer", *size) for size in VIDEOS_AND_CAPTIONS]
    a, c, b = np.linalg.solve([[v, n, v * n] for v, n in sizes], found)
    print(f"hlformer: {a:.3g} a video, {c:.3g} a caption and {b:.3g} a scored pair")


if __name__ == "__main__":
    main()
