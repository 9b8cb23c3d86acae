"""A stage as data: its name, inputs, params and outputs. It does not know how stages are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pipeline.corpus.contents import Contents
from pipeline.settings import Params
from pipeline.store.fields import Field
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store


class Digests(Protocol):
    """Digests of files such as weights, remembered by path, size and time."""

    def file(self, path: Path) -> str:
        """Return the digest of a file's bytes."""
        ...

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        """Return the path that the costly `find` returns for a name; it is remembered while the file exists."""
        ...


class Briefing(Protocol):
    """The data that a stage over the whole corpus may read before it runs; `pipeline.run.briefing` implements it."""

    @property
    def contents(self) -> Contents:
        """The corpus with the digest of every item."""
        ...

    @property
    def store(self) -> Store:
        """The store of the experiment."""
        ...

    @property
    def states(self) -> Mapping[str, Any]:
        """The `plan.State` of every stage by name; plan imports this module, so its type cannot stand here."""
        ...

    @property
    def reports(self) -> Sequence[Mapping[str, Any]]:
        """The reports of the stages that this run has brought up to date so far, in order."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """The experiment: its name, path and settings by stage."""
        ...

    def run_folder(self, stage: str) -> str:
        """Return the path of the finished folder of a stage over the corpus."""
        ...

    def table(self, stage: str, keys: Iterable[str]) -> dict[str, Any]:
        """Return the first output's name ("field") and the places of these units, as `store.places.place_table`."""
        ...


Over = Literal["items", "captions", "corpus"]
WorkerKind = Literal["cpu", "model"]
P = TypeVar("P", bound=Params)


class Stage(Generic[P]):
    """Base of all stages. A subclass states the class attributes; an instance holds the params.

    `over` is the unit of work: each item, each distinct caption, or the corpus once. `runner` is the
    `module:function` that a worker process calls; `worker_kind` is what limits the number of workers:
    cores ("cpu"), or the accelerator if there is one ("model"). Stages with `one_pass` and the same
    `pass_key` process an item together, so that it is read once.
    """

    name: str
    method: str = ""  # name of the method, for a stage of a method
    kind: str = ""  # kind of the items it processes; "": those of the stages it needs, or items of every kind
    version: ClassVar[int] = 1
    over: ClassVar[Over] = "items"
    runner: ClassVar[str]
    worker_kind: ClassVar[WorkerKind] = "cpu"
    one_pass: ClassVar[bool] = False
    on_demand: ClassVar[bool] = (
        False  # whether it counts as done without its artifact while no stage that reads it runs
    )
    several: ClassVar[bool] = False  # whether a stage over the corpus can use several processes
    shard_items: ClassVar[int] = 16  # most items in a shard; a killed run loses only the shards in progress
    fields: ClassVar[Mapping[str, Field]] = {}
    file_suffix: ClassVar[str | None] = None  # suffix of the file that it makes from each item, if any
    programs: ClassVar[
        tuple[str, ...]
    ] = ()  # keys of `identity` that are versions of programs and can be kept
    kept: Mapping[str, Any] = MappingProxyType(
        {}
    )  # versions of these programs in the store, used instead of this machine's
    needs: tuple[str, ...] = ()
    pinned: Fingerprint | None = (
        None  # a fingerprint in the store to read, whatever the settings would make today
    )
    settings: ClassVar[type[Params]]
    params: P

    def __init__(self, params: P) -> None:
        self.params = params

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """Return what decides the content besides params and inputs: weights, decoder. Plain data, without torch."""
        return {}

    def decisive(self) -> Mapping[str, Any]:
        """Return the settings that enter the fingerprint."""
        return self.params.decisive()

    def require(self) -> None:
        """Raise UserError unless everything that the work needs (weights, a server) is available. Called before it."""

    def splits(self) -> tuple[str, ...]:
        """Return the splits that a stage over the corpus reads itself (not through the stages it needs)."""
        return ()

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Return plain data that the worker of a stage over the corpus needs besides its params."""
        return {}

    def keeps(self, fingerprint: Fingerprint) -> tuple[str, Fingerprint] | None:
        """Return the stage name and fingerprint of what it computes of single items and captions, if it keeps that.

        Such rows lie in segments, like those of a stage over items, and are used again by every artifact of this stage
        that has the same `keeps`. `fingerprint` is that of an artifact.
        """
        return None

    @property
    def pass_key(self) -> tuple[Any, ...]:
        """Return what stages that share a pass over the items have in common."""
        return (self.needs, self.runner, self.shard_items)

    @property
    def entry(self) -> str:
        """Return the `module:Class` from which a worker process rebuilds this stage."""
        return f"{type(self).__module__}:{type(self).__qualname__}"
