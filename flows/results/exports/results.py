"""Metrics of an evaluation in MTEB's result format: one JSON file for each method and direction.

The form is that of `mteb.TaskResult` as mteb 2.26 writes it to disk: dataset_revision, task_name, mteb_version, scores
(a list of subsets by split, each with main_score, hf_subset, languages and the metrics), evaluation_time, date. The
metrics carry mteb's names and are shares from 0 to 1. They are computed from the ranks that were stored, under the mean
rank of ties, as ours are; mteb itself orders equal scores by name. Three things are left out: what a stored rank
cannot give (`left_out` says which), the areas under abstention curves (nauc), and post-processed scores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.method_results import MethodResults
from pipeline.store.store import write_json

CUTOFFS = (1, 3, 5, 10, 20, 100, 1000)  # cutoffs of mteb's retrieval tasks
SUBSET = "default"
UNDETERMINED = (
    "und-Zyyy"  # ISO 639-3 and 15924 for an unknown language; mteb counts no subset without a language
)
MAIN = (
    "ndcg_at_10",
    "hit_rate_at_10",
)  # mteb's own main score of retrieval, and what stands for it if unknown
SEVERAL = (
    "recall, precision, map and ndcg, as some queries have several right answers and the rank of the best is stored; "
    f"main_score is {MAIN[1]}"
)
Ranks = NDArray[np.float64]


@dataclass
class Written:
    """The files, and file -> the reason of what could not be computed."""

    files: list[Path] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def export_mteb(methods: Sequence[MethodResults], target: Path, languages: Sequence[str] = ()) -> Written:
    """Write FOLDER/crossreel__METHOD/REVISION/TASK.json, the paths that mteb uses for results.

    The revision is the training's fingerprint, the task the corpus and the direction: no task of mteb's own, whose
    samples of public sets are others. `languages` are those of the captions, as eng-Latn; the corpus does not tell.
    """
    report = Written()
    for one in methods:
        folder = target / f"crossreel__{one.method}" / one.training.fingerprint.hex
        folder.mkdir(parents=True, exist_ok=True)
        for direction in one.evaluated.metrics.protocol.directions:
            path = folder / f"{task_name(one, direction)}.json"
            write_json(path, task_result(one, direction, languages))
            report.files.append(path)
            if not _one_right(one, direction):
                report.left_out[str(path.relative_to(target))] = SEVERAL
    return report


def task_name(one: MethodResults, direction: str) -> str:
    """The task of a corpus and direction in characters that mteb's names allow: `activitynet-T2V`."""
    name = re.sub(r"[^\w-]+", "-", one.project.contents.corpus.path.stem)
    return f"{name}-{direction.upper()}"


def task_result(one: MethodResults, direction: str, languages: Sequence[str]) -> dict[str, Any]:
    """One direction of a method as mteb's TaskResult. Its mteb_version is null: mteb did not evaluate it."""
    protocol, record = one.evaluated.metrics.protocol, one.record(one.evaluation)
    rank = one.evaluated.ranking.ranks[direction].mean
    scores: dict[str, Any] = retrieval_scores(rank, _one_right(one, direction))
    main = next(name for name in MAIN if name in scores)
    return {
        "dataset_revision": protocol.split_digest,
        "task_name": task_name(one, direction),
        "mteb_version": None,
        "scores": {
            protocol.split: [
                {
                    "main_score": scores[main],
                    "hf_subset": SUBSET,
                    "languages": list(languages) or [UNDETERMINED],
                    **scores,
                }
            ]
        },
        "evaluation_time": record["seconds"],
        "kg_co2_emissions": None,
        "date": record["made"],
    }


def _one_right(one: MethodResults, direction: str) -> bool:
    """Whether every query of a direction has exactly one positive."""
    return bool((one.evaluated.queries.positive_counts(direction) == 1).all())


def retrieval_scores(rank: Ranks, one_right: bool) -> dict[str, float]:
    """mteb's metrics from the rank (Q,) of the best positive of each query, 1 is best.

    hit_rate@k is the share of queries with a right answer among k, mrr@k the mean of 1 / rank, 0 beyond k. With one
    right answer each, recall@k is the hit rate, precision@k a k-th of it, map@k the mrr, and ndcg@k the mean of
    1 / log2(1 + rank); with several they need the ranks of all.
    """
    out: dict[str, float] = {}
    for k in CUTOFFS:
        within = rank <= k
        hit, mrr = float(within.mean()), float(np.mean(within / rank))
        out |= {f"hit_rate_at_{k}": hit, f"mrr_at_{k}": mrr}
        if one_right:
            ndcg = float(np.mean(within / np.log2(1 + rank)))
            out |= {
                f"recall_at_{k}": hit,
                f"precision_at_{k}": hit / k,
                f"map_at_{k}": mrr,
                f"ndcg_at_{k}": ndcg,
            }
    return out | ({"accuracy": out["recall_at_1"]} if one_right else {})
