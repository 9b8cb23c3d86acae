"""An evaluated run as a comparison reads it: the key, the resampling unit and the rank of each query.

This module knows no experiment: the caller decides which folder belongs to which run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.measure.evaluated import EvaluatedFolder, Metrics, Protocol, Queries
from trainers.relevance import Positions

Ranks = NDArray[np.float64]


@dataclass(frozen=True)
class RankedQueries:
    """The queries of a direction: the key of each, the item that it is resampled with, and its realistic (mean) rank.

    The key of a caption is its digest and its positives, that of an item its digest and its captions: queries of two
    runs with equal keys are the same query. rank: (Q,) float64, 1 is best, in the order of the keys.
    """

    keys: tuple[Hashable, ...]
    units: tuple[str, ...]
    rank: Ranks

    def at(self, keys: Iterable[Hashable]) -> RankedQueries:
        """The queries with these keys, in the order of `keys`."""
        place = {key: number for number, key in enumerate(self.keys)}
        rows = [place[key] for key in keys]
        return RankedQueries(
            tuple(self.keys[r] for r in rows), tuple(self.units[r] for r in rows), self.rank[np.array(rows, int)]
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One evaluated method: its protocol, the digests of its gallery's items, and its queries by direction."""

    name: str
    folder: Path
    protocol: Protocol
    items: frozenset[str]
    queries: Mapping[str, RankedQueries] = field(default_factory=dict)


def by_kind(metrics: Mapping[str, Metrics]) -> dict[str, dict[str, Metrics]]:
    """The metrics of methods, by the kind of the items that they rank: other kinds are other galleries."""
    kinds: dict[str, dict[str, Metrics]] = {}
    for method, one in metrics.items():
        kinds.setdefault(one.protocol.kind, {})[method] = one
    return kinds


def read_measured(folder: Path, name: str) -> Measured:
    """The measured run in an evaluation's folder.

    Raises UserError naming a file that is missing, damaged or of another evaluation.
    """
    return measured(EvaluatedFolder(folder), name)


def measured(evaluated: EvaluatedFolder, name: str) -> Measured:
    """The measured run of an evaluation that is open already."""
    protocol, queries, ranking = evaluated.metrics.protocol, evaluated.queries, evaluated.ranking
    ranked = {}
    for direction, ranks in ranking.ranks.items():
        keyed = _captions(queries) if direction == "t2v" else _items(queries, ranking.query_items)
        keys, units = zip(*keyed, strict=True) if keyed else ((), ())
        ranked[direction] = RankedQueries(tuple(keys), tuple(units), ranks.mean.astype(np.float64))
    return Measured(name, evaluated.folder, protocol, frozenset(queries.items), ranked)


def _captions(queries: Queries) -> list[tuple[Hashable, str]]:
    """Key and resampling unit of each caption; its unit is its own item."""
    keys = [
        (digest, *sorted(queries.items[item] for item in positives))
        for digest, positives in zip(queries.captions, queries.positives, strict=True)
    ]
    return list(zip(_each_once(keys), (queries.items[item] for item in queries.caption_item), strict=True))


def _items(queries: Queries, query_items: Positions) -> list[tuple[Hashable, str]]:
    """Key and resampling unit of each item that has a caption.

    The unit of an item that is no caption's own is the own item of a caption that has it among its positives, of
    several such items the first by digest, as in `trainers.measure.metrics.units_of`.
    """
    own, out = set(queries.caption_item), []
    for item in query_items.tolist():
        captions = queries.captions_of[item]
        key = (queries.items[item], *sorted(queries.captions[caption] for caption in captions))
        homes = [queries.items[queries.caption_item[caption]] for caption in captions]
        out.append((key, queries.items[item] if item in own or not homes else min(homes)))
    return list(zip(_each_once(key for key, _ in out), (unit for _, unit in out), strict=True))


def _each_once(keys: Iterable[tuple[str, ...]]) -> Iterator[Hashable]:
    """Each key with the number of its occurrence: an item may have two captions of the same text."""
    seen: Counter[tuple[str, ...]] = Counter()
    for key in keys:
        seen[key] += 1
        yield key, seen[key]
