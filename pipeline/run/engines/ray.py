"""Shards in Ray actors. A child process is Ray's driver; only that process imports Ray.

This keeps Ray's threads and signal handlers out of the coordinator, which holds the index and may run under Prefect.
When the driver ends, its actors end on every machine. Without an address the driver starts a cluster that listens on
the loopback interface only, requires a token, and sends no usage statistics.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.child import Child, ChildDied
from pipeline.errors import UserError
from pipeline.run.engines import reaper
from pipeline.run.engines.gpu_slots import gpu_slots
from pipeline.run.engines.machine import gpu_numbers
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Work
from pipeline.run.pool import Events, Killed, Message

DRIVER = "pipeline.run.engines.ray_driver:run"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's announced default; unset, it prints a warning
}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # makes Ray bind to 127.0.0.1, on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",  # the monitor kills workers at 95 % of memory, whatever process uses it
}
SHORT_PATH = 40  # longest path of the folder of Ray's sockets, whose own paths Linux limits to 107 bytes


class RayEngine:
    """Actors on a running cluster, or on a cluster of this machine that lasts as long as the run."""

    def __init__(self, options: RunOptions, say: Callable[[str], None] = lambda sentence: None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("run.engine = 'ray' needs Ray: pip install 'crossreel[ray]'")
        self.options, self.say = options, say
        self._driver: Child | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def run(self, work: Work) -> Events:
        """Yield the workers' replies until every shard is done. An early end of it ends the cluster too."""
        with contextlib.ExitStack() as held:
            here = gpu_numbers(self.options.device) if work.network and not self.options.address else []
            if here and not self.options.share_gpu:  # Ray may use every visible GPU, so all are locked
                held.enter_context(gpu_slots(here, len(here), len(here), self.say))
            ended = False
            try:
                yield from self._events(work)
                ended = True
            except ChildDied as death:
                raise ChildDied(f"the process that drives Ray died: {death}") from None
            finally:
                if not ended:
                    self.close()

    def _events(self, work: Work) -> Events:
        driver = self._started()
        request = {
            "work": work.as_json(), "options": self.options.model_dump(mode="json"), "folder": self._folder,
        }  # fmt: skip
        for header, _ in driver.call(request):
            if "say" in header:
                self.say(header["say"])
            elif "killed" in header:
                yield Killed(header["killed"], header["reason"], header["own_doing"])
            else:
                yield Message(header["message"])

    def _started(self) -> Child:
        """The driver; a new one, with a new cluster, if none is running."""
        if self._driver is not None and self._driver.pid is not None:
            return self._driver
        env = dict(QUIET)
        if not self.options.address:
            env |= LOOPBACK | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
            base = tempfile.gettempdir()
            self._folder = tempfile.mkdtemp(
                prefix="crossreel-ray-", dir=base if len(base) <= SHORT_PATH else "/tmp"
            )
        self._driver = Child(DRIVER, env=env)
        self._driver.start()
        if self._folder:
            self._reaper = start_reaper(self._driver.pid or 0, self._folder)
        return self._driver

    def close(self) -> None:
        """End the driver, its actors, and a cluster that it started; return when all their processes are gone."""
        driver, self._driver = self._driver, None
        reaping, self._reaper = self._reaper, None
        self._folder = ""
        if driver is not None:
            driver.kill()
        if reaping is not None:
            reaping.communicate()  # closes its input, at which it kills the session, and waits for it


def start_reaper(session: int, folder: str) -> subprocess.Popen[Any]:
    """Start a process that kills all others of a session, and removes a folder, once its input closes.

    The input closes when this process ends for whatever reason. The kernel then ends our own children, but not theirs.
    """
    command = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), str(session), folder]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/", env=dict(os.environ),
    )  # fmt: skip
