"""A trained run applied to another corpus: its gallery encoded, searchable, and measured where it has captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.console import StageDisplay
from flows.project import Project
from flows.results.leaderboard import leaderboard_rows
from flows.run import RunResult, run_stages
from flows.search.searched import Searched, searched_gallery
from flows.trained.gallery import AppliedGallery, OnHashed, open_gallery
from flows.trained.runs import TrainedRun
from pipeline.run import plan
from trainers.measure.evaluated import EvaluatedFolder

Check = Callable[[Project, plan.Survey, Sequence[str]], None]
"""Called before any work with the project, its states and the stages asked for; raises UserError to refuse."""


@dataclass(frozen=True)
class Applied:
    """What came of a run on another corpus.

    evaluated: the folder of the evaluation; None if the corpus has no captions, or it was not made (`result.stopped`).
    """

    gallery: AppliedGallery
    searched: Searched
    result: RunResult
    evaluated: EvaluatedFolder | None

    @property
    def leaderboard(self) -> list[dict[str, Any]]:
        """The estimates on this gallery, one row a direction; empty if there are none."""
        return list(leaderboard_rows(self.gallery.run.method, self.evaluated)) if self.evaluated else []

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        contents, queries = self.searched.project.contents, 0
        if self.gallery.captioned:
            queries = sum(1 for _ in contents.queries(self.gallery.split))
        metrics = self.evaluated.metrics if self.evaluated else None
        return {
            **self.result.as_json(),
            "run": self.gallery.run.name,
            "training": str(self.gallery.run.folder.folder),
            "applied_to": str(contents.corpus.path),
            "split": self.gallery.split,
            "items": len(contents.items()),
            "captions": queries,
            "items_of_training": self.gallery.learned,
            "notes": list(self.gallery.notes),
            "evaluation": str(self.evaluated.folder) if self.evaluated else None,
            "protocol": metrics.protocol.as_json() if metrics else None,
            "index": str(self.searched.folder) if self.searched.indexed else None,
            "leaderboard": self.leaderboard,
        }  # fmt: skip


def apply_run(
    project: Project, run: TrainedRun, manifest: Path, split: str, display: StageDisplay,
    retry_failed: bool = False, check: Check = lambda project, states, names: None,
    hashed: OnHashed = lambda n, of: None,
) -> Applied:  # fmt: skip
    """Extract, encode and index the items of a manifest with a trained run, and measure them if they have captions.

    split: "" for all items of the manifest. What is in the store is used, and a run that was interrupted goes on.
    Raises UserError as `open_gallery` does, and the errors of `run_stages`.
    """
    gallery = open_gallery(project, run, manifest, split, hashed)
    searched = searched_gallery(gallery)
    names = [name for name in (gallery.evaluation, searched.index) if name]
    check(searched.project, searched.states, names)
    result = run_stages(searched.project, names, display, retry_failed=retry_failed, states=searched.states)
    searched = replace(searched, states=searched.project.states())
    evaluated = None
    if gallery.captioned and searched.states[gallery.evaluation].complete:
        fp = searched.states[gallery.evaluation].fingerprint.hex
        evaluated = EvaluatedFolder(project.store.run_folder(gallery.evaluation, fp))
    return Applied(gallery, searched, result, evaluated)
