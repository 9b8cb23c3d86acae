"""What runs on a node of a Ray cluster: an actor that holds a worker process, as a local run has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from pipeline.child import Child
from pipeline.run.engines.paths import Elsewhere


class ShardActor:
    """A worker on some node.

    The work happens in a child process, not in the actor: a crash of native code, a hang and an exhausted
    memory then end that alone and are reported as on one machine, and its environment is as a worker's
    should be from its first instruction. The child keeps its backbones from shard to shard, and the kernel
    ends it with the actor.
    """

    def __init__(self, entry: str, env: Mapping[str, str]) -> None:
        self._elsewhere = Elsewhere.from_environment()
        self._child = Child(entry, env=env)

    def hello(self) -> str:
        """Our version on that node; an answer says that the actor is there."""
        return version("crossreel")

    def run(self, request: str, stall_seconds: float) -> Iterator[str]:
        """The replies of the worker process to a request, as JSON. Raises what calling it raises."""
        asked = self._elsewhere.applied(json.loads(request))
        for header, _ in self._child.call(asked, stall_seconds):
            yield json.dumps(header)
