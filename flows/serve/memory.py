"""How much memory is free, so that as many searching processes are kept as fit."""

from __future__ import annotations

from pathlib import Path

FIRST_GUESS_BYTES = 1 << 30  # what a searching process takes, before one was measured
MARGIN = 1.25  # a process grows while it answers: one with small networks was seen to grow by a fifth
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """The memory that a new process can have: that of the machine, or of the control group if it is less."""
    found = [_of_machine(), _of_group()]
    return min(each for each in found if each is not None)


def resident_bytes(pid: int | None) -> int:
    """The memory that a process holds; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * 4096


def _of_machine() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return FIRST_GUESS_BYTES


def _of_group() -> int | None:
    """What the control group leaves, None where it sets no limit. File pages that can be dropped count as used."""
    try:
        most = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used)
