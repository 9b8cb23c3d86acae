"""The data that a stage over the whole corpus reads before it runs: corpus, states, and places of outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.contents import Contents
from pipeline.run.plan import State
from pipeline.store.places import place_table
from pipeline.store.store import Store


@dataclass(frozen=True)
class RunBriefing:
    """The `Briefing` of a stage in a run: the stage's `brief` turns it into plain data for its worker."""

    contents: Contents
    store: Store
    states: Mapping[str, State]
    reports: Sequence[Mapping[str, Any]]  # one for each stage that this run has brought up to date so far
    about: Mapping[str, Any]  # the experiment: its name, path and settings

    def run_folder(self, stage: str) -> str:
        """The finished folder of a stage over the corpus."""
        return str(self.store.run_folder(stage, self.states[stage].fingerprint.hex))

    def table(self, stage: str, keys: Iterable[str]) -> dict[str, Any]:
        """Places of these units' outputs: {"field": name of the first output} and the entries of `place_table`."""
        state = self.states[stage]
        fp = state.fingerprint.hex
        table = place_table(state.places, keys, lambda segment: self.store.segment_path(stage, fp, segment))
        return {"field": next(iter(state.stage.fields)), **table}
