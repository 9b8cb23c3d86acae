"""Small rendered clips, a corpus of them with an experiment file, and the command run as a user runs it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar, NamedTuple

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a loaded machine ten times slower
# Two test processes fill two cores, and a fork copies no thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipeline import child
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import find_ffmpeg

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


class Fork:
    """A child of `pipeline.child`, forked from this process; it has of `subprocess.Popen` what that module uses.

    A new interpreter imports torch and the libraries of networks in 3 to 5 CPU seconds; this process has them already.
    """

    started: ClassVar[list[Fork]] = []

    def __init__(
        self, words: Sequence[str], output: IO[bytes], env: Mapping[str, str], first: Callable[[], object]
    ) -> None:
        self.returncode: int | None = None
        self.mark = env.get("CROSSREEL_TEST_MARK")
        self.started.append(self)
        self._waiting = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            first()  # before anything else: what ends it with its parent
            self._serve(words, output.fileno(), env)

    @staticmethod
    def _serve(words: Sequence[str], output: int, env: Mapping[str, str]) -> None:
        """Become what `python -m pipeline.child` with these words is; never returns."""
        code = 1
        try:
            gc.freeze()  # what the parent has left to be collected, such as a connection to a database, is not ours
            os.setsid()
            for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
                os.dup2(source, target)
            connection = int(words[1])
            # Nothing that the parent has open is the child's, as if it had been started anew: the end of another child
            # would hide that child's death, a lock file would stay locked for as long as this child lives. The numbers
            # stay taken, or an inherited object that closes its own would close a file that the child has opened.
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in map(int, os.listdir("/proc/self/fd")):
                with contextlib.suppress(OSError):
                    mode = os.fstat(number).st_mode
                    if number not in (0, 1, 2, connection) and (stat.S_ISSOCK(mode) or stat.S_ISREG(mode)):
                        os.dup2(nothing, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            sys.modules["torch"].set_num_threads(
                int(env.get("OMP_NUM_THREADS", "1"))
            )  # bits depend on their number
            child.subprocess = subprocess
            child.main([*words])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

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


PREPARING = threading.Lock()  # pools start their workers from several threads


@functools.cache
def prepare_networks() -> None:
    """Import what networks and optimizers import at first use, and draw the demo's CLIP, which takes 3 CPU seconds."""
    from extractors.backbones.clip import ClipBackbone

    for texts_only in (False, True):
        ClipBackbone("crossreel-demo", "seed:0", texts_only=texts_only)


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
    """Have the children of this process forked from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start_child}))
        yield


@pytest.fixture(scope="session")
def fork_children() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with fork_children():` children of the product that are started in this process are forks of it."""
    return forking


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

    def start(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-P", "-m", "flows.cli", *map(str, arguments)]
        environment = os.environ | {"CROSSREEL_TEST_MARK": self.mark} | env
        return subprocess.Popen(
            words, cwd=self.folder, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: object, seconds: float = 180, **env: str) -> Ended:
        """The command to its end, in this process unless that would leave something behind in it.

        A new interpreter costs a second and proves nothing that `start` and `killed` do not. The environment is read
        where modules are imported, and Prefect and Ray stay in a process that used them: such a command has its own.
        """
        words = [*map(str, arguments)]
        if env or words[0] in ("run", "batch") or "run.engine=ray" in words:
            return self.run_apart(*arguments, seconds=seconds, **env)
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
        """The command to its end, in a process of its own."""
        process = self.start(*arguments, **env)
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
        return Ended(process.returncode, out, err)

    def killed(self, when: Callable[[], bool], *arguments: object, seconds: float = 180) -> bool:
        """Start a command, kill it with -9 when the condition holds; False if it ended before."""
        process = self.start(*arguments)
        deadline = time.monotonic() + seconds
        while not when() and process.poll() is None:
            assert time.monotonic() < deadline, "the moment to kill at never came"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def alive(self) -> list[str]:
        """Command lines of the processes that were started here and still run."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        forks = [
            f"fork {fork.pid}" for fork in Fork.started if fork.mark == self.mark and fork.poll() is None
        ]
        return [command for command in found if command] + forks

    def alive_pids(self) -> list[int]:
        """Those processes by number."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    self.mark.encode() in (process / "environ").read_bytes()
                    and (process / "cmdline").read_bytes()
                ):
                    found.append(int(process.name))
        return found

    def gone_within(self, seconds: float) -> list[str]:
        """What still runs after so long; nothing, as soon as nothing does."""
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def plan(self, *arguments: object) -> dict[str, dict[str, Any]]:
        ended = self.run("plan", self.toml, "--json", *arguments)
        assert ended.code == 0, ended.err
        states: dict[str, dict[str, Any]] = json.loads(ended.out)
        return states


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
    assert lab.gone_within(5) == []


@pytest.fixture
def small(rendered: Path, tmp_path: Path) -> Iterator[Lab]:
    """Three clips and an experiment that only compresses them."""
    lab = Lab(tmp_path)
    for name in CLIPS[:3]:
        shutil.copy(rendered / name, tmp_path)
    lab.corpus(CLIPS[:3])
    lab.experiment(COMPRESS_ONLY)
    yield lab
    assert lab.gone_within(5) == []


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
    assert lab.gone_within(5) == []


@pytest.fixture
def crossreel(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command in this process: an exception it lets through fails the test as a traceback would."""

    def call(*arguments: object) -> Ended:
        code = command(*arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call
