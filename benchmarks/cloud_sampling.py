"""Farthest-point sampling: a plain loop over torch operations on [N, 3] against the product's, in CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/cloud_sampling.py [--points 20000] [--samples 10000] [--repeats 3]

Both alternate in one process, so that a busy machine slows both. They must take the same points in the same order.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.media.clouds.sampling import farthest_points

GOAL = 0.5  # largest share of the plain loop's CPU time
Sampler = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def plain(xyz: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Rows (count,) of points (N, 3): the definition, an operation a line."""
    points = torch.from_numpy(xyz)
    centre = points.sum(dim=0) / len(points)
    index = int(((points - centre) ** 2).sum(dim=1).argmax())
    nearest = torch.full((len(points),), 1e10)
    taken = np.empty(count, np.int64)
    for step in range(count):
        taken[step] = index
        distance = ((points - points[index]) ** 2).sum(dim=1)
        nearest = torch.minimum(nearest, distance)
        index = int(nearest.argmax())
    return taken


def surface(count: int, seed: int) -> NDArray[np.float32]:
    """Points (N, 3) of a torus on a grid of 1/1024, on which squared distances are exact."""
    random = np.random.default_rng(seed)
    u, v = random.uniform(0, 2 * np.pi, (2, count))
    ring = 0.7 + 0.25 * np.cos(v)
    xyz = np.stack([ring * np.cos(u), ring * np.sin(u), 0.25 * np.sin(v)], axis=1)
    return (np.round(xyz * 1024) / 1024).astype(np.float32)


def cpu_seconds(sampler: Sampler, xyz: NDArray[np.float32], count: int) -> tuple[float, NDArray[np.int64]]:
    """CPU seconds of one call, and what it took."""
    began = time.process_time()
    taken = sampler(xyz, count)
    return time.process_time() - began, taken


@torch.inference_mode()
def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    xyz = surface(given.points, 0)
    slow, fast = [], []
    for _ in range(given.repeats):
        (a, expected), (b, found) = (cpu_seconds(s, xyz, given.samples) for s in (plain, farthest_points))
        np.testing.assert_array_equal(found, expected)
        slow.append(a)
        fast.append(b)
    ratio = statistics.median(b / a for a, b in zip(slow, fast, strict=True))
    print(
        f"{given.points} -> {given.samples} points: plain {min(slow):.2f} s, product {min(fast):.2f} s of CPU"
    )
    print(f"ratio {ratio:.2f} (goal {GOAL:.2f} at most), median of {given.repeats} alternating rounds")


if __name__ == "__main__":
    main()
