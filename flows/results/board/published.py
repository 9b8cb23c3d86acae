"""Published figures: one TOML file a method, each row with its source and the protocol it was measured under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pipeline.errors import UserError, nearest
from pipeline.settings import Options, fill, read_toml
from trainers.measure.metric_table import METRICS
from trainers.registry import METHODS

Direction = Literal["t2v", "v2t", "both"]
Figures = dict[str, float]


class Protocol(Options):
    """A data set and protocol of published figures. Equal ones share a table, whichever file they are in."""

    dataset: str
    name: str
    words: str
    names: list[str] = Field(default_factory=list)  # our corpora's protocols that measure the same
    says: list[str] = Field(default_factory=list)  # words that the corpus's sentence must contain too
    caution: str = ""  # the reason why its figures are not fully comparable with others


class Row(Options):
    """A line of a table as it is printed; a table's text and cloud directions are t2v and v2t."""

    system: str
    protocol: str
    origin: Literal["paper", "repository", "secondary"]
    table: str  # the table's number in the source
    backbone: str = ""
    variant: str = ""  # an ablation or other settings; empty for the proposed method
    decimals: int = Field(1, ge=0)  # decimals that recalls are printed with
    note: str = ""
    t2v: Figures = Field(default_factory=dict)
    v2t: Figures = Field(default_factory=dict)
    both: Figures = Field(default_factory=dict)

    @field_validator("t2v", "v2t", "both")
    @classmethod
    def _known(cls, value: Figures) -> Figures:
        known = [metric.name for metric in METRICS]
        for name in value:
            if name not in known:
                raise ValueError(f"unknown metric {name!r}; {nearest(name, known)}")
        return value

    def figures(self) -> Iterator[tuple[Direction, Figures]]:
        """The directions that the row has figures of."""
        sides: tuple[tuple[Direction, Figures], ...] = (
            ("t2v", self.t2v),
            ("v2t", self.v2t),
            ("both", self.both),
        )
        yield from ((direction, side) for direction, side in sides if side)


class Known(Options):
    """A contradiction of the source, not of the transcription: the linter's message, and our note on it."""

    problem: str
    note: str


class Published(Options):
    """The published figures of a method, and of the other methods in its tables."""

    method: str
    paper: str
    venue: str
    arxiv: str
    protocols: dict[str, Protocol]
    rows: list[Row]
    known: list[Known] = Field(default_factory=list)

    @property
    def source(self) -> str:
        """For instance "ICCV 2025, arXiv 2507.17402"."""
        return f"{self.venue}, arXiv {self.arxiv}"


def tables() -> list[Path]:
    """The files of the published tables that methods declare, in the order of the methods' names.

    A method of an installed package that cannot be imported has none; `crossreel doctor` names it.
    """
    declared = []
    for name in sorted(METHODS.names()):
        try:
            declared.append(METHODS.find(name).table)
        except UserError:
            continue
    found = (entry.partition(":") for entry in declared if entry)
    return [Path(str(files(package))) / file for package, _, file in found]


def read_published(folder: Path | None = None) -> dict[str, Published]:
    """The published tables by method: those that methods declare, or the files of a folder.

    Raises UserError naming the file and what is wrong with it.
    """
    paths = tables() if folder is None else sorted(folder.glob("*.toml"))
    if not paths:
        raise UserError(f"there is no published table (.toml) in {folder}")
    out: dict[str, Published] = {}
    for path in paths:
        try:
            found = fill(Published, read_toml(path), "")
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from None
        for row in found.rows:
            if row.protocol not in found.protocols:
                possible = nearest(row.protocol, found.protocols)
                raise UserError(f"{path.name}: {row.system} has the protocol {row.protocol!r}; {possible}")
        if found.method in out:
            raise UserError(f"{path.name}: the method {found.method} has a file already")
        out[found.method] = found
    return out


def fitting(published: Mapping[str, Published], corpus: Mapping[str, object]) -> Iterator[Protocol]:
    """The published protocols that a corpus was imported under; corpus: `Corpus.protocol`."""
    name, sentence = str(corpus.get("name")), str(corpus.get("sentence"))
    for one in published.values():
        for protocol in one.protocols.values():
            if name in protocol.names and all(words in sentence for words in protocol.says):
                yield protocol
