"""Costs as a corpus grows: of a plan to 10^6 items, and of every stage at the sizes of published data sets.

    python benchmarks/scale.py [--items 1000 10000 100000]
    python benchmarks/scale.py --shape msrvtt [--items 100 1000 10000] [--rows FILE] [--folder FOLDER]

The first form plans a corpus whose work is all done. Goals: at a million items 60 s and 2 GB; costs an item flat from
10^3 to 10^6. Media and compressed videos are hard links to a few small files, features empty segments: a plan looks at
their sizes, as it does at those of real ones.

The second form makes a corpus (benchmarks/shapes.py) at each size, brings it to its report stage by stage, each in a
command of its own, and prints two tables: CPU milliseconds and bytes of each unit of work, with the exponent of their
growth, and the largest anonymous memory of each kind of process. Goals: every exponent at most 1.05; memory of every
process within 1.5 times from the first size to the last. A command's start, the import of torch say, costs the same at
all sizes and would hide growth: the exponent is that of C(n3) - C(n2) against C(n2) - C(n1). With `--rows`
and `--folder`, a call that was broken off is continued by the same call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import process_tree, shapes
from benchmarks.shapes import PLAN
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


def measure_shape(shape: str, counts: Sequence[int], kept: Path | None, folder: Path) -> None:
    """Bring a corpus of each size to its report, print each step, and then the tables of all sizes.

    Steps that `kept` holds are not run again; their outputs are in the corpus' folder, which goes when all are done.
    """
    rows = read_rows(kept)
    for count in counts:
        done = {row["step"] for row in rows if (row["shape"], row["items"]) == (shape, count)}
        if shapes.LAST in done:
            continue
        place = folder / f"{shape}-{count}"
        place.mkdir(exist_ok=True)
        for step in shapes.SHAPES[shape](place, count):
            if step.name in done:
                continue
            rows.append(measure_step(shape, count, step, place))
            print(json.dumps(rows[-1]), flush=True)
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        shutil.rmtree(place)
    print_tables([row for row in rows if row["shape"] == shape and row["items"] in counts])


def read_rows(kept: Path | None) -> list[dict[str, Any]]:
    """What an earlier call measured."""
    return [json.loads(line) for line in kept.read_text().splitlines()] if kept and kept.exists() else []


def measure_step(shape: str, count: int, step: shapes.Step, place: Path) -> dict[str, Any]:
    """Run a step, and return its cost."""
    found = process_tree.cost(step.command, place, {"OMP_NUM_THREADS": "1"})
    return {
        "shape": shape, "items": count, "step": step.name, "unit": step.unit, "units": step.units,
        "grows": step.grows, "cpu": round(found.cpu, 3), "seconds": round(found.seconds, 2),
        "bytes": shapes.bytes_of(place / "store", step.stages), **validation(place / "store", step.stages),
        "mb": {k: round(v) for k, v in found.peak_mb.items()},
    }  # fmt: skip


def validation(store: Path, stages: Sequence[str]) -> dict[str, float]:
    """Seconds of an epoch's steps and of its validation, of a step that trains."""
    found: dict[str, float] = {}
    for history in (path for stage in stages if stage.startswith("train-") for path in
                    (store / "runs" / stage).glob("*/history.jsonl")):  # fmt: skip
        row = json.loads(history.read_text().splitlines()[-1])
        found = {name: round(row[name], 2) for name in ("training_seconds", "validation_seconds")}
    return found


def print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables of time and bytes, and of memory, in Markdown."""
    counts = sorted({row["items"] for row in rows})
    steps = list(dict.fromkeys(row["step"] for row in rows))
    found = {(row["step"], row["items"]): row for row in rows}
    sizes = " | ".join(f"{count:,}" for count in counts)
    print(
        f"\n| step | unit | units | CPU s at {sizes} | CPU ms a unit | exponent | bytes a unit at {sizes} |"
    )
    print("| --- " * (5 + 2 * len(counts)) + "|")
    for step in steps:
        of_step = [found[step, count] for count in counts if (step, count) in found]
        each = [found.get((step, count)) for count in counts]
        cells = [step, of_step[-1]["unit"], f"{of_step[-1]['units']:,}"]
        cells += [f"{row['cpu']:.1f}" if row else "-" for row in each]
        cells += [marginal(of_step), exponent(of_step)]
        cells += [f"{row['bytes'] / row['units']:,.0f}" if row and row["bytes"] else "-" for row in each]
        print(f"| {' | '.join(cells)} |")
    print(f"\n| step | process | peak MB at {sizes} | last against first |")
    print("| --- " * (3 + len(counts)) + "|")
    for step in steps:
        each = [found.get((step, count)) for count in counts]
        for kind in dict.fromkeys(kind for row in each if row for kind in row["mb"] if kind != "other"):
            peaks = [row["mb"].get(kind) if row else None for row in each]
            known = [peak for peak in peaks if peak]
            if max(known, default=0) < LEAST_MB:
                continue
            ratio = f"{known[-1] / known[0]:.2f}" if len(known) > 1 else "-"
            shown = ["-" if peak is None else f"{peak:,}" for peak in peaks]
            print(f"| {' | '.join([step, kind, *shown, ratio])} |")


LEAST_MB = 30  # peak below which a process is left out of the table: ffmpeg asked for its version


def marginal(rows: Sequence[Mapping[str, Any]]) -> str:
    """CPU milliseconds of a unit between the last two sizes, without a command's start."""
    if len(rows) < 2:
        return f"{1e3 * rows[-1]['cpu'] / rows[-1]['units']:.3g}"
    a, b = rows[-2:]
    return f"{1e3 * (b['cpu'] - a['cpu']) / (b['units'] - a['units']):.3g}"


LEAST_CPU_SECONDS = 1.0  # growth between two sizes below which the noise of a command's start decides


def exponent(rows: Sequence[Mapping[str, Any]]) -> str:
    """Power of the number of units with which the CPU seconds grow beyond a constant; "-" where that is noise."""
    if len(rows) < 3:
        return "-"
    a, b, c = rows[-3:]
    before, after = b["cpu"] - a["cpu"], c["cpu"] - b["cpu"]
    if after < LEAST_CPU_SECONDS:
        return "flat"
    if before < LEAST_CPU_SECONDS:
        return "-"
    units = (c["units"] - b["units"]) / (b["units"] - a["units"])
    return f"{math.log(after / before) / math.log(units):.2f}"


def main() -> None:
    """Make each corpus and measure it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+")
    parser.add_argument("--shape", choices=shapes.SHAPES, help="bring a corpus of this shape to its report")
    parser.add_argument(
        "--rows", type=Path, help="JSON lines of what was measured; a later call goes on there"
    )
    parser.add_argument("--tables", action="store_true", help="measure nothing: print what --rows holds")
    parser.add_argument("--folder", type=Path, help="where corpora are made; they are removed afterwards")
    arguments = parser.parse_args()
    if arguments.shape:
        counts = arguments.items or shapes.SIZES[arguments.shape]
        if arguments.tables:
            print_tables([row for row in read_rows(arguments.rows) if row["shape"] == arguments.shape])
            return
        with tempfile.TemporaryDirectory() as name:
            measure_shape(arguments.shape, counts, arguments.rows, arguments.folder or Path(name))
        return
    plans(arguments.items or [1000, 10_000, 100_000])


def plans(counts: Sequence[int]) -> None:
    """Make each corpus, plan it, print a row."""
    print(f"{'items':>9} {'plan s':>8} {'CPU s':>8} {'CPU us/item':>12} {'GB':>6} {'index bytes/item':>17}")
    for count in counts:
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
