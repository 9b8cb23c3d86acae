"""What limits the figures of an experiment: failures, random weights, distance from the published recipe, seeds.

Plain data, so that the worker of the report, which has no store, can be told of it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flows.repetition import Repetition, random_networks
from pipeline.corpus.contents import Contents
from pipeline.run.plan import State
from pipeline.store.documents import Document
from pipeline.store.store import Store

SEED = "seed"


class Repeated(Document):
    """A further training of a method that differs in its seed alone, and the folder of its evaluation."""

    seed: int
    evaluated: str


class OfMethod(Document):
    """What limits the figures of one method.

    random: the stages whose network has random weights. recipe: name of the published experiment of the corpus, ""
    if there is none. exact: nothing is known in which the run differs from it. differences: number of settings and
    other reasons in which it does, of settings other than the defaults where nobody published any. seed: None of a
    method that was not trained. again: further trainings with other seeds.
    """

    random: list[str] = []
    recipe: str = ""
    exact: bool = False
    differences: int = 0
    seed: int | None = None
    again: list[Repeated] = []


class Circumstances(Document):
    """What limits the figures of an experiment. failed_items, failed_captions: by name, over all stages."""

    failed_items: int = 0
    failed_captions: int = 0
    methods: dict[str, OfMethod] = {}


def failures(contents: Contents, states: Mapping[str, State]) -> tuple[int, int]:
    """Numbers of items and of captions that some stage could not process, or whose media cannot be read."""
    names: dict[str, set[str]] = {"items": set(contents.unreadable), "captions": set(), "corpus": set()}
    for state in states.values():
        for each in (*state.failed.values(), *state.killed.values()):
            names[state.stage.over].add(each.name)
    return len(names["items"]), len(names["captions"])


def of_method(
    method: str, states: Mapping[str, State], store: Store, beside: Repetition, split: str
) -> OfMethod:
    """What limits the figures of an evaluated method; beside: its run beside the published experiment."""
    stages = {name: state.stage for name, state in states.items()}
    config = stages[f"train-{method}"].params
    return OfMethod(
        random=random_networks(method, stages, config),
        recipe=beside.row.name if beside.row else "",
        exact=beside.exact,
        differences=len(beside.every_reason if beside.row else beside.settings),
        seed=config.seed if config.epochs else None,
        again=list(_again(store, method, states[f"train-{method}"].fingerprint.hex, split)),
    )


def _again(store: Store, method: str, fingerprint: str, split: str) -> Iterator[Repeated]:
    """Yield other evaluated trainings of the store that differ from this one in the seed alone, one a seed."""
    trainings = dict(_records(store, f"train-{method}"))
    try:
        own, seed = _without_seed(trainings[fingerprint])
    except KeyError:  # a checkpoint that was imported has no seed
        return
    seen = {seed}
    evaluations = [
        (fp, parts)
        for fp, parts in _records(store, f"evaluate-{method}")
        if parts["params"]["split"] == split
    ]
    for other, components in trainings.items():
        params, seed = _without_seed(components)
        made = [fp for fp, parts in evaluations if parts["needs"].get(f"train-{method}") == other]
        if params == own and seed not in seen and made:
            seen.add(seed)
            yield Repeated(seed=seed, evaluated=str(store.run_folder(f"evaluate-{method}", made[0])))


def _records(store: Store, stage: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield fingerprint and components of each finished folder of a stage."""
    for folder in sorted((store.root / "runs" / stage).glob("*")):
        if store.has_run(stage, folder.name):
            yield folder.name, store.run_record(stage, folder.name)["components"]


def _without_seed(components: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What decided a training besides its seed, and the seed."""
    params = dict(components["params"])
    seed = params.pop(SEED)
    return {**components, "params": params}, int(seed)
