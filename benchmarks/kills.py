"""Kills of runs and of single children, at random moments: how many leave a store that is wrong?

    python benchmarks/kills.py 200 --seed 0
    python benchmarks/kills.py 20 --stage compress --stall 20 --only ffmpeg
    python benchmarks/kills.py 200 --per-store 5    a kill after the other, and a comparison after each fifth

Renders clips, makes one experiment's store without any kill, and then the same with N: SIGKILL of the run,
of a worker, a decoder, an ffmpeg, a training, SIGTERM of an ffmpeg, SIGSTOP of a worker, a decoder, an ffmpeg, and
SIGKILL of `crossreel run` under Prefect, of its worker and of its server.
The command is then given again until it ends with 0, and the store is compared with the one that was left alone: rows
by item, compressed files, weights, `store verify`, processes and folders left over. It prints each kill, with what
differs where a store is wrong, and at the end the kills by kind and the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import find_ffmpeg

CLIPS = 12
SPLITS = ("train", "train", "val", "test")
ROWS = ("compress", "clip", "clip_text")
SMALL = Path(__file__).parents[1] / "tests/fixtures/experiments/hlformer.toml"
RUN = "\n[run]\nworkers = 2\nstall_seconds = {worker}\nitem_seconds = {child}\n"
FILE = "experiment.toml"
OUTPUT, WORDS = "output.txt", 600  # of the last command, and the characters of its end that are shown
MOST_TRIES = 4  # attempts of the command after a kill


@dataclass(frozen=True)
class Blow:
    """The process that is hit, the signal, and the running command; `entry` is a word of the process's command line."""

    name: str
    signal: int
    entry: str = ""  # "": the command itself
    prefect: bool = False  # `crossreel run` in place of `crossreel stage`


BLOWS = (
    Blow("stage, SIGKILL", signal.SIGKILL),
    Blow("worker, SIGKILL", signal.SIGKILL, "extractors.shard:run"),
    Blow("worker, SIGSTOP", signal.SIGSTOP, "extractors.shard:run"),
    Blow("decoder, SIGKILL", signal.SIGKILL, "video:serve_decode"),
    Blow("decoder, SIGSTOP", signal.SIGSTOP, "video:serve_decode"),
    Blow("ffmpeg, SIGKILL", signal.SIGKILL, "libx264"),
    Blow("ffmpeg, SIGTERM", signal.SIGTERM, "libx264"),
    Blow("ffmpeg, SIGSTOP", signal.SIGSTOP, "libx264"),
    Blow("training, SIGKILL", signal.SIGKILL, "corpus_process:serve"),
    Blow("Prefect run, SIGKILL", signal.SIGKILL, prefect=True),
    Blow("Prefect run's worker, SIGKILL", signal.SIGKILL, "extractors.shard:run", prefect=True),
    Blow("Prefect run's server, SIGKILL", signal.SIGKILL, "flows.deployment.server", prefect=True),
)


