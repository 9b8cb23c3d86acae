"""Evaluation of a method on a split: encode everything once, score in blocks, rank, write it down.

Axes: Q captions of a split, q of a block, V items, K places kept of each caption's ranking.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError, nearest
from pipeline.settings import Params
from trainers.data import SplitIndex
from trainers.loop import distributed
from trainers.measure import postprocess
from trainers.measure.encoding import encode_all, only
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
from trainers.measure.kept_scores import InMemory, score_file
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
from trainers.measure.pace import Pace, Report
from trainers.measure.postprocess import Bank
from trainers.measure.score_rows import ScoreRows, inference
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
    folder: Path | None = None,
    on_progress: Report | None = None,
) -> Evaluation:
    """Metrics, ranks and top places of a split; every item and caption is encoded, and every pair scored, exactly once.

    Several processes share the work of encoding, and each receives all encodings. The process keeps under `memory_mb`:
    encodings and scores that do not fit are files of `folder`, or of a temporary one. With `folder`, which belongs to
    this evaluation alone, a killed evaluation goes on after the last block of scores that it finished; on return the
    folder is as it was. `on_progress` receives what is done and how far it is (`trainers.measure.pace`).
    `seed` draws the bootstrap. The protocol
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
    relevance, pace = index.relevance, Pace(on_progress)
    options = post_processing.post_processing if post_processing else ()
    again = "v2t" in directions or bool(options)  # the rank of an item takes two passes over the rows
    with _score_rows(
        method, data, split, index, device=device, memory_mb=memory_mb, rerank=rerank, again=again, folder=folder,
        pace=pace,
    ) as rows:  # fmt: skip
        ranking = _rank(rows, relevance, directions, v2t_rank)
        explanation = rows.explanation(ranking.top_items, _caption_item(index))
        units = units_of(relevance, index.items)
        pace.begin("drawing intervals", 1)
        strict, mean = both_estimates(ranking.ranks, units, seed)
        post_processed = _post_processed(
            rows, relevance, units, directions, seed, post_processing, bank, v2t_rank
        )
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
        explanation=explanation,
        post_processed=post_processed,
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
    sample: Positions | None = None,
    on_progress: Report | None = None,
) -> float:
    """The figure that chooses the epoch, by default SumR of text-to-item retrieval; no bootstrap.

    `by`: a metric, the sum "R@1+5+10" of one direction, or "RSUM", that of both. `direction` and the convention
    `v2t_rank` are those of the figure; a direction that does not count is not ranked. It uses the realistic (mean) rank
    of ties: a model collapsed to one score for everything has the optimistic (strict) rank 1 everywhere, and would be
    kept as the best. `recalls`, if given, gets R@1, R@5 and R@10 of every ranked direction: "R@5", "v2t R@5". `sample`:
    positions (n,), ascending, of the captions that take part, None for all; the gallery stays whole.
    """
    relevance = index.relevance if sample is None else index.relevance.of_captions(sample)
    needed = DIRECTIONS if by == "RSUM" else (direction,)
    ranks: list[NDArray[Any]] = []
    with _score_rows(
        method, data, split, index, device=device, memory_mb=memory_mb, sample=sample, again="v2t" in needed,
        folder=None, pace=Pace(on_progress),
    ) as rows:  # fmt: skip
        items, text_parts = item_ranks(relevance, v2t_rank), []
        for where, scores in rows:
            if "t2v" in needed:
                text_parts.append(text_ranks(scores, relevance[where]))
            if "v2t" in needed:
                items.find(scores, relevance[where])
        if text_parts:
            ranks.append(join(text_parts).mean)
        if "v2t" in needed:
            for where, scores in rows:
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


def validation_sample(index: SplitIndex, count: int, seed: int) -> Positions | None:
    """Positions of the captions that choose the epoch: `count` of those with a positive, drawn by the seed, ascending.

    None, for all captions, if `count` is 0 or there are no more.
    """
    answered = index.relevance.answered
    if not 0 < count < len(answered):
        return None
    return np.sort(np.random.default_rng([seed, count]).choice(answered, count, replace=False))


