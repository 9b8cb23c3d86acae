"""A worker's death costs its shard, which is tried again; the unit at fault is found and named."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.child import ChildError
from pipeline.errors import UserError
from pipeline.run.engines.local import Process
from pipeline.run.engines.work import Work
from pipeline.run.pool import ALONE, TRIES, Killed, Message, run_shards

WORKER = """
import os, signal, time
from pathlib import Path

def work(request, send):
    if not request:
        return
    folder = Path(request["folder"])
    with open(folder / "began", "a") as file:
        print(",".join(request["keys"]), file=file)
    for key in request["keys"]:
        if key == "bug":
            raise ZeroDivisionError("ours")
        if key == "hangs":
            time.sleep(600)
        if key.startswith("crash"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if key.startswith("stops") and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if key.startswith("child") and ("always" in key or request["attempt"] < 4):
            send({"failed": key, "killed": "signal", "attempt": request["attempt"]}, {})
            continue
        if key.startswith("deadly") or (key == "once" and not (folder / "died").exists()):
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        send({"done": key, "pid": os.getpid()}, {})
    send({"segment": [key for key in request["keys"] if "always" not in key]}, {})
"""


@pytest.fixture(autouse=True)
def beside(tmp_path, forked, monkeypatch) -> None:
    """Children are forks, which read sys.path; a new interpreter reads PYTHONPATH."""
    monkeypatch.syspath_prepend(tmp_path)


class Started(Process):
    """A process that has answered before it gets a shard: to start one takes longer than the limits of these tests."""

    def ready(self, seconds: float) -> bool:
        if self.pid is None:
            list(self.call({}, 60.0))
        return super().ready(seconds)


@pytest.fixture
def pool(tmp_path: Path):
    """`pool(shards)` runs shards of keys over two workers and gives the events."""
    (tmp_path / "worker_of_test.py").write_text(WORKER)

    def run(shards, workers=2, stall_seconds=60.0, alone=()):
        def request(shard, number, attempt):
            return {"keys": shard, "folder": str(tmp_path), "attempt": attempt}

        env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
        kind = Process if stall_seconds == 60.0 else Started
        processes = [kind("worker_of_test:work", env=env) for _ in range(workers)]
        return list(run_shards(processes, shards, request, stall_seconds, alone))

    return run


def finished(events) -> list[str]:
    """Keys of the shards that were finished; a shard that died in the middle gives none."""
    return sorted(
        k for e in events if isinstance(e, Message) and "segment" in e.header for k in e.header["segment"]
    )


def test_every_shard_is_done_once_by_workers_that_stay(pool):
    events = pool([["a", "b"], ["c"], ["d", "e"], ["f"]])
    assert finished(events) == list("abcdef")
    assert len({e.header["pid"] for e in events if "pid" in e.header}) <= 2


def test_a_shard_whose_worker_died_once_is_done_again_whole(pool):
    events = pool([["a", "once", "b"], ["c"]])
    assert finished(events) == ["a", "b", "c", "once"]
    assert not any(isinstance(e, Killed) for e in events)


def test_units_that_kill_their_worker_are_isolated_and_the_rest_succeeds(pool):
    events = pool([["a", "b", "deadly1", "c", "d"], ["e", "deadly2"], ["f"]])
    assert finished(events) == list("abcdef")
    killed = {e.key: e.reason for e in events if isinstance(e, Killed)}
    assert set(killed) == {"deadly1", "deadly2"}
    assert all("SIGKILL" in reason for reason in killed.values())
    assert not any(e.own_doing for e in events if isinstance(e, Killed))


@pytest.mark.slow
def test_a_unit_whose_worker_crashes_or_hangs_each_time_is_at_fault_itself(pool):
    events = pool([["a", "crash"], ["b"], ["hangs"]], stall_seconds=1.0)
    assert finished(events) == ["a", "b"]
    assert {e.key: e.own_doing for e in events if isinstance(e, Killed)} == {"crash": True, "hangs": True}


@pytest.mark.slow
def test_a_worker_that_was_stopped_is_killed_and_its_shard_done_again(pool):
    events = pool([["a", "stops"], ["b"]], stall_seconds=1.0)
    assert finished(events) == ["a", "b", "stops"] and not any(isinstance(e, Killed) for e in events)


def test_a_unit_whose_child_was_killed_is_tried_again_alone_after_all_others(pool, tmp_path):
    events = pool([["child", "a"], ["b", "child-always"], ["c"]])
    assert [k for k in finished(events) if k != "child"] == ["a", "b", "c"]
    told = [e.header for e in events if isinstance(e, Message) and "failed" in e.header]
    assert told == [
        {"failed": "child-always", "killed": "signal", "attempt": ALONE}
    ]  # once, after its last attempt
    assert any(e.header.get("done") == "child" for e in events if isinstance(e, Message))
    began = (tmp_path / "began").read_text().split()
    assert sorted(began[:3]) == ["b,child-always", "c", "child,a"] and sorted(began[3:]) == [
        "child",
        "child-always",
    ]


def test_units_of_earlier_kills_cost_one_worker_each_and_come_last(pool, tmp_path):
    events = pool([["a"], ["b"]], alone=["deadly", "c"])
    assert finished(events) == ["a", "b", "c"]
    assert [e.key for e in events if isinstance(e, Killed)] == ["deadly"]
    began = (tmp_path / "began").read_text().split()
    assert sorted(began[:2]) == ["a", "b"] and began[2:] == ["deadly", "c"]
    assert finished(pool([], alone=["c"])) == ["c"]


def test_workers_that_are_killed_again_and_again_end_the_run_with_the_settings_that_need_less_memory(pool):
    with pytest.raises(
        UserError, match=r"13 workers were killed \(SIGKILL.*lower run.workers.*or run.batch_size"
    ):
        pool([[f"deadly{n}", f"deadly{n}b"] for n in range(8)])


def test_batches_are_halved_after_the_second_death():
    work = Work("m:f", [["a"]], "/s", {"a": {}}, [], {"a": []}, {"batch_size": 5}, True)
    sizes = [
        json.loads(work.request(["a"], "cpu", 1, attempt)["options"])["batch_size"] for attempt in range(1, 6)
    ]
    assert sizes == [5, 5, 2, 1, 1]


def test_a_shard_is_tried_three_times_whole_then_in_halves_and_the_unit_at_last_alone(pool, tmp_path):
    events = pool([["a", "b", "deadly", "c"]], workers=1)
    began = (tmp_path / "began").read_text().split()
    assert began == ["a,b,deadly,c"] * TRIES + ["a,b", "deadly,c", "deadly", "c", "deadly"] and TRIES == 3
    assert finished(events) == ["a", "b", "c"]


class NeverReady(Process):
    """A worker for which there is no room."""

    def ready(self, seconds: float) -> bool:
        return False


def test_a_worker_without_a_place_holds_no_shard_up(tmp_path):
    (tmp_path / "worker_of_test.py").write_text(WORKER)
    workers = [
        kind(
            "worker_of_test:work",
            env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        )
        for kind in (NeverReady, Process)
    ]
    events = run_shards(
        workers, [["a"], ["b"]], lambda s, n, attempt: {"keys": s, "folder": str(tmp_path)}, 60
    )
    assert finished(list(events)) == ["a", "b"]


def test_an_error_of_the_code_stops_everything(pool):
    with pytest.raises(ChildError, match="ZeroDivisionError: ours"):
        pool([["a"], ["bug"], ["b"]])


def test_stopping_early_leaves_no_worker(pool, tmp_path):
    (tmp_path / "sleeper_of_test.py").write_text(
        "import os, time\ndef work(request, send):\n    send({'pid': os.getpid()}, {})\n    time.sleep(600)\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    workers = [Process("sleeper_of_test:work", env=env) for _ in range(2)]
    events = run_shards(workers, [["a"], ["b"]], lambda s, n, attempt: {}, 60)
    pids = [next(events).header["pid"] for _ in range(2)]
    events.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_unit_without_any_progress_is_one_that_kills_its_worker(pool):
    events = pool([["hangs"], ["a"]], stall_seconds=1.0)
    assert finished(events) == ["a"]
    (killed,) = [event for event in events if isinstance(event, Killed)]
    assert killed.key == "hangs" and "no progress for 1 s" in killed.reason


def test_no_thread_outlives_a_run_that_failed(pool):
    before = threading.active_count()
    with pytest.raises(ChildError):
        pool([["bug"], ["hangs"]])
    assert threading.active_count() == before


class Timed:
    """A worker of this process that takes `seconds` for a shard."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.done = seconds, 0

    def ready(self, seconds):
        return True

    def call(self, request, timeout_seconds=None):
        time.sleep(self.seconds)
        self.done += 1
        yield {"segment": request["keys"]}, {}

    def kill(self):
        pass


def test_a_worker_that_is_four_times_as_fast_does_about_four_times_as_many_shards():
    """As several GPUs of unlike speed do: each takes the next shard when it is done with one."""
    fast, slow = Timed(0.02), Timed(0.08)
    shards = [[str(n)] for n in range(50)]
    events = list(run_shards([slow, fast], shards, lambda shard, *_: {"keys": shard}, 60.0))
    assert finished(events) == sorted(key for shard in shards for key in shard)
    assert fast.done + slow.done == 50 and 2 * slow.done < fast.done
