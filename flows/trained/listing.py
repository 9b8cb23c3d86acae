"""The trained runs of a store as a list: name, day, items, evaluations, and what they are to an experiment today."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flows.project import Project
from flows.trained.changes import why_stale
from flows.trained.recorded import recorded_stages
from flows.trained.runs import TrainedRun, evaluations, made_with, trained_runs
from pipeline.errors import UserError
from pipeline.run import plan


@dataclass(frozen=True)
class ListedRun:
    """A trained run. today: "current", why it is stale, or that it is of another experiment.

    items: the number of items that it was trained on, 0 if that is not known. evaluated, applied: the splits that it
    was evaluated on, and the folders of its evaluations on other corpora.
    """

    name: str
    method: str
    fingerprint: str
    day: str
    items: int
    evaluated: tuple[str, ...]
    applied: tuple[str, ...]
    experiment: str
    folder: str
    today: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def list_runs(project: Project) -> list[ListedRun]:
    """Every finished training in a project's store, the newest first."""
    states = project.states()
    return [_listed(project, run, states) for run in trained_runs(project.store)]


def _listed(project: Project, run: TrainedRun, states: plan.Survey) -> ListedRun:
    experiment = str(run.record.get("experiment", ""))
    applied = [str(run.store.run_folder(one.stage, one.fingerprint)) for one in made_with(run, "apply-")]
    return ListedRun(
        run.name, run.method, run.fingerprint, run.day, len(run.learned_items()),
        tuple(dict.fromkeys(one.split for one in evaluations(run))), tuple(applied), experiment,
        str(run.folder.folder), _today(project, run, states, experiment),
    )  # fmt: skip


def _today(project: Project, run: TrainedRun, states: plan.Survey, experiment: str) -> str:
    """What a run is to an experiment."""
    if run.stage not in project.stages:
        return f"of the experiment {experiment}" if experiment else "its method is not in the experiment"
    try:
        if states[run.stage].fingerprint.hex == run.fingerprint:
            return "current"
        changes = why_stale(run, recorded_stages(run, project.stages), states)
    except UserError as error:
        return f"stale: {error}"
    owner = (
        f"of the experiment {experiment}: " if experiment not in ("", project.experiment.name) else "stale: "
    )
    return owner + changes
