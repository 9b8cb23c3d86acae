"""Evaluation of a method on a split: encode everything once, score in blocks, rank, write it down.

Axes: Q captions of a split, q of a block, V items, K places kept of each caption's ranking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError, nearest
from pipeline.settings import Params
from trainers.data import SplitIndex
from trainers.loop import distributed
from trainers.measure import postprocess
from trainers.measure.estimates import Units, both_estimates
from trainers.measure.evaluated import (
    Estimates,
    EvaluatedFolder,
    Metrics,
    PostProcessed,
    Protocol,
    Queries,
    Ranking,
)
from trainers.measure.group_ranks import CAPTIONS, GROUPS, CaptionGroups, item_ranks
from trainers.measure.hubness import PLACES, ColumnTop, Hubness, hubness, occurrences
from trainers.measure.metric_table import DIRECTIONS
from trainers.measure.metrics import (
    CUTOFFS,
    LEVEL,
    RESAMPLES,
    RSUM_CUTOFFS,
    Block,
    chance,
    join,
    metrics,
    text_ranks,
    top,
    units_of,
)
from trainers.measure.postprocess import Bank
from trainers.method import Batch, Encoded, Method, MethodData
from trainers.relevance import Positions, Relevance
from trainers.stages import EvaluateParams

SUMS = (
    f"SumR = {' + '.join(f'R@{k}' for k in CUTOFFS)} of one direction; "
    f"RSUM = {' + '.join(f'R@{k}' for k in RSUM_CUTOFFS)} of both directions"
)
ITEM_RANKS = {
    CAPTIONS: "best rank among the item's captions",  # where each has one caption, that is said of groups too
    GROUPS: "rank of the item's group of captions among the groups of all items, each scored by its best caption",
}
SEVERAL_ITEM_RANKS = {
    CAPTIONS: "the best rank among the captions that describe the item",
    GROUPS: "the best rank among the groups with a caption that describes the item; a group is the captions of one "
    "item, scored by its best",
}
TOP = 10  # places kept of each caption's ranking, not fewer than PLACES of hubness
MEMORY_MB = 1024
EXPLAINED = 256  # captions at most whose matches are explained, spread over all
EXPLAINED_PLACES = 3  # first items of each ranking that are explained; the positive follows
BELOW = 2.0**10  # what is subtracted from the cheap score of an item that is not re-ranked


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a split with the protocol and the rankings behind them.

    mean_ties: the same metrics under the realistic (mean) rank of ties; empty if no positive is tied.
    explanation: `query` (E,), positions of captions; `item` (E, P), positions of the first items of their rankings,
    then of the positive; and the arrays (E, P, ...) that the method explains each pair with. Empty if it explains none.
    post_processed: estimates by the name of the post-processing; `metrics` and `mean_ties` are of the raw scores.
    """

    index: SplitIndex
    ranking: Ranking
    metrics: Estimates
    mean_ties: Estimates
    protocol: dict[str, Any]
    hubness: dict[str, Hubness] = field(default_factory=dict)
    explanation: dict[str, NDArray[Any]] = field(default_factory=dict)
    post_processed: dict[str, PostProcessed] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the evaluation as `EvaluatedFolder` reads it."""
        index = self.index
        EvaluatedFolder(folder).write(
            Metrics(
                metrics=self.metrics,
                mean_ties=self.mean_ties,
                protocol=Protocol.model_validate(self.protocol),
                hubness=self.hubness,
                post_processed=self.post_processed,
            ),
            Queries(
                items=index.items,
                captions=index.captions,
                caption_item=index.caption_item,
                texts=index.texts,
                caption_also=index.caption_also,
            ),
            self.ranking,
            self.explanation,
        )


def evaluate(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    directions: Sequence[str] = ("t2v",),
    device: str | torch.device = "cpu",
    memory_mb: int = MEMORY_MB,
    seed: int = 0,
    corpus: Mapping[str, Any] | None = None,
    rerank: int = 0,
    kind: str = "video",
    queries: int | None = None,
    post_processing: EvaluateParams | None = None,
    bank: MethodData | None = None,
    kept: Sequence[str] = (),
    v2t_rank: str = CAPTIONS,
    applied: str = "",
) -> Evaluation:
    """Metrics, ranks and top places of a split; every item and caption is encoded exactly once.

    Several processes share the work of encoding, and each receives all encodings, which stay on the host. Blocks of
    scores, and the encodings they are computed from, keep under `memory_mb`. `seed` draws the bootstrap. The protocol
    quotes `corpus` (`Corpus.protocol`), the `kind` of the items (`Corpus.kind`), and how many of the corpus's `queries`
    captions were dropped, because they failed or none of their positives is left; `kept` are sentences about features
    that another program made and that were kept. `v2t_rank`: whether an item ranks all captions, or groups of captions
    (`trainers.measure.group_ranks`). `applied` says which run was applied to another corpus.
    `rerank`: number of items of each caption, the best by the method's cheap scores, that are re-ranked by its true
    scores; 0 scores all pairs truly. The protocol states it. Raises UserError if the method has no cheap scores.
    `post_processing` names further measurements on the same scores; QB-norm reads the training split of `bank`.
    """
    for direction in directions:
        if direction not in DIRECTIONS:
            raise UserError(f"unknown direction {direction!r}; {nearest(direction, DIRECTIONS)}")
    rows = _score_rows(method, data, split, index, device=device, memory_mb=memory_mb, rerank=rerank)
    relevance = index.relevance
    options = post_processing.post_processing if post_processing else ()
    # The rank of an item takes two passes over the rows: the same arrays where they fit, else scored again.
    blocks: Iterable[Block] = list(rows) if ("v2t" in directions or options) and rows.fit else rows
    ranking = _rank(blocks, relevance, directions, v2t_rank)
    units = units_of(relevance, index.items)
    strict, mean = both_estimates(ranking.ranks, units, seed)
    return Evaluation(
        index,
        ranking,
        metrics=strict,
        mean_ties=mean,
        protocol={"kind": kind, **_protocol(split, index, directions, seed, queries, v2t_rank)}
        | ({"rerank": _two_stages(rerank)} if 0 < rerank < len(index.items) else {})
        | ({"kept": list(kept)} if kept else {})
        | ({"applied": applied} if applied else {})
        | ({"corpus": dict(corpus)} if corpus else {}),
        hubness={
            direction: hubness(counts, min(PLACES, len(counts)))
            for direction, counts in ranking.occurrences.items()
        },
        explanation=rows.explanation(ranking.top_items, _caption_item(index)),
        post_processed=_post_processed(
            blocks, rows, relevance, units, directions, seed, post_processing, bank, v2t_rank
        ),
    )


def validation_figure(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    device: str | torch.device = "cpu",
    memory_mb: int = MEMORY_MB,
    by: str = "SumR",
    recalls: dict[str, float] | None = None,
    direction: str = "t2v",
    v2t_rank: str = CAPTIONS,
) -> float:
    """The figure that chooses the epoch, by default SumR of text-to-item retrieval; no bootstrap.

    `by`: a metric, the sum "R@1+5+10" of one direction, or "RSUM", that of both. `direction` and the convention
    `v2t_rank` are those of the figure; a direction that does not count is not ranked. It uses the realistic (mean) rank
    of ties: a model collapsed to one score for everything has the optimistic (strict) rank 1 everywhere, and would be
    kept as the best. `recalls`, if given, gets R@1, R@5 and R@10 of every ranked direction: "R@5", "v2t R@5".
    """
    relevance = index.relevance
    rows = _score_rows(method, data, split, index, device=device, memory_mb=memory_mb)
    needed = DIRECTIONS if by == "RSUM" else (direction,)
    ranks: list[NDArray[Any]] = []
    if "t2v" in needed:
        ranks.append(join([text_ranks(scores, relevance[where]) for where, scores in rows]).mean)
    if "v2t" in needed:
        items = item_ranks(relevance, v2t_rank)
        blocks: Iterable[Block] = list(rows) if rows.fit else rows
        for where, scores in blocks:
            items.find(scores, relevance[where])
        for where, scores in blocks:
            items.count(scores, relevance[where])
        ranks.append(items.ranks().mean)
    found = [metrics(each) for each in ranks]
    if recalls is not None:
        recalls.update(_named_recalls(dict(zip([d for d in DIRECTIONS if d in needed], found, strict=True))))
    if by in ("RSUM", "R@1+5+10"):
        return sum(each[f"R@{cutoff}"] for each in found for cutoff in RSUM_CUTOFFS)
    return found[0][by]


def _named_recalls(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """R@1, R@5 and R@10 by the names that histories have for them; found: metrics by direction."""
    return {
        f"{'' if direction == 't2v' else f'{direction} '}R@{cutoff}": values[f"R@{cutoff}"]
        for direction, values in found.items()
        for cutoff in RSUM_CUTOFFS
    }


class ScoreRows:
    """Blocks of score rows over all items, computed anew on every pass, one tile of items at a time.

    A block of scores takes an eighth of the memory, because ranking it needs masks and a partial sort
    of its size; the encodings of a tile take a quarter for texts and a quarter for items. The method may use the
    rest. With `rerank`, cheap scores choose the items of a caption that are re-ranked (`_rerank`).
    """

    def __init__(
        self,
        method: Method,
        texts: Encoded,
        items: Encoded,
        device: str | torch.device,
        memory_mb: int,
        rerank: int = 0,
    ) -> None:
        self.method, self.texts, self.items, self.device = method, texts, items, device
        self.rerank = rerank
        self.memory_mb = memory_mb
        memory = memory_mb * 2**20
        method.work_bytes = memory * 3 // 8
        self.queries, self.gallery = _count(texts), _count(items)
        row_bytes = 4 * self.gallery
        self.rows = max(1, min(memory // 8 // row_bytes, memory // 4 // _bytes_each(texts)))
        self.columns = max(1, memory // 4 // _bytes_each(items))
        self.fit = self.queries * row_bytes <= memory // 8

    def __iter__(self) -> Iterator[Block]:
        for first in range(0, self.queries, self.rows):
            where = slice(first, min(first + self.rows, self.queries))
            yield where, self._block(where)

    def between(self, texts: Encoded, items: Encoded) -> ScoreRows:
        """Score rows of other captions or items, by the same method, all pairs scored truly."""
        return ScoreRows(self.method, texts, items, self.device, self.memory_mb)

    def _block(self, where: slice) -> NDArray[np.float32]:
        """Scores (q, V) of the captions at `where`."""
        out = np.empty((where.stop - where.start, self.gallery), np.float32)
        with _inference(self.method):
            texts = _part(self.texts, where, self.device)
            for first in range(0, self.gallery, self.columns):
                tile = slice(first, first + self.columns)
                out[:, tile] = self._scores(texts, _part(self.items, tile, self.device))
            if 0 < self.rerank < self.gallery:
                self._rerank(out, texts)
        return out

    def _scores(self, texts: Encoded, items: Encoded) -> NDArray[np.float32]:
        """True scores of all pairs, or cheap ones where those choose what is re-ranked."""
        if not 0 < self.rerank < self.gallery:
            return self.method.scores(texts, items).float().cpu().numpy()
        cheap = self.method.cheap_scores(texts, items)
        if cheap is None:
            raise UserError(
                f"rerank = {self.rerank} is not possible: the method has no cheap scores to choose by"
            )
        return cheap.float().cpu().numpy()

    def _rerank(self, out: NDArray[np.float32], texts: Encoded) -> None:
        """Score the best items of each caption truly, and put all others far below them, in the cheap order.

        Near -BELOW float32 still separates cheap scores that differ by 1e-4; equal ones become ties, which `mean_ties`
        counts.
        """
        best, _ = top(out, self.rerank)
        out -= np.float32(BELOW)
        for row, items in enumerate(best):
            some = {
                name: values[torch.from_numpy(items)].to(self.device) for name, values in self.items.items()
            }
            scores = self.method.scores({name: values[row : row + 1] for name, values in texts.items()}, some)
            out[row, items] = scores[0].float().cpu().numpy()
            if out[row, items].min() <= 1 - BELOW:
                raise ValueError(
                    f"a score is {out[row, items].min()}; two stages need scores above {1 - BELOW}"
                )

    def explanation(self, top_items: Positions, positive: Positions) -> dict[str, NDArray[Any]]:
        """The explanations of `Evaluation`, for at most EXPLAINED captions spread over all; empty if there are none.

        top_items: (Q, K), best first; positive: (Q,), one of each caption.
        """
        step = -(-self.queries // EXPLAINED)
        queries = np.arange(0, self.queries, step)
        items = np.concatenate([top_items[queries, :EXPLAINED_PLACES], positive[queries, None]], 1)
        arrays: dict[str, list[NDArray[Any]]] = {}
        with _inference(self.method):
            for query, places in zip(queries, items, strict=True):
                texts = _part(self.texts, slice(query, query + 1), self.device)
                some = {name: v[torch.from_numpy(places)].to(self.device) for name, v in self.items.items()}
                explained = self.method.explain(texts, some)
                if not explained:
                    return {}
                for name, values in explained.items():
                    arrays.setdefault(name, []).append(values[0].cpu().numpy())
        stacked = {name: np.ascontiguousarray(np.stack(rows)) for name, rows in arrays.items()}
        return {"query": queries, "item": items} | stacked


def _score_rows(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    *,
    device: str | torch.device,
    memory_mb: int,
    rerank: int = 0,
) -> ScoreRows:
    """The encoded split, ready to be scored. Raises UserError if it has nothing to rank."""
    if not index.items:
        raise UserError(f"the split {split!r} has no items, so there is no gallery to search")
    if not index.captions:
        raise UserError(f"the split {split!r} has no captions, so there are no queries to rank")
    with distributed.process_group(torch.device(device)), _inference(method):
        items = _encode(method.encode_items, data.item_batches(split), len(index.items), "items", device)
        texts = _encode(
            method.encode_texts, data.text_batches(split), len(index.captions), "captions", device
        )
    return ScoreRows(method, texts, items, device, memory_mb, rerank)


def _encode(
    encode: Callable[[Batch], Encoded],
    batches: Iterable[Batch],
    count: int,
    what: str,
    device: str | torch.device,
) -> Encoded:
    """All encodings on the host of every process, put at the `index` of their batch, or in order where it has none.

    With several processes, each encodes its share of the batches. All then score all pairs: encoding takes most of the
    time, and blocks of the same shape give every process the same numbers as a single process.
    """
    out: Encoded = {}
    seen = torch.zeros(count, dtype=torch.int64)
    place = 0
    for batch, ours in _own(batches):
        encoded = encode({name: values.to(device) for name, values in batch.items()})
        encoded = _joint(encoded, ours)
        size = _count(encoded)
        where = torch.arange(place, place + size)
        if "index" in batch:
            where = _joint({"index": batch["index"].to(device)}, ours)["index"]
        for name, values in encoded.items():
            if name not in out:
                out[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
            if values.shape != (len(where), *out[name].shape[1:]):
                raise ValueError(f"{name} of {what} changes its shape from batch to batch: {values.shape}")
            out[name][where] = values
        seen.index_add_(0, where, torch.ones_like(where))
        place += size
    if not (seen == 1).all():
        raise ValueError(f"of {count} {what} {int((seen != 1).sum())} were not encoded exactly once")
    return out


def _own(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's batch of every `world` consecutive ones, and whether its encodings count.

    If the last group has fewer batches than there are processes, a process without one encodes the first batch of the
    group and its result is discarded: all processes must take part in every gather, and each must know the shapes.
    """
    rank, world = distributed.rank(), distributed.world()
    chosen: tuple[Batch, bool] | None = None
    for number, batch in enumerate(batches):
        if number % world == 0 and chosen:
            yield chosen
        if number % world in (0, rank):
            chosen = batch, number % world == rank
    if chosen:
        yield chosen


