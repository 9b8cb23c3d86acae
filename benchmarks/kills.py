"""Kills of runs and of single children, at random moments: how many leave a store that is wrong?

    python benchmarks/kills.py 200 --seed 0
    python benchmarks/kills.py 200 --per-store 6    six kills of a store, then its comparison
    python benchmarks/kills.py 20 --only "ffmpeg|decoder" --stall 10

Renders clips, makes one experiment's store without any kill, and then the same with N kills, of every kind the same
number, of those that train a fourth: SIGKILL of the run, of a worker, a decoder, an ffmpeg, a training, SIGTERM of an
ffmpeg, SIGSTOP of a worker, a decoder, an ffmpeg, and SIGKILL of `crossreel run` under Prefect, of its worker and of
its server. A kind is struck while the cheapest stage in which it occurs is made, so that most kills take seconds.
The command is then given again until it ends with 0, and the store is compared with the one that was left alone: rows
by item, compressed files, weights, `store verify`, processes and folders left over. It prints the kills of each store,
with what differs where the store is wrong, and at the end the kills by kind and the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flows.project import open_project
from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import find_ffmpeg
from pipeline.run import plan as planning

CLIPS = 12
SPLITS = ("train", "train", "val", "test")
ROWS = ("compress", "keyframes", "clip", "clip_text")
SMALL = Path(__file__).parents[1] / "tests/fixtures/experiments/hlformer.toml"
LIGHT = 'corpus = "corpus.jsonl"\nstore = "store"\nextract = ["keyframes"]\n'
RUN = "\n[run]\nworkers = 2\nstall_seconds = {worker}\nitem_seconds = {child}\n"
FILES = {"compress": "light.toml", "keyframes": "light.toml", "evaluate": "experiment.toml"}
STAGES = tuple(FILES)  # in this order the store that is left alone is made; the first two without torch
RARE = 4  # of a kind that trains there are so many times fewer kills than of another
OUTPUT, WORDS = "output.txt", 600  # of the last command, and the characters of its end that are shown
MOST_TRIES = 4  # attempts of the command after a kill
MOST_STORES = 1000  # where a kind is never hit


@dataclass(frozen=True)
class Blow:
    """The process that is hit, the signal, and the command that runs.

    `entry` is a word of the process's command line, "" for the command itself; `stage` is the stage that is made
    while it is hit, and `share` the part of that stage's time, after such a process appears, in which it is hit.
    """

    name: str
    stage: str
    signal: int
    entry: str = ""
    share: float = 1.0
    prefect: bool = False  # `crossreel run` in place of `crossreel stage`


WORKER, DECODER, SERVER = "extractors.shard:run", "video:serve_decode", "flows.deployment.server"
BLOWS = (  # of a stage, those first that occur first while it is made
    Blow("ffmpeg, SIGKILL", "compress", signal.SIGKILL, "libx264", 0.1),
    Blow("ffmpeg, SIGTERM", "compress", signal.SIGTERM, "libx264", 0.1),
    Blow("ffmpeg, SIGSTOP", "compress", signal.SIGSTOP, "libx264", 0.1),
    Blow("worker, SIGKILL", "compress", signal.SIGKILL, WORKER, 0.1),
    Blow("worker, SIGSTOP", "compress", signal.SIGSTOP, WORKER, 0.1),
    Blow("stage, SIGKILL", "compress", signal.SIGKILL),
    Blow("Prefect run's worker, SIGKILL", "keyframes", signal.SIGKILL, WORKER, 0.3, prefect=True),
    Blow("Prefect run's server, SIGKILL", "keyframes", signal.SIGKILL, SERVER, prefect=True),
    Blow("Prefect run, SIGKILL", "keyframes", signal.SIGKILL, share=2.0, prefect=True),
    Blow("decoder, SIGKILL", "keyframes", signal.SIGKILL, DECODER, 0.1),
    Blow("decoder, SIGSTOP", "keyframes", signal.SIGSTOP, DECODER, 0.1),
    Blow("worker of a network, SIGKILL", "evaluate", signal.SIGKILL, WORKER, 0.2),
    Blow("training, SIGKILL", "evaluate", signal.SIGKILL, "corpus_process:serve", 0.2),
    Blow("Prefect run of a training, SIGKILL", "evaluate", signal.SIGKILL, prefect=True),
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
    (folder / FILES["evaluate"]).write_text(text, encoding="utf-8")
    text = LIGHT + RUN.format(worker=2 * stall_seconds, child=stall_seconds)
    (folder / FILES["compress"]).write_text(text, encoding="utf-8")


def content(folder: Path, stage: str) -> dict[str, object]:
    """The content of a store that must be the same after kills: rows by item, files, weights, up to a stage."""
    project = open_project(folder / FILES[stage])
    out: dict[str, object] = {}
    needed = planning.ancestors(project.stages, planning.choose(project.stages, stage))
    for name, state in project.survey().items():
        if name not in needed:
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


@dataclass
class Met:
    """The blows that hit, and the command lines of processes that were left running."""

    hit: list[Blow]
    left: list[str]


def struck(folder: Path, blows: Sequence[Blow], chance: random.Random, seconds: float) -> Met:
    """Run the command and let it meet these blows, one after another at random moments.

    A run goes on when a child of it was hit, and meets the next blow; when it was hit itself it is started again. Where
    it ends with 0 there is nothing left to hit.
    """
    met, process, mark = Met([], []), None, ""
    for blow in blows:
        if process is None or process.poll() is not None:
            mark = uuid.uuid4().hex
            command = "run" if blow.prefect else "stage"
            words = (command, FILES[blow.stage]) if blow.prefect else (command, blow.stage, FILES[blow.stage])
            process = started(folder, mark, words)
        if _struck(process, mark, blow, chance.uniform(0.0, seconds * blow.share), chance):
            met.hit.append(blow)
            if not blow.entry:
                met.left += _left(process, mark)
        elif process.returncode == 0:
            break
    if process is not None:
        met.left += _left(process, mark)
    return met


def _struck(
    process: subprocess.Popen[bytes], mark: str, blow: Blow, wait: float, chance: random.Random
) -> bool:
    """Hit once, `wait` seconds after there is something to hit; False if the command ends before."""
    due = 0.0
    while process.poll() is None:
        time.sleep(0.01)
        targets = marked(mark, blow.entry) if blow.entry else [process.pid]
        due = due or (time.monotonic() + wait if targets else 0.0)
        if targets and time.monotonic() >= due:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(targets), blow.signal)
                return True
    return False


def _left(process: subprocess.Popen[bytes], mark: str) -> list[str]:
    """Wait for the command's end, and kill the processes of it that are left after some seconds."""
    process.wait()
    for _ in range(500):
        if not marked(mark):
            return []
        time.sleep(0.01)
    found = []
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            found.append(
                f"left running: {Path(f'/proc/{pid}/cmdline').read_bytes().decode().split(chr(0))[:6]}"
            )
            os.kill(pid, signal.SIGKILL)
    return found


