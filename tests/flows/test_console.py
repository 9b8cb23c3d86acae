"""What a stage does is shown at once, and a log is never silent for long while a stage runs."""

from __future__ import annotations

import time

from flows import console
from flows.console import StageDisplay
from pipeline.run.execute import LOADING, Progress, Report


def test_work_that_moves_no_count_is_named_at_once_and_once(capsys):
    with StageDisplay() as display:
        for done in (0, 0, 1):
            display.progress(Progress("clip", done, 12, doing=LOADING if done == 0 else ""))
    assert capsys.readouterr().err == "  clip: 0 of 12  loading networks\n"


def test_a_stage_that_reports_nothing_is_named_again_until_it_ends(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.1)
    with StageDisplay() as display:
        display.progress(Progress("compress", 3, 12))
        time.sleep(0.5)
        said = capsys.readouterr().err.splitlines()
        assert set(said) == {"  compress: 3 of 12"} and 2 <= len(said) <= 5
        display.report(Report("compress", "fp", 12, ran=12, seconds=1.0))
        time.sleep(0.3)
        assert capsys.readouterr().err == "compress: 12 made (1.0 s)\n"


def test_a_stage_that_stopped_is_not_named_again(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.1)
    with StageDisplay() as display:
        display.progress(Progress("train-gare", 0, 1))
        display.idle()
        time.sleep(0.3)
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_an_evaluation_shows_what_it_counts_and_the_time_left(capsys):
    detail = {"doing": "scoring", "done": 300, "total": 1000, "eta_seconds": 41.6}
    progress = Progress("evaluate-gare", 0, 1, detail=detail)
    assert console.position(progress) == (300, 1000)
    assert console.line(progress) == "  evaluate-gare: 300 of 1000  scoring  42 s left"


def test_a_training_shows_how_long_it_waits_for_data_and_how_far_its_validation_is():
    detail = {
        "epoch": 2,
        "epochs": 5,
        "step": 10,
        "steps": 10,
        "loss": 1.5,
        "eta_seconds": 30.0,
        "waiting": 0.0,
    }
    assert (
        console.describe(Progress("train", 0, 1, detail=detail)) == "epoch 2/5  loss 1.500  at most 30 s left"
    )
    work = {"doing": "scoring", "done": 1, "total": 4, "eta_seconds": 9.0}
    busy = Progress("train", 0, 1, detail=detail | {"waiting": 0.123, "validating": work})
    assert console.position(busy) == (20, 50)
    assert console.describe(busy) == (
        "epoch 2/5  loss 1.500  waits for data 12%  validating: scoring 25%, 9 s left, then  at most 30 s left"
    )