def _joint(rows: Mapping[str, Tensor], ours: bool) -> Encoded:
    """The rows of all processes whose encodings count, on the host, in order of rank."""
    return {
        name: torch.cat(distributed.gather(values if ours else values[:0])).cpu()
        for name, values in rows.items()
    }


def _rank(blocks: Iterable[Block], relevance: Relevance, directions: Sequence[str], v2t_rank: str) -> Ranking:
    """Ranks in every direction and the top places of each caption."""
    both = "v2t" in directions
    text_parts, best_positives, places, items = [], [], [], item_ranks(relevance, v2t_rank)
    best = ColumnTop(relevance.items)
    for where, scores in blocks:
        linked = relevance[where]
        text_parts.append(text_ranks(scores, linked))
        best_positives.append(linked.best(scores))
        places.append(top(scores, TOP))
        if both:
            items.find(scores, linked)
            best.add(scores)
    ranks = {"t2v": join(text_parts)}
    if both:
        for where, scores in blocks:
            items.count(scores, relevance[where])
        ranks["v2t"] = items.ranks()
    top_items = np.concatenate([positions for positions, _ in places])
    held = {"t2v": (top_items[:, :PLACES], relevance.items)}
    if both:
        held["v2t"] = best.positions[relevance.captioned_items], relevance.captions
    ordered = [direction for direction in DIRECTIONS if direction in directions]
    return Ranking(
        {direction: ranks[direction] for direction in ordered},
        query_items=relevance.captioned_items,
        best_positives=np.concatenate(best_positives),
        top_items=top_items,
        top_scores=np.concatenate([scores for _, scores in places]),
        occurrences={direction: occurrences(*held[direction]) for direction in ordered},
    )


