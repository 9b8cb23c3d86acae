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
    """A worker process; it is started by its first request."""

    def ready(self, seconds: float) -> bool:
        """Return True: a local process can always be started."""
        return True


@dataclass(frozen=True)
class LocalEngine:
    """Worker processes: one per core, or for networks one per GPU or share of a GPU."""

    options: RunOptions
    say: Callable[[str], None] = lambda sentence: None

    def run(self, work: Work) -> Events:
        """Yield the workers' replies until every shard is done. Waits while other runs use the GPUs."""
        with contextlib.ExitStack() as held:
            numbers = gpu_numbers(self.options.device) if work.network else []
            if numbers and not self.options.share_gpu:
                most = usable_gpus(self.options, len(numbers), len(work.shards) or 1)
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
        """Do nothing: the workers end with their work."""


def local_workers(options: RunOptions, gpus: int) -> int:
    """Return the number of worker processes, given the number of GPUs for networks (0: none)."""
    if options.workers:
        return options.workers
    return int(gpus / options.gpu_fraction + 1e-9) if gpus else cores()


def usable_gpus(options: RunOptions, gpus: int, shards: int) -> int:
    """Return the number of GPUs that `shards` shards can keep busy, at most `gpus`."""
    workers = min(local_workers(options, gpus), shards)
    return max(1, min(gpus, int(workers * options.gpu_fraction + 0.999)))
