"""The Prefect server of a run: the configured one, or one that ends with this process.

Prefect can start a temporary server of its own, but that one outlives a killed run, loses the records
of short ones, and gives up where a machine is slow. Ours is the same program with a parent-death
signal. It keeps Prefect's usual database under PREFECT_HOME, so that `prefect server start` shows
earlier runs beside later ones; SQLite in WAL mode lets several servers share it, and they start one
after the other, because the first brings its tables up to date. Nothing here imports Prefect but the
server's own process.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.child import die_with_parent
from pipeline.errors import UserError

START_SECONDS = 180.0  # the first start makes the database: 8 s on a quiet machine, 30 s on a loaded one
STOP_SECONDS = 10.0
ANSWER_SECONDS = 5.0
LOOPBACK = "127.0.0.1"

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_PLUGINS_ENABLED": "false",  # ours completes names on the command line of `prefect`, no more
}
COMPLETE_RECORDS = {  # with Prefect's batches of 1, a short run of 1000 tasks leaves records of 63
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
EMBEDDED = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}  # no UI, no scheduler


def api_url() -> str | None:
    """The server that PREFECT_API_URL names, else one from prefect.toml or the profile if it answers.

    None: there is no server, so a run starts its own. Raises UserError where PREFECT_API_URL does not answer.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given and not answers(given):
        raise UserError(
            f"no Prefect server answers at PREFECT_API_URL={given}; start it, or unset the variable to run without"
        )
    if given:
        return given
    configured = configured_url()
    return configured if configured and answers(configured) else None


def configured_url(folder: Path = Path()) -> str | None:
    """The API URL of a folder's prefect.toml or pyproject.toml, or of the active profile, in Prefect's order."""
    profiles = _toml(Path(os.environ.get("PREFECT_PROFILES_PATH", prefect_home() / "profiles.toml")))
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
    for url in (
        _toml(folder / "prefect.toml").get("api", {}).get("url"),
        _toml(folder / "pyproject.toml").get("tool", {}).get("prefect", {}).get("api", {}).get("url"),
        profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL"),
    ):
        if url:
            return str(url)
    return None


def prefect_home() -> Path:
    """The folder of Prefect's database and profiles."""
    return Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):  # Prefect itself complains of a file that it cannot read
        return {}


def answers(url: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether a Prefect server answers at an API URL (one that wants a key first counts)."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({} if LOOPBACK in url else None))
    try:
        with direct.open(f"{url}/health", timeout=seconds) as reply:
            return bool(reply.read(16).strip() == b"true")
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError):
        return False


class EmbeddedServer:
    """A Prefect server on a free loopback port. The kernel ends it with the thread that started it."""

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and return at once; the port is taken here, so that no other can get it."""
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by stop
        with socket.create_server((LOOPBACK, 0)) as listening:
            self.url = f"http://{LOOPBACK}:{listening.getsockname()[1]}/api"
            fd = listening.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.deployment.server", str(fd), str(os.getpid())], pass_fds=(fd,),
                stdin=subprocess.DEVNULL, stdout=self._words, stderr=self._words, start_new_session=True,
                env=os.environ | QUIET | COMPLETE_RECORDS | EMBEDDED | {"PREFECT_API_URL": self.url},
            )  # fmt: skip

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Return once the server answers. Raises UserError with its last words if it does not."""
        process, deadline = self._process, time.monotonic() + seconds
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            if answers(self.url, seconds=max(1.0, deadline - time.monotonic())):
                return
            time.sleep(0.1)
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().splitlines()
        raise UserError(
            f"Prefect's server did not start in {seconds:.0f} s ({words[-1] if words else 'it said nothing'}); "
            f"its database is in {prefect_home()}, PREFECT_HOME changes that"
        )

    def stop(self) -> None:
        """End the server after it has written the states that it received."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._words.close()


def main(arguments: list[str]) -> None:
    """Entry of the server's process: the listening socket's file descriptor, and the parent."""
    die_with_parent(int(arguments[1]))
    import uvicorn

    prefect_home().mkdir(parents=True, exist_ok=True)
    starting = (prefect_home() / "crossreel-server.lock").open("w")

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            fcntl.flock(starting, fcntl.LOCK_EX)
            await super().startup(sockets=sockets)
            starting.close()

    app = "prefect.server.api.server:create_app"
    config = uvicorn.Config(app, factory=True, lifespan="on", log_level="error", timeout_graceful_shutdown=3)
    Server(config).run(sockets=[socket.socket(fileno=int(arguments[0]))])


if __name__ == "__main__":
    main(sys.argv[1:])