def _post_processed(
    blocks: Iterable[Block], rows: ScoreRows, relevance: Relevance, units: Units, directions: Sequence[str], seed: int,
    params: EvaluateParams | None, bank: MethodData | None, v2t_rank: str,
) -> dict[str, PostProcessed]:  # fmt: skip
    """The estimates under each requested post-processing, by its name; empty without a request."""
    if params is None or not params.post_processing:
        return {}
    shape = rows.queries, rows.gallery
    options = postprocess.adjusted(blocks, shape, params, _bank(bank, rows) if bank else None, directions)
    out = {}
    for name, ranks in postprocess.ranks(blocks, relevance, directions, options, v2t_rank).items():
        strict, mean = both_estimates(ranks, units, seed)
        settings: Params = getattr(params, name)
        out[name] = PostProcessed(
            metrics=strict, mean_ties=mean, note=postprocess.NOTES[name], params=settings.model_dump()
        )
    return out


def _bank(data: MethodData, rows: ScoreRows) -> Bank:
    """The training split as a bank of queries, encoded a batch at a time and scored in blocks like the test split."""

    def encoded(encode: Callable[[Batch], Encoded], batches: Iterable[Batch]) -> Iterator[Encoded]:
        for batch in batches:
            with _inference(rows.method):
                some = encode({name: values.to(rows.device) for name, values in batch.items()})
            yield some

    def texts() -> Iterator[NDArray[np.float32]]:
        for some in encoded(rows.method.encode_texts, data.text_batches("train")):
            yield from (scores for _, scores in rows.between(some, rows.items))

    def items() -> Iterator[ScoreRows]:
        for some in encoded(rows.method.encode_items, data.item_batches("train")):
            yield rows.between(rows.texts, some)

    return Bank(texts, items)


