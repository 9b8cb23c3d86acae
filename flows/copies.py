"""How often the features that methods read are on the disk: in the store, and packed beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.estimate import Expected
from pipeline.run.plan import State, Survey
from pipeline.store.store import Store, tree_bytes
from trainers.stages import Pack


@dataclass(frozen=True)
class FeatureCopies:
    """Bytes of the features that methods read, and of their packed inputs, after a run of everything.

    `again` are those of the packed inputs that are there: `store gc --packs` gives them back.
    """

    features: float
    packed: float
    again: float

    @property
    def copies(self) -> float:
        """How often the features are on the disk."""
        return 1 + self.packed / self.features


def feature_copies(
    store: Store, states: Mapping[str, State] | Survey, expected: Mapping[str, Expected]
) -> FeatureCopies | None:
    """The copies of the features of an experiment; None where it reads none, or where it is not known yet."""
    packs = [state for state in states.values() if isinstance(state.stage, Pack)]
    read = {need for state in packs for need in state.stage.needs}
    coming = [expected[name].bytes for name in (*read, *(state.stage.name for state in packs))]
    features = float(sum(_feature_bytes(store, states[name]) for name in read))
    again = sum({path: tree_bytes(path) for state in packs for path in _folders(store, state)}.values())
    if not packs or any(size is None for size in coming):
        return None
    features += sum(expected[name].bytes or 0.0 for name in read)
    packed = again + sum(expected[state.stage.name].bytes or 0.0 for state in packs)
    return FeatureCopies(features, packed, again) if features else None


def _feature_bytes(store: Store, state: State) -> int:
    return sum(store.index.segments(state.fingerprint.hex).values())


def _folders(store: Store, state: State) -> Iterator[Path]:
    """Yield the folder of a pack, and that of the rows that packing computed, which packs share."""
    yield store.run_folder(state.stage.name, state.fingerprint.hex)
    if kept := state.stage.keeps(state.fingerprint):
        yield store.segments_folder(kept[0], kept[1].hex)
