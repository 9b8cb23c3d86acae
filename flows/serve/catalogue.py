"""What can be searched of an experiment: its methods, the splits whose index is made, and what is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from flows.project import Project
from flows.results.wording import without_places
from flows.search.index import evaluated_split, trained_methods
from flows.search.searched import Searched, chosen_gallery, find_searched
from flows.serve.ranks.evaluated_runs import differing_settings
from flows.trained.finished import first_missing
from flows.trained.runs import DIGITS, SEPARATOR, TrainedRun, last_run, trained_runs
from pipeline.errors import UserError
from pipeline.run import plan

Searches = Mapping[tuple[str, str], Searched]
"""What is searched, by method and split."""

MOST_FURTHER = 50  # runs of a store, the newest, that are looked at beside those that usually answer
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

    name: the method's, or METHOD@DIGEST for a further run of it. missing: if no split can be searched, the reason in
    one sentence. encodes: whether any sentence can be searched for; if the text features were imported, only captions
    of the split can. note: the run that answers, where it is stale or was trained on another corpus. run: the
    fingerprint of the training. differs: the settings that a further run has otherwise, the usual run's in brackets.
    kind: that of the items that it ranks.
    """

    name: str
    splits: tuple[str, ...] = ()
    missing: str = ""
    encodes: bool = True
    note: str = ""
    run: str = ""
    differs: str = ""
    kind: str = "video"


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be searched of an experiment, as `/api/about` sends it to the page."""

    experiment: str
    methods: tuple[Searchable, ...]
    splits: tuple[Split, ...]

    def named(self, method: str, split: str) -> tuple[str, str]:
        """The method, or run, and the split of a request; "" stands for the first one. Raises UserError otherwise.

        A run may be named by any beginning of its digest, and by METHOD@DIGEST where it is the usual one of its method.
        """
        ready = [one for one in self.methods if one.splits]
        chosen = next((one for one in ready if _is_named(one, method or ready[0].name)), None)
        if chosen is None:
            missing = next(
                (f": {one.missing}" for one in self.methods if one.name == method and one.missing), ""
            )
            raise UserError(
                f"no method or run of that name can be searched{missing}; {', '.join(one.name for one in ready)} can"
            )
        split = split or chosen.splits[0]
        if split not in chosen.splits:
            raise UserError(
                f"no split of that name can be searched by {chosen.name}; {', '.join(chosen.splits)} can"
            )
        return chosen.name, split

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def _is_named(one: Searchable, word: str) -> bool:
    method, _, digest = word.partition(SEPARATOR)
    if not digest:
        return one.name == word
    return one.name.partition(SEPARATOR)[0] == method and len(digest) >= DIGITS and one.run.startswith(digest)


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
        methods.append(
            Searchable(
                method, splits, "", _encodes(found[0]), found[0].note, found[0].run, kind=found[0].kind
            )
        )
    for further, of_run in _further_runs(project, states, methods, more_splits):
        methods.append(further)
        searches |= {(further.name, split): one for split, one in of_run.items()}
    return methods, searches


def _further_runs(
    project: Project, states: plan.Survey, methods: Sequence[Searchable], more_splits: Sequence[str]
) -> Iterator[tuple[Searchable, dict[str, Searched]]]:
    """Yield the other runs of the store on this corpus that can be searched, the newest first, and their splits."""
    usual = {one.name: one.run for one in methods if one.run}
    for run in trained_runs(project.store)[:MOST_FURTHER]:
        if run.method not in usual or usual[run.method] == run.fingerprint or not _is_of(run, project):
            continue
        found: dict[str, Searched] = {}
        for split in dict.fromkeys([evaluated_split(project.stages, run.method), *more_splits]):
            with contextlib.suppress(UserError):  # it left nothing of this split
                found[split] = find_searched(project, run.method, split, run.fingerprint, states)
        if found:
            first = next(iter(found.values()))
            answers = TrainedRun(project.store, run.method, usual[run.method])
            differs = differing_settings(run.components, answers.components)
            yield (
                Searchable(
                    run.name, tuple(found), "", _encodes(first), "", run.fingerprint, differs, first.kind
                ),
                found,
            )


def _is_of(run: TrainedRun, project: Project) -> bool:
    """Whether a run was trained on the corpus of a project, as far as its record tells."""
    corpus = str(run.record.get("corpus", ""))
    return Path(corpus).name in ("", project.contents.corpus.path.name)


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
        methods.append(
            Searchable(method, (found.split,), "", _encodes(found), found.note, found.run, kind=found.kind)
        )
    return methods, searches


def catalogue_of(name: str, methods: Sequence[Searchable], searches: Searches) -> Catalogue:
    """The catalogue of what is searched; every one of `searches` is of one corpus."""
    by_split: dict[str, dict[str, Searched]] = {}  # then by kind of items, of which a corpus may have several
    for (_, split), found in searches.items():
        by_split.setdefault(split, {}).setdefault(found.kind, found)
    named = dict.fromkeys(split for method in methods for split in method.splits)
    splits = (_together([_split(found) for found in by_split[split].values()]) for split in named)
    return Catalogue(name, tuple(methods), tuple(splits))


def _together(parts: Sequence[Split]) -> Split:
    """A split of all kinds of items, with captions of each kind to begin with."""
    examples = [text for texts in zip_longest(*(part.examples for part in parts)) for text in texts if text]
    return Split(
        parts[0].name, sum(part.items for part in parts), sum(part.captions for part in parts),
        tuple(dict.fromkeys(examples))[:EXAMPLES],
    )  # fmt: skip


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
