"""Shards in worker processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.child import Child
from pipeline.run.engines.gpu_slots import gpu_slots
from pipeline.run.engines.machine import RETURN_MEMORY, cores, gpu_numbers, threads
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Work
from pipeline.run.pool import Events, run_shards


class Process(Child):
    """A worker process; it is started where its first request is made."""

    def ready(self, seconds: float) -> bool:
        """Always: starting it takes no place that another has."""
        return True


@dataclass(frozen=True)
class LocalEngine:
    """Worker processes, one a core, or one a GPU or share of one for networks."""

    options: RunOptions
    say: Callable[[str], None] = lambda sentence: None

    def run(self, work: Work) -> Events:
        """What workers reply, until every shard is done. Waits while others use the GPUs."""
        with contextlib.ExitStack() as held:
            numbers = gpu_numbers(self.options.device) if work.network else []
            if numbers and not self.options.share_gpu:
                most = wanted_gpus(self.options, len(numbers), len(work.shards) or 1)
                numbers = held.enter_context(gpu_slots(numbers, 1, most, self.say))
            devices = [f"cuda:{number}" for number in numbers] or ["cpu"]
            count = local_workers(self.options, len(numbers))
            each = self.options.worker_cpus or max(1, cores() // count)

            def request(shard: list[str], number: int, attempt: int) -> dict[str, Any]:
                return work.request(shard, devices[number % len(devices)], each, attempt)

            env = threads(each) | RETURN_MEMORY
            processes = [Process(work.entry, env=env) for _ in range(min(count, len(work.shards) or 1))]
            yield from run_shards(processes, work.shards, request, self.options.stall_seconds, work.alone)

    def close(self) -> None:
        """Nothing: workers end with their work."""


def local_workers(options: RunOptions, gpus: int) -> int:
    """How many worker processes there are, where networks have so many GPUs (0: none)."""
    if options.workers:
        return options.workers
    return int(gpus / options.gpu_fraction + 1e-9) if gpus else cores()


def wanted_gpus(options: RunOptions, gpus: int, shards: int) -> int:
    """How many of so many GPUs the workers of so many shards can use."""
    workers = min(local_workers(options, gpus), shards)
    return max(1, min(gpus, int(workers * options.gpu_fraction + 0.999)))
