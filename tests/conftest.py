"""Small rendered clips, a corpus of them with an experiment file, and the command run as a user runs it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a loaded machine ten times slower
# Two test processes fill two cores, and a fork copies no thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline import child
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import find_ffmpeg

# On a loaded machine an example may take more than the 200 ms that Hypothesis allows.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Without compiled files each process that collects rewrites every test again (8 CPU seconds), and each child compiles
# what it imports of the project. Python writes them into the folders `__pycache__`, which git ignores.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

FIXTURES = Path(__file__).parent / "fixtures"
EXPERIMENT = f"""{(FIXTURES / "experiments/hlformer.toml").read_text()}
[run]
workers = 1 # each worker of a network imports torch and open_clip, 5 CPU seconds, for twelve items
"""
COMPRESS_ONLY = 'corpus = "corpus.jsonl"\nextract = ["compress"]\n[run]\nworkers = 2\n'
SPLITS = ("train", "val", "test")
MEMORY = "/dev/shm"


def has_room(folder: str, file_bytes: int = 4 << 30, free_bytes: int = 8 << 30) -> bool:
    """Whether a file system in memory takes so many bytes and runs programs, with so much memory free beside it."""
    try:
        disk = os.statvfs(folder)
        (free,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    except (OSError, ValueError):
        return False
    roomy = disk.f_bavail * disk.f_frsize >= file_bytes and int(free.split()[1]) * 1024 >= free_bytes
    return roomy and not disk.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK)


# The store waits for the disk after each segment, and SQLite after each table; in memory nobody waits. What the tests
# show of a process that is killed holds there too. Folders of tests that pass are removed (pyproject.toml).
# PYTEST_DEBUG_TEMPROOT=/tmp or --basetemp puts them on a disk.
if has_room(MEMORY):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what looks at a finished experiment, which takes 8 s to make."""
    for item in items:
        if "made_once" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def ffmpeg(*arguments: object) -> None:
    command = [find_ffmpeg(), "-nostdin", "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def render(
    path: Path, seconds: float = 2, size: str = "160x120", rate: int = 25, hue: int = 0, *more: str
) -> Path:
    """A clip of ffmpeg's test picture; `hue` makes clips that differ."""
    source = f"testsrc=duration={seconds}:size={size}:rate={rate},hue=h={hue}"
    ffmpeg("-f", "lavfi", "-i", source, "-preset", "ultrafast", "-pix_fmt", "yuv420p", *more, path)
    return path


def split_of(number: int) -> str:
    """Every other item is for training, and the two that follow for val and test."""
    return SPLITS[0 if number % 4 < 2 else number % 4 - 1]


