"""run, plan, stage, status, why, report: an experiment and its stages."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.terms import (
    DEFAULT_EXPERIMENT,
    FAILED_ITEMS,
    Anyway,
    AsJson,
    ExperimentFile,
    Methods,
    Redo,
    RetryFailed,
    Sets,
    StageName,
    all_sets,
    human_bytes,
    human_seconds,
    out,
    print_json,
    print_path,
    print_table,
)  # fmt: skip
from flows.console import StageDisplay, sentence
from flows.copies import feature_copies
from flows.estimate import Expected, assumptions
from flows.preflight import Problem, as_text, planned, refusal, require_possible
from flows.project import OnHashed, Project, open_project
from flows.repetition import in_lines
from flows.reporting import Stopped, report_of
from flows.results.verdict import Verdict
from flows.results.wording import counted, member, short_title
from flows.run import STAGE_ERRORS, RunResult, nothing_to_do, report_path, run_stages
from flows.terminal import escaped
from flows.trained.finished import Finished, finished_evaluations
from flows.why import explain
from pipeline.errors import UserError, is_full
from pipeline.run import plan as planning
from pipeline.run.execute import Report
from trainers.measure.metric_table import metric, shown_metrics

FAILURES_SHOWN = 10
NARROW = (
    "MnR",
    "MRR",
)  # metrics left out of a narrow terminal; SumR stays beside every recall that it adds up
WIDE = 100  # characters of a terminal that has room for every column

log = logging.getLogger(__name__)


def opened(path: Path, sets: list[str], methods: list[str], display: StageDisplay) -> Project:
    """The project, with a word while media are read for their digests the first time."""
    return open_project(path, sets, methods, hashing(display))


def hashing(display: StageDisplay) -> OnHashed:
    """A function that says at times how many of the new media have been read for their digests."""

    def hashed(done: int, total: int) -> None:
        if done in (1, total) or done % 500 == 0:
            display.say(f"reading new media for their digests: {done} of {total}")

    return hashed


def run(
    experiments: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT...", help="One or more experiment files.")
    ] = [DEFAULT_EXPERIMENT],  # noqa: B006
    sets: Sets = [],  # noqa: B006
    methods: Methods = [],  # noqa: B006
    redo: Redo = [],  # noqa: B006
    retry_failed: RetryFailed = False,
    anyway: Anyway = False,
    as_json: AsJson = False,
) -> None:
    """Bring an experiment up to date: make all artifacts that are missing, and no others.

    Known problems that stop a stage (missing weights, a batch larger than the corpus, a full disk) are listed before
    any work is done, and without --anyway the run ends there.

    Stages run as Prefect tasks, on the server that PREFECT_API_URL or prefect.toml names if it
    answers, else on one that lives as long as this command.
    """
    results, errors = [], []
    sets = all_sets(sets, anyway)
    with StageDisplay(quiet=as_json) as display:
        for path in experiments:
            try:
                results.append(run_experiment(path, sets, methods, redo, retry_failed, display))
            except STAGE_ERRORS as error:
                if len(experiments) == 1 or is_full(error):
                    raise
                errors.append(error)
                log.error("%s came to nothing: %s", path, error)
    if not results:
        raise errors[0]
    finish(results, as_json, bool(errors))


def run_experiment(
    path: Path,
    sets: list[str],
    methods: list[str],
    redo: list[str],
    retry_failed: bool,
    display: StageDisplay,
) -> RunResult:
    """Run one experiment as a flow; without Prefect where everything is made already."""
    project = opened(path, sets, methods, display)
    with closing(project.store.index):
        names, states = list(project.stages), project.states(math.inf)
        redone = [name for word in redo for name in planning.choose(project.stages, word)]
        check(project, states, names, display, redone, retry_failed)
        if not redone and nothing_to_do(states, names, retry_failed):
            return run_stages(project, names, display, states=states)
        from flows.deployment.launch import run_flow  # Prefect: only a run pays for it
        from flows.deployment.parameters import FlowRequest

        request = FlowRequest(str(path), methods, sets, retry_failed, redone)
        return run_flow("extract-and-train", request, project, names, display, states)


def stage(
    name: StageName,
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    sets: Sets = [],  # noqa: B006
    methods: Methods = [],  # noqa: B006
    redo: Annotated[bool, typer.Option("--redo", help="Make it again even where it is done.")] = False,
    retry_failed: RetryFailed = False,
    join: Annotated[
        bool, typer.Option("--join", help="Take part in this training, which another machine's run leads.")
    ] = False,
    anyway: Anyway = False,
    as_json: AsJson = False,
) -> None:
    """Bring one stage and the stages it needs up to date, in this process and without Prefect."""
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, all_sets(sets, anyway), methods, display)
        names = planning.choose(project.stages, name)
        if join:
            _join(project, names, display)
            return
        states, redone = project.states(math.inf), names if redo else []
        check(project, states, names, display, redone, retry_failed)
        result = run_stages(project, names, display, redone, retry_failed, states=states)
    finish([result], as_json)


def check(
    project: Project, states: planning.Survey, names: Sequence[str], display: StageDisplay,
    redo: Sequence[str] = (), retry_failed: bool = False,
) -> None:  # fmt: skip
    """Raise UserError with what would stop a run of these stages, or only say it where that is to begin anyway."""
    for problem in require_possible(project, states, names, redo, retry_failed):
        display.say(f"WARNING: {problem.sentence}")


def _join(project: Project, names: list[str], display: StageDisplay) -> None:
    if len(names) != 1:
        raise UserError(f"name one training to join: {', '.join(names)}")
    with closing(project.runner(display.progress, display.say)) as runner:
        runner.killed_before = 0.0  # the run that leads tries them again
        runner.join(names[0])


def finish(results: list[RunResult], as_json: bool, incomplete: bool = False) -> None:
    """Print what runs did, and end with the status that says whether items failed or stages stopped.

    `incomplete` says that there was another run, which came to nothing.
    """
    if as_json:
        print_json([result.as_json() for result in results] if len(results) > 1 else results[0].as_json())
    else:
        for result in results:
            print_result(result)
    finish_with(*results, incomplete=incomplete)


def finish_with(*results: RunResult, incomplete: bool = False) -> None:
    """End with the status that says whether items failed or stages stopped."""
    if incomplete or any(result.failed or result.stopped for result in results):
        raise typer.Exit(FAILED_ITEMS)


def print_result(result: RunResult) -> None:
    """The leaderboard, the failures, where the report is, and the count that proves the cache."""
    print_leaderboard(result.leaderboard)
    print_verdict(result.verdict)
    for kind, title in (("failed", "failed"), ("killed", "killed; the next run tries them again")):
        failures = [
            f"{f['name']}: {f['reason']} ({r.stage})"
            for r in result.reports for f in r.failures if f["kind"] == kind
        ]  # fmt: skip
        if kind == "failed":
            failures += [f"{name}: {reason}" for name, reason in result.unreadable.items()]
        if failures:
            out.print(f"\n{len(failures)} {title}:", markup=False, lines=True)
        for line in failures[:FAILURES_SHOWN]:
            out.print(f"  {line}", markup=False)
        if len(failures) > FAILURES_SHOWN:
            out.print(f"  ... and {len(failures) - FAILURES_SHOWN} more: crossreel status")
    if result.stopped:
        stages = counted(len(result.stopped), "stage")
        out.print(
            f"\n{stages} stopped; everything that does not need them was made:", markup=False, lines=True
        )
    for stopped in result.stopped:
        without = f"; left out because of it: {', '.join(stopped.left_out)}" if stopped.left_out else ""
        out.print(f"  {stopped.stage}: {stopped.reason}{without}", markup=False)
    out.print(
        f"\n{result.ran} stages ran, {len(result.reports) - result.ran} were cached, {decoded(result.reports)}, "
        f"{human_seconds(result.seconds)}",
        lines=True,
    )
    if result.report:
        out.print(f"report: {result.report}", markup=False)
    if result.curves:
        out.print(f"training curves: tensorboard --logdir {shlex.quote(str(result.curves))}", markup=False)


def print_verdict(verdict: Verdict | None) -> None:
    """Who is ahead, and what that rests on, a sentence a line."""
    if verdict is None:
        return
    out.print("\nverdict", markup=False, lines=True, style="bold")
    for said in verdict.sentences:
        out.print(said, markup=False, highlight=False)
    for limit in verdict.basis:
        out.print(f"  {limit}", markup=False, highlight=False, style="dim")


def decoded(reports: Sequence[Report]) -> str:
    """The numbers of decoded media files by stage: "24 decodes (12 compress, 12 clip + frames)"."""
    total = sum(report.decodes for report in reports)
    parts = []
    for report in reports:
        if report.decodes:
            names = [report.stage, *(r.stage for r in reports if r.shared_with == report.stage)]
            parts.append(f"{report.decodes} {' + '.join(names)}")
    return f"{total} decodes ({', '.join(parts)})" if parts else "0 decodes"


def print_leaderboard(rows: list[dict[str, Any]]) -> None:
    """A table for each kind of ranked items, three lines a method and direction: figures, intervals, and chance."""
    for kind in dict.fromkeys(row.get("kind", "video") for row in rows):
        _print_board([row for row in rows if row.get("kind", "video") == kind], kind)


def _print_board(rows: list[dict[str, Any]], kind: str) -> None:
    sums = [row for row in rows if row["direction"] == "both"]
    rows = [row for row in rows if row["direction"] != "both"]
    names = shown_metrics((name for row in rows for name in row["metrics"]), kind)
    if out.width < WIDE:
        names = tuple(name for name in names if name not in NARROW)  # the report has them
    lines = []
    for row in rows:
        figures = [(name, row["metrics"].get(name)) for name in names]
        values = [metric(name).printed(f["value"]) if f else "" for name, f in figures]
        intervals = [interval(name, f) if f else "" for name, f in figures]
        method = f"{row['method']} {short_title(row['direction'], kind)}"
        lines += [[method, *values], ["  95 %", *intervals]]
        if row["chance"]:
            chance = row["chance"]
            lines.append(["  chance", *(metric(n).printed(chance[n]) if n in chance else "" for n in names)])
    first = rows[0]
    ranked = f"{member(kind)}s" if first["direction"] == "t2v" else "captions"
    title = f"\n{first['split']}: {first['queries']} queries, {first['gallery']} {ranked}"
    print_table(title, ["", *names], lines)
    for ranked in dict.fromkeys(row["ranked"] for row in rows if "ranked" in row):
        names_of = [row["method"] for row in rows if row.get("ranked") == ranked]
        out.print(f"{short_title('v2t', kind)} of {', '.join(names_of)}: {ranked}", markup=False)
    for row in sums:
        for name, f in row["metrics"].items():
            facts = metric(name)
            shown = f"{facts.printed(f['value'])} ({interval(name, f)})"
            out.print(f"{row['method']} {facts.name} {shown}", markup=False)
    print_post_processed(rows + sums, kind)


def print_post_processed(rows: Sequence[dict[str, Any]], kind: str) -> None:
    """A line a method, direction and post-processing, each estimate with the raw one; the report has all metrics."""
    notes: dict[str, str] = {}
    for row in rows:
        for option, found in row.get("post_processed", {}).items():
            if not notes:
                out.print(
                    "\npost-processed (raw), not comparable with figures without it:",
                    markup=False,
                    lines=True,
                )
            notes[option] = found["note"]
            values = [
                f"{name} {metric(name).printed(found['metrics'][name]['value'])} "
                f"({metric(name).printed(raw['value'])})"
                for name, raw in row["metrics"].items()
                if metric(name).brief
            ]
            title = f"{row['method']} {short_title(row['direction'], kind)} {option}"
            out.print(f"{title}: {', '.join(values)}", markup=False)
    for option, note in notes.items():
        out.print(f"  {option} {note.split(';')[0]}", markup=False)


def interval(name: str, estimate: Mapping[str, float]) -> str:
    """The interval of an estimate of a metric, for instance "20-26"."""
    return f"{metric(name).short(estimate['low'])}-{metric(name).short(estimate['high'])}"


def plan(experiment: ExperimentFile = DEFAULT_EXPERIMENT, sets: Sets = [], methods: Methods = [],  # noqa: B006
         anyway: Anyway = False, as_json: AsJson = False) -> None:  # fmt: skip
    """Show what a run would do: cached and missing artifacts, expected disk space and time.

    What would stop a run is listed below the table, with status 2; with --anyway it changes no status.
    """
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, all_sets(sets, anyway), methods, display)
    found = planned(project)
    states, problems, expected = found.states, found.problems, found.expected
    if as_json:
        shared = {name: group for group in planning.passes(states) for name in group}
        print_json({
            n: _state(s) | {
                "expected": expected[n].as_json(), "one_pass_with": shared.get(n, [n]),
                "problems": [problem.sentence for problem in problems if problem.stage == n],
            } | _recipe(project, n)
            for n, s in states.items()
        })  # fmt: skip
        _refuse(problems, project.experiment.run.anyway)
        return
    rows = [
        [name, str(len(s.keys)), str(s.done), str(len(s.missing)), str(len(s.failed) + len(s.blocked)),
         *_expected(expected[name]), s.fingerprint.hex[:8]]
        for name, s in states.items()
    ]  # fmt: skip
    print_table("", ["stage", "units", "cached", "to do", "failed", "time", "disk", "digest"], rows)
    if project.contents.unreadable:
        out.print(f"{len(project.contents.unreadable)} items have no readable media: crossreel status")
    for group in planning.passes(states):
        units = len({key for name in group for key in states[name].missing})
        out.print(
            f"one pass over {units} {states[group[0]].stage.over}, each decoded once: {', '.join(group)}"
        )
    beside = [project.beside_published(method) for method in project.recipes]
    for line in [*project.recipe_lines(states), *in_lines(beside)]:
        out.print(line, markup=False)
    for change in project.changed:
        stale = planning.descendants(project.stages, [change.stage])
        seconds = sum(expected[name].seconds or 0 for name in stale)
        out.print(change.sentence + (f" (about {human_seconds(seconds)})" if seconds else ""), markup=False)
    if (held := feature_copies(project.store, states, expected)) is not None:
        out.print(
            f"features that methods read: {human_bytes(held.features)} in the store, {human_bytes(held.packed)} packed "
            f"beside them, {held.copies:.1f} copies in all",
            markup=False,
        )
    todo = sum(not state.complete for state in states.values())
    out.print(f"{todo} stages to run{_in_all(project, expected)}" if todo else "nothing to do", markup=False)
    _refuse(problems, project.experiment.run.anyway)


def _recipe(project: Project, stage: str) -> dict[str, Any]:
    """Of a training, the recipe that gives its settings and how it differs from the published experiment."""
    method = stage.removeprefix("train-")
    if stage == method or method not in project.recipes:
        return {}
    return {
        "recipe": project.recipes[method].sentence,
        "published": project.beside_published(method).as_json(),
    }


def _in_all(project: Project, expected: Mapping[str, Expected]) -> str:
    """The sums of what is known of time and disk, and where the figures come from, as the end of a sentence."""
    seconds = sum(one.seconds or 0.0 for one in expected.values())
    size = sum(one.bytes or 0.0 for one in expected.values())
    assumed = assumptions(project, expected)
    if not assumed:
        return f", {human_seconds(seconds)} and {human_bytes(size)} in all, as earlier runs took"
    measured = any(one.seconds and one.seconds_measured for one in expected.values())
    rest = "; figures without ~ are of earlier runs" if measured else ""
    return f", ~{human_seconds(seconds)} and ~{human_bytes(size)} in all; ~ is an estimate {assumed}{rest}"


def _refuse(problems: Sequence[Problem], anyway: bool) -> None:
    """Raise UserError with the problems of a plan, as a run would; with `run.anyway` only print them."""
    if not problems:
        return
    if not anyway:
        raise refusal(problems)
    typer.echo(escaped(as_text(problems)), err=True)


def _expected(expected: Expected) -> tuple[str, str]:
    """Time and disk as a table shows them: empty for nothing, ~ before an estimate, ? where nothing is known."""
    seconds, size = expected.seconds, expected.bytes
    about, near = ("" if known else "~" for known in (expected.seconds_measured, expected.bytes_measured))
    return (
        "?" if seconds is None else about + human_seconds(seconds) if seconds else "",
        "?" if size is None else near + human_bytes(size) if size else "",
    )


def _state(state: planning.State) -> dict[str, Any]:
    return {
        "fingerprint": state.fingerprint.hex, "units": len(state.keys), "cached": state.done,
        "missing": len(state.missing), "failed": len(state.failed), "blocked": len(state.blocked),
        "killed": len(state.killed),
    }  # fmt: skip


def status(
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    sets: Sets = [],  # noqa: B006
    methods: Methods = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show the progress of each stage, the failed items with their reasons, and the latest runs."""
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, methods, display)
    states = project.survey(math.inf)
    failures = [failure.as_json() for failure in project.failures(states)]
    runs = [
        run | {"status": "killed"}
        if run["status"] == "running" and not project.store.is_alive(run["id"])
        else run
        for run in project.store.index.runs()
    ]
    if as_json:
        print_json({"stages": {n: _state(s) for n, s in states.items()}, "failures": failures, "runs": runs})
    else:
        print_table("", ["stage", "units", "cached", "to do", "failed"], [
            [n, str(len(s.keys)), str(s.done), str(len(s.missing)), str(len(s.failed))] for n, s in states.items()
        ])  # fmt: skip
        for failure in failures:
            again = "; the next run tries it again" if failure["kind"] == "killed" else ""
            out.print(
                f"{failure['kind']}: {failure['item']} ({failure['stage']}): {failure['reason']}{again}",
                markup=False,
            )
        for row in runs[:5]:
            took = "when is not known" if row["status"] == "killed" else "not ended"
            if row["ended"] and row["status"] != "killed":
                took = human_seconds(row["ended"] - row["started"])
            out.print(f"run {row['id']} of {row['experiment']}: {row['status']}, {took}")
    if failures:
        raise typer.Exit(FAILED_ITEMS)


