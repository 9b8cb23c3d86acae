"""The cores and GPUs of this machine, and the environment of a worker that gets a share of them."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from pipeline.errors import UserError

RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
# Large arrays go back to the system when they are freed: glibc's own rule let a worker grow by 600 MB over an
# hour of video, in holes between small ones.


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Return the bytes of memory that processes here can still take: the machine's, or less in a limited container."""
    found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    available = int(found[1]) << 10 if found else 0
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max": no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        available = min(available, max(0, limit - used))
    return available


def visible_gpus() -> list[str]:
    """Return the NVIDIA GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES, without importing torch.

    `cuda:n` is the n-th of them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        return [name for name in names if name not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def gpus() -> int:
    """Return the number of GPUs that this process may use."""
    return len(visible_gpus())


def gpu_numbers(device: str) -> list[int]:
    """Return the numbers n of the GPUs `cuda:n` that `[run] device` allows; none for "cpu".

    Raises UserError if it names a GPU that does not exist.
    """
    there = list(range(gpus()))
    if device == "auto":
        return there
    if not device.startswith("cuda"):
        return []
    _, _, number = device.partition(":")
    allowed = [int(number)] if number else there
    if not allowed or allowed[-1] not in there:
        raise UserError(f"run.device = {device!r} is not possible: {len(there)} GPUs are visible here")
    return allowed


def threads(count: int) -> dict[str, str]:
    """Return the environment variables that give a worker `count` threads.

    Idle threads sleep: spinning ones, OpenMP's default, made a training step up to ten times slower on
    a machine whose cores had other work too, and were no faster on a quiet one.
    """
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count), "OMP_WAIT_POLICY": "PASSIVE"}
