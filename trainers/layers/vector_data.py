"""The simplest inputs a method can have: one vector for each item and caption, the mean of its rows.

A training batch holds pairs: `item` (B, D) and `text` (B, T), float32, of which row i of both belongs together. Batches
of the evaluation hold `item` (V, D), or `text` (Q, T) with `index` (Q,), the place of each caption in query order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from trainers.data import (
    PlannedBatches,
    Rows,
    Split,
    checked_rows,
    keys_of,
    read_splits,
    stretches,
    training_split,
    write_splits,
)
from trainers.method import Batch


def pack(folder: Path, splits: Mapping[str, Split], item: Rows, text: Rows) -> None:
    """Write the mean row of each item and caption and one index per split into a folder.

    `item` and `text` give the rows (L, D) of an item and a caption by key. Raises ItemError for rows that are missing
    or not finite.
    """
    items, captions = keys_of(splits)
    for name, keys, read in (("item", items, item), ("text", captions, text)):
        np.save(folder / f"{name}.npy", np.stack([_mean(key, read(key)) for key in keys]))
    write_splits(folder, splits)


def _mean(key: str, rows: NDArray) -> NDArray[np.float32]:
    """The mean over rows in float64: in float16, as features are stored, a sum of a thousand rows overflows."""
    return checked_rows(key, rows).astype(np.float64).mean(0).astype(np.float32)


class VectorData(PlannedBatches):
    """Packed vectors as batches of `batch_size`."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.items: NDArray[np.float32] = np.load(folder / "item.npy", mmap_mode="r", allow_pickle=False)
        self.texts: NDArray[np.float32] = np.load(folder / "text.npy", mmap_mode="r", allow_pickle=False)
        self.splits, self.batch_size = read_splits(folder), batch_size

    @property
    def item_size(self) -> int:
        """Numbers in the vector of an item."""
        return int(self.items.shape[1])

    @property
    def text_size(self) -> int:
        """Numbers in the vector of a caption."""
        return int(self.texts.shape[1])

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(training_split(self.splits).captions) // self.batch_size)

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """The captions of each batch of an epoch, shuffled by (seed, epoch); a process takes every world-th pair.

        Raises UserError for a batch that has no pair for every process.
        """
        captions = len(training_split(self.splits).captions)
        order = np.random.default_rng([seed, epoch]).permutation(captions)
        plan = []
        for places in stretches(captions, self.batch_size):
            joint = order[places.start : places.stop]
            if len(joint) < world:
                raise UserError(f"a batch of {len(joint)} pairs cannot be shared by {world} processes")
            plan.append(joint[rank::world])
        return plan

    def planned(self, description: NDArray[np.int64]) -> Batch:
        """The pairs of some captions."""
        index = training_split(self.splits)
        items = [index.item_rows[index.caption_item[caption]] for caption in description]
        texts = [index.caption_rows[caption] for caption in description]
        return {"item": torch.from_numpy(self.items[items]), "text": torch.from_numpy(self.texts[texts])}

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        rows = self.splits[split].item_rows
        for places in stretches(len(rows), self.batch_size):
            yield {"item": torch.from_numpy(self.items[rows[places.start : places.stop]])}

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split, in query order."""
        rows = self.splits[split].caption_rows
        for places in stretches(len(rows), self.batch_size):
            texts = torch.from_numpy(self.texts[rows[places.start : places.stop]])
            yield {"text": texts, "index": torch.tensor(places)}
