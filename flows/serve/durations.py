"""The lengths of videos in seconds, from the times of their frames; read a whole segment at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.run.plan import State
from pipeline.store.segments import Damaged, Segment
from pipeline.store.store import Store


def seconds_of(keys: Collection[str], store: Store, states: Mapping[str, State]) -> NDArray[np.float32]:
    """The length of each item, (n,); NaN for what is no compressed video, or has one frame, or cannot be read.

    The last frame lasts as long as the others do on average.
    """
    out = np.full(len(keys), np.nan, np.float32)
    if "compress" not in states:
        return out
    state = states["compress"]
    wanted: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for position, key in enumerate(keys):
        if key in state.places:
            place = state.places[key]
            wanted[place.segment].append((position, place.row, key))
    for name, members in wanted.items():
        try:
            segment = Segment(store.segment_path("compress", state.fingerprint.hex, name))
        except Damaged:
            continue
        for position, row, key in members:
            if row < len(segment.items) and segment.items[row] == key:
                out[position] = _length(segment.rows("time", row))
    return out


def _length(times: NDArray[np.float64]) -> float:
    if len(times) < 2:
        return float("nan")
    return float(times[-1] + (times[-1] - times[0]) / (len(times) - 1))
