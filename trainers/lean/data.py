"""Inputs of LEAN: node vectors of captions and key frames of videos, packed once into memory-mapped arrays.

Packing does not know the store: its caller passes the splits and, for each input, a function that returns an
output of a video or caption. Axes: Q captions, V videos, B pairs, m key frames, k top frames, M most triples,
S runs of characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
from trainers.lean import nodes
from trainers.lean.config import LeanConfig
from trainers.method import Batch
from trainers.packed import Ragged
from trainers.packing import PackWriter

MOST_RUNS = 6  # largest number of runs of characters stored of a triple for display; its vector uses all


class Caption(NamedTuple):
    """The nodes of a caption: vectors (n, T) float32, and rows (P, 3) int32 of [node, start, end) characters.

    A node without a row is the whole sentence.
    """

    vectors: NDArray[np.float32]
    words: NDArray[np.int32]


class Video(NamedTuple):
    """The rows (n, D) of a video, the positions (m,) of its key frames, and those (k,) of the top ones among them."""

    rows: NDArray
    positions: NDArray[np.int64]
    top: NDArray[np.int64]

    @property
    def frames(self) -> NDArray[np.float32]:
        """The key frames (m, D)."""
        return self.rows[self.positions].astype(np.float32)


def caption_nodes(name: str, config: LeanConfig, read: Mapping[str, Rows]) -> Caption:
    """The nodes of a caption from its tokens, their positions, and its triples."""
    tokens = checked_rows(name, read["token"](name))
    offsets = read["offset"](name) if "offset" in read else None
    if offsets is not None and offsets.shape != (len(tokens), 2):
        raise ItemError(name, f"its {len(tokens)} tokens have places of the shape {offsets.shape}")
    if config.nodes == "sentence" or offsets is None:
        return Caption(nodes.sentence_node(tokens, offsets), np.zeros((0, 3), np.int32))
    find = nodes.triple_words if config.nodes == "triples" else nodes.entity_words
    vectors, kept = nodes.text_nodes(find(read["span"](name)), tokens, offsets, config.max_triples)
    rows = [(node, start, end) for node, words in enumerate(kept) for start, end in words]
    return Caption(vectors, np.array(rows, np.int32).reshape(-1, 3))


def video_frames(name: str, config: LeanConfig, read: Mapping[str, Rows]) -> Video:
    """The key frames of a video; without a stage that gives the top ones, they are selected by the rows.

    If there are fewer than LEAN takes, the last one is repeated.
    """
    rows = checked_rows(name, read["frame"](name))
    if "top" not in read:
        kept, top = nodes.salient_positions(rows.astype(np.float32), config.frames, config.top)
        return Video(rows, nodes.repeated(kept, config.frames), top)
    if len(rows) > config.frames:
        raise ItemError(
            name,
            f"it has {len(rows)} key frames, LEAN takes {config.frames}: set trainers.lean.frames to the stage's "
            'count, or trainers.lean.keyframes = "" to choose among the rows',
        )
    top = read["top"](name).astype(np.int64).reshape(-1)
    if not len(top) or top.min() < 0 or top.max() >= config.frames:
        raise ItemError(name, f"its top frames {top.tolist()} are not among its {config.frames} key frames")
    return Video(rows, nodes.repeated(np.arange(len(rows)), config.frames), top)


def pack(folder: Path, config: LeanConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]) -> None:
    """Write the packed arrays and one index per split into a folder; `read` gives the inputs of the config.

    A video or caption of several splits is stored once, and memory holds one at a time.
    """
    videos, captions = keys_of(splits)

    def of_video(name: str) -> dict[str, NDArray]:
        video = video_frames(name, config, read)
        return {"positions": video.positions.astype(np.int32), "top": video.top}

    def of_caption(name: str) -> dict[str, NDArray]:
        caption = caption_nodes(name, config, read)  # at most max_triples vectors
        return {"triples": caption.vectors, "words": caption.words}

    with PackWriter(folder, read) as out:
        made = out.make("videos", list(videos), of_video)
        out.write("frames", out.stored("frame", videos), np.float32, take=made["positions"])
        out.write("top", made["top"], np.int64)
        texts = out.make("captions", list(captions), of_caption)
        out.write("triples", texts["triples"], np.float32)
        if "words" in texts:  # a sentence as the only node has none
            out.write("words", texts["words"], np.int32)
    write_splits(folder, splits)


class LeanData(PlannedBatches):
    """Packed arrays as batches: training on pairs of a caption and its video, evaluation on either alone."""

    def __init__(self, folder: Path, config: LeanConfig) -> None:
        self.config = config
        self.frames, self.top, self.triples = (
            Ragged.open(folder, name) for name in ("frames", "top", "triples")
        )
        self.words = Ragged.open(folder, "words") if Ragged.there(folder, "words") else None
        self.splits = read_splits(folder)
        self.visual_dim = self.frames.row_shape[0]
        self.text_dim = self.triples.row_shape[0]
        self._most_top = int(self.top.lengths.max())

    def spread(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (D,) in float64 of the rows of `frames` or `triples` in the training split."""
        found = training_split(self.splits)
        arrays, rows = {
            "frames": (self.frames, found.item_rows), "triples": (self.triples, found.caption_rows)
        }[name]  # fmt: skip
        kept = np.unique(rows)
        total = square = np.zeros(arrays.row_shape[0])
        for row in kept:
            values = arrays[row].astype(np.float64)
            total, square = total + values.sum(0), square + np.square(values).sum(0)
        count = arrays.lengths[kept].sum()
        mean, variance = total / count, square / count - (total / count) ** 2
        return torch.from_numpy(mean), torch.from_numpy(variance.clip(0) ** 0.5)

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch, in which every caption comes once; the last one may be smaller."""
        return -(-len(training_split(self.splits).captions) // self.config.batch_size)

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """The captions of each batch of an epoch, shuffled by (seed, epoch), and their places in the joint batch.

        Of each batch a process takes every world-th pair.
        """
        captions = len(training_split(self.splits).captions)
        order = np.random.default_rng([seed, epoch]).permutation(captions)
        plan = []
        for places in stretches(captions, self.config.batch_size):
            batch = order[places.start : places.stop]
            # every process must take part in every step: if there are too few pairs, one is used twice
            place = np.arange(rank, len(batch), world) if rank < len(batch) else np.zeros(1, np.int64)
            plan.append((batch[place], place))
        return plan

    def planned(self, description: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Batch:
        """The batch of some captions and their videos.

        `video` (B,) tells pairs of one video, `place` (B,) is where a pair stands in the joint batch.
        """
        (captions, place), index = description, training_split(self.splits)
        items = np.asarray(index.caption_item)[captions]
        found = {**self._texts(index, captions), **self._videos(index, items)}
        return {**found, "video": torch.from_numpy(items), "place": torch.from_numpy(place)}

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        index = self.splits[split]
        for places in stretches(len(index.items), self.config.item_batch):
            yield self._videos(index, places)

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split in query order; `index` is their place in it."""
        index = self.splits[split]
        for places in stretches(len(index.captions), self.config.item_batch):
            yield {**self._texts(index, places), "index": torch.tensor(places)}

    def _videos(self, index: SplitIndex, items: Sequence[int] | NDArray) -> dict[str, Tensor]:
        """frames (V, m, D) and top (V, k), which repeats a position if a video has fewer than others."""
        rows = [index.item_rows[item] for item in items]
        frames = self.frames.padded(rows)
        tops = [nodes.repeated(self.top[row], self._most_top) for row in rows]
        return {"frames": frames, "top": torch.from_numpy(np.stack(tops))}

    def _texts(self, index: SplitIndex, captions: Sequence[int] | NDArray) -> dict[str, Tensor]:
        """triples (Q, M, T) padded with zeros, count (Q,), and words (Q, M, S, 2), the characters of each."""
        rows = [index.caption_rows[caption] for caption in captions]
        most = self.config.max_triples
        words = np.zeros((len(rows), most, MOST_RUNS, 2), np.int32)
        if self.words is not None:
            for number, row in enumerate(rows):
                _fill(words[number], self.words[row])
        count = torch.from_numpy(self.triples.lengths[rows])
        return {
            "triples": self.triples.padded(rows, most), "count": count, "words": torch.from_numpy(words),
        }  # fmt: skip


def _fill(words: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
    """Write rows [node, start, end) to their nodes in an array (M, S, 2), as many as fit."""
    for node in np.unique(rows[:, 0]):
        runs = rows[rows[:, 0] == node, 1:][:MOST_RUNS]
        words[node, : len(runs)] = runs


def open_data(folder: Path, config: LeanConfig) -> LeanData:
    """The data that `pack` wrote into a folder."""
    return LeanData(folder, config)
