"""Features that were imported into a store: the prefix of their stages' names, and their params."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.settings import Params

PREFIX = "import-"


class ImportedParams(Params):
    """The params of imported features: the digest of their files stands for all their content."""

    layout: str
    source: str  # digest
    of: Literal["items", "captions"]
    dims: int
    dtype: Literal["float32", "float16"] = "float32"  # float16 where all of the source is
    array: str = ""  # name of the array taken from each file, if the user chose one

    def decisive(self) -> dict[str, Any]:
        """Return all settings except those at their defaults, so that older imports keep their fingerprints."""
        return self.model_dump(mode="json", exclude_defaults=True)


def has_imports(store: Path) -> bool:
    """Whether anything was imported into a store, without opening it."""
    return any((store / "segments").glob(f"{PREFIX}*"))
