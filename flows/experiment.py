"""An experiment file: the corpus, the methods, the settings, and the folder of the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipeline.errors import UserError
from pipeline.run.execute import RunOptions
from pipeline.settings import Options, apply_sets, fill, read_toml


class Experiment(Options):
    """The top level of an experiment file. Paths are relative to the file."""

    name: str = ""  # the file's name, if not given
    corpus: str
    store: str = "store"
    methods: list[str] = Field(default_factory=list)  # methods that are trained, evaluated and compared
    extract: list[str] = Field(default_factory=list)  # extractors to run even if no method reads them
    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)  # settings by stage
    trainers: dict[str, dict[str, Any]] = Field(default_factory=dict)  # settings by method
    evaluate: dict[str, Any] = Field(default_factory=dict)
    run: RunOptions = RunOptions()
    path: Path = Path()

    @field_validator("methods", "extract", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    @field_validator("methods", "extract")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @property
    def corpus_path(self) -> Path:
        """The path of the manifest."""
        return self.path.parent / self.corpus

    @property
    def store_path(self) -> Path:
        """The folder of the store."""
        return self.path.parent / self.store


def load(path: Path, sets: Sequence[str] = (), methods: Sequence[str] = ()) -> Experiment:
    """An experiment file with `a.b=value` settings applied, and its methods replaced if any are named.

    Raises UserError naming what is wrong and what is possible.
    """
    tree = apply_sets(read_toml(path), sets)
    if "path" in tree:
        raise UserError(f"unknown setting path in {path}")
    if methods:
        tree["methods"] = ",".join(methods)
    tree.setdefault("name", path.stem)
    experiment = fill(Experiment, tree, "")
    return experiment.model_copy(update={"path": path.absolute()})
