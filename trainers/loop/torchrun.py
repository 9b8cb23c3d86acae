"""Training on several processes: torchrun as a child of the training stage, and the ranks that it starts.

    the stage's process (launch) -> torchrun (agent) -> one process a rank

The stage's process passes on the messages of the first rank, ends with the first error of any rank, and hands a
SIGTERM on to the ranks themselves, so that they write their checkpoint before they end. Whoever is killed
takes with it what it started. On several machines each starts its own agent; they meet at the rendezvous.

Run as `python -m trainers.loop.torchrun agent|rank ...`, by this module alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from pipeline.child import Handler, Send, die_with_parent, resolve
from pipeline.errors import ItemError, TrainingError, UserError

POLL_SECONDS = 0.1
LAST_LINES = 20  # of torchrun's own output, quoted where no rank left an error
MESSAGES, REQUEST, OUTPUT = "messages.jsonl", "request.json", "output.txt"
ENTRY = "entry"  # the key of a request file that names what a rank calls
KNOWN = {"ItemError": ItemError, "UserError": UserError, "TrainingError": TrainingError}


class RankFailed(Exception):
    """A rank ended with an error that is ours: its traceback, or the last lines of torchrun's output."""


def starts_ranks(request: Mapping[str, Any]) -> bool:
    """Whether a request asks for several processes and this process is not yet one of them."""
    several = request.get("processes", 1) > 1 or request.get("nodes", 1) > 1
    return several and "RANK" not in os.environ


def launch(entry: str, request: Mapping[str, Any], send: Send) -> None:
    """Run a training request on `processes` ranks of this machine, of `nodes` machines that meet at `rendezvous`.

    `entry` is the `module:function` that every rank calls with the request.

    Returns when every rank has ended well. Raises what the first rank that failed raised, and
    SystemExit(143) after a SIGTERM, when the ranks have ended.
    """
    with tempfile.TemporaryDirectory(prefix="crossreel-ranks-") as name, _SignalsHeld() as held:
        folder = Path(name)
        (folder / REQUEST).write_text(json.dumps({ENTRY: entry, **request}), encoding="utf-8")
        (folder / MESSAGES).touch()
        with (folder / OUTPUT).open("wb") as output:
            agent = subprocess.Popen(
                _command(request, folder), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(_threads(request))},
            )  # fmt: skip
        try:
            for header in _messages(agent, folder, held):
                send(header, {})
        finally:
            _end(agent, folder)
        if held.number:
            raise SystemExit(128 + held.number)
        if agent.returncode:
            raise _failure(folder)


def _command(request: Mapping[str, Any], folder: Path) -> list[str]:
    """torchrun with its ranks."""
    meeting = ["--standalone"]
    if request.get("nodes", 1) > 1:
        meeting = [
            f"--nnodes={request['nodes']}", "--rdzv-backend=c10d", f"--rdzv-endpoint={request['rendezvous']}",
            f"--rdzv-id={request['fingerprint']}",
        ]  # fmt: skip
    own = [sys.executable, "-P", "-m", "trainers.loop.torchrun"]
    rank = ["--no-python", *own, "rank", str(folder)]
    count = [f"--nproc-per-node={request['processes']}", "--max-restarts=0"]
    return [*own, "agent", str(os.getpid()), *meeting, *count, *rank]


