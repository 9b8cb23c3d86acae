"""What can be searched of an experiment: its methods, the splits whose index is made, and what is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.project import Project
from flows.results.wording import without_places
from flows.search.index import evaluated_split
from flows.search.searched import Searched, chosen_gallery, find_searched
from flows.trained.finished import first_missing
from flows.trained.runs import SEPARATOR, last_run
from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.run.stage import Stage
from trainers.stages import Train

Searches = Mapping[tuple[str, str], Searched]
"""What is searched, by method and split."""

EXAMPLES = 6  # number of captions that the start page offers
EXAMPLE_LETTERS = 90


@dataclass(frozen=True)
class Split:
    """A split that can be searched: its numbers of items and captions, and captions to begin with."""

    name: str
    items: int
    captions: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Searchable:
    """A method with the splits that can be searched by it, its evaluated one first.

    missing: if no split can be searched, the reason in one sentence. encodes: whether any sentence can be searched for;
    if the text features were imported, only captions of the split can. note: the run that answers, where it is stale or
    was trained on another corpus.
    """

    name: str
    splits: tuple[str, ...] = ()
    missing: str = ""
    encodes: bool = True
    note: str = ""


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be searched of an experiment, as `/api/about` sends it to the page."""

    experiment: str
    kind: str
    methods: tuple[Searchable, ...]
    splits: tuple[Split, ...]

    def has(self, method: str, split: str) -> bool:
        """Whether a split can be searched by a method."""
        return any(one.name == method and split in one.splits for one in self.methods)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def trained_methods(stages: Mapping[str, Stage[Any]]) -> list[str]:
    """The methods of an experiment, in its order."""
    return [stage.method for stage in stages.values() if isinstance(stage, Train)]


def read_searchable(
    project: Project, more_splits: Sequence[str], runs: Mapping[str, str]
) -> tuple[list[Searchable], Searches]:
    """The methods of an experiment, and what is searched by each: its evaluated split, `more_splits`, and indexed ones.

    runs: the digest of the run that is asked for, by method.
    """
    states, methods, searches = project.states(), [], dict[tuple[str, str], Searched]()
    for method in dict.fromkeys([*trained_methods(project.stages), *runs]):
        found: list[Searched] = []
        usual = evaluated_split(project.stages, method) if f"evaluate-{method}" in project.stages else ""
        asked_for = [usual, *more_splits]
        try:
            found += [find_searched(project, method, s, runs.get(method, ""), states) for s in asked_for]
        except UserError as error:
            methods.append(Searchable(method, missing=_missing(project, states, method, error)))
            continue
        for split in project.contents.corpus.splits:
            with contextlib.suppress(UserError):  # a stale run left nothing of this split
                other = find_searched(project, method, split, runs.get(method, ""), states)
                found += [other] if other.indexed else []
        by_split = {one.split: one for one in reversed(found)}
        splits = tuple(dict.fromkeys(one.split for one in found))
        searches |= {(method, split): one for split, one in by_split.items()}
        methods.append(Searchable(method, splits, encodes=_encodes(found[0]), note=found[0].note))
    return methods, searches


def read_applied(
    project: Project, manifest: Path, split: str, runs: Mapping[str, str]
) -> tuple[list[Searchable], Searches]:
    """The same of another corpus, to which runs of the experiment's methods were applied."""
    states, methods, searches = project.states(), [], dict[tuple[str, str], Searched]()
    for method in dict.fromkeys([*trained_methods(project.stages), *runs]):
        run = f"{method}{SEPARATOR}{runs[method]}" if method in runs else ""
        try:
            found = chosen_gallery(project, method, split, run, manifest, states)
        except UserError as error:
            methods.append(Searchable(method, missing=_missing(project, states, method, error)))
            continue
        searches[method, found.split] = found
        methods.append(Searchable(method, (found.split,), encodes=_encodes(found), note=found.note))
    return methods, searches


def catalogue_of(name: str, methods: Sequence[Searchable], searches: Searches) -> Catalogue:
    """The catalogue of what is searched; every one of `searches` is of one corpus."""
    by_split = {split: found for (_, split), found in reversed(list(searches.items()))}
    named = dict.fromkeys(split for method in methods for split in method.splits)
    corpus = next(iter(searches.values())).project.contents.corpus
    kind = corpus.items[0].kind if corpus.items else "video"
    return Catalogue(name, kind, tuple(methods), tuple(_split(by_split[split]) for split in named))


def _missing(project: Project, states: plan.Survey, method: str, error: UserError) -> str:
    """The reason why a method cannot be searched, with the command that helps, and without the places of files."""
    if last_run(project.store, project.experiment.name, method) is not None:
        return without_places(str(error), project.experiment.path.parent)
    first = first_missing(project.stages, states, f"train-{method}")
    return f"{first} is not done yet; run `crossreel run {project.experiment.path.name} --methods {method}`"


def _encodes(searched: Searched) -> bool:
    """Whether every stage that a caption goes through can run, so that new sentences can be encoded."""
    stages = searched.project.stages
    needed = plan.ancestors(stages, [searched.index])
    return all(stages[name].runner for name in needed if stages[name].over == "captions")


def _split(searched: Searched) -> Split:
    """A split, with captions from all over it that are short enough to be read at a glance."""
    contents, name = searched.project.contents, searched.split
    items = len({key for key, _ in contents.gallery(name)})
    if not searched.captioned:
        return Split(name, items, 0, ())
    texts = list(dict.fromkeys(caption.text.strip() for _, _, caption in contents.queries(name)))
    short = [text for text in texts if 0 < len(text) <= EXAMPLE_LETTERS] or texts[:EXAMPLES]
    step = max(1, len(short) // EXAMPLES)
    return Split(name, items, len(texts), tuple(short[::step][:EXAMPLES]))
