"""A stage as data: its name, what it reads, its params, its outputs. Knows nothing of running."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pipeline.corpus.contents import Contents
from pipeline.settings import Params
from pipeline.store.fields import Field
from pipeline.store.store import Store


class Digests(Protocol):
    """Digests of files such as weights, remembered by path, size and time."""

    def file(self, path: Path) -> str:
        """The digest of a file's bytes."""
        ...

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        """The path that `find` (costly) gives for a name, remembered while the file stays there."""
        ...


class Briefing(Protocol):
    """What a stage over the whole corpus may read before it runs; `pipeline.run.briefing` implements it."""

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
        """The finished folder of a stage over the corpus."""
        ...

    def where(self, stage: str) -> dict[str, Any]:
        """The name of a stage's first output, and for each item or caption the path and row of its segment."""
        ...


Over = Literal["items", "captions", "corpus"]
WorkerKind = Literal["cpu", "model"]
P = TypeVar("P", bound=Params)


class Stage(Generic[P]):
    """Base of all stages. A subclass states the class attributes; an instance holds the params.

    `over` says what it is mapped on: each item, each distinct caption, or the corpus once. `runner`
    is the `module:function` a worker process calls; `worker_kind` says what limits how many run at
    once: cores ("cpu"), or the accelerator where there is one ("model"). Stages with `one_pass` that need
    the same stages and have the same runner work on an item together, so that it is read once.
    """

    name: str
    method: str = ""  # that it belongs to, where it is a stage of a method
    kind: str = ""  # of the items whose media it reads; "": it reads none, or any
    version: ClassVar[int] = 1
    over: ClassVar[Over] = "items"
    runner: ClassVar[str]
    worker_kind: ClassVar[WorkerKind] = "cpu"
    one_pass: ClassVar[bool] = False
    several: ClassVar[bool] = False  # a stage over the corpus that can work on several processes at once
    shard_items: ClassVar[int] = 16  # at most; a killed run loses no more than the shards in flight
    fields: ClassVar[Mapping[str, Field]] = {}
    file_suffix: ClassVar[str | None] = None  # of the file it makes of each item, if it makes one
    programs: ClassVar[tuple[str, ...]] = ()  # names in `identity` of programs whose versions can be kept
    kept: Mapping[str, Any] = MappingProxyType({})  # their versions in the store, instead of this machine's
    needs: tuple[str, ...] = ()
    settings: ClassVar[type[Params]]
    params: P

    def __init__(self, params: P) -> None:
        self.params = params

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """What decides the content besides params and upstream: weights, decoder. Plain data, no torch."""
        return {}

    def decisive(self) -> Mapping[str, Any]:
        """The settings that enter the fingerprint."""
        return self.params.decisive()

    def require(self) -> None:
        """Raise UserError unless what the work needs (weights, a server) is there. Called before it begins."""

    def splits(self) -> tuple[str, ...]:
        """The splits that a stage over the corpus reads itself (not through the stages it needs)."""
        return ()

    def brief(self, briefing: Briefing) -> dict[str, Any]:
        """Return plain data that the worker of a stage over the corpus needs besides its params."""
        return {}

    @property
    def entry(self) -> str:
        """The `module:Class` that a worker process rebuilds this stage from."""
        return f"{type(self).__module__}:{type(self).__qualname__}"
