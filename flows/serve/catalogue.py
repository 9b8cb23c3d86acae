"""What can be searched of an experiment: its methods, the splits whose index is made, and what is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from flows.project import Project
from flows.search.index import evaluated_split, with_index
from pipeline.run import plan
from pipeline.run.stage import Stage
from trainers.stages import Train

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
    if the text features were imported, only captions of the split can.
    """

    name: str
    splits: tuple[str, ...] = ()
    missing: str = ""
    encodes: bool = True


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


def indexed(project: Project) -> set[tuple[str, str]]:
    """The methods and splits whose index is in the store."""
    out = set()
    for split in project.contents.corpus.splits:
        stages: dict[str, Stage[Any]] = dict(project.stages)
        for method in trained_methods(project.stages):
            stages = with_index(stages, method, split)
        states = replace(project, stages=stages).survey()
        out |= {(m, split) for m in trained_methods(project.stages) if states[f"index-{m}"].complete}
    return out


def read_catalogue(
    project: Project, more_splits: Sequence[str], made: Collection[tuple[str, str]]
) -> Catalogue:
    """What can be searched: the evaluated split of each trained method, `more_splits`, and those in `made`."""
    corpus, states, methods = project.contents.corpus, project.survey(), []
    for method in trained_methods(project.stages):
        if missing := _missing(project, states, method):
            methods.append(Searchable(method, missing=missing))
            continue
        first = [evaluated_split(project.stages, method), *more_splits]
        splits = dict.fromkeys([*first, *(split for split in corpus.splits if (method, split) in made)])
        methods.append(Searchable(method, tuple(splits), encodes=_encodes(project, method)))
    named = dict.fromkeys(split for method in methods for split in method.splits)
    kind = corpus.items[0].kind if corpus.items else "video"
    splits_named = tuple(_split(project, name) for name in named)
    return Catalogue(project.experiment.name, kind, tuple(methods), splits_named)


def _missing(project: Project, states: Mapping[str, plan.State], method: str) -> str:
    """The reason why a method cannot be searched, with the command that helps; "" if it can."""
    needed = plan.ancestors(project.stages, [f"train-{method}"])
    for need in plan.order(project.stages):
        if need in needed and not states[need].complete:
            command = f"crossreel run {project.experiment.path.name} --methods {method}"
            return f"{need} is not done yet; run `{command}`"
    return ""


def _encodes(project: Project, method: str) -> bool:
    """Whether every stage that a caption goes through can run, so that new sentences can be encoded."""
    stages = project.stages
    needed = plan.ancestors(stages, [f"train-{method}"])
    return all(stages[name].runner for name in needed if stages[name].over == "captions")


def _split(project: Project, name: str) -> Split:
    """A split, with captions from all over it that are short enough to be read at a glance."""
    texts = list(dict.fromkeys(caption.text.strip() for _, _, caption in project.contents.queries(name)))
    short = [text for text in texts if 0 < len(text) <= EXAMPLE_LETTERS] or texts[:EXAMPLES]
    step = max(1, len(short) // EXAMPLES)
    items = len({key for key, _ in project.contents.gallery(name)})
    return Split(name, items, len(texts), tuple(short[::step][:EXAMPLES]))
