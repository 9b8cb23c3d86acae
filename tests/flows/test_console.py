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
