"""Where the time of a stage's workers went, as seconds by part of the work, and as one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PARTS = {
    "decode": "decode", "preprocess": "preprocess", "copy": "copy", "network": "network", "write": "write",
    "wait": "waiting for frames",
}  # fmt: skip
ALL = "all"  # seconds from the beginning to the end of shards, summed over the workers
LEAST_SECONDS = 1.0  # of a stage's workers, below which the line would say nothing


@dataclass
class TimeSpent:
    """Seconds of each part of the work, summed over the shards of a stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    decoders: int = 0  # largest number of decoding processes that worked ahead of one worker

    def add(self, reply: Mapping[str, Any]) -> None:
        """Add a worker's last reply to a shard."""
        for part, seconds in reply.get("seconds", {}).items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.decoders = max(self.decoders, reply.get("decoders", 0))

    def as_json(self) -> dict[str, float]:
        """The seconds of the parts that there were, and of all, to a tenth of a millisecond."""
        return {part: round(self.seconds[part], 4) for part in (*PARTS, ALL) if part in self.seconds}

    def line(self, stages: str) -> str:
        """The seconds and shares in one sentence; "" without decoding or a network, or if hardly any time was spent."""
        parts = [part for part in PARTS if part in self.seconds]
        whole = self.seconds.get(ALL, 0.0)
        if not {"decode", "network"}.intersection(parts) or whole < LEAST_SECONDS:
            return ""
        words = [
            f"{PARTS[part]} {self.seconds[part]:.1f} s ({100 * self.seconds[part] / whole:.0f} %)"
            for part in parts
        ]
        ahead = f"; {counted(self.decoders)} ahead of each worker" if self.decoders else ""
        return f"{stages}: of {whole:.1f} s of its workers, {', '.join(words)}{ahead}"


def counted(decoders: int) -> str:
    """ "1 decoder", or "3 decoders"."""
    return f"{decoders} decoder" + "s" * (decoders != 1)
