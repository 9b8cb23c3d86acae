"""The shards of one pass over items or captions as plain data, and the protocol of the engines that run them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from pipeline.run.pool import Events


@dataclass(frozen=True)
class Work:
    """Shards of keys, and the data from which the request of a shard is made."""

    entry: str  # entry of the worker: `module:function`
    shards: list[list[str]]
    store: str
    units: Mapping[str, dict[str, Any]]  # key -> the item or caption as plain data, perhaps made at each look
    stages: list[dict[str, Any]]  # the stages of this pass
    lacking: Mapping[str, list[int]]  # key -> positions in `stages` of those that lack it
    options: dict[str, Any]  # options of the worker, without its device and threads
    network: bool  # whether a stage runs a network, so that a GPU helps
    # Keys that no shard holds, each to be tried in a shard of its own: earlier workers were killed over them.
    alone: list[str] = field(default_factory=list)

    def request(self, shard: list[str], device: str, threads: int, attempt: int = 1) -> dict[str, Any]:
        """The request of a worker for a shard; from the third attempt on, the batch size is halved each time.

        The second attempt keeps the batch size, so that a worker killed by chance leads to the same bytes.
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
        """This work as plain data."""
        return asdict(replace(self, units=dict(self.units), lacking=dict(self.lacking)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Work:
        """The work from plain data of `as_json`."""
        return cls(**data)


class Engine(Protocol):
    """Runs work in processes, and ends all of them when it or its generator of events is closed."""

    def run(self, work: Work) -> Events:
        """Yield the workers' replies until every shard is done."""
        ...

    def close(self) -> None:
        """End the processes that were kept for the next work."""
        ...
