"""Evaluation of a method on a split: encode everything once, score in blocks, rank, write it down.

Axes: Q captions of a split, q of a block, V items, K places kept of each caption's ranking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from pipeline.errors import UserError, nearest
from trainers.data import SplitIndex
from trainers.method import Batch, Encoded, Method, MethodData
from trainers.metrics import (
    LEVEL,
    RESAMPLES,
    Figure,
    ItemRanks,
    Positions,
    Ranks,
    chance,
    intervals,
    join,
    metrics,
    rsum,
    text_ranks,
    top,
)

DIRECTIONS = ("t2v", "v2t")  # a caption looks for its item, an item for its captions
TOP = 10  # places kept of each caption's ranking
MEMORY_MB = 1024

Block = tuple[slice, NDArray[np.float32]]
"""Consecutive captions and their scores (q, V) against all items."""

Figures = dict[str, dict[str, Figure]]
"""Direction, then metric; RSUM, which is of two directions, stands under `both`."""


@dataclass(frozen=True)
class Ranking:
    """Where every query found its answer. The ranks of `v2t` are those of `asked`, the items with a caption.

    top_items, top_scores: (Q, K), best first, equal scores in gallery order.
    """

    ranks: dict[str, Ranks]
    asked: Positions
    top_items: Positions
    top_scores: NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a split with the protocol and the rankings behind them.

    mean_ties holds the same metrics under the mean rank of ties, and nothing if no answer is tied.
    """

    index: SplitIndex
    ranking: Ranking
    metrics: Figures
    mean_ties: Figures
    protocol: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write metrics.json, ranking.safetensors (ranks, top places) and queries.json (ids and texts)."""
        summary = {
            "metrics": _plain(self.metrics),
            "mean_ties": _plain(self.mean_ties),
            "protocol": self.protocol,
        }
        queries = {name: getattr(self.index, name) for name in ("items", "captions", "caption_item", "texts")}
        (folder / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (folder / "queries.json").write_text(json.dumps(queries) + "\n", encoding="utf-8")
        save_file(_arrays(self.ranking), folder / "ranking.safetensors")


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
) -> Evaluation:
    """Metrics, ranks and top places of a split; every item and caption is encoded exactly once.

    The encodings of the split stay on the host; the blocks of scores, and what is scored at once, keep
    under `memory_mb`. `seed` draws the bootstrap. `corpus` is quoted in the protocol (`Corpus.protocol`).
    """
    for direction in directions:
        if direction not in DIRECTIONS:
            raise UserError(f"unknown direction {direction!r}; {nearest(direction, DIRECTIONS)}")
    rows = _score_rows(method, data, split, index, device=device, memory_mb=memory_mb)
    ranking = _rank(rows, index, directions)
    tied = any(ranks.differ for ranks in ranking.ranks.values())
    strict = {direction: ranks.strict for direction, ranks in ranking.ranks.items()}
    mean = {direction: ranks.mean for direction, ranks in ranking.ranks.items()}
    return Evaluation(
        index,
        ranking,
        metrics=_figures(strict, index, seed),
        mean_ties=_figures(mean, index, seed) if tied else {},
        protocol=_protocol(split, index, directions, seed) | ({"corpus": dict(corpus)} if corpus else {}),
    )


def validation_figure(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    device: str | torch.device = "cpu",
    memory_mb: int = MEMORY_MB,
) -> float:
    """SumR of captions looking for items, the figure that early stopping watches; no bootstrap.

    It takes the mean rank of ties: a model collapsed to one score for everything has strict rank 1
    everywhere, and would be kept as the best.
    """
    item = _caption_item(index)
    rows = _score_rows(method, data, split, index, device=device, memory_mb=memory_mb)
    return metrics(join([text_ranks(scores, item[where]) for where, scores in rows]).mean)["SumR"]


class ScoreRows:
    """Blocks of score rows over all items, computed anew on every pass, one tile of items at a time.

    A block of scores takes an eighth of the memory, because ranking it needs masks and a partial sort
    of its size; the encodings of a tile take a quarter for texts and one for items. The rest is the
    method's.
    """

    def __init__(
        self, method: Method, texts: Encoded, items: Encoded, device: str | torch.device, memory_mb: int
    ) -> None:
        self.method, self.texts, self.items, self.device = method, texts, items, device
        memory = memory_mb * 2**20
        self.queries, self.gallery = _count(texts), _count(items)
        row_bytes = 4 * self.gallery
        self.rows = max(1, min(memory // 8 // row_bytes, memory // 4 // _bytes_each(texts)))
        self.columns = max(1, memory // 4 // _bytes_each(items))
        self.fit = self.queries * row_bytes <= memory // 8

    def __iter__(self) -> Iterator[Block]:
        for first in range(0, self.queries, self.rows):
            where = slice(first, min(first + self.rows, self.queries))
            yield where, self._block(where)

    def _block(self, where: slice) -> NDArray[np.float32]:
        """Scores (q, V) of the captions at `where`."""
        out = np.empty((where.stop - where.start, self.gallery), np.float32)
        with _inference(self.method):
            texts = _part(self.texts, where, self.device)
            for first in range(0, self.gallery, self.columns):
                tile = slice(first, first + self.columns)
                scores = self.method.scores(texts, _part(self.items, tile, self.device))
                out[:, tile] = scores.float().cpu().numpy()
        return out


def _score_rows(
    method: Method,
    data: MethodData,
    split: str,
    index: SplitIndex,
    *,
    device: str | torch.device,
    memory_mb: int,
) -> ScoreRows:
    """The encoded split, ready to be scored. Raises UserError if it has nothing to rank."""
    if not index.items:
        raise UserError(f"the split {split!r} has no items, so there is no gallery to search")
    if not index.captions:
        raise UserError(f"the split {split!r} has no captions, so there are no queries to rank")
    with _inference(method):
        items = _encode(method.encode_items, data.item_batches(split), len(index.items), "items", device)
        texts = _encode(
            method.encode_texts, data.text_batches(split), len(index.captions), "captions", device
        )
    return ScoreRows(method, texts, items, device, memory_mb)


def _encode(
    encode: Callable[[Batch], Encoded],
    batches: Iterable[Batch],
    count: int,
    what: str,
    device: str | torch.device,
) -> Encoded:
    """All encodings on the host, put at the `index` of their batch, or in order where it has none."""
    out: Encoded = {}
    seen = torch.zeros(count, dtype=torch.int64)
    place = 0
    for batch in batches:
        encoded = encode({name: values.to(device) for name, values in batch.items()})
        size = _count(encoded)
        where = batch["index"].cpu() if "index" in batch else torch.arange(place, place + size)
        for name, values in encoded.items():
            if name not in out:
                out[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype)
            if values.shape != (len(where), *out[name].shape[1:]):
                raise ValueError(f"{name} of {what} changes its shape from batch to batch: {values.shape}")
            out[name][where] = values.cpu()
        seen.index_add_(0, where, torch.ones_like(where))
        place += size
    if not (seen == 1).all():
        raise ValueError(f"of {count} {what} {int((seen != 1).sum())} were not encoded exactly once")
    return out


def _rank(rows: ScoreRows, index: SplitIndex, directions: Sequence[str]) -> Ranking:
    """Ranks in every direction and the top places of each caption."""
    item, both = _caption_item(index), "v2t" in directions
    found, places, items = [], [], ItemRanks(len(index.items))
    # The rank of an item takes two passes over the rows: the same arrays where they fit, else scored again.
    blocks: Iterable[Block] = list(rows) if both and rows.fit else rows
    for where, scores in blocks:
        found.append(text_ranks(scores, item[where]))
        places.append(top(scores, TOP))
        if both:
            items.find(scores, item[where])
    ranks = {"t2v": join(found)}
    if both:
        for where, scores in blocks:
            items.count(scores, item[where])
        ranks["v2t"] = items.ranks()
    return Ranking(
        {direction: ranks[direction] for direction in DIRECTIONS if direction in directions},
        asked=np.unique(item),
        top_items=np.concatenate([positions for positions, _ in places]),
        top_scores=np.concatenate([scores for _, scores in places]),
    )


def _figures(ranks: Mapping[str, NDArray[Any]], index: SplitIndex, seed: int) -> Figures:
    """Every metric with its interval, from ranks of one kind by direction."""
    out = {direction: intervals(values, seed) for direction, values in ranks.items()}
    if len(ranks) == len(DIRECTIONS):
        out["both"] = {"RSUM": rsum(ranks["t2v"], ranks["v2t"], _caption_item(index), seed)}
    return out


def _protocol(split: str, index: SplitIndex, directions: Sequence[str], seed: int) -> dict[str, Any]:
    """What another party needs in order to compare its numbers with these."""
    captions = np.bincount(index.caption_item, minlength=len(index.items))
    asked = captions[captions > 0]
    sides = {
        "t2v": {
            "queries": len(index.captions),
            "gallery": len(index.items),
            "chance": chance(len(index.items), np.ones(1, np.int64)),
        },
        "v2t": {
            "queries": len(asked),
            "gallery": len(index.captions),
            "chance": chance(len(index.captions), asked),
        },
    }
    return {
        "split": split,
        "split_digest": split_digest(index),
        "items": len(index.items),
        "captions": len(index.captions),
        "captions_per_item": {
            "min": int(captions.min()),
            "mean": float(captions.mean()),
            "max": int(captions.max()),
        },
        "directions": {direction: sides[direction] for direction in DIRECTIONS if direction in directions},
        "ties": "rank = 1 + number of strictly larger scores; mean_ties: expected rank under random order",
        "v2t_rank": "best rank among the item's captions",
        "post_processing": "none",
        "intervals": f"{LEVEL:.0%} percentile bootstrap over queries, {RESAMPLES} resamples, seed {seed}",
    }


def split_digest(index: SplitIndex) -> str:
    """16 hex digits of who is in a split: item and caption ids in order, texts, and the item of each."""
    members = [index.items, index.captions, index.caption_item, index.texts]
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()[:16]


@contextmanager
def _inference(method: Method) -> Iterator[None]:
    """No gradients and no dropout inside; outside, every part is again in the mode it was in.

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


def _plain(figures: Figures) -> dict[str, dict[str, dict[str, float]]]:
    """Figures as JSON holds them."""
    return {
        direction: {name: asdict(figure) for name, figure in named.items()}
        for direction, named in figures.items()
    }


def _arrays(ranking: Ranking) -> dict[str, NDArray[Any]]:
    """The tensors of ranking.safetensors."""
    arrays: dict[str, NDArray[Any]] = {"top.items": ranking.top_items, "top.scores": ranking.top_scores}
    for direction, ranks in ranking.ranks.items():
        arrays |= {f"{direction}.rank": ranks.strict, f"{direction}.mean_rank": ranks.mean}
    if "v2t" in ranking.ranks:
        arrays["v2t.item"] = ranking.asked
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}
