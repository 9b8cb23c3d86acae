"""Sweeps: which runs a file asks for, how they are ranked, and that what they share is made once."""

from __future__ import annotations

import json

import pytest

from flows.batch import Outcome, as_sets, read_sweep, rows
from flows.commands import batch
from flows.commands.terms import ANYWAY
from pipeline.errors import UserError
from pipeline.settings import apply_sets

GRID = """
experiment = "experiment.toml"
[grid]
"trainers.hlformer.lr" = [1e-3, 5e-4]
trainers.hlformer.seed = [0, 1]
[[points]]
"trainers.hlformer.epochs" = 1
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "sweep.toml"
        path.write_text(text)
        return path

    return write


def test_a_grid_is_every_combination_and_points_stand_by_themselves(write):
    assert read_sweep(write(GRID)).runs() == [
        {"trainers.hlformer.lr": 1e-3, "trainers.hlformer.seed": 0},
        {"trainers.hlformer.lr": 1e-3, "trainers.hlformer.seed": 1},
        {"trainers.hlformer.lr": 5e-4, "trainers.hlformer.seed": 0},
        {"trainers.hlformer.lr": 5e-4, "trainers.hlformer.seed": 1},
        {"trainers.hlformer.epochs": 1},
    ]


def test_every_kind_of_value_reaches_the_setting_unchanged():
    values = {"a.b": 1e-05, "c": 'with "quotes"', "d": [1, 2], "e": True, "f.g": "word"}
    tree = apply_sets({}, as_sets(values))
    assert tree == {"a": {"b": 1e-05}, "c": 'with "quotes"', "d": [1, 2], "e": True, "f": {"g": "word"}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('experiment = "e.toml"', "neither grid nor points names a setting to try"),
        ('experiment = "e.toml"\n[grid]\nlr = 3', "grid.lr = 3 is not a list"),
        ('experiment = "e.toml"\n[grid]\nlr = []', "is not a list"),
        ('experiment = "e.toml"\n[grids]\nlr = [1]', "unknown setting grids; .*grid"),
        ("[grid]\nlr = [1]", "the setting experiment is required"),
        (
            f'experiment = "e.toml"\n[grid]\na = {list(range(101))}\nb = {list(range(100))}',
            "10,100 combinations",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_one_sentence(write, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_sweep(write(text)).runs()


def outcome(lr: float, seed: int, validation: float, test: float) -> Outcome:
    figures = {"t2v": {"R@1": {"value": test, "low": 0.0, "high": 1.0}}}
    return Outcome({"t.lr": lr, "t.seed": seed}, "gare", validation, figures, "test")


def test_runs_are_ranked_by_validation_and_never_by_test():
    ranked = rows([outcome(1, 0, 10.0, 99.0), outcome(2, 0, 20.0, 1.0)])
    assert [row.settings["t.lr"] for row in ranked] == [2, 1]


def test_seeds_are_repetitions_with_a_mean_and_a_deviation():
    (row,) = rows([outcome(1, 0, 10.0, 4.0), outcome(1, 1, 20.0, 8.0)])
    assert row.settings == {"t.lr": 1} and row.validation() == 15.0
    assert row.figure("t2v", "R@1") == (6.0, pytest.approx(8**0.5))
    assert row.figure("v2t", "R@1") is None


def test_a_run_that_failed_is_in_no_row():
    assert rows([Outcome({"t.lr": 1}, error="it diverged")]) == []


@pytest.mark.parametrize("options", [(), ("--anyway",)])
def test_every_run_begins_anyway_where_that_is_asked_for(lab, crossreel, monkeypatch, options):
    sweep = lab.folder / "sweep.toml"
    sweep.write_text('experiment = "experiment.toml"\n[grid]\n"trainers.hlformer.seed" = [0, 1]\n')
    begun = []

    def run(path, sets, *others):
        begun.append(ANYWAY in sets)
        raise UserError("it comes to nothing")

    monkeypatch.setattr(batch, "run_experiment", run)
    assert crossreel("batch", sweep, *options).code == 1
    assert begun == [bool(options)] * 2


@pytest.mark.slow
def test_a_setting_that_is_impossible_is_reported_before_anything_runs(lab):
    (lab.folder / "sweep.toml").write_text(GRID.replace("hlformer.lr", "hlformer.lrr"))
    ended = lab.run("batch", lab.folder / "sweep.toml")
    assert ended.code == 2 and "unknown setting trainers.hlformer.lrr" in ended.err
    assert not lab.store.exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_makes_what_its_runs_share_once_and_costs_nothing_the_second_time(lab):
    text = 'experiment = "experiment.toml"\n[grid]\n"trainers.hlformer.seed" = [0, 1]\n'
    (lab.folder / "sweep.toml").write_text(text)
    chosen = "trainers.hlformer.select_by=R@1"
    ended = lab.run("batch", lab.folder / "sweep.toml", "--jobs", "2", "--json", "--set", chosen)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [o["settings"]["trainers.hlformer.seed"] for o in found] == [0, 1]
    assert (
        found[0]["figure"] == "R@1"
        and found[0]["validation"] is not None
        and "R@1" in found[0]["figures"]["t2v"]
    )
    trained = list((lab.store / "runs" / "train-hlformer").iterdir())
    packed = list((lab.store / "runs" / "pack-hlformer").iterdir())
    assert (len(trained), len(packed)) == (2, 1)
    times = {path: path.stat().st_mtime_ns for path in trained}
    again = lab.run("batch", lab.folder / "sweep.toml", "--set", chosen)
    assert again.code == 0 and "val R@1" in again.out, again.err
    assert "hlformer on test, 2 runs, the best on val first" in again.out and "±" in again.out
    assert {path: path.stat().st_mtime_ns for path in trained} == times
