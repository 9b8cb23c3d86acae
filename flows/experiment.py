"""An experiment file: the corpus, the methods, the settings, and the folder of the store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pipeline.errors import UserError
from pipeline.run.execute import RunOptions
from pipeline.settings import Options, apply_sets, fill, read_toml

MANIFEST = "corpus.jsonl"  # where `crossreel corpus import` writes, if not told otherwise
MOST_NAMED = 3  # other files of a folder that an error names


class Experiment(Options):
    """The top level of an experiment file. Paths are relative to the file."""

    name: str = ""  # the file's name, if not given
    corpus: str  # the manifest, which `crossreel corpus import` writes
    store: str = "store"  # the folder of all that is made
    methods: list[str] = Field(default_factory=list)  # methods that are trained, evaluated and compared
    extract: list[str] = Field(default_factory=list)  # extractors to run even if no method reads them
    extractors: dict[str, dict[str, Any]] = Field(default_factory=dict)  # settings by stage
    trainers: dict[str, dict[str, Any]] = Field(default_factory=dict)  # settings by method
    evaluate: dict[str, Any] = Field(default_factory=dict)  # what is measured, and on which split
    run: RunOptions = RunOptions()  # speed and place: workers, devices, machines
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
    if not path.exists():
        raise UserError(f"no experiment file {path}; {_first_words(path.parent)}")
    tree = apply_sets(read_toml(path), sets)
    if "path" in tree:
        raise UserError(f"unknown setting path in {path}")
    if methods:
        tree["methods"] = ",".join(methods)
    tree.setdefault("name", path.stem)
    experiment = fill(Experiment, tree, "")
    return experiment.model_copy(update={"path": path.absolute()})


def _first_words(folder: Path) -> str:
    """What to type first in a folder without an experiment, as the end of a sentence."""
    others = [path.name for path in sorted(folder.glob("*.toml")) if _names_a_corpus(path)]
    if others:
        return f"there is {', '.join(others[:MOST_NAMED])}"
    if (folder / MANIFEST).is_file():
        return f"`crossreel init --corpus {folder / MANIFEST}` writes one for the corpus that lies there"
    return (
        "`crossreel init` writes one: `crossreel init --list` shows the published experiments, and for videos of your "
        f"own `crossreel corpus import folder VIDEOS` comes first, then `crossreel init --corpus {MANIFEST}`; "
        "`crossreel demo demo` runs at once"
    )


def _names_a_corpus(path: Path) -> bool:
    """Whether a TOML file looks like an experiment, which other tools' files beside it do not."""
    try:
        return re.search(r"^corpus *=", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False