def _protocol(
    split: str, index: SplitIndex, directions: Sequence[str], seed: int, queries: int | None, v2t_rank: str
) -> dict[str, Any]:
    """The conditions of the measurement, which another party needs to compare its numbers with these."""
    relevance = index.relevance
    positives = np.bincount(relevance.caption, minlength=relevance.captions)
    captions = np.bincount(relevance.item, minlength=relevance.items)
    gallery, positives_of_items = len(index.captions), captions[captions > 0]
    if v2t_rank == GROUPS:
        groups = CaptionGroups(relevance)
        gallery, positives_of_items = len(groups), groups.right
    sides = {
        "t2v": {
            "queries": len(index.captions),
            "gallery": len(index.items),
            "chance": chance(len(index.items), positives),
        },
        "v2t": {
            "queries": len(positives_of_items),
            "gallery": gallery,
            "chance": chance(gallery, positives_of_items),
        },
    }
    several = {
        "items_per_caption": _spread(positives),
        "t2v_rank": "the best rank among a caption's right items",
        "v2t_rank": SEVERAL_ITEM_RANKS[v2t_rank],
        "ties": "mean rank: 1 + larger scores + t / (m + 1) with t wrong answers and m right ones at the best right "
        "score; the best rank of ties stands beside",
    }
    return {
        "split": split,
        "split_digest": split_digest(index),
        "items": len(index.items),
        "captions": len(index.captions),
        "dropped": 0 if queries is None else queries - len(index.captions),
        "captions_per_item": _spread(captions),
        "directions": {direction: sides[direction] for direction in DIRECTIONS if direction in directions},
        "ties": "mean rank: 1 + larger scores + half of the equal ones; the best rank of ties stands beside",
        "v2t_convention": v2t_rank,
        "v2t_rank": ITEM_RANKS[v2t_rank if captions.max() > 1 else CAPTIONS],
        "post_processing": "none",
        "intervals": f"{LEVEL:.0%} percentile bootstrap over items, each with all its captions, {RESAMPLES} resamples, "
        f"seed {seed}",
        "seed": seed,
        "sums": SUMS,
    } | (several if relevance.several else {})


