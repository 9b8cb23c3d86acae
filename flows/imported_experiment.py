"""A complete experiment file that trains methods on imported features, for every method that can read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import graph
from flows.experiment import Experiment
from pipeline.corpus.contents import Contents, RememberedDigests, read_contents
from pipeline.corpus.manifest import Corpus
from pipeline.errors import UserError
from pipeline.features.imported import imported_stages
from pipeline.run.plan import survey
from pipeline.run.stage import Stage
from pipeline.settings import fill
from pipeline.store.store import Store
from trainers.registry import METHODS
from trainers.stages import Pack, row_counts

SIDES = ("items", "captions")


@dataclass(frozen=True)
class ImportedExperiment:
    """The text of an experiment file ("" if no method can read the features), and the reasons of excluded methods."""

    text: str
    methods: tuple[str, ...]
    refused: Mapping[str, str]  # method -> reason
    impossible: str = ""  # the reason that excludes every method, if it is not one of a method


def experiment_on(manifest: Path, store: Path, stages: Mapping[str, str]) -> ImportedExperiment:
    """The experiment file for imported features of a corpus; paths are written as given.

    stages: "items" or "captions" -> the stage just imported. For the other side, the stage imported earlier that covers
    most of this corpus is used, or else the methods' own extractors.
    """
    opened = Store(store)
    contents = read_contents(Corpus.read(manifest), opened.index)
    imported = imported_stages(opened.index)
    chosen = {side: stages.get(side) or _covering(contents, opened, imported, side) for side in SIDES}
    if not chosen["items"] and all(item.media is None for item in contents.corpus.items):
        reason = (
            f"the items of {manifest} have no media, so their features have to be imported too: "
            f"crossreel import features SOURCE --layout LAYOUT --of items --corpus {manifest} --store {store}"
        )
        return ImportedExperiment("", (), {}, reason)
    kinds = _kinds(contents, opened, imported, chosen["items"])
    tree: dict[str, Any] = {"corpus": str(manifest), "store": str(store)} | _evaluated(contents.corpus)
    settings: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for method in METHODS.names():
        config = METHODS.find(method).config
        if config.kind not in kinds:
            continue
        ragged = len(_row_counts(contents, opened, imported, chosen["captions"])) > 1
        own = config.reading(chosen["items"], chosen["captions"], ragged)
        reason = _reason(tree | {"methods": [method], "trainers": {method: own}}, contents, opened, imported)
        if reason:
            refused[method] = reason
        else:
            settings[method] = own
    if not settings:
        return ImportedExperiment("", (), refused)
    return ImportedExperiment(_lines(tree, settings), tuple(settings), refused)


def _evaluated(corpus: Corpus) -> dict[str, Any]:
    """Settings that evaluate on `val` if only that split has captions; {} for the default, `test`."""
    captioned = [split for split in corpus.splits if next(corpus.captions(split), None) is not None]
    return {"evaluate": {"split": "val"}} if "test" not in captioned and "val" in captioned else {}


def _covering(contents: Contents, store: Store, imported: Mapping[str, Stage[Any]], side: str) -> str:
    """The imported stage of a side with features for the most items or captions of a corpus; "" if there is none."""
    keys = set(contents.names(side).values())
    counts = {
        name: sum(key in state.places for key in keys)
        for name, state in survey(imported, contents, store, RememberedDigests(store.index)).items()
        if state.stage.over == side
    }
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best) else ""


def _kinds(contents: Contents, store: Store, imported: Mapping[str, Stage[Any]], stage: str) -> set[str]:
    """The kinds of the items that imported features are of; those of the corpus if `stage` is not imported."""
    if stage not in imported:
        return set(contents.corpus.kinds)
    state = survey({stage: imported[stage]}, contents, store, RememberedDigests(store.index))[stage]
    return set(contents.of_kind(state.kind).corpus.kinds)


def _row_counts(contents: Contents, store: Store, imported: Mapping[str, Stage[Any]], stage: str) -> set[int]:
    """Distinct numbers of rows of the arrays of a stage; empty if the stage was not imported."""
    if stage not in imported:
        return set()
    states = survey({stage: imported[stage]}, contents, store, RememberedDigests(store.index))
    return {count for _, count in row_counts(contents, states, store, stage, contents.corpus.splits)}


def _reason(
    tree: Mapping[str, Any], contents: Contents, store: Store, imported: Mapping[str, Stage[Any]]
) -> str:
    """The sentence with the reason why an experiment cannot be planned; "" if it can."""
    try:
        experiment = fill(Experiment, {"name": "imported", **tree}, "")
        stages = graph.build(experiment, imported)
        packs = [stage for stage in stages.values() if isinstance(stage, Pack)]
        for pack in packs:
            for split in pack.splits():
                contents.of_kind(pack.kind).corpus.require_queries(split)
        states = survey(stages, contents, store, RememberedDigests(store.index))
        misfits = (pack.misfits(contents.of_kind(pack.kind), states, store) for pack in packs)
        return next((words for some in misfits for words in some), "")
    except UserError as error:
        return str(error)


def _lines(tree: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The experiment file as TOML, whose strings, lists and booleans have the syntax of JSON."""
    tables: dict[str, Mapping[str, Any]] = {n: value for n, value in tree.items() if isinstance(value, dict)}
    tables |= {f"trainers.{method}": own for method, own in settings.items()}
    top = {name: value for name, value in tree.items() if name not in tables} | {"methods": list(settings)}
    parts = [_table(top), *(f"[{name}]\n{_table(values)}" for name, values in tables.items())]
    return "\n\n".join(parts) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items())
