"""Blocks of scores that were computed once: in memory, or in a file that also outlives a killed evaluation. No torch.

Axes: Q captions, q of a block, V items.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import is_full

log = logging.getLogger(__name__)

Scores = NDArray[np.float32]


class ScoreKeeper(Protocol):
    """What keeps blocks of consecutive rows. Rows are always cut in the same way."""

    def get(self, where: slice) -> Scores | None:
        """The scores (q, V) of a block, None if it is not kept."""
        ...

    def put(self, where: slice, scores: Scores) -> None:
        """Keep the scores (q, V) of a block."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows kept."""
        ...


class NotKept:
    """Keeps nothing: every pass computes all scores."""

    rows = 0

    def get(self, where: slice) -> Scores | None:
        """None."""
        return None

    def put(self, where: slice, scores: Scores) -> None:
        """Forget them."""


class InMemory:
    """Keeps the blocks as they are."""

    def __init__(self) -> None:
        self._blocks: dict[int, Scores] = {}

    def get(self, where: slice) -> Scores | None:
        """The scores (q, V) of a block, None if it is not kept."""
        return self._blocks.get(where.start)

    def put(self, where: slice, scores: Scores) -> None:
        """Keep the scores (q, V) of a block."""
        self._blocks[where.start] = scores

    @property
    def rows(self) -> int:
        """Number of rows kept."""
        return sum(map(len, self._blocks.values()))


class ScoreFile:
    """Keeps the blocks in `scores.f32` of a folder, memory-mapped, with a line and a checksum for each beside it.

    A file that an earlier process left under the same `key` is taken up: its blocks are found again, and one whose
    checksum does not match is not. Under another key it begins anew. Raises OSError if the disk has no room.
    """

    def __init__(self, folder: Path, queries: int, gallery: int, key: Mapping[str, Any]) -> None:
        self._values, self._lines = folder / "scores.f32", folder / "scores.jsonl"
        head = json.dumps({"queries": queries, "gallery": gallery, **key}, sort_keys=True)
        size = 4 * queries * gallery
        self._sums = _blocks(self._lines, head) if _size(self._values) == size else {}
        if not self._sums:
            _reserve(self._values, size)
            self._lines.write_text(head + "\n", encoding="utf-8")
        self._map = np.memmap(self._values, np.float32, "r+", shape=(queries, gallery))
        self._unseen = set(self._sums)  # blocks of an earlier process that were not read yet

    @property
    def rows(self) -> int:
        """Number of rows kept."""
        return sum(stop - start for start, stop in self._sums)

    def get(self, where: slice) -> Scores | None:
        """The scores (q, V) of a block, a view of the file; None if it is not kept."""
        place = where.start, where.stop
        if place not in self._sums:
            return None
        scores = np.asarray(self._map[where])
        if place in self._unseen:
            self._unseen.discard(place)
            if zlib.crc32(scores.data) != self._sums[place]:
                del self._sums[place]
                return None
        return scores

    def put(self, where: slice, scores: Scores) -> None:
        """Write the scores (q, V) of a block, then its line."""
        self._map[where] = scores
        self._sums[where.start, where.stop] = checksum = zlib.crc32(np.ascontiguousarray(scores).data)
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps([where.start, where.stop, checksum]) + "\n")


def score_file(folder: Path, queries: int, gallery: int, key: Mapping[str, Any]) -> ScoreKeeper:
    """A ScoreFile; where the disk has no room for it, nothing is kept and a warning says what that costs."""
    try:
        return ScoreFile(folder, queries, gallery, key)
    except OSError as error:
        if not is_full(error):
            raise
        log.warning(
            "%s has no room for the scores of %d captions and %d items (%.1f GB): they are computed again for every "
            "pass, and a killed evaluation begins anew",
            folder, queries, gallery, 4e-9 * queries * gallery,
        )  # fmt: skip
        return NotKept()


def _blocks(lines: Path, head: str) -> dict[tuple[int, int], int]:
    """Checksums of the blocks of an earlier process by first and last row; empty under another key."""
    try:
        first, *rest = lines.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ValueError):
        return {}
    found: dict[tuple[int, int], int] = {}
    for line in rest if first == head else []:
        try:
            start, stop, checksum = json.loads(line)
        except ValueError:  # the line that a kill cut off
            break
        found[start, stop] = checksum
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _reserve(path: Path, size: int) -> None:
    """A new file of zeros whose blocks are on the disk: a full one raises here; in the map it is a SIGBUS."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
