"""`store gc --packs`: packed inputs go, nothing is trained for it, and they come back when something reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RUNS = ("pack-hlformer", "pack-hlformer-test")


def packs(store: Path) -> list[str]:
    """What a store has of packed inputs: folders of packs, and segments of what packing computed."""
    folders = [path.name for name in RUNS for path in (store / "runs" / name).glob("*")]
    return folders + [path.name for path in (store / "segments" / "packed-hlformer").glob("*/*.h5")]


@pytest.mark.slow
def test_dropped_packs_come_back_when_something_reads_them_and_nothing_is_trained_for_it(made) -> None:
    trained = next((made.store / "runs" / "train-hlformer").glob("*"))
    before, weights = (
        {name: state["fingerprint"] for name, state in made.plan().items()},
        trained.stat().st_mtime_ns,
    )
    told = made.run("store", "gc", made.toml, "--packs", "--dry-run", "--young-seconds", 0)
    assert told.code == 0 and "runs/pack-hlformer/" in told.out and "segments/packed-hlformer/" in told.out
    assert len(packs(made.store)) >= 4, "a dry run removed something"
    gone = made.run("store", "gc", made.toml, "--packs", "--young-seconds", 0)
    assert gone.code == 0 and "packed-hlformer" in gone.out and not packs(made.store)
    assert [name for name, state in made.plan().items() if state["missing"]] == [
        "report"
    ]  # which was never made
    assert json.loads(made.run("stage", "evaluate", made.toml, "--json").out)["stages_ran"] == 0
    assert not packs(made.store)
    evaluated = made.run("stage", "evaluate-hlformer", made.toml, "--redo", "--json")
    ran = [stage["stage"] for stage in json.loads(evaluated.out)["stages"] if stage["ran"]]
    assert "pack-hlformer-test" in ran and not {"train-hlformer", "pack-hlformer"} & set(ran)
    assert {name: state["fingerprint"] for name, state in made.plan().items()} == before
    assert made.run("stage", "pack-hlformer", made.toml).code == 0
    assert len(list((made.store / "runs" / "pack-hlformer").glob("*"))) == 1
    assert trained.stat().st_mtime_ns == weights
    assert made.run("store", "verify", made.store).code == 0
    assert made.run("store", "gc", made.toml, "--young-seconds", 0).code == 0
    assert len(packs(made.store)) >= 4, "what a kept pack refers to is kept"


@pytest.mark.slow
def test_a_pack_whose_segments_are_gone_is_made_again_for_what_reads_it(made) -> None:
    for path in (made.store / "segments" / "packed-hlformer").glob("*/*.h5"):
        path.unlink()
    planned = made.run("plan", made.toml)
    assert "1 stages to run" in planned.out and "features that methods read: " in planned.out
    ended = made.run("stage", "evaluate-hlformer", made.toml, "--redo", "--json")
    ran = [stage["stage"] for stage in json.loads(ended.out)["stages"] if stage["ran"]]
    assert ended.code == 0 and "pack-hlformer-test" in ran and "train-hlformer" not in ran
