"""Two machines on one store: each sees the shared folder elsewhere, one makes the work, the other waits for it.

A machine is a process tree with a mount and a network namespace of its own, in which the store is bound to
another path and no network is up. What needs no namespaces is tested with a link in place of the mount.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flows.project import open_project
from pipeline.store.store import Store

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


def namespaces() -> bool:
    """Whether this user may mount folders and leave the network in a namespace of his own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rmn", "sh", "-c", "mount --bind /tmp /tmp"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def machine(lab, folder: Path):
    """A copy of the lab's media, corpus and experiment in another folder, with no store yet."""
    shutil.copytree(lab.folder, folder, ignore=shutil.ignore_patterns("machines", "shared"))
    return replace(lab, folder=folder)


def linked(one, shared: Path) -> Start:
    """Starts a command on a machine whose store is a link to the shared folder."""
    one.store.symlink_to(shared)
    return one.start


def mounted(one, shared: Path) -> Start:
    """Starts a command on a machine where the shared folder is mounted as the store, and no network is up."""
    one.store.mkdir()
    prepare = (
        f"mount --bind {shlex.quote(str(shared))} {shlex.quote(str(one.store))} && "
        "test $(wc -l < /proc/net/route) -le 1"  # the heading alone: nothing can be reached
    )

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = shlex.join([sys.executable, "-P", "-m", "flows.cli", *map(str, arguments)])
        return subprocess.Popen(
            ["unshare", "-rmn", "sh", "-c", f"{prepare} && exec {command}"], cwd=one.folder, text=True,
            env=os.environ | {"CROSSREEL_TEST_MARK": one.mark}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.mark.parametrize("how", ["link", "mount"])
def test_two_machines_make_the_work_once_and_both_end_well(lab, tmp_path, how):
    if how == "mount" and not namespaces():
        pytest.skip("this user may not make mount and network namespaces (unshare -rmn)")
    shared = tmp_path / "shared"
    shared.mkdir()
    machines = [machine(lab, tmp_path / "machines" / name) for name in ("one", "two")]
    starts = [(linked if how == "link" else mounted)(one, shared) for one in machines]
    runs = [
        start("stage", "compress", one.toml, "--json") for start, one in zip(starts, machines, strict=True)
    ]
    told = []
    for run in runs:
        out, err = run.communicate(timeout=240)
        assert run.returncode == 0, err
        told.append({stage["stage"]: stage for stage in json.loads(out)["stages"]})
    assert sum(one["compress"]["ran"] for one in told) == 12
    assert all(one["compress"]["ran"] + one["compress"]["cached"] == 12 for one in told)
    store = Store(shared)
    assert store.verify() == [] and whole_index(store)
    if how == "mount":
        assert not any(
            any(one.store.iterdir()) for one in machines
        )  # what they saw there was the shared folder


def whole_index(store: Store) -> bool:
    """Whether the index is sound and says what one that is built anew from the segments says."""
    ((sound,),) = store.index.db.execute("PRAGMA integrity_check").fetchall()
    prints = store.index.fingerprints()
    known = {fp: store.places(stage, fp) for fp, (stage, _) in prints.items()}
    store.index.close()
    for path in store.root.glob("index.sqlite*"):
        path.unlink()
    again = Store(store.root)
    return sound == "ok" and known == {fp: again.places(stage, fp) for fp, (stage, _) in prints.items()}


def test_a_machine_waits_for_the_lock_that_another_holds(small, tmp_path):
    """The lock is the file's, not the path's: another path of the same folder makes no difference."""
    shared = tmp_path / "shared"
    shared.mkdir()
    one, two = (machine(small, tmp_path / "machines" / name) for name in ("one", "two"))
    start = mounted(two, shared) if namespaces() else linked(two, shared)
    linked(one, shared)
    project = open_project(one.toml)
    with project.store.lock("compress", project.survey()["compress"].fingerprint.hex):
        waiting = start("stage", "compress", two.toml)
        told = iter(waiting.stderr.readline, "")
        assert any(line.startswith("compress is being made by process") for line in told)
        assert waiting.poll() is None and not any(shared.glob("segments/compress/*"))
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and "compress: 3 made" in err, err
