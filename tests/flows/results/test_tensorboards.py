"""The folder of curves, as TensorBoard itself reads it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

from flows.project import open_project
from flows.results.tensorboards import link_curves, slug


def test_a_run_has_a_readable_name_with_recall_of_validation_settings_and_final_figures(
    experiment: Path, tmp_path: Path
) -> None:
    printed = (experiment.parent / "printed.txt").read_text()
    assert re.search(
        r"^training curves: tensorboard --logdir .*/store/tensorboard/\S+$", printed, re.MULTILINE
    )
    lab = tmp_path / "lab"
    shutil.copytree(experiment.parent, lab, symlinks=True)
    project = open_project(lab / experiment.name)
    folder = link_curves(project, project.survey())
    assert folder is not None
    (name,) = (path.name for path in folder.iterdir())
    assert re.fullmatch(r"hlformer seed \d+ [0-9a-f]{8}", name)
    board = EventMultiplexer().AddRunsFromDirectory(str(folder))
    board.Reload()
    scalars = set(board.Runs()[name]["scalars"])
    assert {"validation/R@1", "validation/R@5", "validation/R@10", "validation/SumR", "loss/total"} <= scalars
    assert {"best validation/SumR", "test/t2v R@1", "test/v2t R@1", "test/RSUM"} <= scalars
    settings = set(board.PluginRunToTagToContent("hparams")[name])
    assert settings == {"_hparams_/experiment", "_hparams_/session_start_info"}
    again = {path: path.lstat().st_mtime_ns for path in (folder / name).iterdir()}
    link_curves(project, project.survey())
    assert again == {path: path.lstat().st_mtime_ns for path in (folder / name).iterdir()}
    gone = folder / "gare seed 0 0a1b2c3d"
    gone.mkdir()
    (gone / "events.out.tfevents.1").symlink_to("nowhere")
    link_curves(project, project.survey())
    assert not gone.exists()


def test_the_name_of_an_experiment_becomes_one_that_a_folder_can_have() -> None:
    assert (
        slug("My run / 2 (b)") == "My-run-2-b" and slug("***") == "experiment" and slug("..") == "experiment"
    )
