"""H2ARN's evaluation: everything encoded once, against both sides encoded again for every 50 x 50 block.

    OMP_NUM_THREADS=1 python benchmarks/h2arn_evaluation.py [--items 1000] [--blocks 2] [--full]

N captions x N clouds at published sizes. The first form is the whole evaluation: encoding, one product of matrices,
ranks in both directions. The second is the release's: for each block it encodes 50 captions and 50 clouds, one batch
of either, takes their scores, and ranks at the end. All (N / 50)^2 blocks do the same work, so only `--blocks` of them
are run, spread over the matrix, and their mean is multiplied; `--full` runs them all. CPU seconds; the blocks are run
in turn with parts of the first form, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from trainers.h2arn import model
from trainers.h2arn.config import H2arnConfig
from trainers.h2arn.method import H2arn
from trainers.measure.metrics import link_ranks
from trainers.method import Batch, Encoded
from trainers.relevance import Relevance

BLOCK = 50
TEXT_TOKENS, CLOUD_TOKENS = 77, 100


class Clock:
    """CPU seconds of what goes through it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, work: Callable[[], Tensor]) -> Tensor:
        """The result of the work."""
        began = time.process_time()
        out = work()
        self.seconds += time.process_time() - began
        return out


def tokens(count: int, length: int, dims: int, seed: int) -> Tensor:
    """Token features (N, L, D)."""
    return torch.randn(count, length, dims, generator=torch.Generator().manual_seed(seed))


def block_scores(method: H2arn, texts: Tensor, clouds: Tensor) -> Tensor:
    """Scores of a block, both sides encoded, each in one batch."""
    with mock.patch.object(model, "CPU_BATCH", BLOCK):
        sides = method.encode_texts({"text": texts}), method.encode_items({"cloud": clouds})
    return method.scores(*sides)


def encoded(encode: Callable[[Batch], Encoded], name: str, values: Tensor) -> Tensor:
    """The points of captions or clouds."""
    return encode({name: values})["point"]


def places(items: int, blocks: int) -> list[tuple[int, int]]:
    """`blocks` blocks (row, column), spread over the matrix."""
    side = items // BLOCK
    every = [(BLOCK * row, BLOCK * column) for row in range(side) for column in range(side)]
    return every[:: max(1, len(every) // blocks)][:blocks]


def parts(items: int, runs: int) -> Iterator[slice]:
    """The stretches of BLOCK captions or clouds that are encoded between two blocks of the other form."""
    each = -(-(items // BLOCK) // runs) * BLOCK
    for start in range(0, items, each):
        yield slice(start, min(start + each, items))


def ranks(scores: Tensor) -> float:
    """Mean rank over both directions."""
    count = len(scores)
    found = link_ranks([(slice(0, count), scores.numpy())], Relevance.one_each(np.arange(count), count))
    return float(np.concatenate([direction.strict for direction in found]).mean())


def main() -> None:
    """Measure both forms in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1000, help="captions, and clouds; a multiple of 50")
    parser.add_argument("--blocks", type=int, default=2, help="blocks of the release's form that are run")
    parser.add_argument("--full", action="store_true", help="run all blocks")
    parser.add_argument("--width", type=int, default=512, help="of features and model")
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    if options.items % BLOCK or options.items <= 0:
        parser.error(f"--items {options.items} is no multiple of {BLOCK}")
    torch.manual_seed(0)
    width, heads = options.width, max(1, options.width // 8)
    config = H2arnConfig(d_model=width, nhead=heads, num_layers=options.layers)
    method = H2arn(config, width, width).eval()
    texts = tokens(options.items, TEXT_TOKENS, width, 1)
    clouds = tokens(options.items, CLOUD_TOKENS, width, 2)
    side = options.items // BLOCK
    chosen = places(options.items, side**2 if options.full else min(options.blocks, side**2))
    with torch.inference_mode():
        report(*measure(method, texts, clouds, chosen), len(chosen), side**2, options.items)


def measure(
    method: H2arn, texts: Tensor, clouds: Tensor, chosen: list[tuple[int, int]]
) -> tuple[float, float, float, float]:
    """CPU seconds of the whole first form and of the chosen blocks of the second, their difference, the mean rank."""
    once, blocks = Clock(), Clock()
    sides: dict[str, list[Tensor]] = {"text": [], "cloud": []}
    found = []
    pending = list(chosen)
    for part in parts(len(texts), max(1, min(len(chosen), len(texts) // BLOCK))):
        for first in range(part.start, part.stop, BLOCK):
            where = slice(first, first + BLOCK)
            sides["text"].append(once(partial(encoded, method.encode_texts, "text", texts[where])))
            sides["cloud"].append(once(partial(encoded, method.encode_items, "cloud", clouds[where])))
        if pending:
            found.append(block(method, texts, clouds, pending.pop(0), blocks))
    found += [block(method, texts, clouds, place, blocks) for place in pending]
    points = [{"point": torch.cat(values)} for values in sides.values()]
    scores = once(lambda: method.scores(*points))
    mean_rank = float(once(lambda: torch.tensor(ranks(scores))))
    differences = [
        float((scores[row : row + BLOCK, column : column + BLOCK] - values).abs().max())
        for (row, column), values in zip(chosen, found, strict=True)
    ]
    return once.seconds, blocks.seconds, max(differences), mean_rank


def block(method: H2arn, texts: Tensor, clouds: Tensor, place: tuple[int, int], clock: Clock) -> Tensor:
    """The scores of one block, as the release computes them."""
    row, column = place
    rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
    return clock(lambda: block_scores(method, texts[rows], clouds[columns]))


def report(
    once: float, blocks: float, difference: float, mean_rank: float, run: int, every: int, items: int
) -> None:
    """Print both times, the ratio, and how far the scores are apart."""
    all_blocks = blocks * every / run
    how = "all were run" if run == every else f"extrapolated from {run} blocks, {blocks:.2f} s"
    print(f"{items} x {items}: once {once:.1f} s (whole); {every} blocks {all_blocks:.0f} s ({how})")
    print(
        f"ratio {all_blocks / once:.1f}, greatest difference of a score {difference:.1e}, mean rank {mean_rank:.1f}"
    )


if __name__ == "__main__":
    main()
