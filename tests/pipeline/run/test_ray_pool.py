"""Ray actors fail as local workers do: shards are tried again, the unit at fault is found, nothing is left."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.child import ChildError
from pipeline.errors import UserError
from pipeline.run.engines import ray as ray_engine
from pipeline.run.engines import reaper
from pipeline.run.engines.choice import engine_for
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.ray import RayEngine
from pipeline.run.engines.reaper import members
from pipeline.run.engines.work import Work
from pipeline.run.pool import Killed, Message
from pipeline.settings import fill

installed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs crossreel[ray]")

WORKER = """
import os, signal, time
from pathlib import Path

def once(folder, what):
    try:
        (folder / what).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def work(request, send):
    folder = Path(request["store"])
    for unit in request["units"]:
        key = unit["key"]
        if key == "bug":
            raise ZeroDivisionError("ours")
        if key == "sleeps":
            send({"pid": os.getpid(), "actor": os.getppid()}, {})
            time.sleep(600)
        if key == "hangs":
            time.sleep(600)
        if key == "deadly" or (key == "once" and once(folder, key)):
            os.kill(os.getpid(), signal.SIGSEGV)
        if key == "actor" and once(folder, key):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        if key.startswith("node"):
            (folder / key).write_text(f"{os.environ['PLACE']} {os.getpid()}")
            while not (folder / "go").exists():
                time.sleep(0.05)
        send({"done": key, "pid": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"],
              "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "place": os.environ.get("PLACE")}, {})
    send({"segment": [unit["key"] for unit in request["units"]]}, {})
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory) -> Iterator[Path]:
    """A folder whose modules workers on this machine can import."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "worker_of_test.py").write_text(WORKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("CUDA_VISIBLE_DEVICES", "0")  # a GPU as far as Ray's bookkeeping goes
        patch.setenv("CROSSREEL_GPU_LOCKS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def engine(modules) -> Iterator[RayEngine]:
    """A cluster of our own, shared by the tests that leave it alive."""
    engine = RayEngine(RunOptions(engine="ray", workers=2, stall_seconds=15.0, gpu_fraction=0.5))
    yield engine
    engine.close()


def work(folder: Path, shards: list[list[str]], network: bool = False) -> Work:
    keys = [key for shard in shards for key in shard]
    units = {key: {"key": key} for key in keys}
    return Work(
        "worker_of_test:work",
        shards,
        str(folder),
        units,
        [],
        {key: [] for key in keys},
        {"batch_size": 8},
        network,
    )


def finished(events) -> list[str]:
    return sorted(
        k for e in events if isinstance(e, Message) and "segment" in e.header for k in e.header["segment"]
    )


def session_of(engine: RayEngine) -> int:
    assert engine._driver is not None and engine._driver.pid is not None
    return engine._driver.pid


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def gone_within(seconds: float, *pids: int) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


@installed
@pytest.mark.long
def test_deaths_of_worker_and_actor_are_made_good_and_units_at_fault_found(engine, tmp_path):
    shards = [["a", "once", "b"], ["c", "actor"], ["d", "deadly"], ["hangs"], ["e"]]
    events = list(engine.run(work(tmp_path, shards)))
    assert finished(events) == ["a", "actor", "b", "c", "d", "e", "once"]
    killed = {e.key: e.reason for e in events if isinstance(e, Killed)}
    assert set(killed) == {"deadly", "hangs"}
    assert "SIGSEGV" in killed["deadly"] and "no progress for 15 s" in killed["hangs"]


@installed
@pytest.mark.slow
def test_workers_stay_have_their_share_of_a_gpu_and_listen_to_this_machine_alone(engine, tmp_path):
    events = list(engine.run(work(tmp_path, [["a"], ["b"], ["c"], ["d"], ["e"]], network=True)))
    assert finished(events) == list("abcde")
    told = [event.header for event in events if "done" in event.header]
    assert len({header["pid"] for header in told}) <= 2
    assert {header["gpu"] for header in told} == {"0"} and {header["threads"] for header in told} == {"1"}
    assert listening(members(session_of(engine))) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening(pids: list[int]) -> set[str]:
    """The addresses at which processes listen for TCP connections."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(link).removeprefix("socket:[").rstrip("]"))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state, inode = line.split()[1], line.split()[3], line.split()[9]
            if state == "0A" and inode in inodes:
                found.add(address(local.split(":")[0]))
    assert found
    return found


def address(raw: str) -> str:
    words = [bytes.fromhex(raw[i : i + 8])[::-1] for i in range(0, len(raw), 8)]
    return str(ipaddress.ip_address(b"".join(words))).replace("::ffff:7f00:1", "::ffff:127.0.0.1")


@installed
@pytest.mark.long
def test_an_error_of_the_code_ends_the_work_and_the_cluster(engine, tmp_path):
    list(engine.run(work(tmp_path, [["a"]])))
    session, folder = session_of(engine), Path(engine._folder)
    assert members(session) and folder.is_dir()
    with pytest.raises(ChildError, match="ZeroDivisionError: ours"):
        list(engine.run(work(tmp_path, [["a"], ["bug"], ["b"]])))
    assert members(session) == [] and not folder.exists()


@installed
@pytest.mark.long
def test_a_new_cluster_is_started_and_stopping_early_leaves_nothing_of_it(engine, tmp_path):
    events = engine.run(work(tmp_path, [["sleeps"], ["a"]]))
    told = next(event.header for event in events if "actor" in event.header)
    session = session_of(engine)
    events.close()
    assert members(session) == [] and gone_within(30, told["pid"], told["actor"])


COORDINATOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.ray import RayEngine
from pipeline.run.engines.work import Work
engine = RayEngine(RunOptions(engine="ray", workers=1))
units = {"sleeps": {"key": "sleeps"}}
work = Work("worker_of_test:work", [["sleeps"]], sys.argv[1], units, [], {"sleeps": []}, {"batch_size": 8}, False)
for event in engine.run(work):
    print(engine._driver.pid, event.header["actor"], event.header["pid"], engine._folder, flush=True)
"""


@installed
@pytest.mark.long
def test_a_coordinator_that_is_killed_leaves_nothing(modules):
    run = subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(modules)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    driver, actor, worker, folder = run.stdout.readline().split()
    assert all(alive(int(pid)) for pid in (driver, actor, worker)) and Path(folder).is_dir()
    run.kill()
    run.communicate()
    assert gone_within(30, int(driver), int(actor), int(worker))
    deadline = time.monotonic() + 60
    while (members(int(driver)) or Path(folder).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(int(driver)) == [] and not Path(folder).exists()


NODES = """
import os, sys
from ray.cluster_utils import Cluster
quiet = {"include_dashboard": False, "object_store_memory": 80 << 20}
os.environ["PLACE"] = "head"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **quiet})
os.environ["PLACE"] = "other"
node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(node, allow_graceful=False)
    print("removed", flush=True)
