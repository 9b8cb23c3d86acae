"""A flow, run in this process with a terminal to watch it, on whatever Prefect server there is."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from flows.console import StageDisplay
from flows.deployment.parameters import FlowRequest, one_or_more
from flows.deployment.server import LOOPBACK, QUIET, EmbeddedServer, api_url
from flows.project import Project
from flows.run import RunResult
from pipeline.errors import UserError, nearest
from pipeline.run import plan

FLOWS = {
    "extract": "flows.extract.extract",
    "train": "flows.train.train",
    "extract-and-train": "flows.extract_and_train.extract_and_train",
}  # the name of flow and deployment, and where the flow is

CONSOLE = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}  # the display speaks; logs go to the server
EMBEDDED_RETRIES = "3"  # 14 s a call if our server dies; with Prefect's 5, a run hung for 5 minutes
TERMINATED = 128 + signal.SIGTERM


def run_flow(
    flow_name: str, request: FlowRequest, project: Project, names: Sequence[str], display: StageDisplay,
    states: plan.Survey | None = None,
) -> RunResult:  # fmt: skip
    """Run stages of an opened experiment as a run of a flow, here and watched by `display`; return the result.

    `request` holds the parameters that the server records, `states` is a survey of the project to go on
    with. Raises the UserError, or the error of a stage, that ended it. SIGTERM ends the process with 143.
    """
    if flow_name not in FLOWS:
        raise UserError(f"unknown flow {flow_name!r}; {nearest(flow_name, FLOWS)}")
    redo = one_or_more(request.redo)
    with exit_on_sigterm():
        server = prepare()
        from flows.deployment.tasks import (
            run_as_tasks,
            run_opened,
        )  # Prefect reads the environment as it is imported

        module, _, function = FLOWS[flow_name].rpartition(".")
        flow = getattr(importlib.import_module(module), function)
        if server is not None:
            server.wait_ready()

        def run() -> RunResult:
            return run_as_tasks(project, names, display, redo, request.retry_failed, request.retries, states)

        return run_opened(flow, request, run, display)


@functools.cache
def prepare() -> EmbeddedServer | None:
    """Point Prefect, not imported yet, at a server; start one for the life of this process if there is none."""
    server = None
    url = api_url()
    if url is None:
        server = EmbeddedServer()
        server.start()
        atexit.register(server.stop)
        url = server.url
        os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", EMBEDDED_RETRIES)
        for name in ("NO_PROXY", "no_proxy"):  # a proxy would be asked for our loopback port
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), LOOPBACK)))
    os.environ["PREFECT_API_URL"] = url
    for name, value in (QUIET | CONSOLE).items():
        os.environ.setdefault(name, value)
    if "prefect" in sys.modules:  # by a notebook, say: its settings are those of that moment
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    return server


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM end this process through its clean-up, as Prefect leaves it to the handler it found."""
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
