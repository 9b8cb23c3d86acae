"""A training on two processes, and on two machines that share a store, from the command line."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def history(lab) -> list[dict[str, Any]]:
    """What the one finished training wrote of its epochs."""
    (path,) = (lab.store / "runs/train-hlformer").glob("*/history.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def packed(lab):
    """The lab with a few clips, everything that a training reads made."""
    lab.corpus(sorted(path.name for path in lab.folder.glob("*.mp4"))[:8])
    assert lab.run("stage", "pack-hlformer", lab.toml).code == 0
    return lab


@pytest.mark.long
def test_two_processes_train_what_one_trains(packed):
    assert packed.run("stage", "train-hlformer", packed.toml).code == 0
    one = history(packed)
    several = ("--set", "run.processes=2", "--set", "trainers.hlformer.patience=9")  # another training
    (packed.store / "runs/train-hlformer").rename(packed.folder / "before")
    ended = packed.run("stage", "train-hlformer", packed.toml, *several)
    assert ended.code == 0, ended.err
    two = history(packed)
    assert [epoch["steps"] for epoch in two] == [epoch["steps"] for epoch in one]
    assert two[0]["terms"].keys() == one[0]["terms"].keys()


@pytest.mark.long
def test_a_second_machine_joins_the_training_of_the_first(packed):
    meeting = ["--set", "run.nodes=2", "--set", f"run.rendezvous=127.0.0.1:{free_port()}"]
    command = [sys.executable, "-m", "flows.cli", "stage", "train-hlformer", str(packed.toml), *meeting]
    second = subprocess.Popen(
        [*command, "--join"], cwd=packed.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    first = packed.run("stage", "train-hlformer", packed.toml, *meeting)
    _, err = second.communicate(timeout=120)
    assert (first.code, second.returncode) == (0, 0), first.err + err
    assert len(history(packed)) == 2
    again = packed.run("stage", "train-hlformer", packed.toml, *meeting, "--join")
    assert again.code == 2 and "train-hlformer is done already" in again.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train-hlformer", "--join"], "only a training with run.nodes above 1 can"),
        (["clip", "--join", "--set", "run.nodes=2", "--set", "run.rendezvous=h:1"], "clip cannot be joined"),
        (["train-hlformer", "--set", "run.nodes=2"], "several nodes need a rendezvous"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(lab, words, sentence):
    name, *options = words
    ended = lab.run("stage", name, lab.toml, *options)
    assert ended.code == 2 and sentence in ended.err
