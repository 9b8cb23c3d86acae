"""CPU seconds of a command with everything that it started, and the largest anonymous memory of each kind of process.

Anonymous memory (RssAnon) leaves mapped files out: pages of the store that the system keeps because there is room.
It is looked at ten times a second, so that a peak of a few milliseconds can be missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
INTERVAL_SECONDS = 0.1
KINDS = {  # a word of the command line -> kind of process
    "extractors.shard:run": "worker",
    "extractors.decoding:": "decoder",
    "pipeline.media.video:": "decoder",
    "corpus_process": "method",
    "flows.results.report": "report",
    "ffmpeg": "ffmpeg",
    "prefect": "Prefect",
    "flows.deployment.server": "Prefect",
}
COMMAND = "command"  # the process that was asked for, which coordinates the others


@dataclass
class Cost:
    """Seconds, CPU seconds of all processes, and peak of anonymous memory in MB by kind of process."""

    seconds: float
    cpu: float
    peak_mb: dict[str, float] = field(default_factory=dict)


def cost(command: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> Cost:
    """Run a command to its end and return its cost. Raises SystemExit with its last words if it failed.

    Processes that outlive their parents, as the decoders of killed workers do, become children of this one.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    peaks: dict[str, float] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        words = output.decode(errors="replace")[-4000:]
        raise SystemExit(f"{' '.join(map(str, command))[:300]} ended with {process.returncode}:\n{words}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, peaks)


def _watch(root: int, peaks: dict[str, float], ended: threading.Event) -> None:
    while not ended.wait(INTERVAL_SECONDS):
        for pid in _tree(os.getpid()):
            with contextlib.suppress(OSError):
                kind = COMMAND if pid == root else _kind(pid)
                peaks[kind] = max(peaks.get(kind, 0.0), anonymous_kib(pid) / 1000)


def _tree(root: int) -> Iterator[int]:
    """Every descendant of a process."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{root}/task"):
            for child in Path(f"/proc/{root}/task/{thread}/children").read_text().split():
                yield int(child)
                yield from _tree(int(child))


def _kind(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return next((kind for word, kind in KINDS.items() if word in words), "other")


def anonymous_kib(pid: int | str = "self") -> int:
    """KiB of a process's memory that is no file's; 0 where the process has ended."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0
