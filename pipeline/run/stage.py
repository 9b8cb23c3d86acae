"""A stage as data: its name, what it reads, its params, its outputs. Knows nothing of running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pipeline.settings import Params

if TYPE_CHECKING:
    from pipeline.run.briefing import Briefing


class Digests(Protocol):
    """Digests of files such as weights, remembered by path, size and time."""

    def file(self, path: Path) -> str:
        """The digest of a file's bytes."""
        ...

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        """The path that `find` (costly) gives for a name, remembered while the file stays there."""
        ...


Over = Literal["items", "captions", "corpus"]
P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Field:
    """One output: its dtype, and its shape, whose first axis is free and whose None axes the model fixes."""

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is one item's output."""
        wanted = self.shape
        return len(shape) == len(wanted) and all(w in (None, s) for w, s in zip(wanted, shape, strict=True))


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
    worker_kind: ClassVar[Literal["cpu", "model"]] = "cpu"
    one_pass: ClassVar[bool] = False
    several: ClassVar[bool] = False  # a stage over the corpus that can work on several processes at once
    shard_items: ClassVar[int] = 16  # at most; a killed run loses no more than the shards in flight
    fields: ClassVar[Mapping[str, Field]] = {}
    file_suffix: ClassVar[str | None] = None  # of the file it makes of each item, if it makes one
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
        """What the worker of a stage over the corpus is told besides its params. Plain data."""
        return {}

    @property
    def entry(self) -> str:
        """The `module:Class` that a worker process rebuilds this stage from."""
        return f"{type(self).__module__}:{type(self).__qualname__}"
