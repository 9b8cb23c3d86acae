"""Deployments on a Prefect server, and the worker that runs them on this machine.

`crossreel deploy` and `prefect deployment run extract-and-train` work one after the other in one terminal: a
server of this machine is started where none answers, and the worker goes on in the background, in a session of its
own. In a container it stays in the foreground. A server knows one deployment of a name, so the folder
deployed last is the one that runs; machines of another kind, such as those with a GPU, have a pool of
their own, whose deployments carry its name.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

import httpx

from flows.deployment.launch import FLOWS
from flows.deployment.server import (
    COMPLETE_RECORDS,
    LOOPBACK,
    QUIET,
    START_SECONDS,
    answers,
    configured_url,
    prefect_home,
)
from pipeline.child import die_with_parent
from pipeline.errors import UserError

POOL = "local"
STOP_SECONDS = 90.0  # time to end: a training writes its checkpoint first
POLL_ENDED_SECONDS = 1.0  # interval of checks whether a worker in the foreground has ended
POLL_SECONDS = "2"  # interval of queries for runs to start; Prefect's 15 s are meant for many workers

SETTINGS = """\
# Prefect reads this file in the folder it is started in.

[api]
url = "{url}" # of `prefect server start`; `crossreel run` needs none

[plugins]
enabled = true
allow = "crossreel" # completes `prefect deployment run extract-and-train`, does nothing else

[server]
analytics_enabled = false # works offline, reports to nobody
logging_level = "CRITICAL" # a server in the background dies of its first line of log: nobody reads the pipe

[server.ephemeral]
startup_timeout_seconds = 120

[server.services.task_run_recorder] # with the usual batches of 1, most records of a short run are lost
read_batch_size = 200
batch_size = 500
flush_interval = 1
"""


@dataclass(frozen=True)
class Deployed:
    """The result of `deploy`: the server, and the process that runs the deployments (None if we started none)."""

    url: str
    names: tuple[str, ...]
    worker: int | None
    log: Path
    server_started: bool = False


def deploy(folder: Path, serve: bool = True, pool: str = POOL) -> Deployed:
    """Register the flows on the server, for experiments in `folder`, and start a worker for them.

    Safe to repeat. A server on this machine is started if it does not answer. `serve=False` leaves the work to other
    workers of the pool. A deployment is called as its flow, in any pool but the usual one as the pool. Raises UserError
    if a server of another machine does not answer, or if one cannot be started here.
    """
    folder = folder.absolute()
    url = _url(folder)
    if not (folder / "prefect.toml").exists():
        with suppress(OSError):  # a read-only folder, as in a container, where PREFECT_API_URL says all
            (folder / "prefect.toml").write_text(SETTINGS.format(url=url), encoding="utf-8")
    started = _require_server(url, folder)
    os.environ.update(QUIET | {"PREFECT_API_URL": url})
    try:
        names = _register(folder, pool)
    except httpx.TransportError as error:
        raise UserError(
            f"the Prefect server at {url} stopped answering ({error}); start it in {folder}, whose prefect.toml "
            "keeps it alive without a network: prefect server start --background"
        ) from None
    worker = _start_worker(folder, url, pool) if serve else None
    return Deployed(url, names, worker, _state(folder, pool, "log"), started)


def serve_in_foreground(folder: Path, pool: str = POOL, health: bool = False) -> int:
    """Run a worker in this terminal, after `deploy(folder, serve=False)`, until it ends; return its exit status.

    SIGTERM, Ctrl-C and `docker stop` end it as `stop` does. `health` has it answer /health on
    PREFECT_WORKER_WEBSERVER_HOST and _PORT, 8080 if not set, for the check of a container.
    """
    command = [*_command(pool), *(["--with-healthcheck"] if health else [])]
    worker = subprocess.Popen(
        command, cwd=folder, env=_environment(_url(folder.absolute())), start_new_session=True,
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 -- one system call
    )  # fmt: skip

    leaving = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    while worker.poll() is None and not leaving.wait(POLL_ENDED_SECONDS):
        pass
    if leaving.is_set():
        _end(worker.pid, lambda: worker.poll() is not None)
    return worker.wait()


def stop(folder: Path, pool: str = POOL) -> bool:
    """End the folder's background worker and its current runs; return whether there was one."""
    folder = folder.absolute()
    with _lock(folder, pool) as lock:
        if _free(lock):
            return False
        _end(int(_state(folder, pool, "pid").read_text()), lambda: _free(lock))
    return True


