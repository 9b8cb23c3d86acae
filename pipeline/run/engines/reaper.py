"""Ends what a killed cluster left: every process of a session, when the process that asked for it is gone.

A script of its own without imports from here, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time

QUIET_LOOKS = 3  # in a row without a process: one may be starting another just now
LOOK_SECONDS = 0.02


def members(session: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, _, _, its_session = file.read().rpartition(b")")[2].split()[:4]
        except (OSError, ValueError):  # no process, or it has just ended
            continue
        if int(its_session) == session and state not in (b"Z", b"X"):
            found.append(int(name))
    return found


def end(session: int) -> None:
    """Kill them until none is left."""
    quiet = 0
    while quiet < QUIET_LOOKS:
        found = members(session)
        quiet = 0 if found else quiet + 1
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(LOOK_SECONDS)


def main(session: int, folder: str) -> None:
    """Wait for the end of the input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.read()
    end(session)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