cluster.shutdown()
"""


@installed
@pytest.mark.long
def test_the_shard_of_a_lost_node_is_done_on_another(modules, tmp_path):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    env = os.environ | ray_engine.QUIET | ray_engine.LOOPBACK | token
    nodes = subprocess.Popen(
        [sys.executable, "-c", NODES], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert nodes.stdin is not None and nodes.stdout is not None
    try:
        cluster = nodes.stdout.readline().strip()
        options = RunOptions(engine="ray", address=cluster)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**ray_engine.LOOPBACK, **token}.items():
                patch.setenv(name, value)
            engine = RayEngine(options)
            loses_node = threading.Thread(target=lose_a_node, args=(tmp_path, nodes))
            loses_node.start()
            seen = list(engine.run(work(tmp_path, [["node1", "a"], ["node2", "b"]])))
            loses_node.join()
        engine.close()
        assert {path.read_text().split()[0] for path in tmp_path.glob("node*")} == {
            "head"
        }  # at last, of both
        assert finished(seen) == ["a", "b", "node1", "node2"]
        assert not any(isinstance(event, Killed) for event in seen)
        assert nodes.poll() is None  # a cluster that is not ours goes on
    finally:
        nodes.kill()
        nodes.communicate()
        reaper.end(nodes.pid)


def lose_a_node(folder: Path, nodes: subprocess.Popen[str]) -> None:
    """Once both nodes work on a shard, take one away; when its worker is gone, let the other go on."""
    deadline = time.monotonic() + 60
    while len(told := [path.read_text().split() for path in folder.glob("node*")]) < 2 or not all(told):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert nodes.stdin is not None and nodes.stdout is not None
    print("now", file=nodes.stdin, flush=True)
    nodes.stdout.readline()
    worker = dict(told)["other"]
    if gone_within(30, int(worker)):
        (folder / "go").touch()


@installed
@pytest.mark.parametrize(
    ("options", "network", "nodes", "workers", "gpu"),
    [({}, False, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0}], 6, None),
     ({}, True, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 2.0}], 2, 1.0),
     ({"gpu_fraction": 0.3}, True, [{"CPU": 16.0, "GPU": 1.0}], 3, 0.3),
     ({"device": "cpu"}, True, [{"CPU": 4.0, "GPU": 2.0}], 4, None),
     ({"worker_cpus": 3}, False, [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 7.0}], 3, None),
     ({"workers": 5}, False, [{"CPU": 4.0}], 5, None),
     ({"resources": {"disk": 2}}, False, [{"CPU": 4.0}, {"CPU": 4.0, "disk": 3.0}], 1, None)],
)  # fmt: skip
def test_workers_are_as_many_as_fit_on_the_nodes(options, network, nodes, workers, gpu):
    from pipeline.run.engines.ray_driver import Demand

    demand = Demand.of(RunOptions(**options), network, nodes)
    assert demand.workers == workers and demand.each.get("num_gpus") == gpu


@installed
def test_a_worker_that_fits_on_no_node_is_refused():
    from pipeline.run.engines.ray_driver import Demand

    with pytest.raises(UserError, match="needs CPU 3, GPU 1; the nodes have CPU 2, GPU 1; CPU 4, GPU 0"):
        Demand.of(RunOptions(worker_cpus=3, device="cuda"), True, [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 4.0}])


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run.engine = 'ray' needs Ray: pip install 'crossreel\[ray\]'"):
        engine_for(RunOptions(engine="ray"), print)


def test_the_engine_is_imported_without_ray(run_python):
    code = "import sys, pipeline.run.engines.choice; assert 'ray' not in sys.modules"
    assert run_python(code).code == 0


@pytest.mark.parametrize(
    ("table", "sentence"),
    [({"engine": "dask"}, "run.engine = 'dask' is not possible: input should be 'local' or 'ray'"),
     ({"address": "ray://head:10001"}, "run.address = 'ray://head:10001' is not possible: run on a machine of"),
     ({"gpu_fraction": 0}, "run.gpu_fraction = 0 is not possible"),
     ({"adress": "auto"}, "unknown setting run.adress; did you mean 'address'?")],
)  # fmt: skip
def test_settings_of_a_run_are_checked(table, sentence):
    with pytest.raises(UserError) as raised:
        fill(RunOptions, table, "run")
    assert sentence in str(raised.value)
