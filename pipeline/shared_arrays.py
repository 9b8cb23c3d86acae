"""Arrays handed from a child process to its parent in shared memory that has no name.

Each slot is a memfd: a file in memory that exists only as long as a process has it open or mapped. Nothing is left
when either process is killed, and the size of /dev/shm, 64 MB in a container, is no limit. The child writes the arrays
of a message into a slot and passes the slot's descriptor once over their Unix socket; the parent maps it and sees the
arrays without a copy. The first byte of a slot says whether the parent still uses it, so that slots are used again.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from socket import AF_UNIX, SOCK_STREAM, fromfd
from typing import Any

import numpy as np
from numpy.typing import NDArray

FREE, USED = 0, 1
ALIGNED = 64  # bytes between the beginnings of arrays; the first 64 hold the flag
LEAST_BYTES = 1 << 16  # a smaller message costs less in the socket: 64 kB take 20 us there
UNREAD = 1  # messages that the child sends before the parent has received the first of them
RECEIVED = b"+"  # the parent's reply to a message in shared memory

Array = NDArray[Any]
Placed = list[tuple[str, str, tuple[int, ...], int]]  # of each array: name, dtype, shape, offset in the slot


class Outbox:
    """The child's side: writes messages into free slots, and makes another slot where none is free."""

    def __init__(self, connection: Connection, enabled: bool = True) -> None:
        self._connection, self._enabled = connection, enabled
        self._slots: list[mmap.mmap] = []
        self._unread = 0
        self.trouble = ""  # why there is no shared memory; arrays go through the socket then

    def place(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Any], int | None] | None:
        """Write arrays into a slot; return its description for the header, and its descriptor if it is new.

        None if the arrays are small, or if the kernel gives no shared memory: they belong in the socket.
        """
        if not self._enabled or sum(array.nbytes for array in arrays.values()) < LEAST_BYTES:
            return None
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        placed, size = _layout(contiguous)
        self._wait_for_reader()
        number = next(
            (n for n, slot in enumerate(self._slots) if slot[0] == FREE and len(slot) >= size), None
        )
        fd = None
        if number is None:
            try:
                fd, slot = _new_slot(size)
            except OSError as error:
                self.trouble, self._enabled = error.strerror or str(error), False
                return None
            number = self._kept_at(slot)
        slot = self._slots[number]
        slot[0] = USED
        for name, _, _, offset in placed:
            array = contiguous[name]
            np.frombuffer(slot, np.uint8, array.nbytes, offset)[:] = array.reshape(-1).view(np.uint8)
        self._unread += 1
        return {"number": number, "bytes": len(slot), "arrays": placed, "new": fd is not None}, fd

    def pass_on(self, fd: int) -> None:
        """Send the descriptor of a new slot, after the header that announces it."""
        with fromfd(self._connection.fileno(), AF_UNIX, SOCK_STREAM) as socket:
            reduction.sendfds(socket, [fd])
        os.close(fd)

    def _wait_for_reader(self) -> None:
        """Wait until fewer than UNREAD messages are on their way: they are short, and a socket would hold hundreds."""
        while self._unread >= UNREAD:
            self.received(self._connection.recv_bytes())

    def received(self, message: bytes) -> bool:
        """Count the parent's reply to a message; return whether the message is one."""
        self._unread -= message == RECEIVED
        return message == RECEIVED

    def _kept_at(self, slot: mmap.mmap) -> int:
        """Keep a new slot in the place of a free one, which was too small, or at the end; return its number."""
        for number, old in enumerate(self._slots):
            if old[0] == FREE:
                self._slots[number] = slot
                return number
        self._slots.append(slot)
        return len(self._slots) - 1


class Inbox:
    """The parent's side: maps the slots of one child process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}

    def take(self, described: dict[str, Any]) -> dict[str, Array]:
        """Return the arrays of a message, read-only. Its slot is free again when the last view of them is gone."""
        number, size = described["number"], described["bytes"]
        if described["new"]:
            with fromfd(self._connection.fileno(), AF_UNIX, SOCK_STREAM) as socket:
                (fd,) = reduction.recvfds(socket, 1)
            try:
                self._slots[number] = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        slot = self._slots[number]
        # NumPy's views refer to the owner of the memory, not to each other: this object lives as long as any view.
        owner = (ctypes.c_char * size).from_buffer(slot)
        weakref.finalize(owner, _set_free, slot).atexit = False
        memory = memoryview(owner).toreadonly().cast("B")
        with contextlib.suppress(OSError):  # the child may be dead already; its last message counts
            self._connection.send_bytes(RECEIVED)
        return {
            name: np.frombuffer(memory, dtype, _count(shape), offset).reshape(shape)
            for name, dtype, shape, offset in described["arrays"]
        }


def _new_slot(size: int) -> tuple[int, mmap.mmap]:
    """Return descriptor and mapping of new shared memory, whose pages exist. Raises OSError if there is none."""
    fd = os.memfd_create("crossreel-arrays", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, size)  # a lack of memory is an error here, and a SIGBUS at a later write
        return fd, mmap.mmap(fd, size)
    except OSError:
        os.close(fd)
        raise


def _layout(arrays: Mapping[str, Array]) -> tuple[Placed, int]:
    """Return the place of each array in a slot, and the bytes that all of them take."""
    placed: Placed = []
    end = ALIGNED
    for name, array in arrays.items():
        placed.append((name, array.dtype.str, array.shape, end))
        end += -(-array.nbytes // ALIGNED) * ALIGNED
    return placed, end


def _set_free(slot: mmap.mmap) -> None:
    slot[0] = FREE


def _count(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