def why(
    stage: StageName,
    item: Annotated[str, typer.Argument(metavar="ITEM", help="An item's or caption's id, or a file's name.")],
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    sets: Sets = [],  # noqa: B006
    methods: Methods = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Explain why a stage's artifact of an item exists or is missing: which component of its fingerprint differs."""
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, methods, display)
    found = {name: list(explain(project, name, item)) for name in planning.choose(project.stages, stage)}
    if as_json:
        print_json({"item": item, "stages": found})
        return
    for lines in found.values():
        for line in lines:
            out.print(line, markup=False)


def report(
    experiment: ExperimentFile = DEFAULT_EXPERIMENT,
    sets: Sets = [],  # noqa: B006
    methods: Methods = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Draw the report of what is finished of an experiment, and print its path."""
    with StageDisplay(quiet=as_json) as display:
        project = opened(experiment, sets, methods, display)
        if "report" not in project.stages:
            raise UserError(f"{experiment} names no methods, so there is nothing to report")
        finished = finished_evaluations(project, project.experiment.methods)
        project, states, unfinished = _report_of(finished)
        if project.store.read_only and states["report"].complete:
            display.say(
                f"the store {project.store.root} cannot be written: this is the report as it was drawn last"
            )
            print_path("report", report_path(project, states), as_json)
            return
        with closing(project.runner(display.progress, display.say, states)) as runner:
            runner.killed_before = 0.0  # the page shows what the last run left, and nothing else is made
            runner.reports += [_cached(name, state) for name, state in states.items() if name != "report"]
            runner.about = {
                **runner.about,
                "stopped": [asdict(stage) for stage in unfinished],
                "stale": list(finished.notes.values()),
            }
            for stage in unfinished:
                display.say(f"without {', '.join(stage.left_out)}: {stage.stage} is not done yet")
            for note in finished.notes.values():
                display.say(note)
            display.say(sentence(runner.bring_up_to_date("report", redo=True)))
    print_path("report", report_path(project, states), as_json)


def _report_of(finished: Finished) -> tuple[Project, planning.Survey, list[Stopped]]:
    """The project with a report of the evaluated methods, its states, and what each other method lacks.

    Raises UserError where no method is evaluated.
    """
    project, missing = finished.project, finished.missing
    methods = [method for method in project.experiment.methods if method not in missing]
    if not methods:
        finished.require(next(iter(missing)))
    if not missing:
        return project, finished.states, []
    unfinished = [
        Stopped(stage, "it was not made when this page was drawn", (f"evaluate-{method}",))
        for method, stage in missing.items()
    ]
    project = replace(project, stages=report_of(project.stages, methods))
    return project, finished.states.of_stages(project.stages), unfinished


def _cached(name: str, state: planning.State) -> dict[str, Any]:
    """The report of a stage that an earlier run made."""
    failures = [{"name": f.name, "reason": f.reason, "kind": f.kind} for f in state.failed.values()]
    return Report(
        name, state.fingerprint.hex, len(state.keys), cached=state.done,
        failed=len(failures) - len(state.killed), killed=len(state.killed),
        blocked=len(state.blocked), failures=failures,
    ).as_json()  # fmt: skip
