"""A trained and evaluated method of an experiment, as its folders in the store tell of it."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from flows.project import Project
from pipeline.errors import UserError, nearest
from pipeline.run.plan import State


@dataclass(frozen=True)
class Evaluated:
    """A method with what its training and its evaluation left. Arrays and texts are read when they are asked for."""

    project: Project
    method: str
    states: dict[str, State]

    @property
    def training(self) -> State:
        """The stage that trained it."""
        return self.states[f"train-{self.method}"]

    @property
    def evaluation(self) -> State:
        """The stage that measured it."""
        return self.states[f"evaluate-{self.method}"]

    def folder(self, state: State) -> Path:
        """Where a stage over the corpus left its files."""
        return self.project.store.run_folder(state.stage.name, state.fingerprint.hex)

    def record(self, state: State) -> dict[str, Any]:
        """What the store wrote of a stage's run: when it was made, and in how many seconds."""
        return self.project.store.run_record(state.stage.name, state.fingerprint.hex)

    @cached_property
    def measured(self) -> dict[str, Any]:
        """metrics.json: figures by direction, the protocol, and figures of post-processed scores if there are any."""
        return dict(_json(self.folder(self.evaluation) / "metrics.json"))

    @cached_property
    def queries(self) -> dict[str, Any]:
        """queries.json: items and captions by digest, texts, and which items are right for which caption."""
        return dict(_json(self.folder(self.evaluation) / "queries.json"))

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """ranking.safetensors: ranks by direction, and the first places of each caption."""
        return load_file(self.folder(self.evaluation) / "ranking.safetensors")

    @cached_property
    def trained(self) -> dict[str, Any]:
        """config.json of the training: its settings and its summary."""
        return dict(_json(self.folder(self.training) / "config.json"))

    @property
    def right(self) -> list[list[int]]:
        """All right items of each caption by position, its own first."""
        own = self.queries["caption_item"]
        also = self.queries.get("caption_also") or [[]] * len(own)
        return [[item, *others] for item, others in zip(own, also, strict=True)]

    @property
    def several_right(self) -> bool:
        """Whether any caption has more than one right item."""
        return any(self.queries.get("caption_also") or [])

    @property
    def captions_per_item(self) -> NDArray[np.int64]:
        """How many captions name each of the items that any names."""
        counts = np.bincount(np.concatenate(self.right).astype(np.int64))
        return counts[counts > 0]

    @property
    def item_ids(self) -> list[str]:
        """The gallery by the ids of the corpus; of items with the same bytes, the first."""
        items = self.project.contents.items()
        return [items[digest].id for digest in self.queries["items"]]

    @property
    def caption_ids(self) -> list[str]:
        """The queries by the ids of the corpus: one text may stand there several times, even of one item."""
        ids: dict[tuple[str, str], list[str]] = defaultdict(list)
        for item, _, caption in self.project.contents.queries(self.measured["protocol"]["split"]):
            ids[item, caption.digest].append(caption.id)
        gallery = self.queries["items"]
        told = zip(self.queries["captions"], self.queries["caption_item"], strict=True)
        return [ids[gallery[item], digest].pop(0) for digest, item in told]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def evaluated(project: Project, method: str) -> Evaluated:
    """A method of an experiment. Raises UserError for an unknown one, and where it is not evaluated yet."""
    known, path = project.experiment.methods, project.experiment.path
    if method not in known:
        raise UserError(f"{path} does not train {method!r}; {nearest(method, known)}")
    states = project.survey()
    if not states[f"evaluate-{method}"].complete:
        raise UserError(
            f"evaluate-{method} is not done yet; run `crossreel stage evaluate-{method} {path}` first"
        )
    return Evaluated(project, method, states)


def all_evaluated(project: Project) -> list[Evaluated]:
    """Every method of an experiment. Raises UserError where one is not evaluated yet, or there is none."""
    if not project.experiment.methods:
        raise UserError(f"{project.experiment.path} names no methods, so there is nothing to export")
    return [evaluated(project, method) for method in project.experiment.methods]
