"""The stage that draws the report. A declaration; `flows.results.report.page` does the work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from flows.circumstances import Circumstances, failures, of_method
from flows.repetition import Repetition, compare
from pipeline.corpus.contents import Contents
from pipeline.run.stage import Briefing, Stage
from pipeline.settings import Params
from pipeline.store.places import TablePlaces
from trainers.measure.evaluated import EvaluatedFolder, Protocol

REPORT = "report"


@dataclass(frozen=True)
class Stopped:
    """A stage that ended with an error: the reason in one line, and the stages left out because of it."""

    stage: str
    reason: str
    left_out: tuple[str, ...] = ()


class ReportParams(Params):
    """Which methods it compares."""

    methods: tuple[str, ...]
    queries_shown: int = Field(
        default=6, ge=0, le=100
    )  # queries shown of each method: half found first, half missed


class Report(Stage[ReportParams]):
    """One HTML page over all methods of an experiment."""

    name, over = REPORT, "corpus"
    version = 6  # begins with the verdict, which it also writes as verdict.json
    runner = "flows.results.report.page:run"
    settings = ReportParams

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(ReportParams(methods=tuple(methods)))
        self.needs = tuple(f"evaluate-{method}" for method in methods)

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """What the page tells of: stages, methods, corpus, and where to find the frames it shows."""
        contents = briefing.contents
        corpus = contents.corpus
        measured = [evaluated_of(briefing, method).queries for method in self.params.methods]
        beside = {method: _beside_published(briefing, method) for method in self.params.methods}
        return {
            "experiment": {
                name: value for name, value in briefing.about.items() if name not in ("stopped", "stale")
            },
            "corpus": {
                "path": str(corpus.path),
                "items": len(corpus.items),
                "captions": sum(len(item.captions) for item in corpus.items),
                "splits": {
                    split: {
                        "items": len(corpus.gallery(split)),
                        "captions": sum(1 for _ in corpus.captions(split)),
                    }
                    for split in corpus.splits
                },
                "unreadable": dict(contents.unreadable),
            },
            "stages": briefing.reports,
            "stopped": list(briefing.about.get("stopped", [])),
            "stale": list(briefing.about.get("stale", [])),
            "methods": [
                {
                    "method": method,
                    "train": briefing.run_folder(f"train-{method}"),
                    "evaluate": briefing.run_folder(f"evaluate-{method}"),
                    "published": beside[method].as_json(),
                }
                for method in self.params.methods
            ],
            "circumstances": _circumstances(briefing, beside).model_dump(mode="json"),
            "items": items_of(briefing, {key for queries in measured for key in queries.items}),
            "captions": captions_of(contents, {key for queries in measured for key in queries.captions}),
        }


def report_of(stages: Mapping[str, Stage[Any]], methods: Sequence[str]) -> dict[str, Stage[Any]]:
    """The stages of an experiment with a report that compares only `methods`, of which there is at least one."""
    return {**stages, REPORT: Report(methods)}


def _beside_published(briefing: Briefing, method: str) -> Repetition:
    """How a method's run differs from the published experiment of its corpus."""
    stages = {name: state.stage for name, state in briefing.states.items()}
    corpus = briefing.contents.corpus.of_kind(stages[f"train-{method}"].kind)
    return compare(method, stages, corpus, None, _measured(briefing, method))


def evaluated_of(briefing: Briefing, method: str) -> EvaluatedFolder:
    """The evaluation of a method."""
    return EvaluatedFolder(Path(briefing.run_folder(f"evaluate-{method}")))


def _measured(briefing: Briefing, method: str) -> Protocol:
    return evaluated_of(briefing, method).metrics.protocol


def _circumstances(briefing: Briefing, beside: Mapping[str, Repetition]) -> Circumstances:
    """What limits the figures of the methods, which the verdict says."""
    items, captions = failures(briefing.contents, briefing.states)
    methods = {
        method: of_method(method, briefing.states, briefing.store, one, _measured(briefing, method).split)
        for method, one in beside.items()
    }
    return Circumstances(failed_items=items, failed_captions=captions, methods=methods)


def items_of(briefing: Briefing, shown: Collection[str]) -> dict[str, dict[str, Any]]:
    """Item digest -> id and where its frames or points are, of the `shown` digests that the corpus has today."""
    contents, states = briefing.contents, briefing.states
    videos = {}
    if "compress" in states:
        fp, suffix = states["compress"].fingerprint.hex, states["compress"].stage.file_suffix or ""
        videos = {
            key: str(briefing.store.item_file("compress", fp, key, suffix))
            for key in shown
            if key in states["compress"].places
        }
    rows = {
        stage: TablePlaces(briefing.table(stage, shown)) if stage in states else {}
        for stage in ("compress", "points")
    }
    return {
        key: {"id": item.id, "key": key, "video": videos.get(key)}
        | {stage: where.get(key) for stage, where in rows.items()}
        for key, item in contents.items().items()
        if key in shown
    }


def captions_of(contents: Contents, shown: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Caption digest -> item digest -> id and moments: one text may describe several items and moments.

    shown: the digests of the captions that are of interest. Those of an evaluation, and not of a split of today's
    corpus, which may have lost some.
    """
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for item in contents.corpus.items:
        for caption in item.captions if item.id in contents.digests else ():
            if caption.digest in shown:
                known = out.setdefault(caption.digest, {})
                entry = known.setdefault(contents.digests[item.id], {"id": caption.id, "moments": []})
                if caption.start is not None and caption.end is not None:
                    entry["moments"].append([caption.start, caption.end])
    return out
