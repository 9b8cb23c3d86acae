"""`plan` and `run` agree on how many stages run."""

from __future__ import annotations

import json
import re

import pytest


def planned(lab, *sets) -> int:
    """The number of stages that a plan announces, which is that of its missing ones."""
    ended = lab.run("plan", lab.toml, *sets)
    assert ended.code == 0, ended.err
    found = re.search(r"(\d+) stages to run", ended.out)
    count = int(found[1]) if found else 0
    assert ("nothing to do" in ended.out) is (count == 0)
    assert sum(state["missing"] > 0 for state in lab.plan(*sets).values()) == count
    return count


def ran(lab, stage, *sets) -> int:
    ended = lab.run("stage", stage, lab.toml, *sets, "--json")
    assert ended.code in (0, 3), ended.err
    return int(json.loads(ended.out)["stages_ran"])


def test_a_stage_whose_items_all_fail_ran(small):
    for path in small.folder.glob("*.mp4"):
        path.write_bytes(b"no video" + path.name.encode())
    assert planned(small) == ran(small, "compress") == 1
    assert planned(small) == ran(small, "compress") == 0


@pytest.mark.slow
def test_plan_and_run_agree_after_settings_losses_and_failures(made):
    assert planned(made) == ran(made, "report") == 1
    assert planned(made) == ran(made, "report") == 0
    seed = ("--set", "evaluate.seed=1")
    assert planned(made, *seed) == ran(made, "report", *seed) == 2
    next((made.store / "segments" / "clip_text").glob("*/*.h5")).unlink()
    assert planned(made) == ran(made, "report") == 1  # what was made of it is there
    (made.folder / "clip02.mp4").write_bytes(b"no video")
    assert ran(made, "report") > 1
    assert planned(made) == ran(made, "report") == 0  # what failed is not tried unasked
