"""Arrays in shared memory arrive as they were sent, stay while they are looked at, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from pipeline import shared_arrays
from pipeline.child import Child, ChildDied
from pipeline.shared_arrays import LEAST_BYTES, UNREAD

HANDLERS = """
import os, signal
import numpy as np
from pipeline import shared_arrays

def count(request, send):
    for n in range(request["to"]):
        rows = np.full((request.get("rows", LARGE), 2, 3), n, np.int32)
        send({"n": n}, {"rows": rows[:, :, ::-1], "none": np.empty((0, 4)), "time": np.arange(n) / 3})
        with open(request["sent"], "a") as sent:
            sent.write("x")

def refused(request, send):
    def none(*_):
        raise OSError(12, "Cannot allocate memory")
    shared_arrays._new_slot = none
    count(request, send)

def die(request, send):
    send({}, {"rows": np.full((LARGE,), 7, np.int32)})
    os.kill(os.getpid(), signal.SIGKILL)

LARGE = 1 << 16
"""


@pytest.fixture
def child(tmp_path: Path):
    (tmp_path / "sharers_of_test.py").write_text(HANDLERS)
    children = []

    def start(name: str, **more) -> Child:
        children.append(
            Child(
                f"sharers_of_test:{name}",
                env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
                **more,
            )
        )
        return children[-1]

    yield start
    for one in children:
        one.kill()


def shared_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("crossreel-arrays")


@pytest.mark.parametrize("share_memory", [True, False])
def test_arrays_of_any_layout_arrive_as_they_were_sent_read_only(child, tmp_path, share_memory):
    replies = child("count", share_memory=share_memory).call({"to": 9, "sent": str(tmp_path / "sent")})
    for n, (header, arrays) in enumerate(replies):
        assert header == {"n": n} and arrays["none"].shape == (0, 4)
        np.testing.assert_array_equal(arrays["rows"], np.full((1 << 16, 2, 3), n, np.int32))
        np.testing.assert_array_equal(arrays["time"], np.arange(n) / 3)
        assert not arrays["rows"].flags.writeable
        assert (shared_mappings() > 0) == share_memory


@pytest.mark.slow
def test_arrays_that_are_kept_are_not_written_over_and_memory_is_used_again_once_they_are_gone(
    child, tmp_path
):
    one = child("count")
    asked = {"to": 12, "sent": str(tmp_path / "sent")}
    kept = [arrays["rows"][5:, 1] for _, arrays in one.call(asked)]
    assert [int(rows[0, 0]) for rows in kept] == list(range(12)) and shared_mappings() >= 12
    assert all((rows == n).all() for n, rows in enumerate(kept))
    del kept
    gc.collect()
    before = shared_mappings()
    for _ in range(3):
        list(one.call(asked | {"rows": 1 << 15}))
    assert shared_mappings() == before
    one.kill()
    del one._inbox
    gc.collect()
    assert shared_mappings() == 0


def test_a_child_does_not_run_ahead_of_its_reader(child, tmp_path):
    sent = tmp_path / "sent"
    replies = child("count").call({"to": 40, "sent": str(sent)})
    for _ in range(3):
        next(replies)
    assert len(sent.read_text()) <= 3 + UNREAD
    replies.close()


def test_small_arrays_go_through_the_socket(child, tmp_path):
    rows = LEAST_BYTES // 24 - 20
    ((_, arrays),) = child("count").call({"to": 1, "rows": rows, "sent": str(tmp_path / "sent")})
    assert arrays["rows"].shape == (rows, 2, 3) and shared_mappings() == 0


def test_without_shared_memory_the_arrays_arrive_and_the_reason_is_known(child, tmp_path):
    one = child("refused")
    replies = list(one.call({"to": 3, "sent": str(tmp_path / "sent")}))
    assert [int(arrays["rows"][0, 0, 0]) for _, arrays in replies] == [0, 1, 2]
    assert one.unshared == "Cannot allocate memory" and shared_mappings() == 0


def test_what_a_killed_child_sent_before_is_received_and_its_successor_starts_anew(child):
    one = child("die")
    for _ in range(2):
        replies = one.call({})
        assert int(next(replies)[1]["rows"][-1]) == 7
        with pytest.raises(ChildDied, match="SIGKILL"):
            next(replies)
    assert not list(Path("/dev/shm").glob("*crossreel*"))


def test_the_parents_kill_leaves_no_shared_memory(child, tmp_path):
    """A name would outlive both processes; a memfd ends with the last of them."""
    one = child("count")
    replies = one.call({"to": 5, "sent": str(tmp_path / "sent")})
    next(replies)
    pid = one.pid
    assert any("memfd" in str(link) for link in _links(pid)) or shared_mappings() > 0
    os.kill(pid, signal.SIGKILL)
    replies.close()
    del one._inbox
    gc.collect()
    assert shared_mappings() == 0


def _links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]


def test_a_kernel_that_gives_no_memory_is_an_error_and_not_a_crash_at_a_later_write(monkeypatch):
    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(OSError, match="No space left"):
        shared_arrays._new_slot(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before
