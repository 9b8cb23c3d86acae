"""One process for consecutive stages over the corpus, because importing torch in each would take seconds.

A new process is started after a GPU was used, after any error or interrupt, when the process has grown, and for
another thread than the one that started it (the kernel ends a child with its thread). So no stage inherits memory or
state that another left.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.child import Child, Send, is_interrupt, resolve
from pipeline.errors import UserError, is_starved

KEPT_BYTES = (
    1 << 30
)  # resident memory above which a process is not kept; torch and a method's modules take 0.4 GB
STOP_SECONDS = 60.0  # time to end after an interrupt: a training stage writes its checkpoint first


def serve(request: dict[str, Any], send: Send) -> None:
    """Entry of the process: call the function `entry` of the request with the inner `request`.

    Raises UserError that names the settings which need less memory, if memory runs out.
    """
    inner = request["request"]
    try:
        resolve(request["entry"])(inner, send)
    except (MemoryError, RuntimeError) as error:
        if not is_starved(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        method = inner.get("method") or "<method>"
        raise UserError(
            f"no memory for {inner.get('stage', 'the stage')} ({lines[0][:200]}); lower trainers.{method}.batch_size, "
            "or end other programs (run.workers and run.batch_size of runs beside this one count too)"
        ) from None


class CorpusProcess:
    """Runs stages over the corpus, one after the other."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._env: Mapping[str, str] = {}

    def run(
        self, entry: str, request: Mapping[str, Any], env: Mapping[str, str], keep: bool,
        report: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        """Have `module:function` answer a request, and pass every reply to `report`.

        With `keep` the process may serve the next request too. Raises the function's exception, or ChildDied. After an
        interrupt, wherever it arrives, the process is asked to end in order, and this waits until it has.
        """
        child = self._started(env)
        # Held in a variable: a generator that nobody holds is closed, and closing this one kills the child.
        replies = child.call({"entry": entry, "request": dict(request)})
        ended = False
        try:
            for header, _ in replies:
                report(header)
            ended = True
        except BaseException as error:
            if is_interrupt(error):
                child.terminate(STOP_SECONDS)
            raise
        finally:
            if not (ended and keep and _resident_bytes(child.pid) < KEPT_BYTES):
                self.close()

    def _started(self, env: Mapping[str, str]) -> Child:
        child = self._child
        if child is None or child.owner is not threading.current_thread() or self._env != env:
            self.close()
            child = Child("pipeline.run.engines.corpus_process:serve", env=env)
            self._child, self._env = child, dict(env)
        return child

    def close(self) -> None:
        """End the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def _resident_bytes(pid: int | None) -> float:
    with contextlib.suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return float("inf")
