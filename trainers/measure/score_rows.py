"""Rows of scores of all captions with all items, in blocks of bounded memory, each pair scored once.

Axes: Q captions of a split, q of a block, V items, K places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from trainers.measure.encoding import bytes_each, bytes_of, count_of, part
from trainers.measure.kept_scores import NotKept, ScoreKeeper
from trainers.measure.metrics import Block, top
from trainers.measure.pace import Pace
from trainers.method import Encoded, Method
from trainers.relevance import Positions

EXPLAINED = 256  # captions at most whose matches are explained, spread over all
EXPLAINED_PLACES = 3  # first items of each ranking that are explained; the positive follows
BELOW = 2.0**10  # what is subtracted from the cheap score of an item that is not re-ranked
GPU_PAIRS = 16  # factor of the pairs that are scored at once on a GPU: few large products keep it busy


class ScoreRows:
    """Blocks of score rows over all items; a second pass reads what the first one gave to `keep`.

    A block of scores takes a sixteenth of the memory, because ranking it needs masks and a partial sort of its size;
    the encodings of a tile take an eighth for texts and an eighth for items. The method may use three eighths. A call
    of the method scores at most its `pairs_at_once`, so that progress is seen and a kill loses little. On a GPU the
    items stay where they fit into half of its free memory. With `rerank`, cheap scores choose the items of a caption
    that are re-ranked (`_rerank`).
    """

    def __init__(
        self,
        method: Method,
        texts: Encoded,
        items: Encoded,
        device: str | torch.device,
        memory_mb: int,
        rerank: int = 0,
        pace: Pace | None = None,
        doing: str = "scoring",
        resident: Encoded | None = None,
    ) -> None:
        self.method, self.texts, self.items, self.device = method, texts, items, torch.device(device)
        self.memory_mb, self.rerank = memory_mb, rerank
        self.keep: ScoreKeeper = NotKept()
        self._pace, self._doing = pace or Pace(), doing
        memory = memory_mb * 2**20
        method.work_bytes = memory * 3 // 8
        self.queries, self.gallery = count_of(texts), count_of(items)
        pairs = method.pairs_at_once * (GPU_PAIRS if self.device.type == "cuda" else 1)
        most = min(memory // 16 // (4 * self.gallery), memory // 8 // bytes_each(texts), self.queries)
        self.rows = max(1, min(most, max(math.isqrt(pairs), pairs // self.gallery)))
        self.columns = max(1, min(memory // 8 // bytes_each(items), pairs // self.rows))
        self.fit = 4 * self.queries * self.gallery <= memory // 8
        self._resident = resident or self._on_device()  # the items on the GPU

    @property
    def reranks(self) -> bool:
        """Whether only some items of each caption are truly scored."""
        return 0 < self.rerank < self.gallery

    @property
    def cut(self) -> dict[str, Any]:
        """What decides how blocks are computed, besides the encodings and the weights."""
        kind = self.device.type
        return {"rows": self.rows, "columns": self.columns, "rerank": self.rerank, "device": kind}

    def __iter__(self) -> Iterator[Block]:
        kept = self.keep.rows
        if kept == self.queries:
            self._pace.begin("ranking", self.queries)
        else:
            self._pace.begin(self._doing, self._work(self.queries), self._work(kept))
        for first in range(0, self.queries, self.rows):
            where = slice(first, min(first + self.rows, self.queries))
            scores = self.keep.get(where)
            if scores is None:
                scores = self._block(where)
                self.keep.put(where, scores)
            elif kept == self.queries:
                self._pace.add(len(scores))
            yield where, scores

    def between(self, texts: Encoded, items: Encoded, doing: str) -> ScoreRows:
        """Score rows of other captions or items, by the same method, all pairs scored truly."""
        return ScoreRows(
            self.method, texts, items, self.device, self.memory_mb, pace=self._pace, doing=doing,
            resident=self._resident if items is self.items else None,
        )  # fmt: skip

    def _work(self, rows: int) -> int:
        """Pairs that are scored for some rows."""
        return rows * (self.gallery + (self.rerank if self.reranks else 0))

    def _on_device(self) -> Encoded | None:
        """The items on the GPU, None where they are there already or do not fit."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return part(self.items, slice(None), self.device) if bytes_of(self.items) <= free // 2 else None

    def _tile(self, where: slice) -> Encoded:
        """The items at `where`, on the device."""
        return part(self._resident or self.items, where, self.device)

    def _block(self, where: slice) -> NDArray[np.float32]:
        """Scores (q, V) of the captions at `where`."""
        out = np.empty((where.stop - where.start, self.gallery), np.float32)
        with inference(self.method):
            texts = part(self.texts, where, self.device)
            for first in range(0, self.gallery, self.columns):
                tile = slice(first, min(first + self.columns, self.gallery))
                out[:, tile] = self._scores(texts, self._tile(tile))
                self._pace.add(len(out) * (tile.stop - tile.start))
            if self.reranks:
                self._rerank(out, texts)
        return out

    def _scores(self, texts: Encoded, items: Encoded) -> NDArray[np.float32]:
        """True scores of all pairs, or cheap ones where those choose what is re-ranked."""
        if not self.reranks:
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
            some = self._chosen(items)
            scores = self.method.scores({name: values[row : row + 1] for name, values in texts.items()}, some)
            out[row, items] = scores[0].float().cpu().numpy()
            if out[row, items].min() <= 1 - BELOW:
                raise ValueError(
                    f"a score is {out[row, items].min()}; two stages need scores above {1 - BELOW}"
                )
            self._pace.add(len(items))

    def _chosen(self, items: Positions) -> Encoded:
        """The items at some positions, on the device."""
        places, held = torch.from_numpy(items), self._resident or self.items
        return {name: values[places.to(values.device)].to(self.device) for name, values in held.items()}

    def explanation(self, top_items: Positions, positive: Positions) -> dict[str, NDArray[Any]]:
        """The explanations of `Evaluation`, for at most EXPLAINED captions spread over all; empty if there are none.

        top_items: (Q, K), best first; positive: (Q,), one of each caption.
        """
        step = -(-self.queries // EXPLAINED)
        queries = np.arange(0, self.queries, step)
        items = np.concatenate([top_items[queries, :EXPLAINED_PLACES], positive[queries, None]], 1)
        arrays: dict[str, list[NDArray[Any]]] = {}
        self._pace.begin("explaining matches", len(queries))
        with inference(self.method):
            for query, places in zip(queries, items, strict=True):
                texts = part(self.texts, slice(query, query + 1), self.device)
                explained = self.method.explain(texts, self._chosen(places))
                if not explained:
                    return {}
                for name, values in explained.items():
                    arrays.setdefault(name, []).append(values[0].cpu().numpy())
                self._pace.add(1)
        stacked = {name: np.ascontiguousarray(np.stack(rows)) for name, rows in arrays.items()}
        return {"query": queries, "item": items} | stacked


@contextmanager
def inference(method: Method) -> Iterator[None]:
    """Turn off gradients and dropout inside; afterwards every part returns to its previous mode.

    Part by part, because a method may keep a frozen backbone in evaluation mode while it trains.
    """
    modes = [(each, each.training) for each in method.modules()]
    method.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for each, training in modes:
            each.training = training
