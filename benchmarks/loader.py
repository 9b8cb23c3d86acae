"""Share of a training in which steps wait for their data, where a batch costs four times what a step does.

    python benchmarks/loader.py [--workers 0 4] [--step-ms 100] [--steps 300] [--megabytes 4]

Steps and batches sleep, so that the cores of this machine do not matter: what is measured is whether batches are made
ahead, handed over and waited for as they should be. A batch holds a tensor of some megabytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.config import Recipe
from trainers.data import PlannedBatches
from trainers.loop.engine import fit
from trainers.method import Batch, Method

GOAL = 0.05
TIMES = 4  # what making a batch costs, in steps


class Slow(PlannedBatches):
    """Batches of zeros that take a while."""

    def __init__(self, seconds: float, steps: int, megabytes: float) -> None:
        self.seconds, self.steps, self.numbers = seconds, steps, int(megabytes * 2**18)

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch."""
        return self.steps

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """Their numbers."""
        return range(self.steps)

    def planned(self, description: int) -> Batch:
        """A batch."""
        time.sleep(self.seconds)
        return {"numbers": torch.zeros(self.numbers)}

    def item_batches(self, split: str) -> Iterator[Batch]:
        """Nothing is evaluated."""
        raise NotImplementedError

    text_batches = item_batches


class Sleeper(Method):
    """A step that takes a while."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.zeros(1))

    def losses(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """A loss of one number."""
        time.sleep(self.seconds)
        return {"all": self.weight.square().sum() + batch["numbers"][0]}


def waiting(workers: int, seconds: float, steps: int, megabytes: float) -> float:
    """Share of an epoch in which its steps waited for data."""
    method, recipe = Sleeper(seconds), Recipe(epochs=1, batch_size=1)
    data = Slow(TIMES * seconds, steps, megabytes)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            method, data, recipe, torch.optim.SGD(method.parameters(), lr=0.1),
            validate=lambda _: {"SumR": 1.0}, figure="SumR", folder=Path(folder), device=torch.device("cpu"),
            loader_workers=workers,
        )  # fmt: skip
    return float(result.history[0]["waiting"])


def main() -> None:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--megabytes", type=float, default=4)
    given = parser.parse_args()
    print(
        f"a step of {given.step_ms:.0f} ms, a batch of {TIMES * given.step_ms:.0f} ms and {given.megabytes:g} MB"
    )
    for workers in given.workers:
        share = waiting(workers, given.step_ms / 1000, given.steps, given.megabytes)
        goal = f" (goal with {TIMES} workers: {GOAL:.0%})" if workers == TIMES else ""
        print(f"{workers} workers: {share:.1%} of the time waits for data{goal}", flush=True)


if __name__ == "__main__":
    main()
