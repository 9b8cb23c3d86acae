"""Trained runs: their metrics, their embeddings, searching with them, and applying them to another corpus."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from crossreel.tables import METRIC_COLUMNS, Table, metric_rows
from flows.applying import Applied as AppliedRun
from flows.applying import apply_run
from flows.console import StageDisplay
from flows.preflight import require_possible
from flows.project import Project
from flows.results.leaderboard import leaderboard_rows
from flows.search.calibration import Calibration
from flows.search.hits import CaptionHit, Hit
from flows.search.searched import Searched, find_searched
from flows.search.searcher import Searcher
from flows.trained.finished import usual_run
from flows.trained.runs import SEPARATOR, TrainedRun, evaluation_on, evaluations, find_run, trained_runs
from flows.troubles import in_sentences
from pipeline.errors import UserError, nearest
from pipeline.run.plan import Survey
from trainers.measure.evaluated import EvaluatedFolder

Arrays = dict[str, NDArray[np.generic]]
Opened = Callable[[], Project]


class Queries:
    """What a trained method answers about the items and captions of a split. One process holds its networks.

    It starts with the first question, which makes the index of the split where that is missing, and `close` ends it.
    """

    def __init__(self, searched: Callable[[str], Searched]) -> None:
        """searched: returns what is searched of a split, "" for the usual one."""
        self._searched = searched
        self._searchers: dict[str, Searcher] = {}

    def search(self, text: str, top: int = 10, split: str = "") -> list[Hit]:
        """The items that match a sentence best, best first: each with `item`, `score`, `captions` and `moment`."""
        return self._searcher(split).search(text, top)

    def search_file(self, path: str | Path, top: int = 10, split: str = "") -> list[CaptionHit]:
        """The captions that match a media file best, best first."""
        return self._searcher(split).search_media(Path(path), top)

    def embed_texts(self, texts: Sequence[str], split: str = "") -> Arrays:
        """The method's encodings of sentences as named arrays (N, ...), in order.

        A caption of the split has the encoding of its evaluation. A method that compares more than two vectors has
        several arrays, or several rows each; `scores` compares what it embeds.
        """
        return self._searcher(split).encode_texts(_several(texts, "texts"))

    def embed_items(self, items: Sequence[str | Path], split: str = "") -> Arrays:
        """The method's encodings of items as named arrays (N, ...): each an id of the split, or a media file."""
        return self._searcher(split).encode_items(_several(items, "items"))

    def scores(
        self, texts: Sequence[str], items: Sequence[str | Path], split: str = ""
    ) -> NDArray[np.float32]:
        """The method's scores (texts, items), higher is more alike."""
        return self._searcher(split).scores(_several(texts, "texts"), _several(items, "items"))

    def calibrate(self, split: str = "") -> Calibration:
        """What a score is worth: its standard score, and the share of captions of other items that reach it."""
        return self._searcher(split).calibrate()

    def explain(self, text: str, items: Sequence[str], split: str = "") -> Arrays:
        """What carried the match of a sentence with each of the items (ids of the split), as arrays (N, ...).

        Empty if the method explains nothing. HLFormer: `clip_scores` and `frame_scores`, one a stretch of time.
        """
        return self._searcher(split).explain(text, _several(items, "items"))

    @in_sentences()
    def require(self, split: str = "") -> None:
        """Raise Error where questions about a split could not be answered; nothing is started or made."""
        if split not in self._searchers:
            self._searched(split)

    def close(self) -> None:
        """End the process; the next question starts another."""
        for searcher in self._searchers.values():
            searcher.close()
        self._searchers.clear()

    @in_sentences()
    def _searcher(self, split: str) -> Searcher:
        searched = self._searched(split) if split not in self._searchers else None
        if searched is not None:
            searcher = Searcher(searched)
            try:
                searcher.open()
            except BaseException:
                searcher.close()
                raise
            self._searchers[split] = searcher
        return self._searchers[split]


