"""Speed of push and pull in MB per second and per CPU second, through a folder or a given URL.

Makes a store with a finished folder of some large files and one of many small ones, pushes it, and pulls it
into an empty store. With no URL, the folder is on the disk that holds the temporary files.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.store.fingerprint import Fingerprint
from pipeline.store.store import Store
from pipeline.store.transfer.pull import pull
from pipeline.store.transfer.push import push
from pipeline.store.transfer.remote import Remote
from pipeline.store.transfer.work import How, Outcome

MB = 10**6


def fill(store: Store, name: str, files: int, size: int) -> None:
    """A finished folder with `files` files of random bytes."""
    fingerprint = Fingerprint.of({"stage": name})
    work = store.work_folder(name, fingerprint.hex)
    work.mkdir(parents=True)
    for number in range(files):
        (work / str(number)).write_bytes(os.urandom(size))
    store.publish(name, fingerprint, 0.0, {})


def timed(what: str, act: Callable[[], Outcome]) -> None:
    """Print what a transfer moved, and how fast."""
    wall, cpu = time.perf_counter(), time.process_time()
    outcome = act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    size = outcome.bytes / MB
    rates = f"{size / wall:7.0f} MB/s {size / cpu:7.0f} MB/CPU s {outcome.files / wall:7.0f} files/s"
    print(f"{what:16} {size:7.0f} MB {outcome.files:6} files {wall:6.1f} s {rates}")


def main() -> None:
    """Push and pull large files, then small ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", help="where to, instead of a folder")
    parser.add_argument("--endpoint-url")
    parser.add_argument("--jobs", type=int, default=4)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, how = Path(folder), How(asked.jobs)
        remote = Remote.open(asked.url or str(root / "shelf"), asked.endpoint_url)
        store, other = Store(root / "store"), Store(root / "other")
        for name, files, size in (("large", 4, 100 * MB), ("small", 1000, 100_000)):
            fill(store, name, files, size)
            timed(f"push, {name}", lambda: push(store, remote, how=how))
            timed(f"pull, {name}", lambda: pull(other, remote, how=how))
        timed("push again", lambda: push(store, remote, how=how))


if __name__ == "__main__":
    main()
