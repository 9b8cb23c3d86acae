"""Training batches made ahead of the steps, in worker processes, through torch's DataLoader.

A batch is a function of (split, epoch, seed, rank, world) alone, so neither the number of workers nor a resumption
changes one. Data that plans its epochs (`trainers.data.PlannedBatches`) can be loaded so; of any other, batches are
made between the steps.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.child import die_with_parent
from pipeline.errors import Error, ItemError, TrainingError, UserError
from trainers.data import PlannedBatches
from trainers.method import Batch, MethodData

AHEAD = 2  # batches that each worker makes ahead
AUTO = -1
MOST_AUTO = 8  # workers chosen at most: one GPU rarely needs more
LEAST_STEPS = 16  # of an epoch for which workers are started of themselves
SECONDS_FOR_A_SIGNAL = 0.2
SHARED = "/dev/shm"
KINDS: dict[str, type[Error]] = {"UserError": UserError, "TrainingError": TrainingError}


def worker_count(asked: int, device: torch.device, steps: int, cores: int, ranks: int = 1) -> int:
    """Number of loader workers of each of the `ranks` training processes of this machine.

    `asked` is `run.loader_workers`; with AUTO there are none on a CPU, whose cores the steps need, and for short
    epochs. Raises UserError if there are not so many cores.
    """
    each = max(1, cores // ranks)
    if asked > each:
        raise UserError(
            f"run.loader_workers = {asked} is not possible: {cores} cores for {ranks} training "
            f"{'process' if ranks == 1 else 'processes'} leave {each} each"
        )
    if asked != AUTO:
        return asked
    return min(MOST_AUTO, each - 1) if device.type == "cuda" and steps >= LEAST_STEPS else 0


class Loader:
    """The training batches of one process, epoch by epoch; `close` ends its workers."""

    def __init__(self, data: MethodData, workers: int, device: torch.device, rank: int, world: int) -> None:
        self._data, self._rank, self._world = data, rank, world
        self._workers = workers if isinstance(data, PlannedBatches) else 0
        self._plan, self._checked = _Plan(), False
        self._loader: DataLoader[Any] | None = None
        if isinstance(data, PlannedBatches):
            data.device_finishes = device.type == "cuda"  # before workers are forked, which keep a copy
            self._loader = _loader(data, self._plan, self._workers, device)

    def epoch(self, epoch: int, seed: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the `first` on."""
        if not isinstance(self._data, PlannedBatches):
            batches = self._data.train_batches(epoch, seed, self._rank, self._world)
            yield from islice(batches, first, None)
            return
        assert self._loader is not None
        self._plan.batches = self._data.train_plan(epoch, seed, self._rank, self._world)[first:]
        if self._workers and self._plan.batches and not self._checked:
            self._checked = True
            _require_shared_memory(self._data.planned(self._plan.batches[0]), self._workers)
        found = iter(self._loader)
        for batch in _fetched_ahead(found) if self._workers else found:
            if isinstance(batch, _Failure):
                raise batch.error()
            yield batch

    def finished(self, batch: Batch) -> Batch:
        """A batch that lies on the device, after the work that is done there."""
        return self._data.finished(batch) if isinstance(self._data, PlannedBatches) else batch

    def close(self) -> None:
        """End the workers."""
        self._loader = None
        if isinstance(self._data, PlannedBatches):
            self._data.device_finishes = False


def _fetched_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, of which a thread fetches the next one during a step.

    A tensor is handed over by several messages with the worker, 10 ms on a busy machine, for which a step would wait.
    """
    with ThreadPoolExecutor(1) as fetcher:
        upcoming = fetcher.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = fetcher.submit(next, batches, None)
            yield batch


@contextmanager
def deaths_named() -> Iterator[None]:
    """A block in which a worker that is killed raises UserError, wherever the news arrives: torch hears of a dead child
    by a signal, or finds the connection to it broken."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        with suppress(RuntimeError):  # the signal about the same death may come after the broken connection
            time.sleep(SECONDS_FOR_A_SIGNAL)
        raise UserError(
            f"a process that makes training batches was killed ({str(error).splitlines()[0]}); lower "
            "run.loader_workers, or give the container more memory or shared memory (--shm-size)"
        ) from None


class _Plan(Sampler[Any]):
    """Descriptions of the batches that are to be made, which change from epoch to epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Batches(Dataset[Any]):
    """Makes the batch of a description; an error of the user's or an item's is given back, to be raised by the loop."""

    def __init__(self, data: PlannedBatches) -> None:
        self._data = data

    def __getitem__(self, description: Any) -> Any:
        try:
            return self._data.planned(description)
        except Error as error:
            return _Failure(error)


class _Failure:
    """An error in a form that travels between processes."""

    def __init__(self, error: Error) -> None:
        self.kind, self.text = type(error).__name__, str(error)
        self.item = (error.item, error.reason) if isinstance(error, ItemError) else None

    def error(self) -> Error:
        """The error."""
        return ItemError(*self.item) if self.item else KINDS.get(self.kind, UserError)(self.text)


def _loader(data: PlannedBatches, plan: _Plan, workers: int, device: torch.device) -> DataLoader[Any]:
    """A loader without randomness of its own: a generator beside keeps it from drawing from torch's."""
    several: dict[str, Any] = {}
    if workers:
        # Forked, so that memory maps are shared and torch is not imported again; a worker never touches a GPU.
        several = {
            "multiprocessing_context": "fork", "prefetch_factor": AHEAD, "persistent_workers": True,
            "worker_init_fn": _begin_worker,
        }  # fmt: skip
    return DataLoader(
        _Batches(data), batch_size=None, sampler=plan, num_workers=workers, generator=torch.Generator(),
        pin_memory=device.type == "cuda", collate_fn=_as_it_is, **several,
    )  # fmt: skip


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_worker(_: int) -> None:
    """A worker ends with its parent, and leaves Ctrl-C to it."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _require_shared_memory(batch: Batch, workers: int) -> None:
    """Raise UserError if the batches in flight do not fit: a worker would die of a bus error later."""
    if not os.path.isdir(SHARED):
        return
    free, each = shutil.disk_usage(SHARED).free, sum(values.nbytes for values in batch.values())
    need = (AHEAD * workers + 2) * each
    if need > free:
        raise UserError(
            f"run.loader_workers = {workers} needs {need / 1e6:.0f} MB of {SHARED} for batches of {each / 1e6:.0f} MB, "
            f"and {free / 1e6:.0f} MB are free; give the container a larger --shm-size, or set run.loader_workers = 0"
        )
