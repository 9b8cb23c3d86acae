"""The process that drives Ray: it connects to a cluster or starts one, and has actors work on shards.

The only module that imports Ray. If a worker dies, pipeline.run.pool decides about its shard, as it does for local
processes; Ray's own retries are off.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.child import ChildDied, ChildTimeout, Reply, Send
from pipeline.errors import UserError
from pipeline.run.engines.machine import RETURN_MEMORY, cores, gpus, threads
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.ray_actor import ShardActor
from pipeline.run.engines.work import Work
from pipeline.run.pool import Killed, run_shards

OBJECT_STORE_BYTES = (
    80 << 20
)  # about Ray's minimum: only short messages pass through it, arrays go to the store
NODE_SECONDS = 60.0  # time beyond a worker's own limit for its node to report that
PATIENCE_SECONDS = 15.0  # waiting time before a run prints what it waits for
CONNECT_SECONDS = 10.0
STARTS = 3  # attempts to start an actor before its error is raised


def run(request: dict[str, Any], send: Send) -> None:
    """Entry of the driver: one pass. Replies are `{"message"}`, `{"killed", "reason", "own_doing"}` and `{"say"}`."""
    options, work = RunOptions(**request["options"]), Work.from_json(request["work"])
    connect(options.address, request["folder"])
    lock = threading.Lock()

    def reply(header: Mapping[str, Any]) -> None:
        with lock:  # workers are served by threads of their own
            send(header, {})

    demand = Demand.of(options, work.network, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    env = threads(demand.threads) | RETURN_MEMORY
    workers = [
        RayWorker(work.entry, env, demand.each, lambda sentence: reply({"say": sentence}))
        for _ in range(min(demand.workers, len(work.shards) or 1))
    ]
    device = "cuda:0" if "num_gpus" in demand.each else "cpu"  # an actor sees only its own GPU
    with contextlib.closing(
        run_shards(
            workers, work.shards,
            lambda shard, number, attempt: work.request(shard, device, demand.threads, attempt),
            options.stall_seconds, work.alone,
        )
    ) as events:  # fmt: skip
        for event in events:
            if isinstance(event, Killed):
                reply({"killed": event.key, "reason": event.reason, "own_doing": event.own_doing})
            else:
                reply({"message": event.header})


@functools.cache
def connect(address: str, folder: str) -> None:
    """Connect this process to a cluster; without an address, start one on this machine.

    Raises UserError if there is no cluster at the address.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if not address:
        ray.init(
            "local", num_cpus=cores(), num_gpus=gpus(), include_dashboard=False, _temp_dir=folder,
            object_store_memory=OBJECT_STORE_BYTES, **quiet,
        )  # fmt: skip
        return
    try:
        host, sign, port = address.rpartition(":")
        if sign:  # checked first: Ray itself would retry for minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no Ray cluster at run.address = {address!r}, as seen from this machine: {reason}"
        ) from None


class Demand:
    """The number of workers, the resources that each requires of Ray, and its threads."""

    def __init__(self, workers: int, each: dict[str, Any], threads: int) -> None:
        self.workers, self.each, self.threads = workers, each, threads

    @classmethod
    def of(cls, options: RunOptions, network: bool, nodes: Sequence[Mapping[str, float]]) -> Demand:
        """The demand for nodes with the given resources. Raises UserError if no node has room for one worker."""
        needs = {"CPU": float(options.worker_cpus or 1), **options.resources}
        any_gpu = any(node.get("GPU") for node in nodes)
        if network and (options.device.startswith("cuda") or (options.device == "auto" and any_gpu)):
            needs["GPU"] = options.gpu_fraction
        room = sum(
            int(min(node.get(name, 0.0) / need + 1e-9 for name, need in needs.items() if need))
            for node in nodes
        )
        if room < 1:
            have = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in needs) for node in nodes)
            required = ", ".join(f"{name} {need:g}" for name, need in needs.items())
            raise UserError(
                f"no node of the Ray cluster has room for a worker that needs {required}; the nodes have {have}"
            )
        each: dict[str, Any] = {"num_cpus": needs["CPU"]}
        if "GPU" in needs:
            each["num_gpus"] = needs["GPU"]
        if options.resources:
            each["resources"] = dict(options.resources)
        return cls(options.workers or room, each, options.worker_cpus or 1)


class RayWorker:
    """A worker in an actor; an actor that died is started again, on another node if its own is lost."""

    def __init__(
        self, entry: str, env: dict[str, str], demand: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self.entry, self.env, self.demand, self.say = entry, env, demand, say
        self._actor: Any = None
        self._hello: Any = None  # the pending first reply of a new actor
        self._starts = 0
        self._since = 0.0  # time since which it waits for room on the cluster; inf once that was printed

    def ready(self, seconds: float) -> bool:
        """Whether the actor runs on the cluster, after waiting for up to `seconds`. Raises UserError if it cannot."""
        if self._actor is None:
            self._actor = ray.remote(ShardActor).options(**self.demand).remote(self.entry, self.env)
            self._hello, self._since = self._actor.hello.remote(), time.monotonic()
        if self._hello is None:
            return True
        if not ray.wait([self._hello], timeout=seconds)[0]:
            self._report_waiting()
            return False
        try:
            theirs, ours = ray.get(self._hello), version("crossreel")
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            self.kill()
            self._starts += 1
            if self._starts >= STARTS:
                raise UserError(f"no worker can be started on the Ray cluster: {_line(error)}") from None
            return False
        if theirs != ours:
            raise UserError(f"a Ray node has crossreel {theirs}, this machine {ours}; install one version")
        self._hello, self._starts = None, 0
        return True

    def _report_waiting(self) -> None:
        if time.monotonic() - self._since > PATIENCE_SECONDS:
            self._since = float("inf")
            required = ", ".join(f"{name} {value}" for name, value in self.demand.items())
            self.say(f"a worker waits for room on the Ray cluster ({required})")

    def call(self, request: Mapping[str, Any], timeout_seconds: float | None = None) -> Iterator[Reply]:
        """Yield its replies as they arrive. Raises as Child.call does; a lost actor or node raises ChildDied."""
        limit = None if timeout_seconds is None else timeout_seconds + NODE_SECONDS
        finished, actor = False, self._actor
        try:
            if actor is None:
                raise ChildDied("it was killed")
            replies = actor.run.options(num_returns="streaming").remote(json.dumps(request), timeout_seconds)
            while True:
                if not ray.wait([replies], timeout=limit)[0]:
                    raise ChildTimeout(f"its node said nothing for {limit:.0f} s")
                try:
                    header = json.loads(ray.get(next(replies)))
                except StopIteration:
                    finished = True
                    return
                yield header, {}
        except RayTaskError as error:
            cause = _cause(error)
            finished = not isinstance(cause, RayError)
            raise cause from None
        except RayError as error:
            raise ChildDied(f"its Ray actor was lost: {_line(error)}") from None
        finally:
            if not finished:
                self.kill()

    def kill(self) -> None:
        """End the actor and its worker process."""
        actor, self._actor, self._hello = self._actor, None, None
        if actor is not None:
            with contextlib.suppress(RayError):
                ray.kill(actor, no_restart=True)


def _cause(error: RayTaskError) -> BaseException:
    """The exception that the actor's code raised."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _line(error: BaseException) -> str:
    """Ray's reason for the death of an actor, as one line: the last line of its message is the most specific."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    detail = getattr(error, "error_msg", "") or (lines[-1] if lines else type(error).__name__)
    return str(detail).strip().splitlines()[-1][:300]
