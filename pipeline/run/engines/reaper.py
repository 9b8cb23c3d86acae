"""Kills the processes that a Ray cluster leaves: all of its session, once the process that started this one is gone.

A script without imports from this package, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

QUIET_LOOKS = 3  # searches in a row without a process before the end: a process may be starting another one
LOOK_SECONDS = 0.02


def members(session: int) -> list[int]:
    """Ids of the live processes of a session."""
    alive = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, _, its_session = file.read().rpartition(b")")[2].split()[:4]
        except (OSError, ValueError):  # no process, or it has just ended
            continue
        if int(its_session) == session and state not in (b"Z", b"X"):
            alive.append(int(name))
    return alive


def end(session: int) -> None:
    """Kill the processes of a session until none is left."""
    quiet = 0
    while quiet < QUIET_LOOKS:
        alive = members(session)
        quiet = 0 if alive else quiet + 1
        for process in alive:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(LOOK_SECONDS)


def main(session: int, folder: str) -> None:
    """Wait until standard input closes, then kill the session and remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    end(session)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
