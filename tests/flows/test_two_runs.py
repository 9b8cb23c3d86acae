"""Two runs at once on one store: nothing is made twice, nothing is damaged, the one that waits says so."""

from __future__ import annotations

import fcntl
import json

import pytest

from flows.project import open_project

pytestmark = pytest.mark.slow


def test_two_runs_share_the_work_and_both_end_well(lab):
    runs = [lab.start("stage", "clip", lab.toml, "--json") for _ in range(2)]
    told = []
    for run in runs:
        out, err = run.communicate(timeout=180)
        assert run.returncode == 0, err
        told.append({stage["stage"]: stage for stage in json.loads(out)["stages"]})
    for stage in ("compress", "clip"):
        assert sum(one[stage]["ran"] for one in told) == 12
        assert all(one[stage]["ran"] + one[stage]["cached"] == 12 for one in told)
    assert lab.run("store", "verify", lab.store).code == 0


def test_a_run_waits_for_the_one_that_has_the_lock_and_says_for_whom(small):
    project = open_project(small.toml)
    fp = project.survey()["compress"].fingerprint.hex
    with project.store.lock("compress", fp):
        waiting = small.start("stage", "compress", small.toml)
        assert waiting.stderr is not None
        said = next((line for line in waiting.stderr if "is being made" in line), "it ended without a word")
        assert "compress is being made by process" in said
        assert waiting.poll() is None
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err


def test_a_lock_of_a_dead_process_holds_nobody_up(small):
    project = open_project(small.toml)
    path = small.store / "locks" / f"compress-{project.survey()['compress'].fingerprint.hex}"
    path.write_text("process 1 since yesterday")
    with path.open() as file:  # nobody holds it
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert small.run("stage", "compress", small.toml, seconds=60).code == 0
