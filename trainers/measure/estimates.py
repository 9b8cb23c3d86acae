"""Every metric of ranks, or of a matrix of scores, with its interval; no model and no torch.

Axes: Q captions, V items. A score is higher-is-more-alike, rows captions, columns items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import UserError, nearest
from trainers.measure.evaluated import Estimates
from trainers.measure.group_ranks import CAPTIONS, GROUPS, CaptionGroups, item_ranks
from trainers.measure.metric_table import DIRECTIONS
from trainers.measure.metrics import Ranks, chance, intervals, rsum, text_ranks, units_of
from trainers.relevance import Positions, Relevance

Units = tuple[Positions, Positions]
"""Resampling units: one of each caption with a positive, one of each item with a caption (`units_of`)."""

Positives = ArrayLike | Sequence[Sequence[int]] | None
"""The items relevant to each caption: a column for each, several columns for each, or a matrix (Q, V) of booleans."""


@dataclass(frozen=True)
class MeasuredScores:
    """The metrics of a score matrix. strict, mean: estimates under the optimistic and the realistic rank of ties.

    mean is empty if no positive is tied. chance: the metrics of a random order, by direction. queries, gallery: numbers
    of queries and of candidates, by direction.
    """

    ranks: Mapping[str, Ranks]
    strict: Estimates
    mean: Estimates
    chance: Mapping[str, Mapping[str, float]]
    queries: Mapping[str, int]
    gallery: Mapping[str, int]


def both_estimates(ranks: Mapping[str, Ranks], units: Units, seed: int) -> tuple[Estimates, Estimates]:
    """Estimates under optimistic (strict) and realistic (mean) ranks; the latter empty if no positive is tied."""
    strict = _estimates({direction: each.strict for direction, each in ranks.items()}, units, seed)
    if not any(each.differ for each in ranks.values()):
        return strict, {}
    return strict, _estimates({direction: each.mean for direction, each in ranks.items()}, units, seed)


def _estimates(ranks: Mapping[str, NDArray[Any]], units: Units, seed: int) -> Estimates:
    """Every metric with its interval, from ranks of one kind by direction."""
    of = dict(zip(DIRECTIONS, units, strict=True))
    out = {direction: intervals(values, of[direction], seed) for direction, values in ranks.items()}
    if len(ranks) == len(DIRECTIONS):
        out["both"] = {"RSUM": rsum(ranks["t2v"], ranks["v2t"], units, seed)}
    return out


def measure_scores(
    scores: ArrayLike,
    positives: Positives = None,
    directions: Sequence[str] = DIRECTIONS,
    v2t_rank: str = CAPTIONS,
    seed: int = 0,
) -> MeasuredScores:
    """The metrics of scores (Q, V), as an evaluation of the same scores has them; seed: that of the bootstrap.

    positives: as `Positives` says; None for a square matrix whose caption q describes item q. v2t_rank: whether an
    item ranks all captions, or groups of captions (`trainers.measure.group_ranks`). Raises UserError for what does not
    fit, and TrainingError for scores that are not finite.
    """
    matrix = _matrix(scores)
    for direction in directions:
        if direction not in DIRECTIONS:
            raise UserError(f"unknown direction {direction!r}; {nearest(direction, DIRECTIONS)}")
    if v2t_rank not in (CAPTIONS, GROUPS):
        raise UserError(f"v2t_rank = {v2t_rank!r} is not possible; {nearest(v2t_rank, (CAPTIONS, GROUPS))}")
    relevance = relevance_of(positives, *matrix.shape)
    ranks: dict[str, Ranks] = {}
    if "t2v" in directions:
        ranks["t2v"] = text_ranks(matrix, relevance)
    if "v2t" in directions:
        items = item_ranks(relevance, v2t_rank)
        items.find(matrix, relevance)
        items.count(matrix, relevance)
        ranks["v2t"] = items.ranks()
    strict, mean = both_estimates(ranks, units_of(relevance), seed)
    gallery, counts = {"t2v": relevance.items, "v2t": relevance.captions}, _counts(relevance)
    if v2t_rank == GROUPS:
        groups = CaptionGroups(relevance)
        gallery["v2t"], counts["v2t"] = len(groups), groups.right
    return MeasuredScores(
        ranks, strict, mean,
        {direction: chance(gallery[direction], counts[direction]) for direction in ranks},
        {direction: len(each.strict) for direction, each in ranks.items()},
        {direction: gallery[direction] for direction in ranks},
    )  # fmt: skip


def _matrix(scores: ArrayLike) -> NDArray[Any]:
    """The scores (Q, V) as they are, of a floating type. Raises UserError for anything else than a matrix."""
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise UserError(f"scores have the shape {matrix.shape}; a matrix (captions, items) is needed")
    if matrix.dtype.kind in "iub":
        return matrix.astype(np.float64)
    if matrix.dtype.kind != "f":
        raise UserError(f"scores have the type {matrix.dtype}; numbers are needed")
    return matrix


def _counts(relevance: Relevance) -> dict[str, NDArray[Any]]:
    """Number of positives of each query, by direction."""
    counts = np.bincount(relevance.caption), np.bincount(relevance.item)
    return {direction: each[each > 0] for direction, each in zip(DIRECTIONS, counts, strict=True)}


def relevance_of(positives: Positives, captions: int, items: int) -> Relevance:
    """The relevance of a matrix (captions, items). Raises UserError for positives that do not fit it."""
    if positives is None:
        if captions != items:
            raise UserError(
                f"relevance is needed for scores of the shape {(captions, items)}: without it caption q describes item "
                "q, and there are as many of both"
            )
        return Relevance.one_each(np.arange(captions), items)
    if (one_each := _columns(positives)) is not None:
        if len(one_each) != captions:
            raise UserError(f"relevance has {len(one_each)} rows, and scores have {captions} captions")
        for caption in np.flatnonzero((one_each < 0) | (one_each >= items))[:1].tolist():
            raise _beyond(caption, int(one_each[caption]), items)
        return Relevance.one_each(one_each, items)
    rows = _rows(positives, captions, items)
    if len(rows) != captions:
        raise UserError(f"relevance has {len(rows)} rows, and scores have {captions} captions")
    for caption, row in enumerate(rows):
        for item in row:
            if not 0 <= item < items:
                raise _beyond(caption, item, items)
    relevance = Relevance.of(rows, items)
    if len(relevance.caption) == 0:
        raise UserError("relevance names no item at all, so there is no query to rank")
    return relevance


def _beyond(caption: int, item: int, items: int) -> UserError:
    return UserError(f"relevance of caption {caption} names item {item}; there are items 0 to {items - 1}")


def _columns(positives: Any) -> Positions | None:
    """The column of each caption's only item (Q,); None for positives in any other form."""
    try:
        array = np.asarray(positives)
    except ValueError:  # rows of different lengths
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iu" else None


def _rows(positives: Any, captions: int, items: int) -> list[list[int]]:
    """The relevant items of each caption as lists."""
    try:
        array = np.asarray(positives)
    except ValueError:  # rows of different lengths
        return [[int(item) for item in row] for row in positives]
    if array.dtype.kind == "b":
        if array.shape != (captions, items):
            raise UserError(f"relevance has the shape {array.shape}, and scores {(captions, items)}")
        return [np.flatnonzero(row).tolist() for row in array]
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise UserError(
            f"relevance has the type {array.dtype} and {array.ndim} axes; columns of items are needed, one or a list "
            "for each caption, or a matrix of booleans"
        )
    if array.shape == (captions, items) and items > 2 and np.isin(array, (0, 1)).all():
        raise UserError(
            "relevance is a matrix of the integers 0 and 1, which would be read as columns; pass booleans"
        )
    return [[int(item) for item in row] for row in array]
