"""Features that somebody else extracted, as a stage like any other, except that nobody here can run it."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.run.stage import Stage
from pipeline.store.fields import Field
from pipeline.store.imports import PREFIX, ImportedParams
from pipeline.store.index import Index


class Imported(Stage[ImportedParams]):
    """One row for each frame or token, as published: float16 stays (readers widen it), all else is float32."""

    settings = ImportedParams
    runner = ""

    def __init__(self, name: str, params: ImportedParams) -> None:
        super().__init__(params)
        self.name = name
        self.over = params.of  # type: ignore[misc]  # per instance: some are of items, some of captions

    @property
    def fields(self) -> Mapping[str, Field]:  # type: ignore[override]  # the dtype is a param
        """One row for each frame or token."""
        return {"row": Field(self.params.dtype, (None, None))}


def imported_stages(index: Index) -> dict[str, Imported]:
    """The imported stages of a store, by name."""
    stages = {}
    for name, components in index.fingerprints().values():
        if name.startswith(PREFIX):
            stages[name] = Imported(name, ImportedParams(**components["params"]))
    return stages
