"""Runs of one machine take turns on its GPUs; a GPU whose user was killed is free at once."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.run.engines.gpu_slots import FOLDER, gpu_slots
from pipeline.run.engines.local import LocalEngine, local_workers, usable_gpus
from pipeline.run.engines.machine import gpu_numbers, gpus, visible_gpus
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Work
from pipeline.run.pool import Message

OTHER = """
import sys
from pipeline.run.engines.gpu_slots import gpu_slots
with gpu_slots([int(n) for n in sys.argv[1]], 1, 9, print) as taken:
    print(taken, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine of two GPUs with lock files of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a/b")
    monkeypatch.setenv(FOLDER, str(tmp_path))


@pytest.fixture
def other():
    """`other("01")` is another run that has taken these GPUs."""
    runs = []

    def start(numbers: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OTHER, numbers]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        runs.append(run)
        assert run.stdout is not None and run.stdout.readline().startswith("[")
        return run

    yield start
    for run in runs:
        run.kill()
        run.communicate()


def test_gpus_are_those_the_environment_shows(monkeypatch):
    assert visible_gpus() == ["3", "GPU-a/b"] and gpus() == 2
    assert gpu_numbers("auto") == gpu_numbers("cuda") == [0, 1]
    assert gpu_numbers("cuda:1") == [1] and gpu_numbers("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpu_numbers("auto") == []
    for device in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=rf"run.device = '{device}' is not possible: 0 GPUs"):
            gpu_numbers(device)


def test_a_run_takes_the_gpu_that_is_free(other):
    other("0")
    with gpu_slots([0, 1], 1, 1, print) as taken:
        assert taken == [1]
    with gpu_slots([0, 1], 1, 2, print) as taken:
        assert taken == [1]


def test_a_gpu_that_was_given_back_can_be_taken_again():
    for _ in range(2):
        with gpu_slots([0, 1], 2, 2, print) as taken:
            assert taken == [0, 1]


def test_where_none_is_free_it_says_who_has_them_once_and_waits_until_they_are_killed(other):
    run, said = other("01"), []

    def say(sentence: str) -> None:
        said.append(sentence)
        run.send_signal(signal.SIGKILL)

    with gpu_slots([0, 1], 1, 2, say) as taken:
        assert taken == [0, 1]
    (sentence,) = said
    assert f"GPU 3 is used by process {run.pid} since" in sentence and "run.share_gpu = true" in sentence


def test_two_that_want_both_do_not_wait_for_each_other_for_ever(other):
    one = other("1")

    def say(sentence: str) -> None:
        with gpu_slots([0], 1, 1, print) as taken:  # not kept by the one that waits for both
            assert taken == [0]
        one.kill()

    with gpu_slots([0, 1], 2, 2, say) as taken:
        assert taken == [0, 1]


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "crossreel-gpu-3.lock").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=f"{FOLDER} names another folder"), gpu_slots([0], 1, 1, print):
        pass
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "gpus", "workers", "used"),
    [({}, 2, 2, 2), ({"gpu_fraction": 0.5}, 2, 4, 2), ({"workers": 1}, 2, 1, 1),
     ({"workers": 2, "gpu_fraction": 0.5}, 2, 2, 1), ({"workers": 5}, 2, 5, 2), ({"gpu_fraction": 0.3}, 1, 3, 1)],
)  # fmt: skip
def test_workers_share_gpus_by_their_fraction(options, gpus, workers, used):
    asked = RunOptions(**options)
    assert local_workers(asked, gpus) == workers
    assert usable_gpus(asked, gpus, shards=100) == used
    assert usable_gpus(asked, gpus, shards=1) == 1


WORKER = """
import json
def work(request, send):
    send({"device": json.loads(request["options"])["device"]}, {})
"""


@pytest.mark.parametrize(
    ("taken", "share", "devices"),
    [("", False, {"cuda:0", "cuda:1"}), ("0", False, {"cuda:1"}), ("0", True, {"cuda:0", "cuda:1"})],
)
def test_local_workers_of_a_network_are_on_the_gpus_that_were_free(
    other, tmp_path, monkeypatch, taken, share, devices
):
    if taken:
        other(taken)
    (tmp_path / "gpu_worker_of_test.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    keys = [str(n) for n in range(6)]
    work = Work(
        "gpu_worker_of_test:work", [[key] for key in keys], "", {key: {"key": key} for key in keys}, [],
        {key: [] for key in keys}, {"batch_size": 8}, network=True,
    )  # fmt: skip
    options = RunOptions(gpu_fraction=0.5, share_gpu=share)
    found = {event.header["device"] for event in LocalEngine(options).run(work) if isinstance(event, Message)}
    assert found <= devices and (len(devices) > 1 or found == devices)
    with gpu_slots([1], 1, 1, print) as again:  # given back
        assert again == [1]
