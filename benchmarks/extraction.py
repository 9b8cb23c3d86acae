"""Extraction of 200 clips through store, Prefect and worker processes against a bare loop of the same work.

One decode feeds `clip`, `frames` and `keyframes`. The bare form compresses, decodes once, encodes, cuts out
frames and compares histograms in plain processes, one a core, and keeps nothing. Both do the same clips with
the same network (CLIP ViT-B/32, seeded weights). Prints CPU seconds of both, start-up included, the overhead
in per cent (goal: at most 10), and frames a CPU second.

`--memory` instead prints the largest memory of any process for a video of a minute and one of an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.corpus.manifest import Caption, Item, write_manifest
from pipeline.media.video import find_ffmpeg
from pipeline.run.execute import cores

PR_SET_CHILD_SUBREAPER = 36
MODEL = "ViT-B-32-quickgelu"
EXPERIMENT = f"""
corpus = "corpus.jsonl"
store = "store"
extract = ["clip", "frames", "keyframes"]
[extractors.clip]
model = "{MODEL}"
weights = "seed:0"
"""
BARE = f"""
import sys, tempfile
from pathlib import Path
import numpy as np
from extractors.backbones.clip import ClipBackbone
from extractors.keyframes import histogram
from extractors.backbones.pictures import squares
from pipeline.media import video
network = ClipBackbone("{MODEL}", "seed:0")
with tempfile.TemporaryDirectory() as folder:
    waiting = []
    for path in map(Path, sys.argv[1:]):
        target = Path(folder) / "clip.mp4"
        video.compress(path, target, video.Compression(), 300)
        for frames, _ in video.decode(target):
            waiting.append(network.crops(frames))
            squares(frames[::3], 224)
            shares = [histogram(frame) for frame in frames]
            changes = [np.abs(b - a).sum() for a, b in zip(shares, shares[1:])]
            squares(frames[np.argsort(changes)[-10:]], 224)
        while sum(map(len, waiting)) >= 64:
            rows = np.concatenate(waiting)
            network.crop_features(rows[:64])
            waiting = [rows[64:]] if len(rows) > 64 else []
    if waiting:
        network.crop_features(np.concatenate(waiting))
"""


MEASURE = """
import resource, subprocess
subprocess.run({command!r}, check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def make(folder: Path, clips: int, seconds: float) -> list[Path]:
    """Clips of 640 x 360 at 30 fps that differ, and the experiment that extracts them."""
    paths = []
    for number in range(clips):
        path = folder / f"{number}.mp4"
        source = f"testsrc2=size=640x360:rate=30:duration={seconds}"
        subprocess.run(
            [find_ffmpeg(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", source, "-vf", f"hue=h={number}",
             "-c:v", "libx264", "-preset", "ultrafast", "-y", str(path)], check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        paths.append(path)
    write_manifest(
        folder / "corpus.jsonl", [Item(p.stem, "train", (Caption(p.stem, "a clip"),), p.name) for p in paths]
    )
    (folder / "experiment.toml").write_text(EXPERIMENT)
    return paths


def cpu_seconds(commands: list[list[str]]) -> float:
    """CPU seconds of commands that run at the same time, and of everything they start.

    Wall time would say how busy the machine is. What a killed worker leaves behind is handed to this
    process (it is a subreaper) and counted when it is waited for.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"{commands[0][:3]} ended with {codes}")
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def largest_megabytes(minutes: int) -> dict[str, float]:
    """Peak resident memory, in MB, of any process that brings a stage up to date on one video of so many minutes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "0.mp4"
        source = f"testsrc2=size=320x180:rate=5:duration={60 * minutes}"
        subprocess.run(
            [find_ffmpeg(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", source, "-c:v", "libx264",
             "-preset", "ultrafast", str(path)], check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        write_manifest(folder / "corpus.jsonl", [Item("0", "train", (Caption("0", "a clip"),), path.name)])
        (folder / "experiment.toml").write_text(EXPERIMENT.replace(MODEL, "crossreel-demo"))
        measured = {}
        for stage in ("compress", "frames", "keyframes", "clip"):
            command = [sys.executable, "-m", "flows.cli", "stage", stage, str(folder / "experiment.toml")]
            code = MEASURE.format(command=command)
            done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
            measured[stage] = float(done.stdout)
        return measured


def main() -> None:
    """Make the clips, run both forms, print the overhead; or print what memory takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a clip")
    parser.add_argument("--memory", action="store_true", help="measure memory, not time")
    arguments = parser.parse_args()
    if arguments.memory:
        minute, hour = largest_megabytes(1), largest_megabytes(60)
        for stage in minute:
            print(
                f"{stage}: at most {minute[stage]:.0f} MB for a minute of video, {hour[stage]:.0f} MB for an hour"
            )
        return
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as name:
        folder, workers = Path(name), cores()
        paths = [str(path) for path in make(folder, arguments.clips, arguments.seconds)]
        bare = [[sys.executable, "-c", BARE, *paths[n::workers]] for n in range(workers)]
        run = [sys.executable, "-m", "flows.cli", "run", str(folder / "experiment.toml")]
        one, ours, two = cpu_seconds(bare), cpu_seconds([run]), cpu_seconds(bare)
    plain, frames = (one + two) / 2, 3 * arguments.clips * arguments.seconds
    print(
        f"{arguments.clips} clips of {arguments.seconds:g} s, CLIP ViT-B/32, frames and key frames: {ours:.1f} CPU s, "
        f"bare {plain:.1f} CPU s ({one:.1f} before, {two:.1f} after), overhead {100 * (ours / plain - 1):.1f} % "
        f"(goal 10 %), {frames / ours:.1f} frames a CPU second"
    )


if __name__ == "__main__":
    main()
