"""The times at which a video's frames are shown, by its packets, compared with the length its container announces.

Nothing is decoded: the packets of a file are read from its beginning to its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Formats without a header that says how long a stream is: ffmpeg takes the first and last time stamps of any stream.
ESTIMATED = frozenset({"mpegts", "mpegtsraw", "mpeg", "mpegvideo"})
MATROSKA_TIME = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
TOLERATED_SECONDS = (
    1.0  # largest difference between announced and decoded length; a tenth of the length if that is more
)
TOLERATED_SHARE = 0.1
ALIVE_EVERY = 10_000  # packets


@dataclass(frozen=True)
class Announced:
    """The length that a container announces for its video stream, in seconds from 0; None if it announces none.

    `own` is False if the length is that of the whole file, whose sound may be longer.
    """

    seconds: float | None
    own: bool


@dataclass(frozen=True)
class Timeline:
    """The times of a file's packets, in seconds from the start of the file.

    `picture` is the end of the last frame, `others` the end of the longest other stream (0 without one),
    `frames` the number of frames, `interval` the usual time between two.
    """

    picture: float
    others: float
    frames: int
    interval: float

    @property
    def expected(self) -> float:
        """Length of all frames at their usual interval, in seconds."""
        return self.frames * self.interval


def announced(container: Any, stream: Any) -> Announced:
    """Return the length that an open container of PyAV announces for a video stream."""
    # Matroska counts from 0, not from its first frame
    start = max(0.0, (container.start_time or 0) / 1_000_000)
    estimated = container.format.name in ESTIMATED
    if stream.duration and stream.time_base and not estimated:
        return Announced(float(stream.duration * stream.time_base), True)
    match = MATROSKA_TIME.fullmatch(stream.metadata.get("DURATION", ""))
    if match:
        return Announced(3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]) - start, True)
    if not container.duration:
        return Announced(None, False)
    return Announced(container.duration / 1_000_000 - (0.0 if estimated else start), False)


def read_timeline(container: Any, stream: Any, alive: Callable[[], None] = lambda: None) -> Timeline:
    """Return the timeline of an open container and its video stream, from all packets up to the first damaged one.

    `alive` is called every ALIVE_EVERY packets.
    """
    import av

    start = max(0.0, (container.start_time or 0) / 1_000_000)
    times: list[float] = []
    ends: dict[int, float] = {}
    try:
        for number, packet in enumerate(container.demux(), start=1):
            if number % ALIVE_EVERY == 0:
                alive()
            if packet.pts is None or packet.time_base is None:
                continue
            seconds = float(packet.pts * packet.time_base) - start
            if packet.stream.index == stream.index:
                times.append(seconds)
            elif packet.stream.type in ("audio", "video"):
                end = seconds + float((packet.duration or 0) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
    except av.FFmpegError:
        pass  # the packets that were read before the damaged one count
    if not times:
        return Timeline(0.0, max(ends.values(), default=0.0), 0, 0.0)
    shown = np.sort(np.array(times))
    gaps = np.diff(shown)
    gaps = gaps[gaps > 0]
    rate = stream.average_rate
    interval = float(np.median(gaps)) if len(gaps) else float(1 / rate) if rate else 0.0
    return Timeline(float(shown[-1]) + interval, max(ends.values(), default=0.0), len(times), interval)


def tolerance(seconds: float) -> float:
    """Return the largest permitted difference from an announced length, in seconds."""
    return max(TOLERATED_SECONDS, TOLERATED_SHARE * seconds)


def length_trouble(
    announced: Announced,
    made: float,
    read: Callable[[], Timeline],
    step: float = 0.0,
    verb: str = "can be decoded",
) -> str:
    """Return why the announced length shows a video of `made` decoded seconds to be damaged; "" if it is healthy.

    `step` is the precision of `made`. `read` reads the packets, and only if the two lengths differ. The video is still
    healthy if the announced length is that of a longer sound, or if there are enough frames to fill the time.
    """
    seconds = announced.seconds
    if seconds is None or abs(made - seconds) <= tolerance(seconds) + step:
        return ""
    timeline = read()
    if made < seconds:
        sound_lasts = not announced.own and timeline.others > seconds - tolerance(seconds)
        expected = timeline.picture if sound_lasts else seconds
        if expected - made <= tolerance(expected) + step:
            return ""
        return f"truncated or damaged: it announces {expected:.1f} s, {made:.1f} s {verb}"
    if timeline.expected >= made - tolerance(made) - step:
        return ""  # there are enough frames to fill the time, so the announced length is wrong
    return (
        f"damaged: it announces {seconds:.1f} s, but the times of its {timeline.frames} frames reach {made:.1f} s; a "
        "time stamp is wrong"
    )
