"""Shards in worker processes of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass
class LocalEngine:
    """Worker processes: one per core, or for networks one per GPU or share of a GPU."""

    options: RunOptions
    say: Callable[[str], None] = lambda sentence: None
    _said: set[str] = field(default_factory=set)  # advice that this run has given already

    def run(self, work: Work) -> Events:
        """Yield the workers' replies until every shard is done. Waits while other runs use the GPUs."""
        with contextlib.ExitStack() as held:
            numbers = gpu_numbers(self.options.device) if work.network else []
            if numbers and not self.options.share_gpu:
                most = usable_gpus(self.options, len(numbers), len(work.shards) or 1)
                numbers = held.enter_context(gpu_slots(numbers, 1, most, self.say))
            devices = [f"cuda:{number}" for number in numbers] or ["cpu"]
            count = local_workers(self.options, len(numbers))
            self._advise(too_many(self.options, min(count, len(work.shards) or 1), cores()))
            each = self.options.worker_cpus or max(1, cores() // count)

            def request(shard: list[str], number: int, attempt: int) -> dict[str, Any]:
                return work.request(shard, devices[number % len(devices)], each, attempt)

            env = threads(each) | RETURN_MEMORY
            processes = [Process(work.entry, env=env) for _ in range(min(count, len(work.shards) or 1))]
            yield from run_shards(processes, work.shards, request, self.options.stall_seconds, work.alone)

    def _advise(self, sentence: str) -> None:
        """Say a sentence once in a run."""
        if sentence and sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)

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


def too_many(options: RunOptions, workers: int, cores: int) -> str:
    """Return a sentence if the workers, or their decoders, are more than the cores; else ""."""
    if options.workers and workers * max(1, options.worker_cpus) > cores:
        size = f" of {options.worker_cpus} cores" if options.worker_cpus > 1 else ""
        return (
            f"run.workers = {options.workers}{size} is more than the {cores} cores here: they take turns, and each "
            "holds networks of its own; 0 starts one for each core or GPU"
        )
    if options.decoders > 1 and workers * options.decoders > cores:
        return (
            f"run.decoders = {options.decoders} for each of {workers} workers is more than the {cores} cores here: "
            "they take turns; 0 chooses their number"
        )
    return ""
