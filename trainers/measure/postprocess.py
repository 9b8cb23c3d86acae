"""Post-processing of scores at evaluation: dual softmax, QB-norm, Sinkhorn. No torch.

Each lowers the score of an item that many queries score highly, so that hubs lose their places: the pair (q, v) is
ranked by its scaled score minus an offset, of v when a caption ranks items, of q when an item ranks captions.
It is computed in float64 logs, so that no score overflows; memory holds one block of scores and the offsets.

Axes: Q captions, q of a block, V items, b members of a part of the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from trainers.measure.group_ranks import CAPTIONS, item_ranks
from trainers.measure.hubness import ColumnTop
from trainers.measure.metrics import PIECE, Block, Ranks, join, text_ranks, top
from trainers.relevance import Positions, Relevance, Scores
from trainers.stages import EvaluateParams

NOTHING = -1e300  # stands for log(0): below all other logs, but finite, because ranks need finite numbers

OTHERS = "uses the other queries of the test set, which a search does not have; not comparable with figures without it"
NOTES = {
    "dual_softmax": OTHERS,
    "qb_norm": "uses a bank of all training captions (text to item) and training items (item to text), none of the "
    "test queries; not comparable with figures without it",
    "sinkhorn": OTHERS,
}

Vector = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Bank:
    """Scores against training queries, computed while they are read.

    texts: blocks (b, V) of all training captions against the gallery's items. items: for each part of the training
    items, the blocks (q, b) of all captions against it.
    """

    texts: Callable[[], Iterable[Scores]]
    items: Callable[[], Iterable[Iterable[Block]]]


@dataclass(frozen=True)
class Adjusted:
    """Adjusted log-scores (q, V); only their order is meaningful.

    of_item (V,), of_text (Q,): the offset subtracted from beta * score, of each item when captions rank items, of each
    caption when items rank captions. texts (Q,), items (V,): flags of the queries that subtract it; None: all. least:
    if given, log(score - least) is added, which makes the score a factor.
    """

    beta: float
    of_item: Vector
    of_text: Vector
    texts: Flags | None = None
    items: Flags | None = None
    least: float | None = None

    def t2v(self, where: slice, scores: Scores) -> Vector:
        """The adjusted log-scores by which the captions at `where` rank items. scores: (q, V)."""
        less = self.of_item if self.texts is None else np.where(self.texts[where, None], self.of_item, 0.0)
        return self._logs(scores, less)

    def v2t(self, where: slice, scores: Scores) -> Vector:
        """The adjusted log-scores by which items rank the captions at `where`. scores: (q, V)."""
        of_text = self.of_text[where, None]
        return self._logs(scores, of_text if self.items is None else np.where(self.items, of_text, 0.0))

    def _logs(self, scores: Scores, less: Vector) -> Vector:
        exact = scores.astype(np.float64)
        logs = self.beta * exact - less
        if self.least is not None:
            above = exact - self.least
            logs += np.log(above, out=np.zeros_like(above), where=above > 0)
            logs[above <= 0] = NOTHING
        return logs


class LogSum:
    """log sum exp for each of `size` members, accumulated part by part.

    The running maximum is subtracted before exp, because exp(beta * score) overflows for large beta.
    """

    def __init__(self, size: int) -> None:
        self.most, self.sum = np.full(size, -np.inf), np.zeros(size)

    def add(self, logs: Vector, where: slice = slice(None)) -> None:
        """Add further logs (n, m) of the m members at `where`."""
        most = np.maximum(self.most[where], logs.max(0))
        self.sum[where] = self.sum[where] * np.exp(self.most[where] - most) + np.exp(logs - most).sum(0)
        self.most[where] = most

    @property
    def value(self) -> Vector:
        """The logs of the sums (size,)."""
        logs: Vector = self.most + np.log(self.sum)
        return logs


def adjusted(blocks: Iterable[Block], shape: tuple[int, int], params: EvaluateParams, bank: Bank | None,
             directions: Sequence[str]) -> dict[str, Adjusted]:  # fmt: skip
    """Adjusted scores by the name of each post-processing in `params`.

    blocks: those of all captions, read several times; shape: (Q, V).
    """
    out: dict[str, Adjusted] = {}
    for name in params.post_processing:
        if name == "dual_softmax":
            out[name] = dual_softmax(blocks, shape, params.dual_softmax.beta)
        elif name == "sinkhorn":
            out[name] = sinkhorn(blocks, shape, params.sinkhorn.beta, params.sinkhorn.iterations)
        elif bank is None:
            raise ValueError("qb_norm without a bank")
        else:
            out[name] = qb_norm(blocks, shape, bank, params.qb_norm.beta, params.qb_norm.k, directions)
    return out


def dual_softmax(blocks: Iterable[Block], shape: tuple[int, int], beta: float) -> Adjusted:
    """Score times prior, a softmax of beta * score over the queries (dual softmax of CAMoE, Cheng et al. 2021).

    The softmax of an item runs over the captions when captions rank items; that of a caption runs over the items when
    items rank captions. One pass. The paper multiplies cosines as they are; with a negative factor a larger prior would
    give a smaller product, and some scores are never positive: so if any score is negative, the smallest score is first
    subtracted from all.
    """
    texts, items, least = np.empty(shape[0]), LogSum(shape[1]), 0.0
    for where, scores in _pieces(blocks):
        logs = beta * scores.astype(np.float64)
        items.add(logs)
        texts[where] = logsumexp(logs, axis=1)
        least = min(least, float(scores.min()))
    return Adjusted(beta, items.value, texts, least=least)


def sinkhorn(blocks: Iterable[Block], shape: tuple[int, int], beta: float, iterations: int) -> Adjusted:
    """exp(beta * score) with rows and then columns brought to equal sums, `iterations` times, one pass each.

    As Yakovlev et al. (SIGIR 2023) post-process with the Sinkhorn algorithm. Kept are the logs of the scalings (Q,) and
    (V,); ranks read one of them each, as the other is the same for all that a query ranks.
    """
    texts, of_item = np.empty(shape[0]), np.zeros(shape[1])
    for _ in range(iterations):
        items = LogSum(shape[1])
        for where, scores in _pieces(blocks):
            logs = beta * scores.astype(np.float64)
            texts[where] = logsumexp(logs - of_item, axis=1)
            items.add(logs - texts[where, None])
        of_item = items.value
    return Adjusted(beta, of_item, texts)


def qb_norm(
    blocks: Iterable[Block],
    shape: tuple[int, int],
    bank: Bank,
    beta: float,
    k: int,
    directions: Sequence[str],
) -> Adjusted:
    """Dynamic inverted softmax (QB-norm, Bogolin et al., CVPR 2022): a softmax over the bank, for some queries.

    An item is active if it is among the first k of any query of the bank. A caption whose first item is active is
    ranked by exp(beta * score) / sum over the bank of exp(beta * its score with the item), any other by its scores;
    of equal first ones the first in gallery order counts. Items look for captions by a bank of training items.
    """
    queries, gallery = shape
    of_item, of_text = np.zeros(gallery), np.zeros(queries)
    texts, items = np.zeros(queries, bool), np.zeros(gallery, bool)
    if "t2v" in directions:
        of_item, active = _bank_of_texts(bank, gallery, beta, k)
        for where, scores in blocks:
            texts[where] = active[scores.argmax(1)]
    if "v2t" in directions:
        of_text, active = _bank_of_items(bank, queries, beta, k)
        items = active[_first_texts(blocks, gallery)]
    return Adjusted(beta, of_item, of_text, texts, items)


def _first_texts(blocks: Iterable[Block], gallery: int) -> Positions:
    """The caption with the highest score for each item (V,), the first of equals."""
    best, first = np.full(gallery, -np.inf), np.zeros(gallery, np.int64)
    for where, scores in blocks:
        place = scores.argmax(0)
        highest = scores[place, np.arange(gallery)]
        better = highest > best
        best[better], first[better] = highest[better], where.start + place[better]
    return first


def _bank_of_texts(bank: Bank, gallery: int, beta: float, k: int) -> tuple[Vector, Flags]:
    """For each item (V,), the log of its sum over the bank, and whether it is active."""
    sums, active = LogSum(gallery), np.zeros(gallery, bool)
    for block in bank.texts():
        for _, scores in _pieces([(slice(0, len(block)), block)]):
            sums.add(beta * scores.astype(np.float64))
            active[top(scores, k)[0]] = True
    return sums.value, active


def _bank_of_items(bank: Bank, queries: int, beta: float, k: int) -> tuple[Vector, Flags]:
    """For each caption (Q,), the log of its sum over the bank, and whether it is active."""
    sums, active = LogSum(queries), np.zeros(queries, bool)
    for part in bank.items():
        best: ColumnTop | None = None
        for where, scores in _pieces(part):
            sums.add(beta * scores.T.astype(np.float64), where)
            best = best or ColumnTop(scores.shape[1], k)
            best.add(scores)
        if best:
            active[best.positions] = True
    return sums.value, active


def _pieces(blocks: Iterable[Block]) -> Iterator[Block]:
    """Yield the blocks in pieces of at most PIECE scores, so that their float64 copies (2 MB) stay in the cache."""
    for where, scores in blocks:
        rows = max(1, PIECE // scores.shape[1])
        for first in range(0, len(scores), rows):
            part = scores[first : first + rows]
            yield slice(where.start + first, where.start + first + len(part)), part


def ranks(
    blocks: Iterable[Block], relevance: Relevance, directions: Sequence[str], options: Mapping[str, Adjusted],
    v2t_rank: str = CAPTIONS,
) -> dict[str, dict[str, Ranks]]:  # fmt: skip
    """Ranks by post-processing and direction, counted as for raw scores. blocks: read twice for `v2t`."""
    texts: dict[str, list[Ranks]] = {name: [] for name in options}
    items = {name: item_ranks(relevance, v2t_rank) for name in options}
    for where, scores in _pieces(blocks):
        for name, option in options.items():
            texts[name].append(text_ranks(option.t2v(where, scores), relevance[where]))
            if "v2t" in directions:
                items[name].find(option.v2t(where, scores), relevance[where])
    if "v2t" in directions:
        for where, scores in _pieces(blocks):
            for name, option in options.items():
                items[name].count(option.v2t(where, scores), relevance[where])
    out = {}
    for name in options:
        both = {"t2v": join(texts[name]), "v2t": items[name].ranks()}
        out[name] = {direction: both[direction] for direction in both if direction in directions}
    return out
