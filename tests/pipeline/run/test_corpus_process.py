"""Consecutive stages over the corpus share a process for as long as it is as good as new."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from pipeline.child import ChildDied
from pipeline.errors import TrainingError
from pipeline.run.engines import corpus_process
from pipeline.run.engines.corpus_process import CorpusProcess

ENTRIES = """
import os, signal, sys, time
from pipeline.errors import TrainingError

def first(request, send):
    send({"pid": os.getpid(), "asked": request}, {})

def second(request, send):
    send({"pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]}, {})

def fails(request, send):
    raise TrainingError("the loss is not finite")

def dies(request, send):
    os.kill(os.getpid(), signal.SIGKILL)

def trains(request, send):
    def leave(*_):
        open(request["path"], "w").write("a checkpoint")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    send({"progress": {}}, {})
    time.sleep(600)
"""


@pytest.fixture
def ask(tmp_path: Path, forked: None, monkeypatch: pytest.MonkeyPatch):
    """`ask(entry)` gives what the process tells; `ask.process` is it."""
    (tmp_path / "entries_of_test.py").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)  # of forks; a new interpreter reads PYTHONPATH
    process = CorpusProcess()

    def call(entry: str, keep: bool = True, threads: int = 1, tell=None, **request):
        told: list[dict] = []
        env = {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": str(threads),
        }
        process.run(f"entries_of_test:{entry}", request, env, keep, tell or told.append)
        return told[0] if told else {}

    call.process = process
    yield call
    process.close()


def test_stages_of_different_entries_share_it(ask):
    first = ask("first", a=1)
    assert first["asked"] == {"a": 1}
    assert ask("second")["pid"] == first["pid"] == ask("first")["pid"]


def test_it_is_new_after_a_gpu_and_in_another_environment(ask):
    pids = [ask("first")["pid"], ask("first", keep=False)["pid"], ask("second")["pid"]]
    assert pids[0] == pids[1] != pids[2]
    other = ask("second", threads=2)
    assert other["threads"] == "2" and other["pid"] not in pids


def test_it_is_new_after_an_error_and_after_a_death(ask):
    pids = [ask("first")["pid"]]
    for entry, error in (("fails", TrainingError), ("dies", ChildDied)):
        with pytest.raises(error):
            ask(entry)
        pids.append(ask("first")["pid"])
    assert len(set(pids)) == 3


def test_it_is_new_once_it_has_grown(ask, monkeypatch):
    monkeypatch.setattr(corpus_process, "KEPT_BYTES", 1)
    assert ask("first")["pid"] != ask("first")["pid"]


def test_it_is_new_in_another_thread_as_it_ends_with_the_one_that_started_it(ask):
    pids = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: pids.append(ask("first")["pid"]))
        thread.start()
        thread.join()
    assert pids[0] != pids[1]


def test_closing_it_leaves_nothing(ask):
    pid = ask("first")["pid"]
    ask.process.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_interrupt_lets_it_end_in_order_wherever_it_arrives(ask, tmp_path):
    """While waiting for a reply, and while a reply is told of."""

    def interrupted(header: dict) -> None:
        raise KeyboardInterrupt

    def later(header: dict) -> None:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for tell in (interrupted, later):
            path = tmp_path / tell.__name__
            with pytest.raises(KeyboardInterrupt):
                ask("trains", tell=tell, path=str(path))
            assert path.read_text() == "a checkpoint"
    finally:
        signal.signal(signal.SIGINT, before)
