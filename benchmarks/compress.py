"""CPU seconds a clip of the stage `compress` against decoding alone, interleaved, one thread each.

Decoding alone is ffmpeg's decoder with no output. The usual script scales every frame, keeps three a second
with `-r 3`, and has one key frame a clip. Goal: at most 1.2 times decoding alone on 10 s clips of 640 x 360.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import tempfile
from pathlib import Path

from pipeline.media.video import Compression, compress_command, find_ffmpeg

QUIET = ("-nostdin", "-hide_banner", "-loglevel", "error")


def make(folder: Path, clips: int, noise: int) -> list[Path]:
    """Clips of 10 s, 640 x 360, 30 fps, that differ; noise stands for the grain of a camera."""
    paths = []
    for number in range(clips):
        path = folder / f"{number}.mp4"
        picture = f"hue=h={number * 31},noise=alls={noise}:allf=t"
        subprocess.run(
            [find_ffmpeg(), *QUIET, "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=30:duration=10",
             "-vf", picture, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-y", str(path)], check=True,
        )  # fmt: skip
        paths.append(path)
    return paths


def cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(path: Path, folder: Path) -> dict[str, list[str]]:
    """The compared quantities of one clip."""
    return {
        "decode": [find_ffmpeg(), *QUIET, "-threads", "1", "-i", str(path), "-an", "-f", "null", "-"],
        "compress": compress_command(path, folder / "ours.mp4", Compression()),
        "usual script": [find_ffmpeg(), *QUIET, "-y", "-i", str(path), "-filter:v", "scale=398:224", "-map", "0:v",
                         "-r", "3", str(folder / "usual.mp4")],
    }  # fmt: skip


def main() -> None:
    """Make the clips, run everything in turn, print seconds a clip and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for noise in (0, 8):
        with tempfile.TemporaryDirectory() as name:
            folder, spent = Path(name), {}
            paths = make(folder, arguments.clips, noise)
            for _ in range(arguments.rounds):
                for path in paths:
                    for what, command in commands(path, folder).items():
                        spent[what] = spent.get(what, 0.0) + cpu_seconds(command)
        each = {what: seconds / len(paths) / arguments.rounds for what, seconds in spent.items()}
        figures = ", ".join(f"{what} {seconds:.2f}" for what, seconds in each.items())
        print(
            f"{'grain' if noise else 'drawn'}: CPU s a clip: {figures}; compress / decode "
            f"{each['compress'] / each['decode']:.2f} (goal 1.2), usual / decode "
            f"{each['usual script'] / each['decode']:.2f}"
        )


if __name__ == "__main__":
    main()
