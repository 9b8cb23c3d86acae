"""Batches made by worker processes are those that are made between the steps, in a run that is broken off too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ItemError, UserError
from trainers.data import PlannedBatches, write_ragged, write_splits
from trainers.layers.pair_data import PairData
from trainers.loop import checkpoint, loading
from trainers.loop.engine import fit
from trainers.loop.loading import AUTO, Loader, deaths_named, worker_count
from trainers.loop.progress import Progress
from trainers.method import Batch
from trainers.registry import METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STEPS = 7


class Numbered(PlannedBatches):
    """Batches that hold their epoch, seed and number, and the process that made them."""

    def __init__(self, make: Callable[[int], None] = lambda number: None) -> None:
        self.make = make

    def train_steps(self, world: int = 1) -> int:
        return STEPS

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        return [(epoch, seed, number) for number in range(STEPS)]

    def planned(self, description: tuple[int, int, int]) -> Batch:
        self.make(description[-1])
        return {"told": torch.tensor(description), "process": torch.tensor(os.getpid())}

    def item_batches(self, split: str) -> Any:
        raise NotImplementedError

    text_batches = item_batches


def test_workers_make_the_batches_of_each_epoch_in_order_and_from_any_step_on() -> None:
    loader = Loader(Numbered(), 2, CPU, 0, 1)
    before = torch.get_rng_state()
    whole, rest = list(loader.epoch(0, 5)), list(loader.epoch(1, 5, first=4))
    assert torch.equal(torch.get_rng_state(), before)  # what a method draws is not moved
    assert [batch["told"].tolist() for batch in whole] == [[0, 5, number] for number in range(STEPS)]
    assert [batch["told"].tolist() for batch in rest] == [[1, 5, number] for number in (4, 5, 6)]
    processes = {int(batch["process"]) for batch in (*whole, *rest)}
    assert len(processes) == 2 and os.getpid() not in processes  # the same two in both epochs
    loader.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_an_error_in_a_worker_is_the_error_that_was_raised_there() -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise ItemError("clip7", "it has no frames")

    batches = Loader(Numbered(fail), 1, CPU, 0, 1).epoch(0, 0)
    assert [int(next(batches)["told"][-1]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ItemError, match="clip7: it has no frames"):
        next(batches)


def test_a_worker_that_is_killed_ends_the_training_with_a_sentence() -> None:
    def die(number: int) -> None:
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    data = Numbered(die)
    told = r"a process that makes training batches was killed \(.*\); lower run.loader_workers"
    with pytest.raises(UserError, match=told), deaths_named():
        list(Loader(data, 1, CPU, 0, 1).epoch(0, 0))


def test_shared_memory_that_is_too_small_is_told_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(
        UserError, match=r"loader_workers = 2 needs .* MB of /dev/shm.* set run.loader_workers = 0"
    ):
        next(Loader(Numbered(), 2, CPU, 0, 1).epoch(0, 0))
    assert len(list(Loader(Numbered(), 0, CPU, 0, 1).epoch(0, 0))) == STEPS


def test_workers_are_chosen_for_a_gpu_alone_and_share_the_cores() -> None:
    assert worker_count(AUTO, CPU, 1000, cores=16) == 0
    assert (
        worker_count(AUTO, GPU, 1000, cores=16) == 8 and worker_count(AUTO, GPU, 1000, cores=16, ranks=4) == 3
    )
    assert worker_count(AUTO, GPU, 3, cores=16) == worker_count(AUTO, GPU, 1000, cores=1) == 0
    assert worker_count(4, CPU, 3, cores=4) == 4
    with pytest.raises(
        UserError, match="loader_workers = 5 is not possible: 16 cores for 4 training processes leave 4"
    ):
        worker_count(5, GPU, 1000, cores=16, ranks=4)


def augmented(folder: Path) -> PairData:
    """Pairs of CLIP4Clip whose pictures are augmented."""
    items = [f"v{number}" for number in range(6)]
    splits = {"train": (items, [(f"c{number}", "a dog", item) for number, item in enumerate(items)])}
    draw = np.random.default_rng(0)
    write_ragged(folder, "frames", draw.integers(0, 256, (6, 2, 16, 16, 3)), [2] * 6, np.uint8)
    write_ragged(folder, "tokens", draw.integers(0, 9, (6, 4)), [4] * 6, np.int64)
    write_splits(folder, splits)
    return PairData(folder, METHODS.find("clip4clip").config(max_words=8, max_frames=2, batch_size=2))


def test_what_augmentation_draws_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    data = augmented(tmp_path)

    def pictures(workers: int, epoch: int) -> list[Any]:
        return [batch["frames"].tolist() for batch in Loader(data, workers, CPU, 0, 1).epoch(epoch, 3)]

    assert pictures(0, 1) == pictures(1, 1) == pictures(2, 1) != pictures(0, 2)


def test_a_gpu_augments_what_workers_would_and_a_core_does_not_wait(tmp_path: Path) -> None:
    data = augmented(tmp_path)
    before = list(Loader(data, 0, CPU, 0, 1).epoch(1, 3))
    loader = Loader(data, 0, GPU, 0, 1)
    later = list(data.train_batches(1, 3))  # where they lie does not matter: here they stay on the CPU
    for one, two in zip(before, later, strict=True):
        raw = {name: values.clone() for name, values in two.items()}
        finished = loader.finished(two)
        assert finished.keys() == one.keys() and not torch.equal(raw["frames"], one["frames"])
        assert (finished["frames"].int() - one["frames"].int()).abs().max() <= 1
        assert all(torch.equal(finished[name], one[name]) for name in one if name != "frames")
    loader.close()
    assert torch.equal(next(data.train_batches(1, 3))["frames"], before[0]["frames"])


class Small(torch.nn.Module):
    """Learns from its batches and draws in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.stop_at = -1

    def losses(self, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
        if self.stop_at == int(batch["told"][-1]) + STEPS * epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.rand(3) + np.random.rand()
        return {"all": ((self.weight - batch["told"].float()) * noise).square().sum()}


def trained(
    folder: Path, workers: int, stop_at: int = -1, told: list[Progress] | None = None
) -> dict[str, Any]:
    """The last checkpoint's weights and generators after a training of three epochs, broken off once or not at all."""
    config = METHODS.find("hlformer").config(epochs=3, batch_size=1, seed=4)
    for stop in {stop_at, -1}:
        torch.manual_seed(0)
        method: Any = Small()
        method.stop_at = stop
        run = dict(
            validate=lambda _: {"SumR": float(np.random.rand())}, figure="SumR", folder=folder, device=CPU,
            loader_workers=workers, on_progress=(told.append if told is not None else None),
        )  # fmt: skip
        optimizer = torch.optim.Adam(method.parameters(), lr=0.1)
        if stop >= 0:
            with pytest.raises(SystemExit):
                fit(method, Numbered(), config, optimizer, **run)  # type: ignore[arg-type]
        else:
            fit(method, Numbered(), config, optimizer, **run)  # type: ignore[arg-type]
    tensors, _ = checkpoint.load(folder / "last.safetensors")
    return {name: tensor.tolist() for name, tensor in tensors.items()}


@pytest.mark.slow
def test_a_run_with_workers_broken_off_anywhere_ends_with_the_bits_of_one_without(tmp_path: Path) -> None:
    alone = trained(tmp_path / "alone", 0)
    assert trained(tmp_path / "workers", 2) == alone
    for stop_at in (0, 4, STEPS - 1, STEPS + 3):
        assert trained(tmp_path / str(stop_at), 2, stop_at) == alone


def test_the_share_of_waiting_is_measured_shown_and_kept(tmp_path: Path) -> None:
    class Slow(Small):
        def losses(self, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
            time.sleep(0.004)
            return super().losses(batch, epoch)

    config = METHODS.find("hlformer").config(epochs=1, batch_size=1)
    told: list[Progress] = []
    method: Any = Slow()
    result = fit(
        method, Numbered(lambda number: time.sleep(0.02)), config,  # type: ignore[arg-type]
        torch.optim.Adam(method.parameters()), validate=lambda _: {"SumR": 1.0}, figure="SumR",
        folder=tmp_path, device=CPU, on_progress=told.append,
    )  # fmt: skip
    assert 0.4 < result.history[0]["waiting"] < 1
    assert 0.4 < told[-1].waiting < 1


def test_a_step_gets_batches_that_are_finished(tmp_path: Path) -> None:
    class Later(Numbered):
        def finished(self, batch: Any) -> Any:
            return {name: values + 100 * (name == "told") for name, values in batch.items()}

    class Seen(Small):
        seen: list[int] = []

        def losses(self, batch: Batch, epoch: int) -> dict[str, torch.Tensor]:
            self.seen.append(int(batch["told"][-1]))
            return super().losses(batch, epoch)

    method: Any = Seen()
    fit(
        method, Later(), METHODS.find("hlformer").config(epochs=1, batch_size=1),  # type: ignore[arg-type]
        torch.optim.Adam(method.parameters()), validate=lambda _: {"SumR": 1.0}, figure="SumR",
        folder=tmp_path, device=CPU,
    )  # fmt: skip
    assert Seen.seen == [100 + number for number in range(STEPS)]


def test_batches_of_data_without_a_plan_are_made_between_the_steps() -> None:
    class Plain:
        def train_batches(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Any:
            return ({"told": torch.tensor(number)} for number in range(4))

    plain: Any = Plain()
    assert [int(batch["told"]) for batch in Loader(plain, 2, CPU, 0, 1).epoch(0, 0, first=1)] == [1, 2, 3]