def _spread(counts: NDArray[np.int64]) -> dict[str, float]:
    return {"min": int(counts.min()), "mean": float(counts.mean()), "max": int(counts.max())}


def _two_stages(rerank: int) -> str:
    """How the protocol labels an evaluation that did not score every pair."""
    return (
        f"two stages: of each caption's items, the {rerank} with the best cheap scores are scored; "
        "the others follow in the cheap order"
    )


def split_digest(index: SplitIndex) -> str:
    """16 hex digits of a split's members: item and caption ids in order, texts, and the positives of each caption."""
    members: list[Any] = [index.items, index.captions, index.caption_item, index.texts]
    if index.caption_also:
        members.append(index.caption_also)
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]


@contextmanager
def _inference(method: Method) -> Iterator[None]:
    """Turn off gradients and dropout inside; afterwards every part returns to its previous mode.

    Part by part, because a method may keep a frozen backbone in evaluation mode while it trains.
    """
    modes = [(part, part.training) for part in method.modules()]
    method.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _caption_item(index: SplitIndex) -> Positions:
    return np.asarray(index.caption_item, dtype=np.int64)


def _count(encoded: Encoded) -> int:
    return len(next(iter(encoded.values())))


def _bytes_each(encoded: Encoded) -> int:
    return max(1, sum(values[:1].nbytes for values in encoded.values()))


def _part(encoded: Encoded, where: slice, device: str | torch.device) -> Encoded:
    return {name: values[where].to(device) for name, values in encoded.items()}
