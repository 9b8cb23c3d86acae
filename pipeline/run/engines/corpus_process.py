"""One process for consecutive stages over the corpus: importing torch, which each would do, takes seconds.

What a stage could leave behind ends with the process: it is started anew after a GPU was used, after any
error or interrupt, when it has grown, and when the thread that started it (with which the kernel ends it) is
not the one that asks.
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

KEPT_BYTES = 1 << 30  # resident; torch and a method's modules are 0.4 GB
STOP_SECONDS = 60.0  # a training stage writes its checkpoint before it ends


def serve(request: dict[str, Any], send: Send) -> None:
    """Entry of the process: calls what the request names with the request inside it.

    Raises UserError with the settings that need less memory where there is none.
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
    """Makes stages over the corpus, one after the other."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._env: Mapping[str, str] = {}

    def run(
        self, entry: str, request: Mapping[str, Any], env: Mapping[str, str], keep: bool,
        tell: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        """Have `module:function` answer a request. With `keep` the process may serve the next one too.

        Raises what that raises, and ChildDied. An interrupt, wherever it arrives, asks the process to end
        in order, and waits for that.
        """
        child = self._started(env)
        replies = child.call(
            {"entry": entry, "request": dict(request)}
        )  # kept: closing it would kill the child
        ended = False
        try:
            for header, _ in replies:
                tell(header)
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
