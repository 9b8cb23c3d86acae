"""Training on two processes through torchrun: the losses of one, errors as they are, checkpoints on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from pipeline.child import Child, ChildDied, ChildError
from pipeline.errors import TrainingError
from trainers.lean.config import LeanConfig
from trainers.lean.data import pack
from trainers.loop import torchrun
from trainers.workers import train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]

SETTINGS: dict[str, Any] = {
    "nodes": "sentence", "keyframes": "", "frames": 4, "hidden": 16, "latent": 8, "attention_hidden": 4,
    "batch_size": 8, "lr": 5e-3, "epochs": 3, "seed": 1,
}  # fmt: skip
ONE_THREAD = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture
def forked_ranks(fork: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun and its ranks are forks too: three new interpreters import torch in 15 CPU seconds."""

    def main_of(command: Sequence[str]) -> Callable[[], None]:
        words = [*command[command.index("trainers.loop.torchrun") + 1 :]]
        return lambda: torchrun.main(words)

    def start_rank(args: Sequence[str], **options: Any) -> Any:
        return fork(main_of(args), args, **options)

    def start_agent(command: Sequence[str], **options: Any) -> Any:
        def main() -> None:
            subprocess_handler.Popen = start_rank  # in the process of the agent alone
            main_of(command)()

        return fork(main, command, **options)

    names = vars(subprocess) | {"Popen": start_agent}
    monkeypatch.setattr(torchrun, "subprocess", SimpleNamespace(**names))


def read() -> dict[str, Callable[[str], np.ndarray]]:
    def rows(name: str, count: int, width: int) -> np.ndarray:
        draw = np.random.default_rng(int(name.split("#", maxsplit=1)[0]))
        return draw.normal(size=(count, width)).astype(np.float32)

    offsets = np.array([(0, 0), (0, 3), (4, 7), (0, 0)], np.int32)
    return {
        "frame": lambda item: rows(item, 4, 10),
        "token": lambda caption: rows(caption, 4, 7),
        "offset": lambda caption: offsets,
    }


def request(folder: Path, processes: int, **settings: Any) -> dict[str, Any]:
    """What the process of a training stage is asked, over a corpus of forty videos."""
    config = LeanConfig(**{**SETTINGS, **settings})
    packed, work = folder / "packed", folder / f"run-{processes}"
    work.mkdir(parents=True)
    if not packed.exists():
        packed.mkdir()
        names = {"train": range(40), "val": range(40, 52)}
        splits = {
            split: ([str(n) for n in items], [(f"{n}#0", f"caption of {n}", str(n)) for n in items])
            for split, items in names.items()
        }
        pack(packed, config, splits, read())
    return {
        "method": "lean", "params": config.model_dump_json(), "device": "cpu", "folder": str(work),
        "needs": {"pack-lean": str(packed)}, "fingerprint": "f", "processes": processes,
    }  # fmt: skip


def run(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What a training told, from a process as a run starts it."""
    child = Child("trainers.workers:train", env=ONE_THREAD)
    try:
        return [header for header, _ in child.call(asked, 120)]
    finally:
        child.kill()


def ranks(folder: Path) -> list[str]:
    """Processes that work in a folder of ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if (
                "trainers.loop.torchrun" in command
                and f"TMPDIR={folder}".encode() in (process / "environ").read_bytes()
            ):
                found.append(command)
        except OSError:
            continue
    return found


def test_two_processes_lose_what_one_loses_and_leave_what_one_leaves(
    tmp_path: Path, forked_ranks: None
) -> None:
    one: list[dict[str, Any]] = []
    train(request(tmp_path, 1), lambda header, _: one.append(dict(header)))
    two = run(request(tmp_path, 2))
    assert one[-1]["record"]["best_epoch"] == two[-1]["record"]["best_epoch"]
    histories = [
        [json.loads(line) for line in (tmp_path / f"run-{n}/history.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert len(histories[0]) == len(histories[1]) == SETTINGS["epochs"]
    for first, second in zip(*histories, strict=True):
        assert second["steps"] == first["steps"]
        assert second["terms"] == pytest.approx(first["terms"], rel=2e-3, abs=1e-6)
        assert second["validation"] == pytest.approx(first["validation"])
    for path in (tmp_path / "run-1").iterdir():
        assert (tmp_path / "run-2" / path.name).exists(), path.name
    assert any("progress" in header for header in two)


def test_an_error_of_a_rank_is_the_error_of_the_stage(tmp_path: Path, forked_ranks: None) -> None:
    with pytest.raises(TrainingError, match="is nan"):
        run(request(tmp_path, 2, lr=1e30, weight_decay=0.0))


@pytest.mark.long
def test_an_error_that_is_ours_comes_with_the_traceback_of_its_rank(tmp_path: Path) -> None:
    asked = request(tmp_path, 2)
    (tmp_path / "packed/frames.rows.npy").unlink()
    with pytest.raises(ChildError, match=r"rank-\d(.|\n)*frames.rows.npy"):
        run(asked)


def test_sigterm_waits_for_the_checkpoint_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    asked = request(tmp_path, 2, epochs=100_000, patience=100_000)
    child = Child("trainers.workers:train", env=ONE_THREAD)
    seen: list[dict[str, Any]] = []

    def stop_when_it_trains() -> None:
        while len(seen) < 3:
            time.sleep(0.05)
        os.kill(child.pid or 0, signal.SIGTERM)

    threading.Thread(target=stop_when_it_trains, daemon=True).start()
    with pytest.raises(ChildDied, match="143"):
        for header, _ in child.call(asked, 120):
            seen.append(header)
    assert any((tmp_path / "run-2").glob("last.safetensors")), list((tmp_path / "run-2").iterdir())
    deadline = time.monotonic() + 60
    while ranks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ranks(tmp_path) == []


@pytest.mark.long
def test_a_stage_that_is_killed_takes_its_ranks_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    child = Child("trainers.workers:train", env=ONE_THREAD)
    replies = child.call(request(tmp_path, 2, epochs=100_000, patience=100_000), 120)
    next(replies)
    assert len(ranks(tmp_path)) >= 3  # torchrun and two ranks
    os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(ChildDied):
        list(replies)
    deadline = time.monotonic() + 60
    while ranks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ranks(tmp_path) == []
