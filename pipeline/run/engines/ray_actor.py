"""An actor on a node of a Ray cluster, which holds the same worker process as a local run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from pipeline.child import Child
from pipeline.run.engines.paths import PathMap


class ShardActor:
    """A worker on a node of the cluster.

    The work happens in a child process, not in the actor: a crash of native code, a hang or exhausted memory ends only
    the child and is reported as on one machine, and the child's environment variables are set before it starts. The
    child keeps its backbones from shard to shard, and the kernel ends it with the actor.
    """

    def __init__(self, entry: str, env: Mapping[str, str]) -> None:
        self._paths = PathMap.from_environment()
        self._child = Child(entry, env=env)

    def hello(self) -> str:
        """The version of crossreel on that node; a reply shows that the actor runs."""
        return version("crossreel")

    def run(self, request: str, stall_seconds: float) -> Iterator[str]:
        """Yield the replies of the worker process to a request, as JSON. Raises as Child.call does."""
        for header, _ in self._child.call(self._paths.applied(json.loads(request)), stall_seconds):
            yield json.dumps(header)
