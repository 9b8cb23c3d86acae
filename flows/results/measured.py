"""An evaluated run as a comparison reads it: who asked what, resampled with whom, and at which rank.

Knows no experiment: which folder is whose is the caller's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.measure.evaluated import EvaluatedFolder, Protocol, Queries
from trainers.relevance import Positions

Ranks = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """The queries of a direction: what each asks, the item it is resampled with, and its rank under mean ties.

    A caption is known by its digest and its positives, an item by its digest and its captions: of two runs, equal
    keys ask the same. rank: (Q,) float64, 1 is best, in the order of the keys.
    """

    keys: tuple[Hashable, ...]
    units: tuple[str, ...]
    rank: Ranks

    def at(self, keys: Iterable[Hashable]) -> Asked:
        """Those of some keys, in their order."""
        place = {key: number for number, key in enumerate(self.keys)}
        rows = [place[key] for key in keys]
        return Asked(
            tuple(self.keys[r] for r in rows), tuple(self.units[r] for r in rows), self.rank[np.array(rows, int)]
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One evaluated method: its protocol, its gallery, and its queries by direction."""

    name: str
    folder: Path
    protocol: Protocol
    items: frozenset[str]
    asked: Mapping[str, Asked] = field(default_factory=dict)


def read_measured(folder: Path, name: str) -> Measured:
    """The folder of an evaluation. Raises UserError naming a file that is missing, damaged or of another evaluation."""
    evaluated = EvaluatedFolder(folder)
    protocol, queries, ranking = evaluated.metrics.protocol, evaluated.queries, evaluated.ranking
    asked = {}
    for direction, ranks in ranking.ranks.items():
        found = _captions(queries) if direction == "t2v" else _items(queries, ranking.asked)
        keys, units = zip(*found, strict=True) if found else ((), ())
        asked[direction] = Asked(tuple(keys), tuple(units), ranks.mean.astype(np.float64))
    return Measured(name, folder, protocol, frozenset(queries.items), asked)


def _captions(queries: Queries) -> list[tuple[Hashable, str]]:
    """Key and unit of each caption: a caption is resampled with its own item."""
    found = [
        (digest, *sorted(queries.items[item] for item in positives))
        for digest, positives in zip(queries.captions, queries.positives, strict=True)
    ]
    return list(zip(_each_once(found), (queries.items[item] for item in queries.caption_item), strict=True))


def _items(queries: Queries, asked: Positions) -> list[tuple[Hashable, str]]:
    """Key and unit of each item that has a caption.

    An item that is no caption's own goes with the own item of a caption that names it, of several the first by name,
    as in `trainers.measure.metrics.units_of`.
    """
    own, out = set(queries.caption_item), []
    for item in asked.tolist():
        captions = queries.captions_of[item]
        key = (queries.items[item], *sorted(queries.captions[caption] for caption in captions))
        homes = [queries.items[queries.caption_item[caption]] for caption in captions]
        out.append((key, queries.items[item] if item in own or not homes else min(homes)))
    return list(zip(_each_once(key for key, _ in out), (unit for _, unit in out), strict=True))


def _each_once(keys: Iterable[tuple[str, ...]]) -> Iterator[Hashable]:
    """The keys, a repeated one with a number: one text may stand twice among the captions of an item."""
    seen: Counter[tuple[str, ...]] = Counter()
    for key in keys:
        seen[key] += 1
        yield key, seen[key]
