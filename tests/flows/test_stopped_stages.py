"""A stage that ends with an error: what does not need it is made all the same, and the run says what was left out."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from flows.batch import outcomes
from flows.console import StageDisplay
from flows.project import open_project
from flows.run import run_stages
from pipeline.child import ChildDied, ChildError
from pipeline.errors import TrainingError, UserError
from pipeline.run.execute import Report

TWO_METHODS = ("hlformer", "gare")
DIVERGES = '\n[trainers.gare]\nmode = "frozen"\nbatch_size = 2\nepochs = 1\nlr = 1e38\nclip_norm = 1e38\n'


class Stages:
    """Stands for the work of stages: the named ones raise, the others are noted and report that they were cached."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = {name.replace("_", "-"): error for name, error in errors.items()}
        self.made: list[str] = []

    def each(self, name, call):
        if name in self.errors:
            raise self.errors[name]
        self.made.append(name)
        return Report(name, "f", 1, cached=1)


@pytest.fixture
def project(lab):
    with closing((project := open_project(lab.toml, methods=TWO_METHODS)).store.index):
        yield project


def run(project, stages, names=()):
    names = names or list(project.stages)
    return run_stages(project, names, StageDisplay(quiet=True), each=stages.each)


@pytest.mark.parametrize(
    "error", [UserError("no"), TrainingError("no"), ChildDied("no"), ChildError("Traceback\nno")]
)
def test_a_method_that_stops_leaves_the_others_their_run(project, error):
    stages = Stages(train_gare=error)
    result = run(project, stages)
    assert "evaluate-hlformer" in stages.made and "evaluate-gare" not in stages.made
    (stopped,) = result.stopped
    assert (stopped.stage, stopped.reason) == ("train-gare", "no")
    assert stopped.left_out == ("evaluate-gare", "report")
    assert stages.made[-1] == "report"  # of the method that is left
    assert project.store.index.runs()[0]["status"] == "incomplete"
    found = outcomes(project, {}, result.stopped)
    assert [(one.method, one.error) for one in found] == [("gare", "train-gare stopped: no")]


@pytest.mark.parametrize("names", [(), ("train-gare",), ("evaluate-gare",)])
def test_where_nothing_is_left_of_what_was_asked_for_the_error_is_raised(project, names):
    stages = Stages(train_gare=TrainingError("gare"), train_hlformer=UserError("hlformer"))
    with pytest.raises((TrainingError, UserError), match="gare" if names else "hlformer"):
        run(project, stages, names)
    assert "report" not in stages.made
    assert project.store.index.runs()[0]["status"] == "failed"


def test_a_full_disk_ends_the_run_at_once(project):
    stages = Stages(compress=UserError("the disk is full: No space left on device"))
    with pytest.raises(UserError, match="the disk is full"):
        run(project, stages)
    assert stages.made == []


@pytest.mark.slow
def test_the_report_is_of_the_methods_that_were_evaluated_and_says_what_stopped(made):
    text = made.toml.read_text().replace('["hlformer"]', '["gare", "hlformer"]')
    made.experiment(text.replace("\n[run]", DIVERGES + "\n[run]"))
    ended = made.run("stage", "report", made.toml)
    assert ended.code == 3, ended.err
    assert "train-gare: " in ended.out and "left out because of it: evaluate-gare, report" in ended.out
    (page,) = (made.store / "runs" / "report").glob("*/report.html")
    assert str(page) in ended.out
    assert "<strong>train-gare stopped</strong>" in page.read_text() and "hlformer" in page.read_text()
    told = json.loads(made.run("stage", "report", made.toml, "--json").out)
    assert [stage["stage"] for stage in told["stopped"]] == ["train-gare"]
    assert [row["method"] for row in told["leaderboard"]][:1] == ["hlformer"]
    alone = made.run("stage", "train-gare", made.toml)
    assert alone.code == 1 and "training stopped" in alone.err