def become(
    main: Callable[[], object],
    command: Sequence[str],
    streams: Sequence[int],
    kept: Sequence[int],
    env: Mapping[str, str],
) -> None:
    """Turn a process that was forked just now into a new one that runs `main`; never returns.

    `command` is what `ps` shows of it, `streams` its standard input, output and error, `kept` the other descriptors
    that it inherits, `env` its environment.
    """
    code = 1
    try:
        faulthandler.disable()  # pytest's, which would write of a crash that a test wants
        gc.freeze()  # what the parent has left to be collected, such as a connection to a database, is not ours
        atexit._clear()  # neither is what it would do at its end, such as to remove its temporary folders
        weakref.finalize._registry.clear()  # type: ignore[attr-defined]
        weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
        for target, source in enumerate(streams):
            os.dup2(source, target)
        # Nothing that the parent has open is the child's, as if it had been started anew: the end of another child
        # would hide that child's death, a lock file would stay locked for as long as this child lives. The numbers
        # stay taken, or an inherited object that closes its own would close a file that the child has opened.
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                mode = os.fstat(number).st_mode
                inherited = stat.S_ISSOCK(mode) or stat.S_ISREG(mode) or stat.S_ISFIFO(mode)
                if number not in (0, 1, 2, *kept) and inherited:
                    os.dup2(nothing, number)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(env)
        entitle(command, env.get("CROSSREEL_TEST_MARK", ""))
        if "torch" in sys.modules:  # bits depend on the number of threads
            sys.modules["torch"].set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def leave(code: int) -> None:
    """End a forked process as the interpreter ends: threads, then what is registered, then what is not yet written."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone
                stream.flush()
    finally:
        os._exit(code)


def entitle(command: Sequence[str], mark: str) -> None:
    """Let the file `cmdline` of this process under /proc hold a command and a mark, by which tests find processes.

    The environment stands behind the command line in memory, and may be overwritten: `os.environ.update` copied it.
    """
    numbers = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(numbers[45]), int(numbers[48])  # arg_start and env_end of proc(5)
    title = " ".join([*command, mark]).encode()[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, len(title))


FORKING = threading.Lock()


def forked_pid() -> int:
    """Fork this process: the child's number in this process, 0 in the child. One thread at a time.

    filelock, which Prefect imports, refuses a fork while another thread forks: seen with Python 3.13.
    """
    FORKING.acquire()
    try:
        pid = os.fork()
    except BaseException:
        FORKING.release()
        raise
    if pid:
        FORKING.release()  # the child's copy is opened by `_at_fork_reinit`
    return pid


class Fork:
    """A child of `pipeline.child`, forked from this process; it has of `subprocess.Popen` what that module uses.

    A new interpreter imports torch and the libraries of networks in 3 to 5 CPU seconds; this process has them already.
    """

    def __init__(
        self, words: Sequence[str], output: IO[bytes], env: Mapping[str, str], first: Callable[[], object]
    ) -> None:
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self.pid = forked_pid()
        if self.pid == 0:
            first()  # before anything else: what ends it with its parent
            os.setsid()
            child.subprocess = subprocess
            streams = (os.open(os.devnull, os.O_RDONLY), output.fileno(), output.fileno())
            become(lambda: child.main([*words]), ["pipeline.child", *words], streams, [int(words[1])], env)

    def poll(self) -> int | None:
        with self._waiting:
            if self.returncode is None:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if ended else None
            return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked child", timeout)
            time.sleep(0.002)
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class Forked(subprocess.Popen[str]):
    """A function in a process of its own that is forked from this one: to be killed, stopped or waited for.

    A new interpreter would import anew what the function needs: 1 CPU second, with networks or Prefect 4 to 12. `words`
    are its command line for whoever looks; the rest is as for `subprocess.Popen`, whose fork this replaces.
    """

    def __init__(self, main: Callable[[], object], words: Sequence[str], **options: Any) -> None:
        self._main = main
        super().__init__(words, **{"text": True, "stdin": subprocess.DEVNULL} | options)

    def _execute_child(self, args: Sequence[str], executable: object, preexec_fn: object, close_fds: bool,
                       pass_fds: Sequence[int], cwd: Path | None, env: Mapping[str, str], startupinfo: object,
                       creationflags: int, shell: bool, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
                       errread: int, errwrite: int, restore_signals: bool, gid: object, gids: object, uid: object,
                       umask: int, start_new_session: bool, *others: object) -> None:  # fmt: skip
        with PREPARING:  # not during the fork, whose copy of the lock nobody would open
            if "torch" in sys.modules:
                prepare_networks()
            if "prefect" in sys.modules:
                prepare_prefect()
        self.pid = forked_pid()
        if self.pid == 0:
            os.chdir(cwd or ".")
            if start_new_session:
                os.setsid()
            given = enumerate((p2cread, c2pwrite, errwrite))
            streams = [number if number >= 0 else own for own, number in given]
            become(self._main, args, streams, pass_fds, env)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


PREPARING = threading.Lock()  # pools start their workers from several threads
for lock in (PREPARING, FORKING):
    os.register_at_fork(after_in_child=lock._at_fork_reinit)  # another thread may have held it


@functools.cache
def prepare_networks() -> None:
    """Import what networks and optimizers import at first use, and draw the demo's CLIP, which takes 3 CPU seconds."""
    from extractors.backbones.clip import ClipBackbone

    for texts_only in (False, True):
        ClipBackbone("crossreel-demo", "seed:0", texts_only=texts_only)


@functools.cache
def prepare_prefect() -> None:
    """Import Prefect's server, which takes 2 CPU seconds, and what the flows import at first use."""
    importlib.import_module("prefect.server.api.server")
    importlib.import_module("flows.extract_and_train")


def start_prefect(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Fork the Prefect server of a run, or start it anew where Prefect would be imported for it alone."""
    if "prefect" not in sys.modules:
        return subprocess.Popen(command, **options)
    words = command[command.index("flows.deployment.server") + 1 :]
    kept = {name: options[name] for name in ("pass_fds", "stdout", "stderr", "env", "start_new_session")}
    return Forked(lambda: serve_prefect(words), command, **kept)


def serve_prefect(words: Sequence[str]) -> None:
    from prefect.context import refresh_global_settings_context

    from flows.deployment import server

    refresh_global_settings_context()  # of this process's environment
    server.main([*words])


def start_child(command: Sequence[str], **options: Any) -> Fork | subprocess.Popen[bytes]:
    """Fork a child, but for one that has a limit of memory, or where torch would be imported for it alone."""
    words = command[command.index("pipeline.child") + 1 :]
    if int(words[2]) or "torch" not in sys.modules or sys.modules["torch"].get_num_threads() > 1:
        return subprocess.Popen(command, **options)
    with PREPARING:
        prepare_networks()
    return Fork(words, options["stdout"], options["env"], options["preexec_fn"])


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Have the children of this process forked from it, and the Prefect server of a run."""
    from flows.deployment import server

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start_prefect}))
        patch.setattr(child, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start_child}))
        yield


