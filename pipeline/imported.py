"""Features that somebody else extracted, as a stage like any other, except that nobody here can run it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.index import Index
from pipeline.settings import Params
from pipeline.stage import Field, Stage

PREFIX = "import-"


class ImportedParams(Params):
    """Where imported features come from: the digest of their files stands for all their content."""

    layout: str
    source: str  # digest
    of: Literal["items", "captions"]
    dims: int


class Imported(Stage[ImportedParams]):
    """One row a frame or token, float32 as published."""

    settings = ImportedParams
    runner = ""
    fields = {"row": Field("float32", (None, None))}

    def __init__(self, name: str, params: ImportedParams) -> None:
        super().__init__(params)
        self.name = name
        self.over = params.of  # type: ignore[misc]  # per instance: some are of items, some of captions


def imported_stages(index: Index) -> dict[str, Imported]:
    """What was imported into a store, by stage name."""
    stages = {}
    for name, components in index.fingerprints().values():
        if name.startswith(PREFIX):
            stages[name] = Imported(name, ImportedParams(**components["params"]))
    return stages


def has_imports(store: Path) -> bool:
    """Whether anything was imported into a store, without opening it."""
    return any((store / "segments").glob(f"{PREFIX}*"))
