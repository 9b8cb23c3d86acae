"""Where the time of a worker goes: seconds of each part of its work, some of which overlap."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal

Part = Literal["decode", "wait", "preprocess", "copy", "network", "write", "device", "all"]
"""decode: in decoding processes. wait: for decoded frames. copy: into batches, and to a device and back.
write: of the segments. device: in calls of the device by the worker's own thread. all: whole shards.
"""


class Clock:
    """Adds up the seconds of parts, on top of those of the parts that they contain."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0  # seconds of parts that ended inside the part that is measured now

    def add(self, part: Part, seconds: float) -> None:
        """Add seconds that were measured elsewhere, for instance in another process."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @contextlib.contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Add the seconds of the block, without those of the parts that are measured in it."""
        started, outer = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.add(part, passed - self._inner)
            self._inner = outer + passed

    def taken(self) -> Mapping[str, float]:
        """Return the seconds so far, and begin anew."""
        seconds, self.seconds = self.seconds, {}
        return seconds
