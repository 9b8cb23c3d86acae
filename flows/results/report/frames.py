"""A few small frames of a video, decoded in a child process that may hang or die without harm."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.results.wording import counted
from pipeline.child import Child, ChildDied, ChildError, Send
from pipeline.errors import ItemError
from pipeline.media.video import ONLY_MEDIA, probe

FRAMES = 4  # number of frames of a strip
HEIGHT_PIXELS, MOST_WIDTH_PIXELS = 112, 240
JPEG_QUALITY = 62
LEFT_OUT = "left out to keep this page small"
LIMIT_SECONDS = 10.0  # limit for decoding one frame
MEMORY_BYTES = 4 << 30

Moments = tuple[tuple[float, float], ...]
"""Start and end of each moment in seconds."""


@dataclass(frozen=True)
class Frame:
    """One thumbnail: a data URI, its size in pixels, and its time in the video."""

    source: str
    width: int
    height: int
    seconds: float


@dataclass(frozen=True)
class Strip:
    """Frames in order of time and the length of the video; or the reason why there are none.

    The frames of a point cloud are views from several sides, and their `seconds` are degrees.
    """

    frames: tuple[Frame, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    views: bool = False

    def described(self, item: str) -> str:
        """The frames in words, for screen readers: "4 frames of a, at 0.5, 1.5, 2.5, 3.5 seconds"."""
        places = ", ".join(f"{frame.seconds:.{0 if self.views else 1}f}" for frame in self.frames)
        if self.views:
            return f"{counted(len(self.frames), 'view')} of {item}, from {places} degrees around it"
        return f"{counted(len(self.frames), 'frame')} of {item}, at {places} seconds"


class Frames:
    """Strips of videos, each decoded once, until `most_bytes` of data URIs have been returned."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._child = Child("flows.results.report.frames:serve_strip", MEMORY_BYTES)
        self._known: dict[tuple[str, Moments], Strip] = {}

    def close(self) -> None:
        """End the child process."""
        self._child.kill()

    def strip(self, path: str | None, moments: Moments = ()) -> Strip:
        """Frames at even distances, at least one inside each moment. Never raises for a damaged video."""
        if path is None:
            return Strip(reason="no video in the store")
        if (path, moments) not in self._known:
            self._known[path, moments] = self._decode(path, moments)
        strip = self._known[path, moments]
        size = sum(len(frame.source) for frame in strip.frames)
        if size > self._left:
            return Strip(reason=LEFT_OUT)
        self._left -= size
        return strip

    def _decode(self, path: str, moments: Moments) -> Strip:
        frames, seconds = [], 0.0
        try:
            for header, arrays in self._child.ask({"path": path, "moments": moments}, LIMIT_SECONDS):
                width, height = header["size"]
                frames.append(Frame(as_data_uri(arrays["jpeg"].tobytes()), width, height, header["seconds"]))
                seconds = header["duration"]
        except ItemError as error:
            return Strip(reason=error.reason)
        except ChildError:
            return Strip(reason="it cannot be decoded")
        except ChildDied as error:
            if not error.own_doing:
                return Strip(reason=f"its decoder was killed twice ({error}); draw the report again")
            return Strip(reason=f"decoding failed: {error}")
        return Strip(tuple(frames), seconds)


def as_data_uri(jpeg: bytes) -> str:
    """A JPEG as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def serve_strip(request: dict[str, Any], send: Send) -> None:
    """Entry of the child process: answers `{"path", "moments"}` with JPEGs, their size and their time."""
    path = Path(request["path"])
    duration = probe(path).seconds or 0.0
    for seconds, image in frames_at(path, frame_seconds(duration, request["moments"])):
        image.thumbnail((MOST_WIDTH_PIXELS, HEIGHT_PIXELS))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
        header = {"seconds": seconds, "duration": max(duration, seconds), "size": image.size}
        send(header, {"jpeg": np.frombuffer(out.getvalue(), np.uint8)})


def frame_seconds(duration: float, moments: list[list[float]] | Moments) -> list[float]:
    """The middles of equal parts of a video; the nearest of them moves to the middle of a moment."""
    times = [(part + 0.5) * duration / FRAMES for part in range(FRAMES)]
    for start, end in list(moments)[:FRAMES]:
        if not any(start <= time <= end for time in times):
            middle = min((start + end) / 2, duration)
            nearest = min(range(FRAMES), key=lambda place: abs(times[place] - middle))
            times[nearest] = middle
    return sorted(times)


def frames_at(path: Path, times: list[float]) -> Iterator[tuple[float, Any]]:
    """Yield the frame that is shown at each time, with its own time; seeks to key frames, which is cheap."""
    import av

    try:
        with av.open(f"file:{path}", options=dict(ONLY_MEDIA)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            for target in times:
                container.seek(int(target * av.time_base))
                shown = None
                for frame in container.decode(stream):
                    if shown is not None and frame.time > target:
                        break
                    shown = frame
                if shown is None:
                    raise ItemError(str(path), f"it has no frame at {target:.1f} s")
                yield float(shown.time), shown.to_image()
    except av.FFmpegError as error:
        raise ItemError(str(path), f"it cannot be decoded: {error.strerror}") from None
