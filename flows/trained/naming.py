"""How a user names an experiment's methods and their runs: EXPERIMENT:METHOD@DIGEST, or any part that is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.experiment import Experiment
from flows.project import Project
from flows.trained.finished import usual_run
from flows.trained.runs import EVALUATE, SEPARATOR, TRAIN, TrainedRun, find_run
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError, nearest
from pipeline.store.store import RECORD, Store

Open = Callable[[Path], Project]


@dataclass(frozen=True)
class RunName:
    """The parts of a name: the experiment's file, the method, "" if none is named, and the digest, "" likewise."""

    experiment: Path
    method: str = ""
    digest: str = ""


def parse_run(word: str, experiment: Path) -> RunName:
    """The parts of EXPERIMENT:METHOD@DIGEST; without EXPERIMENT, the one given.

    Raises UserError if there is no such file.
    """
    head, _, digest = word.rpartition(SEPARATOR) if SEPARATOR in word else (word, "", "")
    file, colon, method = head.rpartition(":")
    if head.endswith(".toml"):
        owner, method = Path(head), ""
    else:
        owner = Path(file) if colon else experiment
    if not owner.is_file():
        raise UserError(
            f"{word!r} is neither an experiment, a run's folder nor a method: there is no experiment {owner}; "
            "write EXPERIMENT:METHOD, or name it with --experiment"
        )
    return RunName(owner, method, digest)


def named_digest(word: str, method: str) -> tuple[str, str]:
    """Method and digest of METHOD@DIGEST, or of DIGEST alone for a run of `method`."""
    head, separator, digest = word.rpartition(SEPARATOR)
    if separator and method and head != method:
        raise UserError(f"--run {word!r} is a run of {head}, and --method says {method}")
    return (head if separator else method), digest


def open_run(word: str, experiment: Path, opened: Open) -> tuple[Project, TrainedRun]:
    """The run that a word names, and the experiment whose store it is in.

    word: as `parse_run` reads it, or the folder of a training or an evaluation. Without a digest it is the run that
    a search would use. Raises UserError if there is none.
    """
    folder = Path(word)
    if (folder / RECORD).is_file():
        return _of_folder(folder)
    name = parse_run(word, experiment)
    project = opened(name.experiment)
    known = project.experiment.methods
    if name.digest:
        run = find_run(project.store, name.method, name.digest)
        return project, run
    if name.method and name.method not in known:
        raise UserError(
            f"{name.method!r} is not a method of {name.experiment}; {nearest(name.method, known)}"
        )
    if not name.method and len(known) != 1:
        raise UserError(f"{word!r} names several runs, say one of {_several(name.experiment, known)}")
    return project, usual_run(project, name.method or known[0])


def _several(experiment: Path, methods: list[str]) -> str:
    return ", ".join(f"{experiment}:{method}" for method in methods)


def _of_folder(folder: Path) -> tuple[Project, TrainedRun]:
    """The run in a folder of a store, and a project that knows the store alone."""
    folder = folder.absolute()
    stage, fp = folder.parts[-2:]
    store = Store(folder.parents[2])
    prefix = next((prefix for prefix in (TRAIN, EVALUATE) if stage.startswith(prefix)), "")
    if not prefix or not store.has_run(stage, fp):
        raise UserError(f"{folder} is not the finished folder of a training or of an evaluation")
    method = stage.removeprefix(prefix)
    if prefix == EVALUATE:
        fp = store.run_record(stage, fp)["components"]["needs"][TRAIN + method]
    run = find_run(store, method, fp)
    experiment = Experiment(name=run.name, corpus="", store=str(store.root), methods=[method])
    experiment = experiment.model_copy(update={"path": store.root / run.name})
    return Project(experiment, store, Contents(Corpus(store.root, ()), {}), {}), run
