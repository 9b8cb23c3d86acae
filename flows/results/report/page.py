"""The report of an experiment: one HTML file that needs nothing else, no network and no script.

The entry of a worker process. Each section has a module, which makes its content from artifacts, and a template, which
prints it; a new section is one module, one template, and a line in `view` and in the page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.circumstances import Circumstances
from flows.reporting import ReportParams
from flows.results.measured import by_kind
from flows.results.report import activity, leaderboard, ranks, training
from flows.results.report.clips import Clips
from flows.results.report.deciding import Deciding, read_deciding
from flows.results.report.environment import environment
from flows.results.report.hubness import Hubs, hubness_tables, read_hubs, scales
from flows.results.report.pictures import Pictures
from flows.results.report.queries import Queries, read_queries
from flows.results.verdict import FILE as VERDICT
from flows.results.verdict import judge
from flows.results.wording import common_member, counted, duration, without_places
from pipeline.child import Send
from pipeline.store.store import write_json
from trainers.loop.trained import TrainedFolder
from trainers.measure.evaluated import EvaluatedFolder

TEMPLATES = Path(__file__).parent / "templates"
FILE = "report.html"
FRAME_BYTES = 2_500_000  # bytes of all thumbnails together, so that the page stays under 5 MB
DECIDING_SHARE = 3  # one part in three of these bytes is for the queries that decide
HUB_SHARE = 8  # one part in eight of the rest is for the pictures of hubs


def run(request: dict[str, Any], send: Send) -> None:
    """Write the page into the folder of the request."""
    params = ReportParams.model_validate_json(request["params"])
    inputs = json.loads(Path(request["inputs"]).read_text(encoding="utf-8"))
    content = view(params, inputs, FRAME_BYTES)
    page = render(content)
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    if content["verdict"] is not None:
        write_json(folder / VERDICT, content["verdict"].model_dump(mode="json"))
    (folder / FILE).write_text(page, encoding="utf-8")
    send({"record": {"bytes": len(page.encode())}}, {})


def view(params: ReportParams, inputs: Mapping[str, Any], frame_bytes: int) -> dict[str, Any]:
    """The content of the page, section by section, under the names that the templates read."""
    public = _public(inputs)
    every = {entry["method"]: EvaluatedFolder(Path(entry["evaluate"])) for entry in inputs["methods"]}
    limiting = Circumstances.model_validate(inputs.get("circumstances", {}))
    verdict = judge(every, limiting) if every else None
    order = verdict.order if verdict else []
    trains = {entry["method"]: entry["train"] for entry in inputs["methods"]}
    trained = {method: TrainedFolder(Path(trains[method])) for method in order}
    evaluated = {method: every[method] for method in order}
    measured = {method: folder.metrics for method, folder in evaluated.items()}
    boards = leaderboard.boards(measured, verdict.is_better) if verdict else []
    strict = leaderboard.strict_boards(measured)
    failures = activity.failures(public)
    ranked = {method: ranks.read_ranked(folder) for method, folder in evaluated.items()}
    queries, hubs = _queries_and_hubs(params, inputs, evaluated, frame_bytes - frame_bytes // DECIDING_SHARE)
    kinds = by_kind(measured)
    return {
        "name": public["experiment"].get("name") or "experiment",
        "file": Path(inputs["experiment"].get("path", "")).name,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "corpus": public["corpus"],
        "splits": activity.splits(public["corpus"]["splits"]),
        "noun": common_member(kinds),
        "verdict": verdict,
        "pair_tables": leaderboard.pair_tables(verdict.pairs, measured) if verdict else [],
        "boards": boards,
        "deciding": _deciding(inputs, evaluated, frame_bytes // DECIDING_SHARE),
        "strict": strict,
        "post_processed": leaderboard.post_processed_boards(measured),
        "post_notes": leaderboard.post_processing_notes(measured),
        "kinds": len(kinds),
        "in_percent": leaderboard.in_percent(kinds),
        "ties_matter": not leaderboard.look_alike(strict, boards),
        "curves": [
            drawn
            for kind, some in kinds.items()
            for drawn in ranks.curves({m: ranked[m] for m in some}, kind)
        ],
        "rank_histograms": {
            title: drawn
            for kind, some in kinds.items()
            for title, drawn in ranks.rank_histograms({m: ranked[m] for m in some}, kind).items()
        },
        "hubness": hubness_tables(measured),
        "hubs": hubs,
        "protocols": leaderboard.protocols(measured),
        "contradict": any(leaderboard.contradict(leaderboard.protocols(some)) for some in kinds.values()),
        "trainings": [training.read_training(method, folder) for method, folder in trained.items()],
        "queries": queries,
        "stages": activity.stage_rows(public["stages"]),
        "time_spent": activity.time_spent(public["stages"]),
        "seconds": duration(sum(report["seconds"] for report in public["stages"])),
        "failures": failures[: activity.MOST_FAILURES],
        "failed": len(failures),
        "stopped": public["stopped"],
        "stale": public["stale"],
        "recipes": activity.recipes(public["methods"]),
        "settings": activity.settings(public["experiment"].get("settings", {}), public["stages"]),
        "environment": environment(),
    }  # fmt: skip


def _deciding(
    inputs: Mapping[str, Any], evaluated: Mapping[str, EvaluatedFolder], most_bytes: int
) -> list[Deciding]:
    """The queries that decide between the methods of a kind; the kinds share the bytes."""
    kinds = by_kind({method: folder.metrics for method, folder in evaluated.items()})
    out = []
    for some in kinds.values():
        with closing(Clips(most_bytes // len(kinds))) as clips:
            out += read_deciding({method: evaluated[method] for method in some}, inputs, clips)
    return out


def _public(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that the page may print, with paths of this machine shortened."""
    printable = {name: inputs[name] for name in ("experiment", "corpus", "stages", "methods")}
    printable["stopped"] = inputs.get("stopped", [])
    printable["stale"] = inputs.get("stale", [])
    folder = Path(inputs["experiment"].get("path", inputs["corpus"]["path"])).parent
    return dict(without_places(printable, folder))


def _queries_and_hubs(
    params: ReportParams,
    inputs: Mapping[str, Any],
    evaluated: Mapping[str, EvaluatedFolder],
    frame_bytes: int,
) -> tuple[list[Queries], list[Hubs]]:
    """The shown queries and the hubs of each method; every method has the same share of the bytes for pictures."""
    queries, hubs, shared = [], [], scales(evaluated)
    for method, folder in evaluated.items():
        share = frame_bytes // len(evaluated)
        with closing(Pictures(share // HUB_SHARE)) as pictures:
            hubs += read_hubs(method, folder, inputs, pictures, shared)
        with closing(Pictures(share - share // HUB_SHARE)) as pictures:
            shown = read_queries(method, folder, inputs, pictures, params.queries_shown)
        if shown is not None:
            queries.append(shown)
    return queries, hubs


def render(content: Mapping[str, Any]) -> str:
    """The page as HTML; all values are escaped."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"counted": counted}
    return templates.get_template("report.html.j2").render(content)
