"""A child process that answers requests, and can be killed: the one primitive under decoding and shards.

Decoders can loop for ever in native code while holding the interpreter lock, and a worker can be
killed by the kernel: only another process with a time limit survives that. Requests and replies are
JSON, with arrays in shared memory or, small ones, raw behind it; nothing is pickled. The child does not import the
parent's main module, and the kernel ends it with the thread that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Error, ItemError, ItemKilled, TrainingError, UserError, is_full, is_starved
from pipeline.shared_arrays import Inbox, Outbox

Reply = tuple[dict[str, Any], dict[str, NDArray[Any]]]
Send = Callable[[Mapping[str, Any], Mapping[str, NDArray[Any]]], None]
Handler = Callable[[dict[str, Any], Send], None]
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)  # loaded here, because a process should load nothing between fork and exec
LAST_WORDS_BYTES = 2000
ASKED = 2  # times that `Child.ask` makes its request of a child that is killed


CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL})
# signals that a program causes itself by a crash; any other signal comes from outside


class ChildDied(Error):
    """The child ended in the middle of a request.

    `own_doing` is false if it was killed or got no memory; true if it crashed in native code.
    """

    def __init__(self, reason: str, own_doing: bool = False) -> None:
        super().__init__(reason)
        self.own_doing = own_doing


class ChildTimeout(ChildDied):
    """The child sent nothing within the time limit and was killed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, own_doing=True)


class ChildError(Exception):
    """The child's code raised; carries its traceback."""


class Child:
    """A process that calls `module:function(request, send)` and streams back the messages that the function sends."""

    def __init__(
        self, entry: str, memory_bytes: int | None = None, env: Mapping[str, str] | None = None,
        share_memory: bool = True,
    ) -> None:  # fmt: skip
        self.entry, self.memory_bytes, self.env = entry, memory_bytes, dict(env or {})
        self.share_memory = share_memory  # else all arrays go through the socket
        self.unshared = ""  # why the child has no shared memory for its arrays; "" while it has
        self._process: subprocess.Popen[bytes] | None = None
        self._ends: dict[
            subprocess.Popen[bytes], tuple[Connection, IO[bytes]]
        ] = {}  # resources that close with each process
        self.owner: threading.Thread | None = (
            None  # the thread that started it; the kernel ends the child with that thread
        )

    def start(self) -> None:
        """Start the process unless it runs already. The kernel ends it when the calling thread ends."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.kill()
        self.owner = threading.current_thread()
        ours, theirs = Pipe()
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill()
        fd = theirs.fileno()
        command = [sys.executable, "-P", "-m", "pipeline.child", self.entry, str(fd)]
        command += [str(self.memory_bytes or 0), str(int(self.share_memory))]
        self._connection = ours  # before the process: another thread may kill what it sees
        self._inbox = Inbox(ours)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._words, stderr=self._words, pass_fds=(fd,),
            env=os.environ | self.env, start_new_session=True,
            # Before the interpreter starts: stopped in its first moments, it would outlive a parent that is killed.
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509 -- one system call
        )  # fmt: skip
        self._ends[process] = (ours, self._words)
        self._process = process
        theirs.close()

    def call(self, request: Mapping[str, Any], timeout_seconds: float | None = None) -> Iterator[Reply]:
        """Yield the child's replies to a request as they arrive. No reply may take longer than the limit.

        Raises ChildDied, ChildTimeout, ChildError, or the ItemError, UserError or TrainingError
        that the child raised. A caller that stops early ends the child; the next call starts another.
        An interrupt while waiting leaves the child alive, to be asked to `terminate` or killed.
        """
        self.start()
        finished = False
        try:
            try:
                self._connection.send_bytes(json.dumps(request).encode())
                while True:
                    if not self._connection.poll(timeout_seconds):
                        if is_stopped(self.pid):
                            raise ChildDied(f"it was stopped (SIGSTOP) for {timeout_seconds:.0f} s")
                        raise ChildTimeout(f"no progress for {timeout_seconds:.0f} s")
                    header, arrays = _receive(self._connection, self._inbox)
                    self.unshared = header.pop("_unshared", self.unshared)
                    if header.get("_") in ("end", "error"):
                        finished = True
                        if header["_"] == "error":
                            raise _as_error(header)
                        return
                    yield header, arrays
            except (EOFError, OSError):
                raise self._death() from None
            except BaseException as error:
                finished = finished or is_interrupt(error)
                raise
        finally:
            if not finished:
                self.kill()

    def ask(self, request: Mapping[str, Any], timeout_seconds: float | None = None) -> list[Reply]:
        """Return all replies to a request. A child that is killed meanwhile is started anew and asked once more.

        Raises as `call` does; ChildDied that is not its own doing if the child was killed each time.
        """
        for attempt in range(1, ASKED + 1):
            try:
                return list(self.call(request, timeout_seconds))
            except ChildDied as death:
                if death.own_doing or attempt == ASKED:
                    raise
        raise AssertionError("unreachable")

    def _death(self) -> ChildDied:
        """Return the cause of the child's death: its signal or exit status, and the last line it printed."""
        process = self._process
        if process is None:
            return ChildDied("it was killed")
        try:
            code = process.wait(timeout=5)
            self._words.seek(0, os.SEEK_END)
            self._words.seek(max(0, self._words.tell() - LAST_WORDS_BYTES))
            words = self._words.read().decode(errors="replace").strip().splitlines()
        except subprocess.TimeoutExpired:
            return ChildDied("it closed its connection")
        except ValueError:  # closed by the thread that killed it just now
            return ChildDied("it was killed")
        own_doing = -code in CRASHES and not any(is_starved(line) for line in words)
        return ChildDied(ending(code) + (f": {words[-1]}" if words else ""), own_doing)

    @property
    def pid(self) -> int | None:
        """The process id while the child runs, else None."""
        return None if self._process is None else self._process.pid

    def terminate(self, wait_seconds: float) -> None:
        """Ask the child to end (SIGTERM), wait, then kill it."""
        process = self._process
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=wait_seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the child and everything it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for end in self._ends.pop(
            process, ()
        ):  # its own: another thread may have started a successor meanwhile
            end.close()


