"""An evaluated run as its folder holds it, read with suspicion: metrics.json, queries.json, ranking.safetensors.

Knows no experiment: which folder is whose is the caller's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from pipeline.errors import UserError

DIRECTIONS = ("t2v", "v2t")
METRICS, QUERIES, RANKING = "metrics.json", "queries.json", "ranking.safetensors"

Ranks = NDArray[np.float64]


class Written(BaseModel):
    """A JSON file of an evaluation; what else stands in it is left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Content = TypeVar("Content", bound=Written)


class FigureRow(Written):
    """A metric and the ends of its interval."""

    value: float
    low: float
    high: float


class Metrics(Written):
    """metrics.json: figures by direction and metric, and the protocol they were measured under."""

    metrics: dict[str, dict[str, FigureRow]]
    mean_ties: dict[str, dict[str, FigureRow]] = {}
    protocol: dict[str, Any]

    @property
    def figures(self) -> dict[str, dict[str, FigureRow]]:
        """Those under the mean rank of ties, as leaderboards show them."""
        return self.mean_ties or self.metrics


class Queries(Written):
    """queries.json: items by digest in gallery order, captions by digest, positions of the items right for them."""

    items: list[str]
    captions: list[str]
    caption_item: list[int]
    caption_also: list[list[int]] = []

    @property
    def right(self) -> list[list[int]]:
        """All right items of each caption by position, its own first."""
        also = self.caption_also or [[]] * len(self.captions)
        return [[item, *others] for item, others in zip(self.caption_item, also, strict=True)]


@dataclass(frozen=True)
class Asked:
    """The queries of a direction: what each asks, the item it is resampled with, and its rank under mean ties.

    A caption is known by its digest and its right items, an item by its digest and its captions: of two runs, equal
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
    protocol: Mapping[str, Any]
    items: frozenset[str]
    asked: Mapping[str, Asked] = field(default_factory=dict)


def read_metrics(folder: Path) -> Metrics:
    """The figures of an evaluation. Raises UserError naming a file that is missing or damaged."""
    return _read(folder / METRICS, Metrics)


def read_measured(folder: Path, name: str) -> Measured:
    """The folder of an evaluation. Raises UserError naming a file that is missing, damaged or of another evaluation."""
    protocol = read_metrics(folder).protocol
    queries = _read(folder / QUERIES, Queries)
    _require_positions(queries, folder / QUERIES)
    arrays = _arrays(folder / RANKING)
    asked = {}
    for direction in DIRECTIONS:
        if (rank := arrays.get(f"{direction}.mean_rank")) is None:
            continue
        found = _captions(queries) if direction == "t2v" else _items(queries, arrays.get("v2t.item"), folder)
        keys, units = zip(*found, strict=True) if found else ((), ())
        _require_ranks(rank, len(keys), direction, folder / RANKING)
        asked[direction] = Asked(tuple(keys), tuple(units), rank.astype(np.float64))
    if not asked:
        raise UserError(f"{folder / RANKING} holds no ranks; evaluate {name} again")
    return Measured(name, folder, protocol, frozenset(queries.items), asked)


def _read(path: Path, content: type[Content]) -> Content:
    try:
        return content.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there is no {path}; {path.parent} is not the folder of an evaluated method"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} is damaged or not of an evaluation: {f'{where}: ' if where else ''}{first['msg'].lower()}"
        ) from None


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; evaluate the method again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; evaluate the method again") from None


def _require_positions(queries: Queries, path: Path) -> None:
    """Raise UserError where captions name items that are not there."""
    lists = {len(queries.captions), len(queries.caption_item)}
    lists |= {len(queries.caption_also)} if queries.caption_also else set()
    if len(lists) > 1:
        raise UserError(f"{path} is damaged: its lists of captions differ in length")
    if any(not 0 <= item < len(queries.items) for right in queries.right for item in right):
        raise UserError(
            f"{path} is damaged: a caption names an item beyond the {len(queries.items)} there are"
        )


def _require_ranks(rank: NDArray[Any], queries: int, direction: str, path: Path) -> None:
    if rank.shape != (queries,):
        raise UserError(
            f"{path} is of another evaluation than {QUERIES}: {direction} has ranks {rank.shape} for {queries} queries"
        )
    if not (np.isfinite(rank) & (rank >= 1)).all():
        raise UserError(f"{path} is damaged: {direction} has ranks that are no numbers from 1 on")


def _captions(queries: Queries) -> list[tuple[Hashable, str]]:
    """Key and unit of each caption: a caption is resampled with its own item."""
    found = [
        (digest, *sorted(queries.items[item] for item in right))
        for digest, right in zip(queries.captions, queries.right, strict=True)
    ]
    return list(zip(_each_once(found), (queries.items[item] for item in queries.caption_item), strict=True))


def _items(queries: Queries, asked: NDArray[Any] | None, folder: Path) -> list[tuple[Hashable, str]]:
    """Key and unit of each item that has a caption.

    An item that is no caption's own goes with the own item of a caption that names it, as in
    `trainers.measure.metrics.rsum`.
    """
    whole = asked is not None and asked.ndim == 1 and asked.dtype.kind in "iu"
    if asked is None or not whole or not ((asked >= 0) & (asked < len(queries.items))).all():
        raise UserError(f"{folder / RANKING} is damaged: it does not say whose the ranks of items are")
    named: dict[int, list[int]] = {}
    for caption, right in enumerate(queries.right):
        for item in right:
            named.setdefault(item, []).append(caption)
    own, out = set(queries.caption_item), []
    for item in asked.tolist():
        captions = named.get(item, [])
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