@pytest.fixture(scope="session")
def fork_children() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with fork_children():` children of the product that are started in this process are forks of it."""
    return forking


@pytest.fixture(scope="session")
def fork() -> type[Forked]:
    """`fork(main, words, env=..., ...)` is a `subprocess.Popen` of a function in a fork of this process."""
    return Forked


@pytest.fixture(scope="module")
def forked() -> Iterator[None]:
    """Fork children in all tests of the module that use this fixture."""
    with forking():
        yield


def command(*arguments: object) -> int:
    """Run the command in this process; its exit status. What it lets through raises, as a traceback would show."""
    from flows.cli import main

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, forking():
        patch.setattr(sys, "argv", ["crossreel", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


@dataclass
class Lab:
    """A folder with media, a corpus and an experiment; a mark in the environment finds what was left running."""

    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def toml(self) -> Path:
        return self.folder / "experiment.toml"

    def experiment(self, text: str) -> None:
        self.toml.write_text(text, encoding="utf-8")

    def corpus(self, media: Sequence[str], captions: int = 2) -> None:
        """A manifest of these files, named by their stems."""
        items = [
            Item(
                Path(name).stem, split_of(n),
                tuple(Caption(f"{name}#{k}", f"clip {n} seen {k} times") for k in range(captions)), name,
            )
            for n, name in enumerate(media)
        ]  # fmt: skip
        write_manifest(self.folder / "corpus.jsonl", items)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """The command in a process of its own, forked from this one."""
        words = [*map(str, arguments)]
        return Forked(lambda: sys.exit(command(*words)), ["-m", "flows.cli", *words], **self._options())

    def start_anew(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        """The command in a new interpreter, which reads its environment where modules are imported."""
        words = [sys.executable, "-P", "-m", "flows.cli", *map(str, arguments)]
        return subprocess.Popen(words, text=True, stdin=subprocess.DEVNULL, **self._options(**env))

    def _options(self, **env: str) -> dict[str, Any]:
        marked = os.environ | {"CROSSREEL_TEST_MARK": self.mark} | env
        return {"cwd": self.folder, "env": marked, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    def run(self, *arguments: object, seconds: float = 180, **env: str) -> Ended:
        """The command to its end, in this process unless that would leave something behind in it.

        A new interpreter costs a second and proves nothing that `run_apart` does not. The environment is read where
        modules are imported: such a command has a new one. Prefect and Ray stay in a process that used them: such a
        command is forked.
        """
        words = [*map(str, arguments)]
        if env:
            return self.run_apart(*arguments, seconds=seconds, **env)
        if words[0] in ("run", "batch") or "run.engine=ray" in words:
            return self._ended(self.start(*words), seconds)
        return self._run_here(*words)

    def run_without_prefect(self, *arguments: object) -> Ended:
        """`run` in this process, where Prefect and its server, 10 CPU seconds, would prove nothing."""
        from flows.deployment import launch
        from flows.run import run_stages

        def run_flow(name, request, project, names, display, states=None):
            return run_stages(project, names, display, request.redo, request.retry_failed, states=states)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "run_flow", run_flow)
            return self._run_here("run", *map(str, arguments))

    def _run_here(self, *words: str) -> Ended:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setenv("CROSSREEL_TEST_MARK", self.mark)
            code = command(*words)
        return Ended(code, out.getvalue(), err.getvalue())

    def run_apart(self, *arguments: object, seconds: float = 180, **env: str) -> Ended:
        """The command to its end, in a new interpreter."""
        return self._ended(self.start_anew(*arguments, **env), seconds)

    @staticmethod
    def _ended(process: subprocess.Popen[str], seconds: float) -> Ended:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return Ended(process.returncode, out, err)

    def killed(self, when: Callable[[], bool], *arguments: object, seconds: float = 180) -> bool:
        """Start a command, kill it with -9 when the condition holds; False if it ended before."""
        process = self.start(*arguments)
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if when():
                self._signal(signal.SIGSTOP)
                if when():  # a moment that passed while we looked would come again
                    break
                self._signal(signal.SIGCONT)
            assert time.monotonic() < deadline, "the moment to kill at never came"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._signal(
            signal.SIGCONT
        )  # a fork that was stopped before it tied its life to its parent's can do so now
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def _signal(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def processes(self) -> dict[int, str]:
        """Number and command line of the processes that were started here and still run."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes()
                if words and self.mark.encode() in words + (process / "environ").read_bytes():
                    found[int(process.name)] = words.replace(b"\0", b" ").decode()
        return found

    def gone_within(self, seconds: float) -> list[str]:
        """What still runs after so long; nothing, as soon as nothing does."""
        deadline = time.monotonic() + seconds
        while (left := [*self.processes().values()]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def plan(self, *arguments: object) -> dict[str, dict[str, Any]]:
        ended = self.run("plan", self.toml, "--json", *arguments)
        assert ended.code == 0, ended.err
        states: dict[str, dict[str, Any]] = json.loads(ended.out)
        return states


NEW_INTERPRETER = """
import json, os, sys, tempfile, traceback
import h5py, numpy, pydantic, typer
for line in sys.stdin:
    code, arguments, folder, env = json.loads(line)
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    pid, status = os.fork(), 1
    if not pid:
        try:
            for target, file in enumerate((open(os.devnull), *files)):
                os.dup2(file.fileno(), target)
            os.chdir(folder)
            os.environ.update(env)
            sys.argv = ["crossreel", *arguments]
            exec(code, {"__name__": "__main__"})
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for file in files:
        file.seek(0)
    print(json.dumps([status, *(file.read() for file in files)]), flush=True)
"""


@pytest.fixture(scope="session")
def run_python() -> Iterator[Callable[..., Ended]]:
    """`run_python(code, *arguments, cwd=..., env=...)` runs code where nothing of ours is imported yet.

    It is for tests of what is imported. Each call is a fork of one interpreter, which has imported four light packages
    that nearly every module of ours reads: a new interpreter takes half a CPU second.
    """
    with subprocess.Popen(
        [sys.executable, "-c", NEW_INTERPRETER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asking, answers = process.stdin, process.stdout

        def call(
            code: str, *arguments: object, cwd: Path = Path(), env: Mapping[str, str] | None = None
        ) -> Ended:
            asked = [code, [*map(str, arguments)], str(cwd.absolute()), dict(env or {})]
            print(json.dumps(asked), file=asking, flush=True)
            return Ended(*json.loads(answers.readline()))

        yield call


@pytest.fixture(scope="session")
def clip_of() -> Callable[..., Path]:
    """`clip_of(path, seconds, size, rate, hue, *more)` renders a clip."""
    return render


@pytest.fixture(scope="session")
def run_ffmpeg() -> Callable[..., None]:
    return ffmpeg


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the processes of one test run make once and only read."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    root = factory.getbasetemp().parent if worker else factory.getbasetemp()
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            aside = root / f"{name}.aside"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            make(aside)
            aside.rename(folder)
    return folder


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`make_once(name, make)` is a folder that `make` fills once for all processes of a test run."""
    return functools.partial(shared, tmp_path_factory)


CLIPS = tuple(f"clip{n:02}.mp4" for n in range(12))


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 2 s that differ in colour."""

    def make(folder: Path) -> None:
        for n, name in enumerate(CLIPS):
            render(folder / name, 2, hue=30 * n)

    return shared(tmp_path_factory, "rendered", make)


@pytest.fixture
def lab(rendered: Path, tmp_path: Path) -> Iterator[Lab]:
    """Twelve clips, two captions each, and an experiment over the small seeded network; nothing is made yet."""
    lab = Lab(tmp_path)
    shutil.copytree(rendered, tmp_path, dirs_exist_ok=True)
    lab.corpus(CLIPS)
    lab.experiment(EXPERIMENT)
    yield lab
    assert lab.gone_within(30) == []


@pytest.fixture
def small(rendered: Path, tmp_path: Path) -> Iterator[Lab]:
    """Three clips and an experiment that only compresses them."""
    lab = Lab(tmp_path)
    for name in CLIPS[:3]:
        shutil.copy(rendered / name, tmp_path)
    lab.corpus(CLIPS[:3])
    lab.experiment(COMPRESS_ONLY)
    yield lab
    assert lab.gone_within(30) == []


@pytest.fixture(scope="session")
def made_once(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab in which everything up to the evaluation was made."""

    def make(folder: Path) -> None:
        lab = Lab(folder)
        shutil.copytree(rendered, folder, dirs_exist_ok=True)
        lab.corpus(CLIPS)
        lab.experiment(EXPERIMENT)
        ended = lab.run("stage", "evaluate", lab.toml)
        assert ended.code == 0, ended.err

    return shared(tmp_path_factory, "made", make)


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Iterator[Lab]:
    """A copy of a lab in which everything up to the evaluation was made."""
    lab = Lab(tmp_path)
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    yield lab
    assert lab.gone_within(30) == []


@pytest.fixture
def crossreel(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command in this process: an exception it lets through fails the test as a traceback would."""

    def call(*arguments: object) -> Ended:
        code = command(*arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call
