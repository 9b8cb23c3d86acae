"""The shards of one pass over items or captions, as plain data: what any engine needs to have them done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pipeline.run.pool import Events


@dataclass(frozen=True)
class Work:
    """Shards of keys, and what a worker is told of them."""

    entry: str  # of the worker: `module:function`
    shards: list[list[str]]
    store: str
    units: dict[str, dict[str, Any]]  # by key
    stages: list[dict[str, Any]]  # made in this pass
    lacking: dict[str, list[int]]  # by key, the positions of the stages that lack it
    options: dict[str, Any]  # of the worker, without its device and threads
    network: bool  # a GPU helps
    alone: list[str] = field(
        default_factory=list
    )  # keys outside of the shards: earlier workers were killed over them

    def request(self, shard: list[str], device: str, threads: int, attempt: int = 1) -> dict[str, Any]:
        """The request that a worker gets; from the third attempt on, with batches half as large each time.

        The second has the batches of the first: a worker that was killed by chance leaves the same bytes.
        """
        batch_size = max(1, self.options["batch_size"] >> max(0, attempt - 2))
        own = {"device": device, "threads": threads, "batch_size": batch_size}
        return {
            "store": self.store,
            "units": [self.units[key] for key in shard],
            "options": json.dumps(self.options | own),
            "stages": [
                stage | {"keys": [key for key in shard if n in self.lacking[key]]}
                for n, stage in enumerate(self.stages)
            ],
        }  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """Back from plain data."""
        return cls(**data)


class Engine(Protocol):
    """Has work done, and ends all it started when it is closed or its events are."""

    def run(self, work: Work) -> Events:
        """What workers reply, until every shard is done."""
        ...

    def close(self) -> None:
        """End what was kept for the next work."""
        ...
