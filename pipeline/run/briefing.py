"""The data that a stage over the whole corpus reads before it runs: the corpus, the states, where outputs lie."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.contents import Contents
from pipeline.run.plan import State
from pipeline.store.store import Store


@dataclass(frozen=True)
class RunBriefing:
    """The `Briefing` of a stage in a run: its `brief` turns it into the plain data its worker reads."""

    contents: Contents
    store: Store
    states: Mapping[str, State]
    reports: Sequence[Mapping[str, Any]]  # of the stages of this run so far
    about: Mapping[str, Any]  # the experiment: name, path, settings

    def run_folder(self, stage: str) -> str:
        """The finished folder of a stage over the corpus."""
        return str(self.store.run_folder(stage, self.states[stage].fingerprint.hex))

    def where(self, stage: str) -> dict[str, Any]:
        """Where a stage's outputs of each item or caption lie: the first output's name, and key -> [segment, row]."""
        state = self.states[stage]
        fp = state.fingerprint.hex
        # one path for each segment: one for each item took 7 CPU us, nearly all of this
        path = functools.cache(lambda segment: str(self.store.segment_path(stage, fp, segment)))
        where = {key: [path(place.segment), place.row] for key, place in state.places.items()}
        return {"field": next(iter(state.stage.fields)), "where": where}
