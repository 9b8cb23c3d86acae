"""A child streams what it sends, dies alone, and its errors cross as themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.child import Child, ChildDied, ChildError, ChildTimeout
from pipeline.errors import ItemError, TrainingError, UserError

HANDLERS = """
import os, signal, subprocess, sys, time
import numpy as np
from pipeline.errors import ItemError, TrainingError, UserError

def count(request, send):
    for n in range(request["to"]):
        send({"n": n}, {"rows": np.arange(n, dtype=np.float16).reshape(n, 1)})

def fail(request, send):
    raise {"item": ItemError("clip", "broken"), "user": UserError("no"), "training": TrainingError("nan"),
           "ours": KeyError("bug")}[request["kind"]]

def hang(request, send):
    send({"pid": os.getpid()}, {})
    time.sleep(request.get("seconds", 600))

def die(request, send):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), request["signal"])

def grandchild(request, send):
    process = subprocess.Popen(["sleep", "600"])
    send({"pid": process.pid}, {})
    time.sleep(600)

def modules(request, send):
    send({"modules": sorted(name.split(".")[0] for name in sys.modules)}, {})

def polite(request, send):
    def leave(*_):
        open(request["path"], "w").write("left in order")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    send({}, {})
    time.sleep(600)

def die_at_first(request, send):
    with open(request["path"], "a+") as tries:
        tries.write("x")
        tries.seek(0)
        if len(tries.read()) <= request["deaths"]:
            os.kill(os.getpid(), request["signal"])
    send({"n": 1}, {})
    send({"n": 2}, {})

def full(request, send):
    raise OSError(28, "No space left on device", "/a/file")

def hungry(request, send):
    send({"bytes": len(bytearray(request["bytes"]))}, {})
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`child(name)` is a process that answers with one of the handlers above."""
    (tmp_path / "handlers_of_test.py").write_text(HANDLERS)
    children = []

    def start(name: str, **more) -> Child:
        children.append(Child(f"handlers_of_test:{name}", env={"PYTHONPATH": beside(tmp_path)}, **more))
        return children[-1]

    yield start
    for one in children:
        one.kill()


def beside(folder: Path) -> str:
    """A search path with a folder before those that this process was given."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([str(folder), *(path for path in given if path not in ("", str(folder)))])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_replies_come_in_order_with_their_arrays(child):
    replies = list(child("count").call({"to": 4}))
    assert [header["n"] for header, _ in replies] == [0, 1, 2, 3]
    for n, (_, arrays) in enumerate(replies):
        assert arrays["rows"].shape == (n, 1) and arrays["rows"].dtype == np.float16
        np.testing.assert_array_equal(arrays["rows"][:, 0], np.arange(n))


def test_one_process_answers_many_requests(child):
    one = child("count")
    list(one.call({"to": 1}))
    pid = one.pid
    assert len(list(one.call({"to": 3}))) == 3 and one.pid == pid


@pytest.mark.parametrize(
    ("kind", "error"), [("item", ItemError), ("user", UserError), ("training", TrainingError)]
)
def test_known_errors_cross_as_themselves(child, kind, error):
    one = child("fail")
    with pytest.raises(error, match=r"broken|no|nan"):
        list(one.call({"kind": kind}))
    with pytest.raises(error):  # and the process lives on
        list(one.call({"kind": kind}))


def test_an_error_of_ours_carries_its_traceback(child):
    with pytest.raises(ChildError, match=r"(?s)in fail.*KeyError: 'bug'"):
        list(child("fail").call({"kind": "ours"}))


def test_an_entry_that_cannot_be_imported_is_our_error_not_a_death(child):
    with pytest.raises(ChildError, match="no_such_function"):
        list(child("no_such_function").call({}))


def test_silence_beyond_the_limit_kills_it(child):
    one = child("hang")
    ((started, _),) = one.call({"seconds": 0}, timeout_seconds=60)  # a new interpreter may take long
    replies = one.call({}, timeout_seconds=1)
    pid = next(replies)[0]["pid"]
    assert pid == started["pid"]
    with pytest.raises(ChildTimeout, match="no progress for 1 s"):
        next(replies)
    assert not alive(pid) and one.pid is None


def test_a_death_is_reported_with_signal_and_last_words(child):
    with pytest.raises(ChildDied, match=r"SIGSEGV.*last words"):
        list(child("die").call({"signal": signal.SIGSEGV}))
    with pytest.raises(ChildDied, match=r"SIGKILL.*memory"):
        list(child("die").call({"signal": signal.SIGKILL}))


