"""One experiment file, two engines: the same store, the same failures, nothing left running on either."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from flows.project import open_project
from pipeline.run.engines.reaper import members

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs crossreel[ray]"),
]
RAY = ("--set", "run.engine=ray")
STAGES = ("compress", "frames")
EXPERIMENT = """
corpus = "corpus.jsonl"
extract = ["frames"]
[extractors.frames]
size = 32
[run]
workers = 2
"""
MADE: dict[str, object] = {}


def content(lab) -> dict[str, object]:
    """What a store holds of each item and caption."""
    project = open_project(lab.toml)
    out: dict[str, object] = {}
    for name, state in project.survey().items():
        if name in STAGES:
            reader = project.store.reader(name, state.fingerprint.hex)
            for key in state.places:
                for field in state.stage.fields:
                    rows = np.asarray(reader.rows(key, field, check=True))
                    out[f"{name} {key} {field}"] = (rows.shape, rows.tobytes())
    project.store.index.close()
    return out


@pytest.fixture
def lab(lab):
    """Twelve clips to be compressed and cut into frames."""
    lab.experiment(EXPERIMENT)
    return lab


@pytest.fixture
def undisturbed(lab) -> dict[str, object]:
    """The content of the store of a local run that nobody disturbed; made once."""
    if not MADE:
        ended = lab.run("stage", "frames", lab.toml)
        assert ended.code == 0, ended.err
        MADE.update(content(lab))
        shutil.rmtree(lab.store)
    return MADE


def children(lab, entry: str) -> list[int]:
    """Our child processes of an entry that run just now; what they have forked has their name for a moment."""
    found = []
    for number, words in lab.processes().items():
        with contextlib.suppress(OSError):
            if f"pipeline.child {entry}" in words and os.getsid(number) == number:
                found.append(number)
    return found


def workers(lab) -> list[int]:
    """The processes that work on shards just now."""
    return children(lab, "extractors.shard:run")


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_killed_again_and_again_cost_nothing_but_time(lab, undisturbed, engine):
    run = lab.start("stage", "frames", lab.toml, "--json", "--set", f"run.engine={engine}")
    killed: set[int] = set()
    segments = lab.store / "segments"
    for stage in STAGES:  # a worker in the middle of a stage, and on Ray its actor the second time
        wait_for(
            lambda s=stage: set(workers(lab)) - killed and len(list((segments / s).rglob("*.h5"))) >= 2, run
        )
        victim = max(set(workers(lab)) - killed)
        if engine == "ray" and stage == "frames":
            victim = int(Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2].split()[1])
        killed.add(victim)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    out, err = run.communicate(timeout=180)
    assert run.returncode == 0, out + err
    made = {stage["stage"]: stage for stage in json.loads(out)["stages"]}
    assert all(made[name]["failed"] == 0 and made[name]["ran"] > 0 for name in STAGES)
    assert content(lab) == undisturbed
    assert lab.run("store", "verify", lab.store).code == 0
    assert lab.gone_within(30) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_on_ray_that_is_ended_leaves_nothing_and_goes_on_from_there(lab, undisturbed, number):
    run = lab.start("stage", "frames", lab.toml, *RAY)
    wait_for(lambda: len(list((lab.store / "segments/compress").rglob("*.h5"))) >= 2, run)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode in (-number, 128 + number)
    assert lab.gone_within(30) == []
    ended = lab.run("stage", "frames", lab.toml, "--json")
    assert ended.code == 0, ended.err
    made = {stage["stage"]: stage for stage in json.loads(ended.out)["stages"]}
    assert made["compress"]["cached"] >= 1  # what was finished was kept
    assert content(lab) == undisturbed


def test_a_cluster_that_is_not_there_is_one_sentence(small):
    ended = small.run("stage", "compress", small.toml, *RAY, "--set", "run.address='127.0.0.1:9'")
    assert ended.code == 2 and "Traceback" not in ended.err
    assert "no Ray cluster at run.address = '127.0.0.1:9'" in ended.err


def test_a_flow_of_prefect_keeps_one_cluster_for_all_its_stages(lab, undisturbed):
    """Each stage is a task of its own; the cluster must not end with the first."""
    seen: set[int] = set()
    run = lab.start("run", lab.toml, *RAY)
    while run.poll() is None:
        seen.update(children(lab, "pipeline.run.engines.ray_driver:run"))
        time.sleep(0.1)
    out, err = run.communicate()
    assert run.returncode == 0, out + err
    assert len(seen) == 1 and members(seen.pop()) == []
    assert content(lab) == undisturbed
