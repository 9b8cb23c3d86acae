"""How many decoders feed a network: chosen from measured rates, within the cores and the memory of a worker."""

from __future__ import annotations

import math
from dataclasses import dataclass

HEADROOM = 1.25  # decoders beyond the mean need, because videos differ in length and size
FORGET = (
    0.7  # weight of what was measured before, at each video: rates change with the videos, and a GPU warms up
)
MEASURED_FRAMES = 64  # frames before a rate is believed
PROCESS_BYTES = 150 << 20  # memory of a decoding process: 60 MB of Python and NumPy, and the decoder's own


@dataclass
class Rates:
    """Frames and seconds of the decoders and of the reader of their frames, the latest counting most."""

    frames: float = 0.0
    decoding: float = 0.0  # seconds in which a decoder worked, summed over the decoders
    reading: float = 0.0  # seconds in which the reader worked, and so did not wait for frames

    def add(self, frames: int, decoding: float, reading: float) -> None:
        """Add what a video took."""
        self.frames = self.frames * FORGET + frames
        self.decoding = self.decoding * FORGET + decoding
        self.reading = self.reading * FORGET + reading

    def wanted(self, now: int, most: int) -> int:
        """Number of decoders, from 1 to `most`, that decode as many frames a second as the reader takes.

        `now` is their number so far; it is kept until enough was measured, and where one fewer would hardly do.
        """
        if self.frames < MEASURED_FRAMES or self.decoding <= 0:
            return max(1, min(now, most))
        need = self.decoding / max(self.reading, 1e-9)  # decoders that are busy while the reader is
        wanted = max(1, min(most, math.ceil(need * HEADROOM)))
        return now if wanted == now - 1 and now <= most else wanted


def most_decoders(threads: int, memory_bytes: int, chunk_bytes: int, chunks: int) -> int:
    """Largest number of decoders for a worker of `threads` cores, one of which is its own, and `memory_bytes`.

    Each decoder holds up to `chunks` chunks of frames beside its own memory.
    """
    each = PROCESS_BYTES + chunks * chunk_bytes
    return max(1, min(threads - 1, memory_bytes // each))
