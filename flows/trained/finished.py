"""What is finished of an experiment's methods, whatever became stale: today's where it is made, else its last run.

Nothing here is made or computed: a verb that reads results goes on with what the store has, and says what that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from flows.project import Project
from flows.trained.changes import why_stale
from flows.trained.recorded import recorded_evaluation, recorded_pack, recorded_stages
from flows.trained.runs import Made, TrainedRun, evaluation_on, evaluations, find_run, last_run
from pipeline.errors import UserError
from pipeline.run import plan

PICTURES = ("compress", "points")  # stages that pages take pictures of items from


@dataclass(frozen=True)
class Finished:
    """A project whose methods read what is finished, and a survey of it.

    notes: for each method that reads another run than today's settings would make, what it was made from and why it is
    stale, in one sentence. missing: for each method that nothing is finished of, the first stage that is missing.
    """

    project: Project
    states: plan.Survey
    notes: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def require(self, method: str) -> None:
        """Raise UserError where nothing is finished of a method."""
        if method in self.missing:
            path = self.project.experiment.path
            raise UserError(f"{self.missing[method]} is not done yet; run `crossreel run {path}` first")


def finished_evaluations(
    project: Project, methods: Iterable[str], runs: Mapping[str, str] | None = None,
    states: plan.Survey | None = None,
) -> Finished:  # fmt: skip
    """The experiment with a finished evaluation of each method, today's if that is made.

    runs: the digest of the run that is asked for, by method; others read their last run. Raises UserError where a run
    that is asked for is not there, or not evaluated.
    """
    states = project.states() if states is None else states
    notes, missing, stages = {}, {}, dict(project.stages)
    for method in methods:
        digest = (runs or {}).get(method, "")
        today = states[f"evaluate-{method}"]
        if today.complete and (not digest or states[f"train-{method}"].fingerprint.hex.startswith(digest)):
            continue
        found = _evaluated(project, method, digest)
        if found is None:
            missing[method] = first_missing(project.stages, states, f"evaluate-{method}")
            continue
        run, evaluation = found
        recorded = recorded_stages(run, project.stages)
        stages[run.stage] = recorded[run.stage]
        stages[evaluation.stage] = evaluated = recorded_evaluation(run, evaluation)
        for name in PICTURES:
            if name in recorded and (name not in states or not states[name].places):
                stages[name] = recorded[name]
        pack = recorded_pack(run, evaluation.packed, evaluation.split)
        changes = why_stale(run, {**recorded, pack.name: pack, evaluated.name: evaluated}, states)
        notes[method] = note_of(run, changes, "" if digest else "it is stale")
    chosen = project if stages == project.stages else replace(project, stages=stages)
    return Finished(chosen, states.of_stages(stages) if notes else states, notes, missing)


def _evaluated(project: Project, method: str, digest: str) -> tuple[TrainedRun, Made] | None:
    """The run that is asked for or, with "", the last evaluated one, and its newest evaluation on the usual split."""
    run = chosen_run(project, method, digest, evaluated=True)
    if run is None:
        return None
    newest = evaluation_on(run)
    split = project.stages[f"evaluate-{method}"].params.split
    return run, next((one for one in evaluations(run) if one.split == split), newest)


def chosen_run(project: Project, method: str, digest: str = "", evaluated: bool = False) -> TrainedRun | None:
    """The run of a method that is asked for or, with "", the last one of the experiment; None if it has none.

    Raises UserError if there is no such run.
    """
    if digest:
        return find_run(project.store, method, digest)
    return last_run(project.store, project.experiment.name, method, evaluated)


def usual_run(project: Project, method: str, states: plan.Survey | None = None) -> TrainedRun:
    """The training that today's settings make, if it is finished, else the last one of the experiment.

    Raises UserError if there is neither.
    """
    today = (project.states() if states is None else states)[f"train-{method}"]
    if project.store.has_run(today.stage.name, today.fingerprint.hex):
        return TrainedRun(project.store, method, today.fingerprint.hex)
    last = last_run(project.store, project.experiment.name, method)
    if last is None:
        raise UserError(
            f"train-{method} is not done yet; run `crossreel run {project.experiment.path}` first"
        )
    return last


def first_missing(stages: plan.Stages, states: Mapping[str, plan.State], end: str) -> str:
    """The first stage, in order, that is not made of those that `end` needs."""
    needed = plan.ancestors(stages, [end])
    return next(name for name in plan.order(stages) if name in needed and not states[name].complete)


def note_of(run: TrainedRun, changes: str, stale: str = "it is stale") -> str:
    """The sentence that says which run is read, what it was made from and, where `stale` says so, why it is stale."""
    record = run.record
    source = f" on {record['corpus']}" if record.get("corpus") else ""
    items = len(run.learned_items())
    learned = f", trained on {items} items" if items else ""
    since = f"{stale or 'since then'}: {changes}" if changes else stale
    return f"{run.method} is {run.name} of {run.day}{source}{learned}" + (f"; {since}" if since else "")
