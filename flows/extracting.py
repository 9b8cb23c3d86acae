"""One stage on files or sentences that belong to no corpus, with the stages that it needs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import graph
from flows.console import StageDisplay
from flows.experiment import Experiment
from flows.preflight import require_possible
from flows.project import Project
from flows.reading import Features, stage_features
from flows.run import run_stages
from pipeline.corpus.contents import read_contents
from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.errors import UserError, nearest
from pipeline.run.stage import Stage
from pipeline.settings import apply_sets, fill
from pipeline.store.fingerprint import digest_of
from pipeline.store.store import Store

SPLIT = "given"


def extract_given(
    stage: str, given: Sequence[str], settings: Mapping[str, Any], sets: Sequence[str], folder: Path | None,
    display: StageDisplay,
) -> Features:  # fmt: skip
    """What a stage makes of media files, or of sentences if it reads captions; ids are the files or sentences.

    settings: those of the stage; sets: further ones, as `--set` has them. folder: that of a store that is kept, None
    for one that lives as long as the result. Raises UserError for a stage or setting that is not possible; a file that
    fails is among the result's `failed`.
    """
    known = graph.EVERY_EXTRACTOR.names()
    if stage not in known:
        raise UserError(f"unknown stage {stage!r}; {nearest(stage, known)}")
    if not given:
        raise UserError(
            f"{stage} is given nothing to work on; name files, or sentences for a stage of captions"
        )
    tree = {
        "corpus": "",
        "name": f"extract {stage}",
        "extract": [stage],
        "extractors": {stage: dict(settings)},
    }
    experiment = fill(Experiment, apply_sets(tree, sets), "")
    experiment = experiment.model_copy(
        update={"path": Path.cwd() / "extract.toml"}
    )  # which files are relative to
    stages = graph.build(experiment, {})
    keep = None if folder else tempfile.TemporaryDirectory(prefix="crossreel-")
    store = Store(folder or Path(keep.name if keep else ""))
    with contextlib.closing(store.index):
        contents = read_contents(_corpus(stages, stage, given), store.index)
        project = Project(experiment, store, contents, stages)
        states = project.states()
        require_possible(project, states, [stage])
        run_stages(project, [stage], display, states=states)
        return stage_features(project, stage, keep)


def _corpus(stages: Mapping[str, Stage[Any]], stage: str, given: Sequence[str]) -> Corpus:
    """A corpus of the given files, or of one item that all given sentences describe."""
    distinct = list(dict.fromkeys(given))
    if stages[stage].over == "captions":
        captions = tuple(Caption(text, text) for text in distinct)
        item = Item("sentences", SPLIT, captions, digest=digest_of(["sentences"]))
        return Corpus(Path("the given sentences"), (item,))
    kind = next((each.kind for each in stages.values() if each.kind), "video")
    items = tuple(Item(path, SPLIT, media=str(Path(path).absolute()), kind=kind) for path in distinct)
    return Corpus(Path("the given files"), items)
