"""What is shown of items, by their keys alone: videos, their frames, point clouds and views of them.

A key comes from a client, so it is only ever looked up; paths are made of keys of the corpus.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.project import Project
from flows.results.report import shapes
from flows.results.report.frames import LIMIT_SECONDS, MEMORY_BYTES
from pipeline.child import Child, ChildDied, ChildError
from pipeline.corpus.manifest import Item
from pipeline.errors import ItemError
from pipeline.run.plan import State
from pipeline.store.segments import Damaged
from pipeline.store.store import FeatureReader

DECODERS = 2  # strips that are made at once
CACHE_BYTES = 64 << 20
MOST_POINTS = 200_000  # largest number of points that is sent of a cloud; larger clouds are thinned evenly
DAMAGED = "it is damaged in the store; crossreel store verify --repair drops it"


@dataclass(frozen=True)
class Picture:
    """A JPEG, its size in pixels, and what it shows: the second of a video, or the degrees a cloud is seen from."""

    jpeg: bytes
    width: int
    height: int
    at: float


@dataclass(frozen=True)
class Strip:
    """Pictures in order and the length of the video in seconds; or the reason why there are none."""

    pictures: tuple[Picture, ...] = ()
    seconds: float = 0.0
    reason: str = ""
    passing: bool = False  # whether the reason may be gone at the next request, so that the strip is not kept

    @property
    def size(self) -> int:
        """Bytes it takes in memory, about."""
        return sum(len(picture.jpeg) + 200 for picture in self.pictures) + 500


class Gallery:
    """The items of a corpus and what the store has of them. `strip` and `points` may be called from any thread."""

    def __init__(self, project: Project, states: Mapping[str, State]) -> None:
        self.items: Mapping[str, Item] = project.contents.items()
        self.splits = project.contents.corpus.splits
        self._store = project.store
        self._compressed = states.get("compress")
        self._videos = FeatureReader({})
        if self._compressed is not None:
            self._videos = project.store.reader("compress", self._compressed.fingerprint.hex)
        self._whole: dict[str, bool] = {}  # by key, whether its video is the one that was made of it
        self._points = FeatureReader({})
        if "points" in states:
            self._points = project.store.reader("points", states["points"].fingerprint.hex)
        self._reading = threading.Lock()
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="pictures")
        self._own = threading.local()  # a decoder ends with the thread that started it
        self._decoders: list[Child] = []
        self._strips = Remembered(CACHE_BYTES)

    def kind(self, key: str) -> str:
        """What can be shown of an item: "video", "cloud" or nothing."""
        if self.video(key) is not None:
            return "video"
        return "cloud" if key in self.items and key in self._points else ""

    def video(self, key: str) -> Path | None:
        """The compressed video of an item; None where there is none or the file is another item's."""
        state = self._compressed
        if state is None or key not in self.items or key not in state.places:
            return None
        path = self._store.item_file("compress", state.fingerprint.hex, key, state.stage.file_suffix or "")
        return path if self._is_whole(key, path) else None

    def _is_whole(self, key: str, path: Path) -> bool:
        """Whether a file is the one that was made of an item; its digest is taken once."""
        with self._reading:
            if key not in self._whole:
                try:
                    self._videos.require_file(key, path)
                    self._whole[key] = True
                except Damaged:
                    self._whole[key] = False
            return self._whole[key]

    def strip(self, key: str) -> Strip:
        """A few pictures of an item that is known, made once and kept for a while. Never raises for a bad one."""
        return self._strips.get(key, lambda: self._threads.submit(self._strip, key).result())

    def points(self, key: str) -> bytes | None:
        """A cloud as float32 x y z of all points, then uint8 r g b of all; None where there is none.

        Raises Damaged if the file is not what was written.
        """
        if key not in self.items or key not in self._points:
            return None
        rows = self._rows(key)
        if len(rows) > MOST_POINTS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_POINTS).round().astype(np.int64)]
        colours = shapes.shown_colours(rows).round().astype(np.uint8)
        return np.ascontiguousarray(rows[:, :3], "<f4").tobytes() + colours.tobytes()

    def close(self) -> None:
        """End the decoders."""
        for decoder in self._decoders:
            decoder.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _rows(self, key: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        with self._reading:  # opens files as they are needed
            return self._points.rows(key, "points", check=True)

    def _strip(self, key: str) -> Strip:
        path = self.video(key)
        if path is not None:
            return self._frames(path)
        if not self._whole.get(key, True):
            return Strip(reason=DAMAGED)
        if key not in self._points:
            return Strip(reason="the store has no pictures of it: its features were imported")
        try:
            rows = self._rows(key)
        except Damaged:
            return Strip(reason=DAMAGED)
        side = shapes.SIDE_PIXELS
        return Strip(tuple(Picture(jpeg, side, side, degrees) for degrees, jpeg in shapes.views(rows)))

    def _frames(self, path: Path) -> Strip:
        """Frames from all over a video."""
        if not hasattr(self._own, "decoder"):
            self._own.decoder = Child("flows.results.report.frames:serve_strip", MEMORY_BYTES)
            self._decoders.append(self._own.decoder)
        pictures, seconds = [], 0.0
        try:
            for header, arrays in self._own.decoder.ask({"path": str(path), "moments": []}, LIMIT_SECONDS):
                width, height = header["size"]
                pictures.append(Picture(arrays["jpeg"].tobytes(), width, height, header["seconds"]))
                seconds = header["duration"]
        except (
            ItemError,
            ChildError,
            ChildDied,
        ) as error:  # its reason names a path, which is nobody's business
            if isinstance(error, ChildDied) and not error.own_doing:
                return Strip(reason="its decoder was killed; ask again", passing=True)
            return Strip(reason="it cannot be decoded")
        return Strip(tuple(pictures), seconds)


class Remembered:
    """Strips by key, up to a number of bytes; the least recently used goes first.

    Each is made once, unless its decoder was killed: the next request then makes it again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Strip] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}

    def get(self, key: str, make: Callable[[], Strip]) -> Strip:
        """The strip; callers wait while another thread makes it."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._known:
                    self._known.move_to_end(key)
                    return self._known[key]
            strip = make()
            with self._lock:
                if strip.passing:
                    self._making.pop(key, None)
                    return strip
                self._known[key] = strip
                self._left -= strip.size
                while self._left < 0 and self._known:
                    self._left += self._known.popitem(last=False)[1].size
                self._making.pop(key, None)
        return strip
