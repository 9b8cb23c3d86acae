"""Costs of an engine: its start, a shard's round trip, its memory; and whether decoding overlaps.

Prints, for local processes and for a Ray cluster of our own: seconds and CPU seconds until the first reply of a
first and of a second stage, milliseconds a shard that does nothing, and the memory of all processes (PSS). Then
the seconds of decoding some clips, of a fake encoder that waits as for a GPU, and of both through one worker:
the slower of the two, where neither waits for the other. At last decoding, preparing and a fake device, in turn and
with two batches in flight.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extractors.backbones.pictures import squares
from extractors.base import (
    Computed,
    FrameExtractor,
    FrameReader,
    Launched,
    Output,
    Result,
    Unit,
    WorkOptions,
)
from extractors.one_pass import Reading, read_together
from pipeline.child import Send
from pipeline.media.video import find_ffmpeg
from pipeline.run.engines.choice import engine_for
from pipeline.run.engines.options import RunOptions
from pipeline.run.engines.work import Engine, Work
from pipeline.settings import Params
from pipeline.store.segments import Array

HERE = str(Path(__file__).parent)
CLIP_SECONDS = 20


def answer(request: dict[str, Any], send: Send) -> None:
    """Entry of a worker that does nothing; says so for each unit."""
    for unit in request["units"]:
        send({"done": unit["key"]}, {})


def work(shards: int) -> Work:
    """`shards` shards of four units."""
    keys = [[f"{n}-{k}" for k in range(4)] for n in range(shards)]
    units = {key: {"key": key} for shard in keys for key in shard}
    return Work("engines:answer", keys, HERE, units, [], {key: [] for key in units}, {}, False)


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            yield child
            with contextlib.suppress(OSError):
                yield from descendants(child)


def usage() -> tuple[float, float]:
    """MB and CPU seconds of every process below this one, shared pages counted once."""
    kilobytes, ticks = 0, 0
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own and of those that it has seen end
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024, ticks / os.sysconf("SC_CLK_TCK")


def run(engine: Engine, shards: int) -> tuple[float, float, float, float]:
    """Seconds until the first reply, seconds a shard after it, and MB and CPU seconds up to then."""
    started = time.perf_counter()
    events = engine.run(work(shards))
    next(events)
    first = time.perf_counter() - started
    memory, cpu = usage()
    measured = time.perf_counter()
    for _ in events:
        pass
    return first, (time.perf_counter() - measured) / (shards - 1), memory, cpu


def engine_costs(options: RunOptions, shards: int) -> None:
    """Print what an engine costs."""
    engine = engine_for(options, print)
    try:
        (first, _, memory, cpu), *later = [run(engine, shards) for _ in range(4)]
        started = time.perf_counter()
    finally:
        engine.close()
    ending = time.perf_counter() - started
    again, each = (statistics.median(column) for column in list(zip(*later, strict=True))[:2])
    print(f"{options.engine}: first reply after {first:.1f} s ({cpu:.1f} CPU s), of a later stage after {again:.1f} s; "
          f"{1000 * each:.1f} ms a shard of 4 replies; {memory:.0f} MB; ended in {ending:.1f} s")  # fmt: skip


class FakeEncoder(FrameReader[Params]):
    """Takes a while for each frame, without the processor: what a GPU is to its process."""

    name, settings = "fake", Params

    def __init__(self, seconds_a_frame: float) -> None:
        super().__init__(Params())
        self.seconds, self.frames = seconds_a_frame, 0

    def begin(self, unit: Unit, decoder: str) -> None:
        """Do nothing."""
        self.unit = unit

    def take(self, frames: Array, times: Array) -> Iterator[Result | None]:
        """Wait."""
        self.frames += len(frames)
        time.sleep(self.seconds * len(frames))
        yield None

    def end(self) -> Iterator[Result | None]:
        """The unit is done."""
        yield self.unit, Output({})


class FakeGpu(FrameExtractor[Params]):
    """Cuts frames to squares, as CLIP does, and has a device compute that takes its time and no processor.

    With `in_turn` it waits for each batch before the next frames are made ready.
    """

    name, settings = "fake", Params

    def __init__(self, seconds_a_frame: float, in_turn: bool) -> None:
        super().__init__(Params())
        self.seconds, self.in_turn, self.frames = seconds_a_frame, in_turn, 0
        self.device = ThreadPoolExecutor(1)
        self.load(WorkOptions(batch_size=64))

    def prepare(self, frames: Array) -> Array:
        """Squares of 224 pixels."""
        self.frames += len(frames)
        return squares(frames, 224)

    def launch(self, prepared: Array) -> Launched[dict[str, Array]]:
        """A batch on the device."""
        batch = OnDevice(self.device.submit(time.sleep, self.seconds * len(prepared)), len(prepared))
        return Computed(batch.arrays()) if self.in_turn else batch


@dataclass
class OnDevice:
    """A batch of the fake device."""

    work: Future[None]
    rows: int

    def ready(self) -> bool:
        """Whether the device is done with it."""
        return self.work.done()

    def arrays(self) -> dict[str, Array]:
        """Rows of zeros, after waiting."""
        self.work.result()
        return {"frame": np.zeros((self.rows, 4), np.float32)}


def one_pass(
    units: list[Unit], seconds_a_frame: float, kind: Callable[[float], FakeEncoder | FakeGpu] = FakeEncoder
) -> tuple[float, int]:
    """Seconds and frames of a pass of a fake network over some clips."""
    encoder = kind(seconds_a_frame)
    keys = {unit.key for unit in units}
    started = time.perf_counter()
    for _ in read_together([Reading(encoder, keys)], units, WorkOptions(), lambda: None):
        pass
    return time.perf_counter() - started, encoder.frames


def overlap(clips: int, folder: Path) -> None:
    """Print the seconds of decoding, of encoding, and of both."""
    path = folder / "clip.mp4"
    source = f"testsrc2=duration={CLIP_SECONDS}:size=1280x720:rate=24"
    command = [
        find_ffmpeg(),
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        source,
        "-preset",
        "ultrafast",
        "-pix_fmt",
        "yuv420p",
    ]
    subprocess.run([*command, str(path)], check=True)
    units = [Unit(str(n), str(n), files={"compress": path}) for n in range(clips)]
    one_pass(units[:1], 0.0)  # the decoder's process is there from now on
    decoding, frames = one_pass(units, 0.0)
    for share in (0.5, 1.0, 2.0):
        each = share * decoding / frames
        both, _ = one_pass(units, each)
        encoding = each * frames
        print(f"decoding {decoding:.1f} s, encoding {encoding:.1f} s, both {both:.1f} s: "
              f"{both / max(decoding, encoding):.2f} x the slower one, {both / (decoding + encoding):.2f} x one after "
              "the other")  # fmt: skip


def in_flight(clips: int, folder: Path) -> None:
    """Print the seconds of decoding, preparing and a device as slow as both, in turn and with two batches in flight."""
    units = [Unit(str(n), str(n), files={"compress": folder / "clip.mp4"}) for n in range(clips)]
    decoding, frames = one_pass(units, 0.0)
    both, _ = one_pass(units, 0.0, lambda each: FakeGpu(each, False))  # decoding and preparing
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        for in_turn, taken in seconds.items():
            taken.append(one_pass(units, both / frames, lambda each, wait=in_turn: FakeGpu(each, wait))[0])
    turn, flight = (statistics.median(seconds[in_turn]) for in_turn in (True, False))
    print(f"decoding {decoding:.1f} s, with preparing {both:.1f} s, a device {both:.1f} s: in turn {turn:.1f} s, with "
          f"two batches in flight {flight:.1f} s: {flight / both:.2f} x the slowest")  # fmt: skip


def main() -> None:
    """Measure each engine, then the overlap."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--clips", type=int, default=4)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    engine_costs(RunOptions(workers=2), arguments.shards)
    if importlib.util.find_spec("ray"):
        engine_costs(RunOptions(engine="ray", workers=2), arguments.shards)
    else:
        print("ray: not installed")
    with tempfile.TemporaryDirectory() as folder:
        overlap(arguments.clips, Path(folder))
        in_flight(arguments.clips, Path(folder))


if __name__ == "__main__":
    main()
