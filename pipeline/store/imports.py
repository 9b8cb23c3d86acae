"""Features that were imported into a store: how their stages are called, and their params."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pipeline.settings import Params

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


def has_imports(store: Path) -> bool:
    """Whether anything was imported into a store, without opening it."""
    return any((store / "segments").glob(f"{PREFIX}*"))