def ending(code: int) -> str:
    """Return how a process ended, given `subprocess`'s return code: a signal's name, or the exit status."""
    if code >= 0:
        return f"exit status {code}"
    hint = {-signal.SIGKILL: " (out of memory?)", -signal.SIGBUS: " (disk full?)"}.get(code, "")
    return f"{signal.Signals(-code).name}{hint}"


def is_stopped(pid: int | None) -> bool:
    """Whether a process was stopped (SIGSTOP, a debugger) and does not run at all."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"T", b"t")
    return False


def _receive(connection: Connection, inbox: Inbox) -> Reply:
    header = json.loads(connection.recv_bytes())
    if described := header.pop("_shared", None):
        return header, inbox.take(described)
    arrays = {}
    for name, dtype, shape in header.pop("_arrays", []):
        raw = connection.recv_bytes() if all(shape) else b""
        arrays[name] = np.frombuffer(raw, dtype=dtype).reshape(shape)
    return header, arrays


def _send(
    connection: Connection, outbox: Outbox, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    if shared := outbox.place(arrays):
        described, fd = shared
        connection.send_bytes(json.dumps({**header, "_shared": described}).encode())
        if fd is not None:
            outbox.pass_on(fd)
        return
    trouble = {"_unshared": outbox.trouble} if outbox.trouble else {}
    layout = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    connection.send_bytes(json.dumps({**header, **trouble, "_arrays": layout}).encode())
    for array in arrays.values():
        if array.size:
            connection.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _as_error(header: Mapping[str, Any]) -> Exception:
    kind, arguments = header["kind"], header["arguments"]
    known = {
        "ItemError": ItemError,
        "ItemKilled": ItemKilled,
        "UserError": UserError,
        "TrainingError": TrainingError,
    }
    return known[kind](*arguments) if kind in known else ChildError(*arguments)


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, ItemKilled):
        return {"kind": "ItemKilled", "arguments": [error.item, error.reason, error.crash]}
    if isinstance(error, ItemError):
        return {"kind": "ItemError", "arguments": [error.item, error.reason]}
    for kind in (UserError, TrainingError):
        if isinstance(error, kind):
            return {"kind": kind.__name__, "arguments": [str(error)]}
    if is_full(error):
        return {"kind": "UserError", "arguments": [f"the disk is full: {error}"]}
    return {"kind": type(error).__name__, "arguments": ["".join(traceback.format_exception(error))]}


def is_interrupt(error: BaseException) -> bool:
    """Whether an error is a request to stop: Ctrl-C, SIGTERM, or Prefect's cancellation, which is neither."""
    return not isinstance(error, (Exception, GeneratorExit))


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when the thread that started it ends (Linux)."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the line above
        os._exit(1)


def resolve(entry: str) -> Any:
    """Return the object that `module:name` names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def serve(handler: Handler, connection: Connection, share_memory: bool = True) -> None:
    """Answer requests until the other side closes."""
    outbox = Outbox(connection, share_memory)
    send = functools.partial(_send, connection, outbox)
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        if outbox.received(message):
            continue
        try:
            handler(json.loads(message), send)
        except Exception as error:  # sent to the parent, which raises it
            send({"_": "error"} | _describe(error), {})
        else:
            send({"_": "end"}, {})


def main(arguments: list[str]) -> None:
    """Entry of the child process: entry point, file descriptor, address-space limit, shared memory or not."""
    entry, (fd, limit, share_memory) = arguments[0], map(int, arguments[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it hears Ctrl-C too
    if limit:
        _limit_memory(limit)
    try:
        handler: Handler = resolve(entry)
    except Exception as error:  # an error of our code, not of a unit: sent as the answer to the first request
        handler = functools.partial(_raise, error)
    serve(handler, Connection(fd), bool(share_memory))


def _limit_memory(most: int) -> None:
    """Limit the address space of this process to `most` bytes, or to the limit that stands already if that is lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)  # of a shell with `ulimit -v`, which nobody may raise
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _raise(error: Exception, request: dict[str, Any], send: Send) -> None:
    raise error


if __name__ == "__main__":
    main(sys.argv[1:])