def test_a_dead_child_is_replaced_at_the_next_call(child):
    one = child("count")
    list(one.call({"to": 1}))
    os.kill(one.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert len(list(one.call({"to": 2}))) == 2


def test_what_it_started_ends_with_it(child):
    one = child("grandchild")
    replies = one.call({})  # kept: dropping it would end the child too
    pid = next(replies)[0]["pid"]
    assert alive(pid)
    one.kill()
    time.sleep(0.1)
    assert not alive(pid)


def test_stopping_early_ends_it(child):
    one = child("count")
    replies = one.call({"to": 1000})
    next(replies)
    replies.close()
    assert one.pid is None


def test_it_does_not_import_what_its_parent_imported(child):
    import torch

    assert torch.__name__ in sys.modules
    modules = next(child("modules").call({}))[0]["modules"]
    assert not {"torch", "prefect", "pytest"} & set(modules)


def test_more_memory_than_allowed_is_refused(child):
    with pytest.raises((ChildError, ChildDied), match="MemoryError"):
        list(child("hungry", memory_bytes=1 << 30).call({"bytes": 2 << 30}))
    assert next(child("hungry", memory_bytes=4 << 30).call({"bytes": 1 << 20}))[0]["bytes"] == 1 << 20


def test_a_full_disk_is_the_users_to_mend(child):
    with pytest.raises(UserError, match=r"the disk is full: .*/a/file"):
        list(child("full").call({}))


def test_an_interrupt_leaves_the_child_to_end_in_order(child, tmp_path):
    """A training that is interrupted writes its checkpoint first."""
    one, left = child("polite"), tmp_path / "left"
    replies = one.call({"path": str(left)})
    next(replies)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(replies)
    finally:
        signal.signal(signal.SIGINT, before)
    assert alive(one.pid)
    one.terminate(10)
    assert left.read_text() == "left in order" and one.pid is None


PARENT = """
from pipeline.child import Child
replies = Child("handlers_of_test:hang").call({})
print(next(replies)[0]["pid"], flush=True)
input()
"""


def test_it_ends_with_a_parent_that_is_killed(child, tmp_path):
    env = os.environ | {"PYTHONPATH": beside(tmp_path)}
    command = [sys.executable, "-c", PARENT]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


STOPS = """
import os, signal
from pipeline.child import Child
child = Child("handlers_of_test:hang")
child.start()
os.kill(child.pid, signal.SIGSTOP)
print(child.pid, flush=True)
input()
"""


def test_it_ends_with_a_parent_that_is_killed_even_if_it_was_stopped_before_its_first_line(child, tmp_path):
    env = os.environ | {"PYTHONPATH": beside(tmp_path)}
    command = [sys.executable, "-c", STOPS]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = alive(pid)
    if left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def test_it_takes_no_modules_from_the_folder_it_is_started_in(child, tmp_path, monkeypatch):
    for name in ("pipeline", "numpy"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path / "project")
    assert len(list(child("count").call({"to": 2}))) == 2


@pytest.mark.slow
def test_it_can_be_killed_from_another_thread_whatever_it_is_at(child):
    one, stop, pids, raised = child("hang"), threading.Event(), set(), []

    def work() -> None:
        while not stop.is_set():
            try:
                pids.update(header["pid"] for header, _ in one.call({}, 30))
            except ChildDied:
                continue
            except BaseException as error:
                raised.append(error)
                return

    thread = threading.Thread(target=work)
    thread.start()
    for n in range(8):
        time.sleep(0.05 * n)
        one.kill()
    stop.set()
    while thread.is_alive():
        one.kill()
        thread.join(0.1)
    assert raised == [] and not any(alive(pid) for pid in pids)


def test_a_killed_child_is_asked_once_more_and_one_that_crashed_is_not(child, tmp_path):
    hit = child("die_at_first")
    request = {"path": str(tmp_path / "once"), "deaths": 1, "signal": signal.SIGKILL}
    assert [header["n"] for header, _ in hit.ask(request)] == [1, 2]
    with pytest.raises(ChildDied, match="SIGKILL"):
        hit.ask(request | {"path": str(tmp_path / "always"), "deaths": 9})
    with pytest.raises(ChildDied, match="SIGSEGV"):
        hit.ask(request | {"path": str(tmp_path / "crash"), "signal": signal.SIGSEGV})
    assert [len((tmp_path / name).read_text()) for name in ("once", "always", "crash")] == [2, 2, 1]


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from pipeline.child import Child
child = Child("handlers_of_test:hungry", memory_bytes=4 << 30)
print(next(child.call({"bytes": 1 << 20}))[0]["bytes"])
child.kill()
"""


def test_a_limit_of_the_shell_that_is_lower_stays(child, tmp_path):
    """As `ulimit -v` sets one: raising it is not allowed, and every decoder ended with that."""
    env = os.environ | {"PYTHONPATH": beside(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, env=env, check=False
    )
    assert told.stdout.split() == [str(1 << 20)], told.stderr
