"""Artifacts that another ffmpeg or decoder made: the stages that a change of the program makes stale, or keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.run import plan
from pipeline.run.stage import Digests, Stage
from pipeline.store.fingerprint import Fingerprint, differences
from pipeline.store.store import Store


@dataclass(frozen=True)
class ChangedProgram:
    """A stage whose artifacts were made by a version of a program that this machine does not have."""

    stage: str
    program: str  # its name in the fingerprint: ffmpeg, or decoder
    before: str
    here: str
    items: int  # items in the store
    kept: bool

    @property
    def sentence(self) -> str:
        """The sentence of a plan on it; the caller adds the cost."""
        made = f"{self.stage} of {self.items} items was made with {self.program} {self.before}, and this machine has "
        if self.kept:
            return f"{made}{self.here}; it is kept (run.keep_decoded), and only new items are made with {self.here}"
        return (
            f"{made}{self.here}: it and all that was made of it will be made again; run.keep_decoded = true keeps "
            "what is there"
        )


def find_changed(
    stages: Mapping[str, Stage[Any]], store: Store, known: Digests, keep: bool
) -> list[ChangedProgram]:
    """The stages for which the store has more items of another program than of this machine's, all else equal.

    With `keep` the versions in the store take their place in the fingerprints of these stages, before the stages that
    need them are looked at; without, only the first stage of each chain is found. Reads the index alone.
    """
    prints: dict[str, str] = {}
    changed: list[ChangedProgram] = []
    for name in plan.order(stages):
        stage = stages[name]
        if stage.over == "corpus" or any(need not in prints for need in stage.needs):
            continue
        try:
            mine = plan.components_on({need: prints[need] for need in stage.needs}, stage, known)
        except UserError:
            continue  # missing weights are reported elsewhere
        prints[name] = Fingerprint.of(mine).hex
        found = _made_before(stage, mine, prints[name], store)
        if found is None:
            continue
        components, items = found
        changed += [
            ChangedProgram(name, program, str(components[program]), str(mine[program]), items, keep)
            for program in stage.programs if components[program] != mine[program]
        ]  # fmt: skip
        if keep:
            stage.kept = {program: components[program] for program in stage.programs}
            prints[name] = Fingerprint.of({**mine, **stage.kept}).hex
    return changed


def _made_before(
    stage: Stage[Any], mine: Mapping[str, Any], fp: str, store: Store
) -> tuple[Mapping[str, Any], int] | None:
    """Components and number of items of the fingerprint with most items, if only programs differ and it has more."""
    best, most = None, store.index.items_of(fp) if stage.programs else 0
    for other, (_, components) in (store.index.fingerprints(stage.name) if stage.programs else {}).items():
        names = {name for name, _, _ in differences(mine, components)}
        if names and names <= set(stage.programs) and (items := store.index.items_of(other)) > most:
            best, most = components, items
    return None if best is None else (best, most)
