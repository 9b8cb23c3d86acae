"""The queries of a split with their rank under every evaluated run, as arrays.

Axes: Q queries in the order of the manifest, V items, R runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.results.report.hubness import threshold
from flows.serve.ranks.evaluated_runs import EvaluatedRun
from flows.serve.ranks.texts import Texts
from pipeline.corpus.contents import Contents
from pipeline.errors import UserError
from trainers.measure.evaluated import EvaluatedFolder

NOWHERE = -1  # position of an item that is not there

Key = tuple[str, str, int]
"""Digest of a caption, digest of its item, and the number of the occurrence of both."""


@dataclass(frozen=True)
class Rows:
    """The queries of a split and its items, whoever evaluated them. All arrays are in the order of the manifest.

    item: (Q,) the position of each query's own item. words: (Q,) length of its caption. keys: (V,) digests of the
    items as bytes, empty for an item whose media cannot be read.
    """

    split: str
    captions: Texts
    caption_ids: Texts
    item: NDArray[np.int32]
    words: NDArray[np.int32]
    keys: NDArray[np.bytes_]
    ids: Texts

    @cached_property
    def position(self) -> dict[str, int]:
        """The position of each item by its digest."""
        return {key.decode(): place for place, key in enumerate(self.keys.tolist()) if key}


@dataclass(frozen=True)
class Column:
    """What one run says of the queries of a split.

    rank: (Q,) float32, the realistic (mean) rank of the best positive, NaN where the run did not rank the query.
    first: (Q, K) positions of the first items of each ranking, NOWHERE where there is none. times: (V,) the number of
    queries that have an item in their first places. hub: (V,) whether an item is a hub under this run.
    gallery: number of items that a query ranks. unknown: queries of the evaluation that the corpus no longer has.
    """

    run: EvaluatedRun
    rank: NDArray[np.float32]
    first: NDArray[np.int32]
    times: NDArray[np.int64]
    hub: NDArray[np.bool_]
    gallery: int
    unknown: int


@dataclass(frozen=True)
class RankTable:
    """All runs on the queries of a split; `notes` are sentences about runs that could not be read."""

    rows: Rows
    columns: tuple[Column, ...]
    seconds: NDArray[np.float32]  # (V,) length of each item, NaN where it is not known
    failed: Mapping[int, str]  # by query, why no run could rank it
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the runs, in order."""
        return [column.run.name for column in self.columns]

    def column(self, name: str) -> Column:
        """The column of a run. Raises UserError for an unknown one."""
        for column in self.columns:
            if column.run.name == name:
                return column
        known = ", ".join(self.names) or "none is evaluated"
        raise UserError(f"no run {name!r} is evaluated on the split {self.rows.split!r}; these are: {known}")


def read_rows(contents: Contents, split: str) -> Rows:
    """The queries and items of a split, also those whose media cannot be read."""
    place: dict[str, int] = {}
    keys, ids = list[str](), list[str]()
    for item in contents.corpus.gallery(split):
        key = contents.digests.get(item.id, "")
        if key and key in place:  # the same bytes under another id
            continue
        place[key or item.id] = len(keys)
        keys.append(key)
        ids.append(item.id)
    pairs = list(contents.corpus.captions(split))
    captions = Texts(caption.text for _, caption in pairs)
    own = [place[contents.digests.get(item.id, "") or item.id] for item, _ in pairs]
    return Rows(
        split, captions, Texts(caption.id for _, caption in pairs), np.array(own, np.int32), captions.word_counts(),
        np.array([key.encode() for key in keys] or [b""]), Texts(ids),
    )  # fmt: skip


def row_numbers(contents: Contents, split: str) -> dict[Key, int]:
    """The row of each readable query by its key. Needed while columns are read, and dropped after."""
    rows = (
        (caption.digest, contents.digests.get(item.id, ""))
        for item, caption in contents.corpus.captions(split)
    )
    return {key: number for number, key in enumerate(_counted(rows)) if key[1]}


def read_column(run: EvaluatedRun, rows: Rows, number: Mapping[Key, int]) -> Column | None:
    """The column of the newest evaluation of a run that has queries of these rows; None if none has.

    Raises UserError naming a file that is missing or damaged.
    """
    for folder in run.folders:
        column = _column(run, EvaluatedFolder(folder), rows, number)
        if column is not None:
            return column
    return None


def _column(
    run: EvaluatedRun, folder: EvaluatedFolder, rows: Rows, number: Mapping[Key, int]
) -> Column | None:
    queries, ranking = folder.queries, folder.ranking
    if "t2v" not in ranking.ranks:
        return None
    pairs = zip(queries.captions, (queries.items[item] for item in queries.caption_item), strict=True)
    row = np.array([number.get(key, NOWHERE) for key in _counted(pairs)], np.int64)
    known = row != NOWHERE
    if not known.any():
        return None
    at = np.array([rows.position.get(key, NOWHERE) for key in queries.items] or [NOWHERE], np.int32)
    rank = np.full(len(rows.captions), np.nan, np.float32)
    rank[row[known]] = ranking.ranks["t2v"].mean[known]
    first = np.full((len(rows.captions), ranking.top_items.shape[1]), NOWHERE, np.int32)
    first[row[known]] = at[ranking.top_items[known]]
    counts = ranking.occurrences.get(
        "t2v", np.bincount(ranking.top_items.ravel(), minlength=len(queries.items))
    )
    times, hub = np.zeros(len(rows.keys), np.int64), np.zeros(len(rows.keys), np.bool_)
    there = at != NOWHERE
    times[at[there]] = counts[there]
    hub[at[there]] = counts[there] > threshold(counts)
    return Column(run, rank, first, times, hub, len(queries.items), int((~known).sum()))


def _counted(pairs: Iterable[tuple[str, str]]) -> Iterator[Key]:
    """Each pair with the number of its occurrence: an item may have two captions of the same text."""
    seen: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        seen[pair] += 1
        yield (*pair, seen[pair])


def failures_of(rows: Rows, columns: Sequence[Column], reasons: Mapping[str, str]) -> dict[int, str]:
    """Why a query has no rank under any run, by row; reasons: by the id of an item or a caption."""
    if not columns:
        return {}
    lost = np.flatnonzero(np.isnan(np.stack([column.rank for column in columns])).all(0))
    out = {}
    for row in lost.tolist():
        item, caption = rows.ids[int(rows.item[row])], rows.caption_ids[row]
        out[row] = reasons.get(item) or reasons.get(caption) or "it is not among the evaluated queries"
    return out


def reasons_by_id(failures: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """The first reason for each item or caption from triples (stage, id, reason), with the stage's name."""
    out: dict[str, list[str]] = defaultdict(list)
    for stage, name, reason in failures:
        out[name].append(f"{stage}: {reason}")
    return {name: reasons[0] for name, reasons in out.items()}


def folder_signature(root: Path) -> tuple[tuple[str, int], ...]:
    """What changes when a run is trained, evaluated or removed: names and times of the folders that hold them."""
    out = []
    for pattern in ("train-*", "evaluate-*", "apply-*"):
        for path in sorted((root / "runs").glob(pattern)):
            try:
                out.append((path.name, path.stat().st_mtime_ns))
            except OSError:  # removed at this moment
                continue
    return tuple(out)
