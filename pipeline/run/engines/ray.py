"""Shards in Ray actors, as the coordinator sees them: it asks a process that alone knows Ray.

That process is Ray's driver. Ray's threads and signal handlers so stay out of the process that holds the
index and, under Prefect, Prefect; ending it ends its actors, wherever they are. A cluster of our own, where
no address is given, listens on the loopback interface alone, asks for a token, and sends nobody statistics.
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
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray is about to do anyway; it warns until then
}
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch by which Ray binds to 127.0.0.1, on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",  # it kills workers at 95 % of the machine's memory, whoever took it
}
SHORT_PATH = 40  # of a folder for Ray's sockets, whose paths Linux limits to 107 bytes


class RayEngine:
    """Actors on a cluster that runs already, or on one of this machine that lasts as long as the run."""

    def __init__(self, options: RunOptions, say: Callable[[str], None] = lambda sentence: None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError("run.engine = 'ray' needs Ray: pip install 'crossreel[ray]'")
        self.options, self.say = options, say
        self._driver: Child | None = None
        self._reaper: subprocess.Popen[bytes] | None = None
        self._folder = ""

    def run(self, work: Work) -> Events:
        """What workers reply, until every shard is done. Anything that ends it early ends the cluster too."""
        with contextlib.ExitStack() as held:
            here = gpu_numbers(self.options.device) if work.network and not self.options.address else []
            if here and not self.options.share_gpu:  # Ray gives out all that it sees
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
        """The driver; a new one with a new cluster if there is none, or if its thread is gone."""
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
        """End the driver, its actors, and the cluster if it is ours. Returns when all of it is gone."""
        driver, self._driver = self._driver, None
        reaping, self._reaper = self._reaper, None
        self._folder = ""
        if driver is not None:
            driver.kill()
        if reaping is not None:
            reaping.communicate()  # the end of its input is its sign


def start_reaper(session: int, folder: str) -> subprocess.Popen[Any]:
    """A process that ends all others of a session, and removes a folder, when its input closes.

    It closes with this process, however that ends: the kernel ends our children then, but not theirs.
    """
    command = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), str(session), folder]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/", env=dict(os.environ),
    )  # fmt: skip
