"""Short moving pictures of an item around a moment: a few frames as an animated image that plays without a script.

They are decoded in a child process that may hang or die without harm. A point cloud turns instead.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.results.report.frames import LIMIT_SECONDS, MEMORY_BYTES, Strip, as_data_uri, frames_at
from flows.results.report.pictures import Pictures
from pipeline.child import Child, ChildDied, ChildError, Send
from pipeline.errors import ItemError
from pipeline.media.video import probe

SECONDS = 2.0  # length of a clip
RATE = 5  # pictures per second
WIDTH, HEIGHT = 176, 104  # largest size in pixels
QUALITY, STILL_QUALITY = 34, 62
TURN_MS = 700  # time that each view of a cloud is shown


@dataclass(frozen=True)
class At:
    """A moment of a video: a share of its length in [0, 1] or, if given, seconds."""

    share: float = 0.5
    seconds: float | None = None


@dataclass(frozen=True)
class Clip:
    """A still and a moving picture as data URIs, and the part of the video that they show; or why there is none."""

    still: str = ""
    moving: str = ""
    width: int = 0
    height: int = 0
    start: float = 0.0
    end: float = 0.0
    seconds: float = 0.0  # length of the whole video
    reason: str = ""


class Clips:
    """Clips of items, until `most_bytes` of data URIs have been returned; then stills are left out too."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._child = Child("flows.results.report.clips:serve_clip", MEMORY_BYTES)
        self._views = Pictures(most_bytes)
        self._known: dict[tuple[str, At], Clip] = {}

    def close(self) -> None:
        """End the processes that decode."""
        self._child.kill()
        self._views.close()

    def clip(self, item: Mapping[str, Any], at: At) -> Clip:
        """The clip of an item around a moment. Never raises for damaged media."""
        key = str(item["id"]), at
        if key not in self._known:
            self._known[key] = self._made(item, at)
        clip = self._known[key]
        size = len(clip.still) + len(clip.moving)
        if size > self._left:
            return Clip(reason="left out to keep this page small")
        self._left -= size
        return clip

    def _made(self, item: Mapping[str, Any], at: At) -> Clip:
        if item.get("points"):
            return _turning(self._views.strip(item))
        if damage := self._views.damage(item):
            return Clip(reason=damage)
        if item.get("video") is None:
            return Clip(reason="no video in the store")
        try:
            ((header, arrays),) = self._child.ask({"path": item["video"], **asdict(at)}, LIMIT_SECONDS)
        except ItemError as error:
            return Clip(reason=error.reason)
        except (ChildError, ChildDied):
            return Clip(reason="it cannot be decoded")
        moving = "data:image/webp;base64," + base64.b64encode(arrays["webp"].tobytes()).decode()
        (width, height), (start, end) = header["size"], header["shown"]
        still = as_data_uri(arrays["jpeg"].tobytes())
        return Clip(still, moving, width, height, start, end, header["seconds"])


def _turning(strip: Strip) -> Clip:
    """The views of a cloud, one after the other."""
    if not strip.frames:
        return Clip(reason=strip.reason or "no points in the store")
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2]))) for one in strip.frames
    ]
    moving = "data:image/webp;base64," + base64.b64encode(_animated(pictures, TURN_MS)).decode()
    first = strip.frames[0]
    return Clip(first.source, moving, first.width, first.height)


def _animated(pictures: Sequence[Image.Image], milliseconds: int) -> bytes:
    out = io.BytesIO()
    pictures[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        quality=QUALITY,
        method=4,
    )
    return out.getvalue()


def serve_clip(request: dict[str, Any], send: Send) -> None:
    """Entry of the child process: answers `{"path", "share", "seconds"}` with a JPEG and an animated WebP."""
    path = Path(request["path"])
    seconds = probe(path).seconds or 0.0
    middle = request["share"] * seconds if request["seconds"] is None else request["seconds"]
    start, end = stretch(middle, seconds)
    times = [start + (end - start) * (n + 0.5) / (SECONDS * RATE) for n in range(int(SECONDS * RATE))]
    pictures = [image for _, image in frames_at(path, times)]
    for image in pictures:
        image.thumbnail((WIDTH, HEIGHT))
    still = io.BytesIO()
    pictures[len(pictures) // 2].save(still, "JPEG", quality=STILL_QUALITY, optimize=True)
    moving = _animated(pictures, round(1000 * (end - start) / len(pictures)) or round(1000 / RATE))
    header = {"size": pictures[0].size, "shown": [start, end], "seconds": seconds}
    send(header, {"jpeg": np.frombuffer(still.getvalue(), np.uint8), "webp": np.frombuffer(moving, np.uint8)})


def stretch(middle: float, seconds: float) -> tuple[float, float]:
    """Start and end in seconds of a clip around a moment of a video, which lie inside of it."""
    length = min(SECONDS, seconds)
    start = min(max(middle - length / 2, 0.0), seconds - length)
    return start, start + length
