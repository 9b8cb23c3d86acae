"""Bytes a second from a child process to its parent: decoded frames in shared memory against frames in a socket.

A child sends chunks of 32 frames of 224 x 398, as a decoder does; the parent reads a byte of every page, as whoever
uses the frames would. Both forms run in turns; prints the median MB a second and the CPU milliseconds a chunk of
both processes together.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.child import Child, Send

FRAMES = (32, 224, 398, 3)
PAGE = 4096


def send_chunks(request: dict[str, Any], send: Send) -> None:
    """Entry of the child: sends `chunks` chunks, then its CPU seconds."""
    frames = np.random.default_rng(0).integers(0, 256, FRAMES, np.uint8)
    before = cpu()
    for _ in range(request["chunks"]):
        send({}, {"frames": frames})
    send({"cpu": cpu() - before}, {})


def cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(child: Child, chunks: int) -> tuple[float, float]:
    """MB a second, and CPU milliseconds a chunk of both processes."""
    started, before, theirs = time.perf_counter(), cpu(), 0.0
    for header, arrays in child.call({"chunks": chunks}, 60):
        if arrays:
            int(arrays["frames"].reshape(-1)[::PAGE].sum())
        else:
            theirs = header["cpu"]
    wall = time.perf_counter() - started
    size = chunks * int(np.prod(FRAMES)) / 1e6
    return size / wall, 1000 * (cpu() - before + theirs) / chunks


def main() -> None:
    """Measure both forms in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    forms = {
        "shared memory": Child("handover:send_chunks"),
        "socket": Child("handover:send_chunks", share_memory=False),
    }
    try:
        for child in forms.values():
            measure(child, 4)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
        for _ in range(arguments.rounds):
            for name, child in forms.items():
                rows[name].append(measure(child, arguments.chunks))
    finally:
        for child in forms.values():
            child.kill()
    for name, measured in rows.items():
        speed, work = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name}: {speed:.0f} MB/s, {work:.1f} CPU ms a chunk of {np.prod(FRAMES) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