def make_lab(folder: Path, stall_seconds: int) -> None:
    """Twelve clips, their corpus and an experiment."""
    folder.mkdir(parents=True)
    items = []
    for n in range(CLIPS):
        source = f"testsrc=duration=2:size=160x120:rate=25,hue=h={30 * n}"
        subprocess.run(
            [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", source, "-preset", "ultrafast", "-pix_fmt", "yuv420p",
             str(folder / f"clip{n:02}.mp4")], check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        captions = tuple(Caption(f"{n}#{k}", f"clip {n} seen {k} times") for k in range(2))
        items.append(Item(f"clip{n:02}", SPLITS[n % 4], captions, f"clip{n:02}.mp4"))
    write_manifest(folder / "corpus.jsonl", items)
    text = SMALL.read_text(encoding="utf-8") + RUN.format(worker=2 * stall_seconds, child=stall_seconds)
    (folder / FILE).write_text(text, encoding="utf-8")


def content(folder: Path) -> dict[str, object]:
    """The content of a store that must be the same after kills: rows by item, files, weights."""
    project = open_project(folder / FILE)
    out: dict[str, object] = {}
    for name, state in project.survey().items():
        if name == "report":  # only `crossreel run` makes it, not the command that left the other store alone
            continue
        fp = state.fingerprint.hex
        out[f"state {name}"] = (state.done, len(state.failed), len(state.killed))
        if name in ROWS:
            reader = project.store.reader(name, fp)
            for key in state.places:
                out[f"{name} {key}"] = [reader.rows(key, f, check=True).tobytes() for f in state.stage.fields]
                if state.stage.file_suffix:
                    out[f"file {key}"] = project.store.item_file(name, fp, key, ".mp4").read_bytes()
        elif name.startswith("train") and state.complete:
            out["weights"] = (project.store.run_folder(name, fp) / "weights.safetensors").read_bytes()
    project.store.index.close()
    return out


def started(folder: Path, mark: str, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """A command of crossreel whose processes are found by a mark in their environment."""
    with (folder / OUTPUT).open("wb") as output:
        return _started(folder, mark, command, output)


def _started(folder: Path, mark: str, command: tuple[str, ...], output: BinaryIO) -> subprocess.Popen[bytes]:
    env = os.environ | {"KILLS_MARK": mark, "PREFECT_HOME": str(folder.parent / "prefect")}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.cli", *command], cwd=folder, env=env,
        stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
    )  # fmt: skip


def marked(mark: str, entry: str = "") -> list[int]:
    """Processes with a mark whose command line has a word."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            if line and entry.encode() in line and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def struck(folder: Path, blow: Blow, stage: str, chance: random.Random, seconds: float) -> bool:
    """Start the command and hit it once at a random moment; False if there was nothing to hit."""
    mark = uuid.uuid4().hex
    process = started(folder, mark, ("run", FILE) if blow.prefect else ("stage", stage, FILE))
    due, hit = time.monotonic() + chance.uniform(0.0, seconds), False
    while process.poll() is None and not hit:
        time.sleep(0.01)
        if blow.entry:
            targets = (
                marked(mark, blow.entry) if chance.random() < 0.3 else []
            )  # not always the first that appears
        else:
            targets = [process.pid] if time.monotonic() >= due else []
        if targets:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(targets), blow.signal)
                hit = True
    process.wait()
    for _ in range(500):
        if not marked(mark):
            break
        time.sleep(0.01)
    else:
        raise SystemExit(f"{blow.name}: processes were left running: {marked(mark)}")
    return hit


def finished(folder: Path, stage: str) -> int:
    """Give the command until it ends with 0; returns how often that took, 0 if it never did."""
    for attempt in range(1, MOST_TRIES + 1):
        if started(folder, uuid.uuid4().hex, ("stage", stage, FILE)).wait() == 0:
            return attempt
    return 0


def last_words(folder: Path) -> str:
    """The end of what the last command in a folder printed."""
    return (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")[-WORDS:]


def compared(folder: Path, expected: dict[str, object]) -> list[str]:
    """What differs from the store that was left alone, damages, and folders that are left over; [] if nothing."""
    now = content(folder)
    faults = [key for key in expected.keys() | now.keys() if expected.get(key) != now.get(key)]
    if started(folder, uuid.uuid4().hex, ("store", "verify", "store")).wait():
        faults.append("store verify")
    return faults + [
        f"work/{path.name}" for path in (folder / "store" / "work").iterdir() if len(path.name) == 32
    ]


def main() -> None:
    """Print what came of each kill, and the counts as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument(
        "--stage", default="evaluate", help="what is run; compress takes seconds and no torch"
    )
    parser.add_argument(
        "--stall",
        type=int,
        default=20,
        help="run.item_seconds: how long a stopped child lasts; a worker twice as long",
    )
    parser.add_argument("--per-store", type=int, default=1, help="kills of a store before it is compared")
    asked = parser.parse_args()
    chance, counts, hits = random.Random(asked.seed), Counter[str](), Counter[str]()
    blows = [blow for blow in BLOWS if asked.only in blow.name]
    with tempfile.TemporaryDirectory(prefix="crossreel-kills-") as root:
        fresh, alone = Path(root) / "fresh", Path(root) / "alone"
        make_lab(fresh, asked.stall)
        shutil.copytree(fresh, alone)
        began = time.monotonic()
        if not finished(alone, asked.stage):
            raise SystemExit(f"the experiment does not end even when it is left alone: {last_words(alone)}")
        seconds, expected = time.monotonic() - began, content(alone)
        for number in range(0, asked.kills, asked.per_store):
            started_at = time.monotonic()
            lab = Path(root) / f"lab{number}"
            shutil.copytree(fresh, lab)
            hit = []
            for blow in (blows[n % len(blows)] for n in range(number, number + asked.per_store)):
                if struck(lab, blow, asked.stage, chance, seconds):
                    hit.append(blow.name)
            tries = finished(lab, asked.stage)
            faults = (
                compared(lab, expected) if tries else [f"the command never ended with 0: {last_words(lab)}"]
            )
            counts["kills"] += len(hit)
            hits.update(hit)
            counts["stores compared"] += 1
            counts["wrong"] += bool(faults)
            verdict = f"WRONG: {faults[:5]}" if faults else "right"
            took = time.monotonic() - started_at
            print(f"{number} {', '.join(hit) or 'no hit'}: {tries} runs, {took:.0f} s, {verdict}", flush=True)
            if not faults:
                shutil.rmtree(lab)
    print(json.dumps({"by kind": hits, **counts}))


if __name__ == "__main__":
    main()
