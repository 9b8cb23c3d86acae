"""Inputs of H2ARN: token features of captions and of clouds, packed as they are stored, then batches.

Packing does not know the store: its caller passes the splits and functions that return an output of a cloud
or caption.
Axes: B pairs of a joint batch, b captions and u clouds of one process, L tokens of a caption, P of a cloud, W and W'
their widths.

A training batch: `text` (b, L, W) and `text_place` (b,), which places of the joint batch they have; `cloud` (u, P, W')
and `cloud_place` (u,), places among the distinct clouds of the joint batch; `owner` (B,), the cloud of each pair;
`positive` (B, B), whether the caption of a row describes the cloud of a column. With `mask_padding`, `text_padding`
(b, L) is true where a caption has no token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ItemError
from trainers.data import (
    PlannedBatches,
    Rows,
    Split,
    SplitIndex,
    checked_rows,
    keys_of,
    read_splits,
    stretches,
    training_split,
    write_splits,
)
from trainers.h2arn.config import TOKENS, H2arnConfig
from trainers.method import Batch
from trainers.packed import Ragged
from trainers.packing import PackWriter


def pack(folder: Path, config: H2arnConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]) -> None:
    """Write the tokens and one index per split into a folder; `read` gives the inputs `cloud` and `text`.

    Every cloud must have as many tokens as the others, and every caption too, unless padding is masked. A cloud or
    caption of several splits is stored once.
    """
    clouds, captions = keys_of(splits)
    with PackWriter(folder, read) as out:
        _write(out, "cloud", list(clouds), read, equal=True)
        _write(out, "text", list(captions), read, equal=not config.mask_padding)
    write_splits(folder, splits)


def _write(out: PackWriter, name: str, keys: Sequence[str], read: Mapping[str, Rows], *, equal: bool) -> None:
    """Write the rows of every key, of which nothing is computed: each is read once, and checked."""

    def of_unit(key: str) -> dict[str, NDArray]:
        checked_rows(key, read[name](key))
        return {}

    out.make(f"{name}s", keys, of_unit)
    rows = out.stored(name, keys)
    widths = [rows.blocks[block].shape[1] for block in rows.table[:, 0]]
    for key, width, length in zip(keys, widths, rows.lengths, strict=True):
        if width != widths[0]:
            raise ItemError(key, f"its tokens have {width} features, those of {keys[0]} {widths[0]}")
        if equal and length != rows.lengths[0]:
            raise ItemError(key, f"it has {length} tokens and {keys[0]} {rows.lengths[0]}: {_remedy(name)}")
    out.write(f"{name}s", rows, np.float32)


def _remedy(name: str) -> str:
    if name == "cloud":
        return "all clouds need the same number"
    return f"H2ARN reads captions padded to {TOKENS} (pad = true of their stage), or set mask_padding = true"


class H2arnData(PlannedBatches):
    """Packed arrays as batches: training on captions with their clouds, evaluation on either alone."""

    def __init__(self, folder: Path, config: H2arnConfig) -> None:
        self.config = config
        self.clouds, self.texts = Ragged.open(folder, "clouds"), Ragged.open(folder, "texts")
        self.splits = read_splits(folder)
        self.cloud_dim: int = self.clouds.row_shape[0]
        self.text_dim: int = self.texts.row_shape[0]
        self._slots = int(self.texts.lengths.max())

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch, in which every caption comes once; the last one may be smaller, as released."""
        return -(-len(training_split(self.splits).captions) // self.config.batch_size)

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """The captions of each joint batch of an epoch, shuffled by (seed, epoch), and the process that loads a share.

        Of a joint batch a process takes every world-th caption and every world-th of the distinct clouds: a cloud that
        comes several times is read and encoded once.
        """
        captions = len(training_split(self.splits).captions)
        order = np.random.default_rng([seed, epoch]).permutation(captions)
        return [
            (order[places.start : places.stop].tolist(), rank, world)
            for places in stretches(captions, self.config.batch_size)
        ]

    def planned(self, description: tuple[list[int], int, int]) -> Batch:
        """The share of a process of the joint batch of some captions."""
        captions, rank, world = description
        index = training_split(self.splits)
        items = [index.caption_item[caption] for caption in captions]
        clouds = {item: place for place, item in enumerate(dict.fromkeys(items))}
        right = [set(self._described[caption]) for caption in captions]
        mine, ours = _share(len(captions), rank, world), _share(len(clouds), rank, world)
        return {
            **self._texts(index, [captions[place] for place in mine]),
            **self._clouds(index, [list(clouds)[place] for place in ours]),
            "text_place": torch.tensor(mine),
            "cloud_place": torch.tensor(ours),
            "owner": torch.tensor([clouds[item] for item in items]),
            "positive": torch.tensor([[item in found for item in items] for found in right]),
        }

    @cached_property
    def _described(self) -> list[list[int]]:
        """The positives of each training caption."""
        return training_split(self.splits).positives

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        index = self.splits[split]
        for places in stretches(len(index.items), self.config.eval_batch):
            yield self._clouds(index, places)

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split in query order; `index` is their place in it."""
        index = self.splits[split]
        for places in stretches(len(index.captions), self.config.eval_batch):
            yield {**self._texts(index, places), "index": torch.tensor(places)}

    def _clouds(self, index: SplitIndex, items: Sequence[int]) -> dict[str, Tensor]:
        return {"cloud": self.clouds.padded([index.item_rows[item] for item in items])}

    def _texts(self, index: SplitIndex, captions: Sequence[int]) -> dict[str, Tensor]:
        """Tokens padded with zeros to the slots of the longest caption in the packed splits."""
        rows = [index.caption_rows[caption] for caption in captions]
        if not self.config.mask_padding:
            return {"text": self.texts.padded(rows)}
        padding = np.arange(self._slots) >= self.texts.lengths[rows][:, None]
        return {"text": self.texts.padded(rows, self._slots), "text_padding": torch.from_numpy(padding)}


def _share(count: int, rank: int, world: int) -> list[int]:
    """Positions below `count` of a process. All take part in every step: if there are too few, one is used twice."""
    return list(range(rank, count, world)) or [0]


def open_data(folder: Path, config: H2arnConfig) -> H2arnData:
    """The data that `pack` wrote into a folder."""
    return H2arnData(folder, config)
