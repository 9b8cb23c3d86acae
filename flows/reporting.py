"""The stage that draws the report. A declaration; `flows.results.report.page` does the work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipeline.corpus.contents import Contents
from pipeline.run.stage import Briefing, Stage
from pipeline.settings import DIGESTED, SPEED, Params

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

    name, version, over = REPORT, 3, "corpus"  # its columns say what each metric is
    runner = "flows.results.report.page:run"
    settings = ReportParams

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(ReportParams(methods=tuple(methods)))
        self.needs = tuple(f"evaluate-{method}" for method in methods)

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """What the page tells of: stages, methods, corpus, and where to find the frames it shows."""
        contents, states = briefing.contents, briefing.states
        corpus = contents.corpus
        videos = {}
        if "compress" in states:
            fp, suffix = states["compress"].fingerprint.hex, states["compress"].stage.file_suffix or ""
            videos = {
                key: str(briefing.store.item_file("compress", fp, key, suffix))
                for key in states["compress"].places
            }
        rows = {
            stage: briefing.where(stage)["where"] if stage in states else {}
            for stage in ("compress", "points")
        }
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
                    "differences": differences(states[f"train-{method}"].stage.params),
                }
                for method in self.params.methods
            ],
            "items": {
                key: {"id": item.id, "key": key, "video": videos.get(key)}
                | {stage: where.get(key) for stage, where in rows.items()}
                for key, item in contents.items().items()
            },
            "captions": _captions(contents),
        }


def report_of(stages: Mapping[str, Stage[Any]], methods: Sequence[str]) -> dict[str, Stage[Any]]:
    """The stages of an experiment with a report that compares only `methods`, of which there is at least one."""
    return {**stages, REPORT: Report(methods)}


def differences(config: Params) -> list[dict[str, Any]]:
    """The settings that are not those published, for the same preset where a method has several.

    What changes speed alone is none; nor is where the weights of a backbone are, whose digest counts.
    """
    left_out = config.marked(SPEED) | (config.marked(DIGESTED) - {"weights"})
    preset = {"preset": config.preset} if hasattr(config, "preset") else {}
    published = type(config)(**preset).model_dump(mode="json")
    return [
        {"setting": name, "here": value, "published": published[name]}
        for name, value in config.model_dump(mode="json").items()
        if value != published[name] and name not in left_out
    ]


def _captions(contents: Contents) -> dict[str, dict[str, dict[str, Any]]]:
    """Caption digest -> item digest -> id and moments: one text may describe several items and moments."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for item in contents.corpus.items:
        if item.id in contents.digests:
            for caption in item.captions:
                known = out.setdefault(caption.digest, {})
                entry = known.setdefault(contents.digests[item.id], {"id": caption.id, "moments": []})
                if caption.start is not None and caption.end is not None:
                    entry["moments"].append([caption.start, caption.end])
    return out