def _threads(request: Mapping[str, Any]) -> int:
    """Threads of each rank: its share of the stage's."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // int(request["processes"]))


def _messages(agent: subprocess.Popen[bytes], folder: Path, held: _SignalsHeld) -> Iterator[dict[str, Any]]:
    """Yield the messages of the first rank and the output of all ranks, as they come, until torchrun ends."""
    passed_on = False
    with (
        (folder / MESSAGES).open(encoding="utf-8") as sent,
        (folder / OUTPUT).open(errors="replace") as printed,
    ):
        messages, output = _Lines(sent), _Lines(printed)
        while True:
            ended = agent.poll() is not None
            yield from (json.loads(line) for line in messages)
            failing = bool(held.number) or any(folder.glob("rank-*.error"))
            if not failing:  # from then on torchrun counts the dead, at length
                yield from ({"log": line} for line in output)
            if ended:
                return
            if held.number and not passed_on:
                passed_on = True
                _signal_ranks(folder, signal.SIGTERM)
            time.sleep(POLL_SECONDS)


class _Lines:
    """The whole lines of a file that is still written to; iterated again and again."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._begun = file, ""

    def __iter__(self) -> Iterator[str]:
        while part := self._file.readline():
            self._begun += part
            if self._begun.endswith("\n"):  # else its second half is still to come
                line, self._begun = self._begun.rstrip("\n"), ""
                yield line


def _signal_ranks(folder: Path, number: int) -> None:
    """Signal the ranks of this machine, not torchrun, which would give them half a minute."""
    for path in folder.glob("rank-*.pid"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(path.read_text(encoding="utf-8")), number)


def _end(agent: subprocess.Popen[bytes], folder: Path) -> None:
    """Leave no process behind, however the stage ends."""
    if agent.poll() is None:
        _signal_ranks(folder, signal.SIGKILL)
        agent.kill()
        agent.wait()


def _failure(folder: Path) -> Exception:
    """The error of the rank that failed first."""
    errors = sorted(folder.glob("rank-*.error"), key=lambda path: path.stat().st_mtime_ns)
    if not errors:
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return RankFailed("torchrun ended without its ranks: " + "\n".join(lines[-LAST_LINES:]))
    error = json.loads(errors[0].read_text(encoding="utf-8"))
    kind = KNOWN.get(error["kind"])
    return kind(*error["arguments"]) if kind else RankFailed(f"{errors[0].stem}: {error['arguments'][0]}")


class _SignalsHeld:
    """A block in which SIGTERM only sets `number`, its number."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> _SignalsHeld:
        self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.number = number


# What follows runs in torchrun and in its ranks. ----------------------------------------------------------------


def agent(arguments: list[str]) -> None:
    """torchrun itself, which ends with the process that started it."""
    from torch.distributed.run import main as run

    die_with_parent(int(arguments[0]))
    run(arguments[1:])


def rank(folder: Path) -> None:
    """One process of the training."""
    die_with_parent(os.getppid())
    local, number = os.environ["LOCAL_RANK"], os.environ["RANK"]
    (folder / f"rank-{local}.pid").write_text(str(os.getpid()), encoding="utf-8")
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    train: Handler = resolve(request.pop(ENTRY))
    if request["device"].startswith("cuda"):
        request["device"] = f"cuda:{local}"
    with _errors_recorded(folder / f"rank-{number}.error"), _channel(folder, number) as send:
        train(request, send)


@contextmanager
def _channel(folder: Path, number: str) -> Iterator[Send]:
    """The function by which a training reports to the stage's process; only the first rank's messages are sent."""
    if number != "0":
        yield lambda header, arrays: None
        return
    with (folder / MESSAGES).open("a", encoding="utf-8") as file:

        def send(header: Mapping[str, Any], _: Mapping[str, Any]) -> None:
            file.write(json.dumps(dict(header)) + "\n")
            file.flush()

        yield send


@contextmanager
def _errors_recorded(path: Path) -> Iterator[None]:
    """Write an error of the block to a file and end the process with status 1, without a traceback."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, (ItemError, UserError, TrainingError))
        plain = [error.item, error.reason] if isinstance(error, ItemError) else [str(error)]
        record = {"kind": type(error).__name__, "arguments": plain if known else [traceback.format_exc()]}
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(record), encoding="utf-8")
        aside.rename(path)
        raise SystemExit(1) from None


def main(arguments: list[str]) -> None:
    """Entry of both."""
    if arguments[0] == "agent":
        agent(arguments[1:])
    else:
        rank(Path(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
