"""Locks on the GPUs of this machine: one lock file per GPU, held by a live process, so that runs take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UserError
from pipeline.run.engines.machine import visible_gpus

FOLDER = "CROSSREEL_GPU_LOCKS"  # the environment variable that says where the lock files are
DEFAULT_FOLDER = (
    "/tmp"  # not TMPDIR or XDG_RUNTIME_DIR: every user and every session must find the same files
)
LOOK_SECONDS = 0.5


@contextmanager
def gpu_slots(
    numbers: Sequence[int], least: int, most: int, say: Callable[[str], None]
) -> Iterator[list[int]]:
    """Yield up to `most` of these GPUs that no other run uses, and keep them locked while the block runs.

    `numbers` are the n of `cuda:n` among the GPUs that this process may use. While fewer than `least` are free, it
    calls `say` once and waits without holding any. The kernel releases the lock of a process that ends or is killed.
    """
    names = visible_gpus()
    announced = False
    while True:
        with contextlib.ExitStack() as held:
            taken: list[int] = []
            for number in numbers:
                if len(taken) < most and _take(names[number], held):
                    taken.append(number)
            if len(taken) >= least:
                yield taken
                return
        if not announced:
            say(f"waiting for a GPU: {_holders(names, numbers)}; run.share_gpu = true would share it")
            announced = True
        time.sleep(LOOK_SECONDS)


def _take(name: str, held: contextlib.ExitStack) -> bool:
    """Lock a GPU until `held` closes, if it is free, and record the holder in the lock file; return whether it was."""
    file = held.enter_context(_opened(name))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"the GPU lock {_path(name)} cannot be had ({error.strerror}); {FOLDER} names a folder on a local disk"
        ) from None
    with contextlib.suppress(OSError):  # another user's file can be locked but not written
        os.ftruncate(file.fileno(), 0)
        os.pwrite(file.fileno(), f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
    return True


def _holders(names: Sequence[str], numbers: Sequence[int]) -> str:
    return ", ".join(
        f"GPU {names[number]} is used by {_path(names[number]).read_text() or 'a process'}"
        for number in numbers
    )


def _path(name: str) -> Path:
    folder = os.environ.get(FOLDER, DEFAULT_FOLDER)
    return Path(folder) / f"crossreel-gpu-{re.sub(r'[^A-Za-z0-9-]', '-', name)}.lock"


def _opened(name: str) -> IO[bytes]:
    """Open the lock file, or make it; a symbolic link in its place is not followed."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for way in (
            os.O_RDWR,
            os.O_RDONLY,
        ):  # another user's file opens only for reading, which is enough for a lock
            with contextlib.suppress(FileNotFoundError, PermissionError):
                return os.fdopen(os.open(_path(name), flags | way), "rb", buffering=0)
        before = os.umask(0)
        try:
            return os.fdopen(os.open(_path(name), flags | os.O_RDWR | os.O_CREAT, 0o666), "rb", buffering=0)
        finally:
            os.umask(before)
    except OSError as error:
        raise UserError(
            f"the GPU lock {_path(name)} cannot be opened ({error.strerror}); {FOLDER} names another folder"
        ) from None
