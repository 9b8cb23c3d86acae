"""A tiny corpus that needs no weights, and a real Prefect server with a home of its own."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from flows.console import StageDisplay
from flows.deployment.launch import prepare, run_flow
from flows.deployment.parameters import FlowRequest
from flows.deployment.server import COMPLETE_RECORDS, QUIET, answers
from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.errors import UserError
from pipeline.media.video import find_ffmpeg


def run_the_flow(asked: dict[str, Any]) -> int:
    """Run a flow as a process does that runs nothing else, and print the result as JSON; return the exit status."""
    if asked.get("deployed"):  # a worker calls the flow with its parameters, and nothing is opened before
        prepare()
        from flows.extract_and_train import extract_and_train

        state = extract_and_train(asked["experiment"], set=asked.get("sets", []), return_state=True)
        print(json.dumps({"type": state.type, "message": state.message}))
        return 0
    try:
        methods, sets = asked.get("methods", []), asked.get("sets", [])
        project = open_project(Path(asked["experiment"]), sets, methods)
        request = FlowRequest(
            asked["experiment"], methods, sets, asked.get("retry_failed", False), asked.get("redo", [])
        )
        name = asked.get("flow", "extract-and-train")
        result = run_flow(name, request, project, list(project.stages), StageDisplay())
    except UserError as error:
        print("UserError:", error)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result.as_json()))
    return 0


def heed_ctrl_c() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Place:
    """A folder with an experiment, and the environment that runs in it have; a mark finds what they left."""

    folder: Path
    env: dict[str, str]
    fork: Callable[..., subprocess.Popen[str]]
    forking: Callable[[], AbstractContextManager[None]]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(command, text=True, preexec_fn=heed_ctrl_c, **self._options())

    def _options(self) -> dict[str, Any]:
        env = self.env | {"CROSSREEL_TEST_MARK": self.mark, "PWD": str(self.folder)}
        return {"cwd": self.folder, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def experiment(self, name: str = "experiment") -> str:
        """The path of an experiment file, by which the records of its runs are found."""
        path = self.folder / "experiment.toml"
        path.write_text(f'name = "{name}"\ncorpus = "corpus.jsonl"\nextract = ["compress"]\n')
        return str(path)

    def corpus(self, *names: str) -> None:
        items = [Item(n, "train", (Caption(f"{n}#0", f"the clip {n}"),), f"{n}.mp4") for n in names]
        write_manifest(self.folder / "corpus.jsonl", items)

    def start_flow(self, experiment: str, **asked: Any) -> subprocess.Popen[str]:
        """A flow in a process of its own, which is forked from this one: it has imported Prefect."""

        def main() -> None:
            with self.forking():
                sys.exit(run_the_flow(asked | {"experiment": experiment}))

        return self.fork(main, ["run_the_flow", json.dumps(asked)], **self._options())

    def start_forked(self, main: Callable[[], object], *command: str) -> subprocess.Popen[str]:
        """A function in a fork of this process: a new interpreter imports Prefect in 3 CPU seconds."""
        return self.fork(lambda: with_new_settings(main), command, **self._options())

    def flow(self, experiment: str, **asked: Any) -> dict[str, Any]:
        """What a run to the end did."""
        run = self.start_flow(experiment, **asked)
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, out + err
        result: dict[str, Any] = json.loads(out)
        return result

    def alive(self) -> list[str]:
        """Command lines of the processes that were started here and still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes()
                if self.mark.encode() in words + (process / "environ").read_bytes():
                    found.append(words.replace(b"\0", b" ").decode())
        return [command for command in found if command]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.alive()
            time.sleep(0.05)

    def wait_until_at_work(self) -> None:
        self.wait_until(lambda: any("pipeline.child" in command for command in self.alive()))


@dataclass(frozen=True)
class PrefectServer:
    url: str
    env: dict[str, str]

    def flow_runs(self, experiment: str) -> list[dict[str, Any]]:
        """Those of an experiment, first one first."""
        runs = self._all("flow_runs", sort="START_TIME_ASC")
        return [run for run in runs if run["parameters"].get("experiment") == experiment]

    def task_runs(self, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
        """Those of a flow run that is over; the server writes them down within seconds of their end."""
        deadline = time.monotonic() + 60
        while True:
            found = self._all("task_runs", flow_runs={"id": {"any_": [flow_run["id"]]}})
            over = [run["end_time"] and run["state"] for run in found]  # the row is there before its state
            if (over and all(over)) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def artifacts(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """By key."""
        found = self._all("artifacts", flow_runs={"id": {"any_": [flow_run["id"]]}})
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, flow_run: dict[str, Any]) -> list[dict[str, Any]]:
        """Lines of a flow run that is over, those of its tasks too."""
        return self._all("logs", logs={"flow_run_id": {"any_": [flow_run["id"]]}})

    def deployments(self) -> list[dict[str, Any]]:
        return self._all("deployments")

    def _all(self, what: str, **filters: Any) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.url}/{what}/filter", json.dumps(filters).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            found: list[dict[str, Any]] = json.load(reply)
        return found


def clip(path: Path, seconds: int, size: str) -> None:
    source = f"testsrc=duration={seconds}:size={size}:rate=25"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", source, "-preset", "ultrafast", "-pix_fmt", "yuv420p",
         "-metadata", f"title={path.stem}", str(path)], check=True,
    )  # fmt: skip


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    return kept | {"PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1", "PATH": path} | more


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name in ("one", "two"):
        clip(folder / f"{name}.mp4", 1, "64x48")
    return folder


