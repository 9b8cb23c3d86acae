"""The stage that encodes a whole split for searching. A declaration; `flows.search.indexing` does the work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError, nearest
from pipeline.run.stage import Stage
from pipeline.settings import Params
from trainers.stages import LEARN, Evaluate, Pack, Train

ITEMS, TEXTS, NAMES = "items.safetensors", "texts.safetensors", "items.json"


class IndexParams(Params):
    """Which split is searched."""

    split: str


class Index(Stage[IndexParams]):
    """All items and captions of a split, encoded by a trained method."""

    over = "corpus"
    runner = "flows.search.indexing:run"
    worker_kind = "model"
    settings = IndexParams

    def __init__(self, method: str, split: str, packed: str) -> None:
        super().__init__(IndexParams(split=split))
        self.name, self.method, self.needs = f"index-{method}", method, (f"train-{method}", packed)


def trained_methods(stages: Mapping[str, Stage[Any]]) -> list[str]:
    """The methods of an experiment, in its order."""
    return [stage.method for stage in stages.values() if isinstance(stage, Train)]


def choose_method(stages: Mapping[str, Stage[Any]], method: str) -> str:
    """The method to search with: the one named, or the only one. Raises UserError otherwise."""
    methods = sorted(trained_methods(stages))
    if method in methods:
        return method
    if not methods:
        raise UserError("the experiment names no methods, so there is nothing to search with")
    if method:
        raise UserError(f"the experiment has no method {method!r}; {nearest(method, methods)}")
    if len(methods) > 1:
        raise UserError(f"the experiment has several methods; say --method and one of {', '.join(methods)}")
    return methods[0]


def evaluated_split(stages: Mapping[str, Stage[Any]], method: str) -> str:
    """The split that a method of the experiment is evaluated on."""
    evaluate = stages[f"evaluate-{method}"]
    if not isinstance(evaluate, Evaluate):
        raise TypeError(f"{evaluate.name} is no evaluation")
    return evaluate.params.split


def with_index(stages: Mapping[str, Stage[Any]], method: str, split: str) -> dict[str, Stage[Any]]:
    """The stages of an experiment and the index of a split, with the packed inputs it needs if no stage makes them.

    The others stay what they are: nothing they need is changed.
    """
    learn = stages[f"pack-{method}"]
    if not isinstance(learn, Pack):
        raise TypeError(f"{learn.name} packs nothing")
    packed = learn if split in LEARN else Pack(learn.declared, learn.params, (split,), suffix=f"-{split}")
    index = Index(method, split, packed.name)
    return {packed.name: packed} | dict(stages) | {index.name: index}