class Run(Queries):
    """A trained run of a store: one training of a method, named METHOD@DIGEST."""

    def __init__(self, opened: Opened, run: TrainedRun) -> None:
        super().__init__(lambda split: find_searched(opened(), run.method, split, run.fingerprint))
        self.name, self.method = (
            run.name,
            run.method,
        )  # the name as `crossreel runs` lists it: "gare@1a2b3c4d"
        self._opened, self._fingerprint = opened, run.fingerprint
        self._applied: list[Applied] = []

    @property
    def _run(self) -> TrainedRun:
        """The run in the store as it is opened now."""
        return TrainedRun(self._opened().store, self.method, self._fingerprint)

    @property
    def trained(self) -> str:
        """When the training ended, for instance "2026-03-01 14:05"."""
        return self._run.day

    @property
    def folder(self) -> Path:
        """The folder of the training: weights, settings, curves."""
        return self._run.folder.folder

    @property
    def splits(self) -> list[str]:
        """The splits that it was evaluated on, the last one first."""
        return list(dict.fromkeys(made.split for made in evaluations(self._run)))

    def evaluation(self, split: str = "") -> Path:
        """The folder of its newest evaluation, on a split or, with "", on any."""
        made = evaluation_on(self._run, split)
        return self._run.store.run_folder(made.stage, made.fingerprint)

    @in_sentences()
    def metrics(self, split: str = "") -> Table:
        """A row for each metric and direction, with its 95 % interval and the value of chance."""
        evaluated = EvaluatedFolder(self.evaluation(split))
        return Table(metric_rows(self.name, leaderboard_rows(self.method, evaluated)), METRIC_COLUMNS)

    @in_sentences()
    def apply(
        self, corpus: str | Path, split: str = "", *, retry_failed: bool = False, anyway: bool = False,
        quiet: bool = False,
    ) -> Applied:  # fmt: skip
        """Extract, encode and index the items of a manifest, and measure them if they have captions.

        Extraction has the settings that the run was made with. split: "" for all items of the manifest. anyway: begin
        although a problem is known. Raises Error for a corpus of another kind, and for what would stop the work.
        """
        with StageDisplay(quiet=quiet) as display:

            def check(project: Project, states: Survey, names: Sequence[str]) -> None:
                states.killed_before = math.inf
                for problem in require_possible(project, states, names, (), retry_failed):
                    display.say(f"WARNING: {problem.sentence}")

            project = self._opened()
            if anyway:
                options = project.experiment.run.model_copy(update={"anyway": True})
                experiment = project.experiment.model_copy(update={"run": options})
                project = replace(project, experiment=experiment)
            applied = apply_run(project, self._run, Path(corpus), split, display, retry_failed, check)
            self._applied.append(Applied(applied, self._opened))
            return self._applied[-1]

    def close(self) -> None:
        """End the processes of this run, and of its applications to other corpora."""
        super().close()
        for applied in self._applied:
            applied.close()

    def __repr__(self) -> str:
        return f"<run {self.name}>"


class Applied(Queries):
    """A run on another corpus: measured where that has captions, and answering questions about its items."""

    def __init__(self, applied: AppliedRun, opened: Opened) -> None:
        super().__init__(self._of_split)
        self._applied, self._opened = applied, opened

    @property
    def notes(self) -> list[str]:
        """Sentences about what is not as it was when the run was trained."""
        return list(self._applied.gallery.notes)

    @property
    def metrics(self) -> Table:
        """A row for each metric and direction; no row if the corpus has no captions."""
        return Table(metric_rows(self._applied.gallery.run.name, self._applied.leaderboard), METRIC_COLUMNS)

    @property
    def failed(self) -> dict[str, str]:
        """The reason for each item that failed."""
        project = self._applied.searched.project
        return {each.item: each.reason for each in project.failures(self._applied.searched.states)}

    def _of_split(self, split: str) -> Searched:
        self._opened()  # a closed experiment starts no process
        searched = self._applied.searched
        if split not in ("", searched.split):
            raise UserError(f"the run was applied to {searched.split!r}, not to the split {split!r}")
        return searched


class Runs(Sequence[Run]):
    """The trained runs of a store, the newest first.

    `runs["gare"]` is the run that a search would use, `runs["gare@1a2b3c4d"]` a certain one.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._open: dict[str, Run] = {}

    @overload
    def __getitem__(self, which: int | str) -> Run: ...

    @overload
    def __getitem__(self, which: slice) -> list[Run]: ...

    @in_sentences()
    def __getitem__(self, which: int | str | slice) -> Run | list[Run]:
        if isinstance(which, slice):
            return [self._of(run) for run in self._trained()[which]]
        if isinstance(which, int):
            return self._of(self._trained()[which])
        project, (method, _, digest) = self._opened(), which.partition(SEPARATOR)
        if digest:
            return self._of(find_run(project.store, method, digest))
        known = project.experiment.methods
        if method not in known:
            raise UserError(
                f"{method!r} is not a method of {project.experiment.path}; {nearest(method, known)}"
            )
        return self._of(usual_run(project, method))

    def __len__(self) -> int:
        return len(self._trained())

    def __iter__(self) -> Iterator[Run]:
        return (self._of(run) for run in self._trained())

    def close(self) -> None:
        """End the processes of all runs."""
        for run in self._open.values():
            run.close()

    def _trained(self) -> list[TrainedRun]:
        return trained_runs(self._opened().store)

    def _of(self, run: TrainedRun) -> Run:
        """The same object for a run each time, so that its process is kept."""
        return self._open.setdefault(run.fingerprint, Run(self._opened, run))

    def __repr__(self) -> str:
        return f"[{', '.join(run.name for run in self._trained())}]"


T = TypeVar("T")


def _several(given: Sequence[T], noun: str) -> Sequence[T]:
    """The given texts or items as they are. Raises UserError for a single text, whose letters would be taken."""
    if isinstance(given, str | Path):
        raise UserError(f"{noun} are a list, and {str(given)!r} is one; write [{str(given)!r}]")
    return list(given)
