"""Costs of a plan as a corpus grows: seconds, memory, index and manifest of 10^3 to 10^6 items, all work done.

Goals: at a million items 60 s and 2 GB; costs an item flat from 10^3 to 10^6. Media and compressed videos are hard
links to a few small files, features empty segments: a plan looks at their sizes, as it does at those of real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.project import Project, open_project

EXPERIMENT = """
corpus = "corpus.jsonl"
store = "store"
methods = ["hlformer", "lean"]
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
[extractors.vgg16]
model = "crossreel-demo"
weights = "seed:0"
[extractors.bert]
model = "crossreel-demo"
weights = "seed:0"
[extractors.triples]
package = "crossreel-small"
"""
CAPTIONS = 2  # an item
LINKS = 30_000  # to one file; ext4 allows 65,000
ITEMS_A_SEGMENT = 512
PLAN = [sys.executable, "-m", "flows.cli", "plan", "experiment.toml", "--json"]
GB = 1e9


def linked(folder: Path, names: Iterator[str]) -> None:
    """Files of one byte, many names to each; a name may lie in a folder of its own."""
    for number, name in enumerate(names):
        if number % LINKS == 0:
            source = folder / f"source{number // LINKS}"
            source.write_bytes(b"x")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True) if number % 256 == 0 or "/" in name else None
        os.link(source, path)


def make(folder: Path, count: int) -> Project:
    """A corpus of so many items, whose digests are remembered and whose features are in the index."""
    project = open_project(make_corpus(folder, count))
    for name, state in project.survey().items():
        if state.stage.over != "corpus":
            fill(project, name, state.keys)
    return project


def make_corpus(folder: Path, count: int) -> Path:
    """The experiment file of a corpus of `count` items, whose digests are remembered in its store."""
    media = folder / "media"
    media.mkdir()
    linked(media, (f"{number % 256:02x}/{number}.mp4" for number in range(count)))
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(count):
            split = ("test", "val", "train")[min(number % 10, 2)]
            captions = [
                {"id": f"v{number}#{n}", "text": f"caption {n} of the video with the number {number}"}
                for n in range(CAPTIONS)
            ]
            item = {"id": f"v{number}", "media": f"media/{number % 256:02x}/{number}.mp4", "split": split}
            file.write(json.dumps(item | {"captions": captions}) + "\n")
    (folder / "experiment.toml").write_text(EXPERIMENT)
    remember(folder, count)
    return folder / "experiment.toml"


def remember(folder: Path, count: int) -> None:
    """The digests of the media, as an earlier run leaves them: all files are alike, items are not."""
    from pipeline.store.store import Store

    index = Store(folder / "store").index
    paths = ((folder / "media" / f"{n % 256:02x}" / f"{n}.mp4", n) for n in range(count))
    index.remember_files(
        (str(path), 1, path.stat().st_mtime_ns, hashlib.blake2b(b"%d" % n, digest_size=16).hexdigest())
        for path, n in paths
    )
    index.close()


def fill(project: Project, name: str, keys: Sequence[str]) -> None:
    """These units of a stage, as they stand when they are made."""
    state, store = project.survey()[name], project.store
    fp, suffix = state.fingerprint.hex, state.stage.file_suffix
    folder = store.segments_folder(name, fp)
    folder.mkdir(parents=True)
    for start in range(0, len(keys), ITEMS_A_SEGMENT):
        part = keys[start : start + ITEMS_A_SEGMENT]
        (folder / f"{name}{start}.h5").touch()
        store.index.add_segment(f"{name}{start}", fp, 0, dict.fromkeys(part, 1 if suffix else None))
    if suffix:
        files = store.root / "files" / name / fp
        files.mkdir(parents=True)
        linked(files, (f"{key[:2]}/{key}{suffix}" for key in keys))


def measured(folder: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak GB of `crossreel plan`."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = f"import subprocess, resource, sys; subprocess.run({PLAN!r}, check=True, stdout=subprocess.DEVNULL); " \
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    took, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took, cpu, int(done.stdout) * 1024 / GB


def main() -> None:
    """Make each corpus, plan it, print a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 10_000, 100_000])
    arguments = parser.parse_args()
    print(f"{'items':>9} {'plan s':>8} {'CPU s':>8} {'CPU us/item':>12} {'GB':>6} {'index bytes/item':>17}")
    for count in arguments.items:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            project = make(folder, count)
            project.store.index.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            project.store.index.close()
            size = (folder / "store" / "index.sqlite").stat().st_size
            seconds, cpu, peak = measured(folder)
            print(
                f"{count:>9,} {seconds:>8.1f} {cpu:>8.1f} {1e6 * cpu / count:>12.1f} {peak:>6.2f} "
                f"{size / count:>17.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
