"""Features that somebody else extracted, as a stage like any other, except that nobody here can run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.run.stage import Field, Stage
from pipeline.settings import Params
from pipeline.store.index import Index

PREFIX = "import-"


class ImportedParams(Params):
    """Where imported features come from: the digest of their files stands for all their content."""

    layout: str
    source: str  # digest
    of: Literal["items", "captions"]
    dims: int
    dtype: Literal["float32", "float16"] = "float32"  # float16 where all of the source is
    array: str = ""  # which array of each file was taken, where it was chosen

    def decisive(self) -> dict[str, Any]:
        """All of them; what came in before a setting existed keeps its fingerprint."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Imported(Stage[ImportedParams]):
    """One row a frame or token, as published: float16 stays float16, which readers widen; all else is float32."""

    settings = ImportedParams
    runner = ""

    def __init__(self, name: str, params: ImportedParams) -> None:
        super().__init__(params)
        self.name = name
        self.over = params.of  # type: ignore[misc]  # per instance: some are of items, some of captions

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """One row a frame or token."""
        return {"row": Field(self.params.dtype, (None, None))}


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