@contextmanager
def _score_rows(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    *,
    device: str | torch.device,
    memory_mb: int,
    rerank: int = 0,
    sample: Positions | None = None,
    again: bool,
    folder: Path | None,
    pace: Pace,
) -> Iterator[ScoreRows]:
    """The encoded split, ready to be scored. Raises UserError if it has nothing to rank.

    again: whether the rows are read several times. folder: place of the files of large encodings and of scores; those
    of scores are left there if the block raises, and are deleted when it ends. Without one, scores are kept in memory
    or in a temporary folder, and only if they are read again.
    """
    if not index.items:
        raise UserError(f"the split {split!r} has no items, so there is no gallery to search")
    if not index.captions:
        raise UserError(f"the split {split!r} has no captions, so there are no queries to rank")
    with _folder(folder) as scratch:
        with distributed.process_group(torch.device(device)), inference(method):
            items, texts = _encoded(method, data, split, index, sample, device, memory_mb, scratch, pace)
        rows = ScoreRows(method, texts, items, device, memory_mb, rerank, pace)
        if folder is not None or (again and not rows.fit):
            rows.keep = score_file(scratch, rows.queries, rows.gallery, {**rows.cut, **_computed_by(method)})
        elif again:
            rows.keep = InMemory()
        yield rows


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """The folder for large files, which is emptied after use; one that was given stays as it is after an error."""
    if given is None:
        with tempfile.TemporaryDirectory(prefix="crossreel-evaluation-") as name:
            yield Path(name)
        return
    own = given / f"scores-{distributed.rank()}"
    own.mkdir(parents=True, exist_ok=True)
    yield own
    shutil.rmtree(own)


def _encoded(
    method: Method, data: MethodData, split: str, index: SplitIndex, sample: Positions | None,
    device: str | torch.device, memory_mb: int, scratch: Path, pace: Pace,
) -> tuple[Encoded, Encoded]:  # fmt: skip
    """Items and captions of a split, of these only a sample if there is one; more than an eighth of the memory each
    is mapped from a file."""
    most = memory_mb * 2**20 // 8
    items = encode_all(
        method.encode_items, data.item_batches(split), len(index.items), "items", device,
        file=scratch / "items.safetensors", most_bytes=most, pace=pace,
    )  # fmt: skip
    batches, count = data.text_batches(split), len(index.captions)
    if sample is not None:
        batches, count = only(batches, sample), len(sample)
    texts = encode_all(
        method.encode_texts, batches, count, "captions", device,
        file=scratch / "captions.safetensors", most_bytes=most, pace=pace,
    )  # fmt: skip
    return items, texts


def _computed_by(method: Method) -> dict[str, str]:
    """What decides scores besides the data: the weights, as a digest, and the library."""
    digest = hashlib.sha256()
    for name, values in method.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"weights": digest.hexdigest(), "torch": torch.__version__}


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
    rows: ScoreRows, relevance: Relevance, units: Units, directions: Sequence[str], seed: int,
    params: EvaluateParams | None, bank: MethodData | None, v2t_rank: str,
) -> dict[str, PostProcessed]:  # fmt: skip
    """The estimates under each requested post-processing, by its name; empty without a request."""
    if params is None or not params.post_processing:
        return {}
    shape = rows.queries, rows.gallery
    options = postprocess.adjusted(rows, shape, params, _bank(bank, rows) if bank else None, directions)
    out = {}
    for name, ranks in postprocess.ranks(rows, relevance, directions, options, v2t_rank).items():
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
            with inference(rows.method):
                some = encode({name: values.to(rows.device) for name, values in batch.items()})
            yield some

    def texts() -> Iterator[NDArray[np.float32]]:
        for some in encoded(rows.method.encode_texts, data.text_batches("train")):
            yield from (scores for _, scores in rows.between(some, rows.items, "scoring the bank"))

    def items() -> Iterator[ScoreRows]:
        for some in encoded(rows.method.encode_items, data.item_batches("train")):
            yield rows.between(rows.texts, some, "scoring the bank")

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


def _caption_item(index: SplitIndex) -> Positions:
    return np.asarray(index.caption_item, dtype=np.int64)