def finished(folder: Path, stage: str) -> int:
    """Give the command until it ends with 0; returns how often that took, 0 if it never did."""
    for attempt in range(1, MOST_TRIES + 1):
        if started(folder, uuid.uuid4().hex, ("stage", stage, FILES[stage])).wait() == 0:
            return attempt
    return 0


def last_words(folder: Path) -> str:
    """The end of what the last command in a folder printed."""
    return (folder / OUTPUT).read_text(encoding="utf-8", errors="replace")[-WORDS:]


def compared(folder: Path, stage: str, expected: dict[str, object]) -> list[str]:
    """What differs from the store that was left alone, damages, and folders that are left over; [] if nothing."""
    now = content(folder, stage)
    faults = [key for key in expected.keys() | now.keys() if expected.get(key) != now.get(key)]
    if started(folder, uuid.uuid4().hex, ("store", "verify", "store")).wait():
        faults.append("store verify")
    return faults + [
        f"work/{path.name}" for path in (folder / "store" / "work").iterdir() if len(path.name) == 32
    ]


class Alone:
    """The store that no kill met: the seconds that each stage took, and what there was then.

    A stage is made when it is first asked for, so that the figures of cheap stages do not wait for a training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, dict[str, float]()
        self.content: dict[str, dict[str, object]] = {}

    def make(self, stage: str) -> None:
        """Make a stage and those before it, if they are not made yet."""
        for name in STAGES[: STAGES.index(stage) + 1]:
            if name in self.content:
                continue
            began = time.monotonic()
            if not finished(self.folder, name):
                raise SystemExit(f"{name} does not end even when it is left alone: {last_words(self.folder)}")
            self.seconds[name] = sum(list(self.seconds.values())[-1:]) + time.monotonic() - began
            self.content[name] = content(self.folder, name)


def shares(blows: Sequence[Blow], kills: int) -> dict[Blow, int]:
    """The number of kills of each kind: the same for all, fewer for what trains."""
    weights = {blow: 1 / RARE if blow.stage == STAGES[-1] else 1.0 for blow in blows}
    out = {blow: int(kills * weight / sum(weights.values())) for blow, weight in weights.items()}
    for blow in blows[: kills - sum(out.values())]:
        out[blow] += 1
    return out


def next_store(left: Mapping[Blow, int], per_store: int) -> list[Blow]:
    """The kills of one store, all in the first stage with kills left: of each kind one, then of each a second."""
    stage = next(stage for stage in STAGES if any(n for blow, n in left.items() if blow.stage == stage))
    rounds = [
        (n, BLOWS.index(blow)) for blow, count in left.items() if blow.stage == stage for n in range(count)
    ]
    return [BLOWS[index] for index in sorted(index for _, index in sorted(rounds)[:per_store])]


def one_store(
    folder: Path, store: Sequence[Blow], right: Alone, chance: random.Random
) -> tuple[list[Blow], int, list[str]]:
    """Let a store meet its kills and finish it: those that hit, the commands it took, and what is wrong then."""
    stage = store[0].stage
    met = struck(folder, store, chance, right.seconds[stage])
    tries = finished(folder, stage)
    if not tries:
        return met.hit, tries, [*met.left, f"the command never ended with 0: {last_words(folder)}"]
    return met.hit, tries, [*met.left, *compared(folder, stage, right.content[stage])]


def main() -> None:
    """Print what came of each store's kills, and the counts as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds in whose name this pattern is found")
    parser.add_argument(
        "--stall", type=int, default=20,
        help="run.item_seconds: how long a stopped child lasts; a worker twice as long",
    )  # fmt: skip
    parser.add_argument("--per-store", type=int, default=1, help="kills of a store before it is compared")
    asked = parser.parse_args()
    blows = [blow for blow in BLOWS if re.search(asked.only, blow.name)]
    if not blows:
        raise SystemExit(
            f"--only {asked.only}: found in the name of no kind; they are {[b.name for b in BLOWS]}"
        )
    chance, counts, hits = random.Random(asked.seed), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="crossreel-kills-", ignore_cleanup_errors=True) as root:
        fresh, alone = Path(root) / "fresh", Path(root) / "alone"
        make_lab(fresh, asked.stall)
        shutil.copytree(fresh, alone)
        right, left = Alone(alone), shares(blows, asked.kills)
        for number in range(MOST_STORES):
            if not any(left.values()):
                break
            store = next_store(left, asked.per_store)
            right.make(store[0].stage)
            began, lab = time.monotonic(), Path(root) / f"lab{number}"
            shutil.copytree(fresh, lab)
            hit, tries, faults = one_store(lab, store, right, chance)
            left.update({blow: left[blow] - hit.count(blow) for blow in set(hit)})
            names = [blow.name for blow in hit]
            hits.update(names)
            counts.update({"kills": len(hit), "stores compared": 1, "wrong": bool(faults)})
            verdict = f"WRONG: {faults[:5]}" if faults else "right"
            took = time.monotonic() - began
            print(
                f"{number} {store[0].stage}: {', '.join(names) or 'no hit'}: {tries} runs, {took:.0f} s, {verdict}; "
                f"{counts['kills']} kills so far", flush=True,
            )  # fmt: skip
            if not faults:
                shutil.rmtree(lab)
    print(json.dumps({"by kind": hits, **counts}))


if __name__ == "__main__":
    main()
