"""The verdict on the evaluated methods of an experiment: the one of its report, or made from its evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.circumstances import Circumstances, failures, of_method
from flows.project import Project
from flows.reporting import REPORT
from flows.results.leaderboard import leaderboard
from flows.results.method_results import evaluated_folder
from flows.results.verdict import FILE, OWNER, REMEDY, Verdict, judge
from pipeline.run.plan import State
from pipeline.store.documents import read_document


def verdict_of(project: Project, states: Mapping[str, State]) -> Verdict | None:
    """The verdict on all evaluated methods; None where there is none. Raises UserError naming a damaged file."""
    report = states.get(REPORT)
    if report is not None and report.complete:
        path = project.store.run_folder(REPORT, report.fingerprint.hex) / FILE
        if path.exists():
            return read_document(path, Verdict, OWNER, REMEDY)
    evaluated = {
        state.stage.method: evaluated_folder(project, state)
        for name, state in states.items()
        if name.startswith("evaluate-") and state.complete
    }
    if not evaluated:
        return None
    items, captions = failures(project.contents, states)
    methods = {}
    for method, folder in evaluated.items():
        protocol = folder.metrics.protocol
        beside = project.beside_published(method, protocol)
        methods[method] = of_method(method, states, project.store, beside, protocol.split)
    limiting = Circumstances(failed_items=items, failed_captions=captions, methods=methods)
    return judge(evaluated, limiting)


def judged_leaderboard(
    project: Project, states: Mapping[str, State]
) -> tuple[Verdict | None, list[dict[str, Any]]]:
    """The verdict on all evaluated methods, and the rows of their leaderboard in its order."""
    verdict, rows = verdict_of(project, states), leaderboard(project, states)
    if verdict is not None:
        rows.sort(key=lambda row: verdict.rank(row["method"]))
    return verdict, rows
