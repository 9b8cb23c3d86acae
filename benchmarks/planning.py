"""Costs of a run besides the work of its stages.

1. A run over an unchanged corpus of 10,000 items, against a form that asks the index once an item. Goal: at most 5 s.
   Prints seconds of both and their ratio, from one interleaved run.
2. With `--grown 100000`: a run of sixteen stages over a corpus of so many items, of which each stage but the last
   three, which are over the corpus, lacks 1,000 (`--new`). Prints the CPU seconds of the coordinating process, which
   are all but those of the workers: opening, surveys, shards, the record of every outcome. Goal: at most 15 CPU s.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import scale, synthetic
from flows.console import StageDisplay
from flows.project import Project, open_project
from flows.run import run_stages
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.store.fingerprint import digest_file
from pipeline.store.index import Index

EXPERIMENT = """
corpus = "corpus.jsonl"
store = "store"
extract = ["clip", "clip_text"]
[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"
"""
ITEMS_A_SEGMENT = 32


def make(folder: Path, count: int) -> Path:
    """A corpus of small media files whose extraction is done, through the store's own writer."""
    items = []
    for number in range(count):
        media = folder / f"media/{number % 100:02d}/{number}.mp4"
        media.parent.mkdir(parents=True, exist_ok=True)
        media.write_bytes(b"%d" % number)
        captions = tuple(Caption(f"{number}#{n}", f"caption {n} of item {number}") for n in range(2))
        items.append(Item(str(number), "train", captions, str(media.relative_to(folder))))
    write_manifest(folder / "corpus.jsonl", items)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    project = open_project(folder / "experiment.toml")
    for name, state in project.survey().items():
        fill(project, name, list(state.keys))
    return folder / "experiment.toml"


def fill(project: Project, name: str, keys: list[str]) -> None:
    """Rows and files of every unit of a stage."""
    state, store = project.survey()[name], project.store
    rows = {
        field: np.zeros((4, *([8] * (len(f.shape) - 1))), f.dtype) for field, f in state.stage.fields.items()
    }
    for start in range(0, len(keys), ITEMS_A_SEGMENT):
        with store.writer(name, state.fingerprint, state.stage.fields) as writer:
            for key in keys[start : start + ITEMS_A_SEGMENT]:
                size = None
                if state.stage.file_suffix:
                    file = store.item_file(name, state.fingerprint.hex, key, state.stage.file_suffix)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(b"x")
                    size = 1
                writer.append(key, key, rows, {}, size)
            items, path = dict(writer.items), writer.finish()
        if path is not None:
            store.index.add_segment(path.stem, state.fingerprint.hex, path.stat().st_size, items)


def ours(path: Path) -> float:
    """Seconds of a whole run that finds everything made."""
    started = time.perf_counter()
    project = open_project(path)
    result = run_stages(project, list(project.stages), StageDisplay(quiet=True))
    took = time.perf_counter() - started
    if result.ran:
        raise SystemExit("the store should have been complete")
    return took


def plain(path: Path) -> float:
    """Seconds of the same answer, reading every item's bytes and asking the index for each unit by itself."""
    started = time.perf_counter()
    project = open_project(path)
    for item in project.contents.corpus.items:
        digest_file(project.contents.corpus.path.parent / str(item.media))
    for state in project.survey().values():
        sql = "SELECT segment FROM artifacts WHERE fp=? AND item=?"
        for key in state.keys:
            project.store.index.db.execute(sql, (state.fingerprint.hex, key)).fetchone()
    return time.perf_counter() - started


def grown(folder: Path, count: int, new: int) -> dict[str, float]:
    """CPU seconds of this process in a run of the synthetic stages, which lack the last `new` of `count` items."""
    path = scale.make_corpus(folder, count)
    project = replace(open_project(path), stages=synthetic.stages())
    captions = list(project.contents.captions())
    old = {
        "items": list(project.contents.items())[: count - new],
        "captions": captions[: scale.CAPTIONS * (count - new)],
    }
    for name, state in project.survey().items():
        if state.stage.over != "corpus":
            scale.fill(project, name, old[state.stage.over])
    project.store.index.close()

    started, wall, reads = time.process_time(), time.perf_counter(), [0]
    project = replace(open_project(path), stages=synthetic.stages())
    opened = time.process_time() - started
    count_reads(project.store.index, reads)
    result = run_stages(project, list(project.stages), StageDisplay(quiet=True))
    cpu = time.process_time() - started
    project.store.index.close()
    made = [report.ran for report in result.reports]
    if len(made) != 16 or any(ran not in (1, new, scale.CAPTIONS * new) for ran in made):
        raise SystemExit(f"every stage should have made what it lacks: {made}")
    return {"cpu": cpu, "opening": opened, "wall": time.perf_counter() - wall, "table reads": float(reads[0])}


def count_reads(index: Index, reads: list[int]) -> None:
    """Count in `reads[0]` how often the table of a stage's artifacts is read whole from here on."""

    def count(statement: str) -> None:
        reads[0] += statement.startswith("SELECT item, segment, row, file_bytes FROM artifacts")

    index.db.set_trace_callback(count)


def main() -> None:
    """Make the corpus, time both forms in turns; or run the sixteen stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grown", type=int, default=0, help="items of the run of sixteen stages")
    parser.add_argument("--new", type=int, default=1_000, help="items of those that each stage lacks")
    arguments = parser.parse_args()
    if arguments.grown:
        with tempfile.TemporaryDirectory() as name:
            found = grown(Path(name), arguments.grown, arguments.new)
        print(f"a run of 16 stages over {arguments.grown:,} items, {arguments.new:,} of them new (goal: 15 CPU s): "
              f"{found['cpu']:.1f} CPU s, {found['opening']:.1f} of them for opening; "
              f"{found['table reads']:.0f} reads of a stage's table, "
              f"{found['wall']:.0f} s with the workers")  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as name:
        path = make(Path(name), arguments.items)
        pairs = [(ours(path), plain(path)) for _ in range(arguments.rounds)]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"a run over {arguments.items} unchanged items (goal: 5 s): {mine:.2f} s, item by item {other:.2f} s, "
          f"ratio {other / mine:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