def _end(worker: int, over: Callable[[], bool]) -> None:
    """End a worker that leads a session, and its runs; return when all have ended.

    The runs are ended first and report that themselves: those that a worker takes down with it stay
    "Running" on the server for ever.
    """
    for run in _children(worker):
        with suppress(ProcessLookupError):
            os.kill(run, signal.SIGTERM)
    _wait(lambda: not _children(worker))
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGTERM)
    if not _wait(over):
        os.killpg(worker, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """The live processes that a process has started."""
    lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in lists for child in line.split()]


def _wait(over: Callable[[], bool]) -> bool:
    """Wait for a condition for a limited time; return whether it holds."""
    deadline = time.monotonic() + STOP_SECONDS
    while not (done := over()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return done


def _url(folder: Path) -> str:
    """The API of the server to deploy to: the configured one, or the default of `prefect server start`."""
    port = os.environ.get("PREFECT_SERVER_API_PORT", "4200")
    return os.environ.get("PREFECT_API_URL") or configured_url(folder) or f"http://{LOOPBACK}:{port}/api"


def _require_server(url: str, folder: Path) -> bool:
    """Wait for the server, and start it if it is to run on this machine; return whether it was started.

    Raises UserError if it does not answer.
    """
    started = False
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        if not _starting() and not started:
            _start_server(url, folder)
            started = True
        elif not _starting() or time.monotonic() > deadline:
            raise UserError(
                f"the Prefect server at {url} does not answer; it was started in the background in {folder}"
            )
        time.sleep(0.2)
    return started


def _start_server(url: str, folder: Path) -> None:
    """Start Prefect's server in the background, quiet and with complete records whatever files the folder holds."""
    where = urlsplit(url)
    if where.hostname not in (LOOPBACK, "localhost") or where.port is None:
        raise UserError(
            f"no Prefect server answers at {url}; start it on its machine: prefect server start --background"
        )
    command = [sys.executable, "-m", "prefect", "server", "start", "--background", "--port", str(where.port)]
    quiet = QUIET | COMPLETE_RECORDS | {"PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL"}
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | quiet,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = (done.stdout + done.stderr).strip().splitlines() or ["it says nothing"]
        raise UserError(f"no Prefect server answers at {url}, and none can be started there: {words[-1]}")


def _starting() -> bool:
    """Whether `prefect server start --background` has stored the pid of a live process."""
    try:
        pid = int((prefect_home() / "server.pid").read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return False
    return True


def _register(folder: Path, pool: str) -> tuple[str, ...]:
    """Create the pool if it is not there, and the three deployments or their new versions; their names.

    The pull step matters: without one, Prefect's process worker copies the folder it was started in,
    media and all, to where it runs a flow.
    """
    from prefect import get_client  # Prefect, pointed at the server by now
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.callables import parameter_schema
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            kind = client.read_work_pool(pool).type
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
            kind = "process"
        if kind != "process":
            raise UserError(
                f"the server's work pool {pool!r} is of type {kind}, not process; rename or delete it"
            )
        for name, where in FLOWS.items():
            module, _, function = where.rpartition(".")
            flow = getattr(importlib.import_module(module), function)
            client.create_deployment(
                client.create_flow(flow), name if pool == POOL else pool, entrypoint=where, work_pool_name=pool,
                description=flow.description, enforce_parameter_schema=True,
                parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
                pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
            )  # fmt: skip
    return tuple(FLOWS) if pool == POOL else tuple(f"{name}/{pool}" for name in FLOWS)


def _start_worker(folder: Path, url: str, pool: str) -> int:
    """The pid of the folder's worker, started if it does not run.

    It holds a lock as long as it lives. SIGINT is given its default back first: a worker started by a
    shell in the background would inherit it ignored, and Prefect's workers end by SIGINT alone.
    """
    pid = _state(folder, pool, "pid")
    with _lock(folder, pool) as lock:
        if not _free(lock):
            return int(pid.read_text())
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with _state(folder, pool, "log").open("ab") as log:
                worker = subprocess.Popen(
                    _command(pool), cwd=folder, env=_environment(url), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True, pass_fds=(lock.fileno(),),
                )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)
        pid.write_text(str(worker.pid))
    return worker.pid


def _command(pool: str) -> list[str]:
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]


def _environment(url: str) -> dict[str, str]:
    return os.environ | QUIET | {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": POLL_SECONDS}


def _state(folder: Path, pool: str, kind: str) -> Path:
    """A file about the folder's worker of a pool."""
    return folder / ".prefect" / f"{'worker' if pool == POOL else f'worker-{pool}'}.{kind}"


@contextmanager
def _lock(folder: Path, pool: str) -> Iterator[IO[str]]:
    """The open lock file of the folder's worker."""
    path = _state(folder, pool, "lock")
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        yield lock


def _free(lock: IO[str]) -> bool:
    """Take the lock if no worker holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