@pytest.fixture(scope="session")
def prefect_home(
    make_once: Callable[[str, Callable[[Path], None]], Path],
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Callable[[str], Path]:
    """`prefect_home(name)` is a new PREFECT_HOME with an empty database.

    Its migrations take 8 CPU seconds, so one that was made by the same releases of Prefect and Python is taken from
    pytest's folder of things to keep; `pytest --cache-clear` has it made again.
    """

    def migrate(home: Path) -> None:
        python = "{}.{}".format(*sys.version_info)
        cache = getattr(pytestconfig, "cache", None)  # None with `-p no:cacheprovider`
        folder = cache.mkdir(f"prefect-{version('prefect')}-{python}") if cache else home
        kept = folder / "empty.db"
        if not kept.is_file():
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(command, check=True, env=environment(home) | QUIET, stdout=subprocess.DEVNULL)
            with closing(sqlite3.connect(home / "prefect.db")) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # what is in the log is not in the file
            part = folder / f"{os.getpid()}.part"
            shutil.copy(home / "prefect.db", part)
            part.rename(kept)
        shutil.copy(kept, home / "prefect.db")

    def copied(name: str) -> Path:
        home = tmp_path_factory.mktemp(name)
        shutil.copy(make_once("prefect-database", migrate) / "prefect.db", home)
        return home

    return copied


@pytest.fixture(scope="session")
def embedded_home(prefect_home: Callable[[str], Path]) -> Path:
    """PREFECT_HOME of the runs that bring their own server."""
    return prefect_home("embedded-home")


@pytest.fixture
def place(
    media: Path,
    embedded_home: Path,
    tmp_path: Path,
    fork: Any,
    fork_children: Callable[[], AbstractContextManager[None]],
) -> Place:
    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    place = Place(tmp_path, environment(embedded_home), fork, fork_children)
    place.corpus("one", "two")
    return place


@pytest.fixture
def long_clips(place: Place) -> None:
    """Two videos of 30 s in the place, which take the stage `compress` seconds; its corpus is these.

    Three seconds are encoded and repeated: to encode all of them takes 9 CPU seconds.
    """
    clip(place.folder / "short.mp4", 3, "1280x720")
    for name in ("long-a", "long-b"):
        repeat = ["-stream_loop", "9", "-i", str(place.folder / "short.mp4"), "-c", "copy"]
        title = ["-metadata", f"title={name}", str(place.folder / f"{name}.mp4")]
        subprocess.run([find_ffmpeg(), "-v", "error", *repeat, *title], check=True)
    place.corpus("long-a", "long-b")


@pytest.fixture
def served(place: Place, prefect_server: PrefectServer) -> Place:
    """A place whose runs are told of the server."""
    return replace(place, env=prefect_server.env | {"PREFECT_API_URL": prefect_server.url})


def prefect_command(command: Sequence[str]) -> None:
    sys.argv = [*command]
    with_new_settings(lambda: runpy.run_module("prefect", run_name="__main__"))


def with_new_settings(main: Callable[[], object]) -> None:
    """Run `main` with the settings and plugins that Prefect finds in this process's environment and folder."""
    import prefect
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    prefect._initialize_plugins()  # as its import does; it reads the settings
    main()


@pytest.fixture(scope="session")
def run_prefect() -> Callable[[Sequence[str]], None]:
    """`run_prefect(command)` runs the command `prefect` in this process, which was forked for it, to its end."""
    return prefect_command


@pytest.fixture(scope="session")
def prefect_server(prefect_home: Callable[[str], Path], fork: Any) -> Iterator[PrefectServer]:
    """A server as `prefect server start` runs it, on a free port."""
    home = prefect_home("server-home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    env = environment(home, PREFECT_SERVER_API_PORT=str(port))
    command = ["prefect", "server", "start"]

    with (home / "server.log").open("wb") as log:
        server = fork(
            lambda: prefect_command(command),
            command,
            env=env | QUIET | COMPLETE_RECORDS,
            cwd=home,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + 120
            while not answers(url):
                assert server.poll() is None and time.monotonic() < deadline, (
                    home / "server.log"
                ).read_text()
                time.sleep(0.2)
            yield PrefectServer(url, env)
        finally:
            server.terminate()
            server.wait(timeout=60)


COMMANDS = """
import shlex, sys
from flows.cli import main
for line in sys.argv[1:]:
    sys.argv = ["crossreel", *shlex.split(line)]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    print("status", code, flush=True)
"""


def only_read(folder: Path) -> list[str]:
    """Words before a command in whose view a folder is mounted so that nothing can be written."""
    mount = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    return ["unshare", "-m", "sh", "-c", f'{mount} || exit 99; exec "$@"', "sh"]


def mounted_read_only(folder: Path, *lines: str, **more: object) -> subprocess.CompletedProcess[str]:
    """What commands print in whose view a folder is mounted so that nothing can be written."""
    return in_one_interpreter(*lines, before=only_read(folder), **more)


def in_one_interpreter(
    *lines: str, before: Sequence[str] = (), **more: object
) -> subprocess.CompletedProcess[str]:
    """What commands print, each with its exit status, in one new interpreter: each would take a second to start."""
    command = [*before, sys.executable, "-P", "-c", COMMANDS, *lines]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def one_interpreter() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`one_interpreter("plan e.toml", "status e.toml", env=..., cwd=...)`: what a new interpreter prints of them."""
    return in_one_interpreter


@pytest.fixture
def read_only(tmp_path):
    (tmp_path / "probe").mkdir()
    if os.getuid() or subprocess.run([*only_read(tmp_path / "probe"), "true"], check=False).returncode:
        pytest.skip("needs a user that may mount")
    return mounted_read_only
