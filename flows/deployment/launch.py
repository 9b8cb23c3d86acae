"""Runs a flow in this process with a display in the terminal, on a running Prefect server or one of its own."""

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
from pipeline.run.execute import Progress

FLOWS = {
    "extract": "flows.extract.extract",
    "train": "flows.train.train",
    "extract-and-train": "flows.extract_and_train.extract_and_train",
}  # name of flow and deployment -> dotted path of the flow

CONSOLE = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"
}  # logs go to the server, not into the display
EMBEDDED_RETRIES = "3"  # a call to a dead server then takes 14 s; with Prefect's 5, a run hung for 5 minutes
TERMINATED = 128 + signal.SIGTERM


def run_flow(
    flow_name: str, request: FlowRequest, project: Project, names: Sequence[str], display: StageDisplay,
    states: plan.Survey | None = None,
) -> RunResult:  # fmt: skip
    """Run stages of an opened experiment as a flow run in this process, shown by `display`; return the result.

    `request` holds the parameters that the server records, `states` an earlier survey of the project. Raises the
    UserError or the error of a stage that ended the run. SIGTERM ends the process with status 143.
    """
    if flow_name not in FLOWS:
        raise UserError(f"unknown flow {flow_name!r}; {nearest(flow_name, FLOWS)}")
    redo = one_or_more(request.redo)
    display.progress(Progress("starting Prefect", 0, 1))
    with exit_on_sigterm():
        server = prepare()
        # Prefect reads the environment while it is imported, so only after `prepare`.
        from flows.deployment.tasks import run_as_tasks, run_opened

        module, _, function = FLOWS[flow_name].rpartition(".")
        flow = getattr(importlib.import_module(module), function)
        if server is not None:
            server.wait_ready()
        display.idle()

        def run() -> RunResult:
            return run_as_tasks(project, names, display, redo, request.retry_failed, request.retries, states)

        return run_opened(flow, request, run, display)


@functools.cache
def prepare() -> EmbeddedServer | None:
    """Set the server that Prefect will use, before it is imported; start one for this process if none runs."""
    server = None
    url = api_url()
    if url is None:
        server = EmbeddedServer()
        server.start()
        atexit.register(server.stop)
        url = server.url
        os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", EMBEDDED_RETRIES)
        for name in ("NO_PROXY", "no_proxy"):  # otherwise requests to the loopback port would go to a proxy
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), LOOPBACK)))
    os.environ["PREFECT_API_URL"] = url
    for name, value in (QUIET | CONSOLE).items():
        os.environ.setdefault(name, value)
    if (
        "prefect" in sys.modules
    ):  # imported earlier, by a notebook for example, with the settings of that time
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    return server


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM end this process with its clean-up; Prefect keeps a handler that is set before it starts."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # Python allows handlers in this thread only
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
