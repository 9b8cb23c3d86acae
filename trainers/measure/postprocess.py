"""Scores after what is done to them at evaluation: dual softmax, QB-norm, Sinkhorn. No torch.

Each takes from a score how sought-after its item is over many queries, so that hubs lose their places: the pair (q, v)
is ranked by its score, scaled, less an offset of v among the items of a caption, or of q among the captions of an item.
All of it is in float64 logs, so no score is too large; nothing holds more than one block of scores and the offsets.

Axes: Q captions, q of a block, V items, b members of a part of the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from trainers.measure.hubness import ColumnTop
from trainers.measure.metrics import Block, ItemRanks, Ranks, join, text_ranks, top
from trainers.relevance import Positions, Relevance, Scores
from trainers.stages import EvaluateParams

PIECE = 2**18  # scores that are worked on at once: 2 MB in float64 stay in the cache
NOTHING = -1e300  # the log of a product that is 0: below all others, and still a number

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
    """Scores with training queries, computed as they are read.

    texts: blocks (b, V) of all training captions with the gallery's items. items: for each part of the training items,
    the blocks of all captions with them, (q, b).
    """

    texts: Callable[[], Iterable[Scores]]
    items: Callable[[], Iterable[Iterable[Block]]]


@dataclass(frozen=True)
class Adjusted:
    """What pairs are ranked by instead of their scores: logs (q, V), of which only the order counts.

    of_item (V,), of_text (Q,): what is taken off beta * score, of an item where captions look for items, of a caption
    the other way. texts (Q,), items (V,): the queries for which it is; None: all. least: where it is given,
    log(score - least) is added, which makes the score a factor.
    """

    beta: float
    of_item: Vector
    of_text: Vector
    texts: Flags | None = None
    items: Flags | None = None
    least: float | None = None

    def t2v(self, where: slice, scores: Scores) -> Vector:
        """By which the captions at `where` rank items. scores: (q, V)."""
        less = self.of_item if self.texts is None else np.where(self.texts[where, None], self.of_item, 0.0)
        return self._logs(scores, less)

    def v2t(self, where: slice, scores: Scores) -> Vector:
        """By which items rank the captions at `where`. scores: (q, V)."""
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
    """log sum exp of each of `size` members, from parts that come one after the other."""

    def __init__(self, size: int) -> None:
        self.most, self.sum = np.full(size, -np.inf), np.zeros(size)

    def add(self, logs: Vector, where: slice = slice(None)) -> None:
        """Take in more logs (n, m) of the m members at `where`."""
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
    """What each wanted option ranks by. blocks: those of all captions, read several times; shape: (Q, V)."""
    found: dict[str, Adjusted] = {}
    for name in params.post_processing:
        if name == "dual_softmax":
            found[name] = dual_softmax(blocks, shape, params.dual_softmax.beta)
        elif name == "sinkhorn":
            found[name] = sinkhorn(blocks, shape, params.sinkhorn.beta, params.sinkhorn.iterations)
        elif bank is None:
            raise ValueError("qb_norm without a bank")
        else:
            found[name] = qb_norm(blocks, shape, bank, params.qb_norm.beta, params.qb_norm.k, directions)
    return found


def dual_softmax(blocks: Iterable[Block], shape: tuple[int, int], beta: float) -> Adjusted:
    """Score times prior, a softmax of beta * score over the queries (dual softmax of CAMoE, Cheng et al. 2021).

    The queries are the captions, for each item, where captions look for items, and the items where items look for
    captions. One pass. The paper multiplies cosines as they are; with a negative factor a larger prior would give a
    smaller product, and some scores are never positive: where any is negative, all are raised by the least one first.
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
    """Dynamic inverted softmax (QB-norm, Bogolin et al., CVPR 2022): a softmax over the bank's queries, for some.

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
    """Of each item the caption (V,) with the highest score, of equal ones the first."""
    best, first = np.full(gallery, -np.inf), np.zeros(gallery, np.int64)
    for where, scores in blocks:
        place = scores.argmax(0)
        found = scores[place, np.arange(gallery)]
        better = found > best
        best[better], first[better] = found[better], where.start + place[better]
    return first


def _bank_of_texts(bank: Bank, gallery: int, beta: float, k: int) -> tuple[Vector, Flags]:
    """Of each item the log of its sum over the bank, and whether it is active."""
    sums, active = LogSum(gallery), np.zeros(gallery, bool)
    for block in bank.texts():
        for _, scores in _pieces([(slice(0, len(block)), block)]):
            sums.add(beta * scores.astype(np.float64))
            active[top(scores, k)[0]] = True
    return sums.value, active


def _bank_of_items(bank: Bank, queries: int, beta: float, k: int) -> tuple[Vector, Flags]:
    """Of each caption the log of its sum over the bank, and whether it is active."""
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
    """The blocks in pieces whose copies in float64 are small."""
    for where, scores in blocks:
        rows = max(1, PIECE // scores.shape[1])
        for first in range(0, len(scores), rows):
            part = scores[first : first + rows]
            yield slice(where.start + first, where.start + first + len(part)), part


def ranks(
    blocks: Iterable[Block], links: Relevance, directions: Sequence[str], options: Mapping[str, Adjusted]
) -> dict[str, dict[str, Ranks]]:
    """Ranks by option and direction, as those of the scores are counted. blocks: read twice for `v2t`."""
    texts: dict[str, list[Ranks]] = {name: [] for name in options}
    items = {name: ItemRanks(links.items) for name in options}
    for where, scores in _pieces(blocks):
        for name, option in options.items():
            texts[name].append(text_ranks(option.t2v(where, scores), links[where]))
            if "v2t" in directions:
                items[name].find(option.v2t(where, scores), links[where])
    if "v2t" in directions:
        for where, scores in _pieces(blocks):
            for name, option in options.items():
                items[name].count(option.v2t(where, scores), links[where])
    found = {}
    for name in options:
        both = {"t2v": join(texts[name]), "v2t": items[name].ranks()}
        found[name] = {direction: both[direction] for direction in both if direction in directions}
    return found
