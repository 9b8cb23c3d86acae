"""Inputs of HLFormer: rows pooled to clips and frames, packed once into memory-mapped arrays, then batches.

Packing does not know the store: its caller passes the splits and, for each input, a function that returns the
rows of a video or caption. Axes: n rows of a video, T segments, L positions, Q captions, V videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.data import (
    PlannedBatches,
    Rows,
    Split,
    SplitIndex,
    captions_of,
    checked_rows,
    keys_of,
    read_splits,
    stretches,
    training_split,
    write_splits,
)
from trainers.hlformer.config import HLFormerConfig
from trainers.method import Batch
from trainers.packed import Ragged
from trainers.packing import PackWriter

NORM_EPS = 1e-5  # added to a row's norm, as published, so that rows are slightly shorter than 1


def pool_segments(rows: NDArray, segments: int) -> NDArray[np.float64]:
    """Means (T, D) of T stretches of rows (n, D); a stretch without a row of its own repeats the row it starts at.

    Boundary i is min(round(i / T n), n - 1), half to even. The cap leaves the last row out whenever an
    earlier boundary falls before it, as published.
    """
    n = len(rows)
    bounds = np.minimum(np.rint(np.arange(segments + 1) / segments * n), n - 1).astype(np.int64)
    end = max(bounds[-1], bounds[-2] + 1)
    counts = np.maximum(np.diff(bounds), 1)
    return np.add.reduceat(rows[:end].astype(np.float64), bounds[:-1], axis=0) / counts[:, None]


def unit_rows(rows: NDArray) -> NDArray:
    """Rows (n, D) divided by their length plus 1e-5, in their own precision."""
    return rows / divisors(rows)[:, None]


def divisors(rows: NDArray) -> NDArray:
    """The length of each row (n,) plus 1e-5, in the precision of the rows."""
    norms = np.sqrt(np.square(rows).sum(-1))
    return norms + rows.dtype.type(NORM_EPS)


def clip_rows(rows: NDArray, config: HLFormerConfig) -> NDArray[np.float32]:
    """The clips (map_size, D) of a video: always pooled, even from fewer rows."""
    return unit_rows(pool_segments(rows, config.map_size)).astype(np.float32)


def frame_rows(rows: NDArray, config: HLFormerConfig) -> NDArray[np.float32]:
    """The frames (at most max_ctx_l, D) of a video: pooled only if there are more."""
    many = len(rows) > config.max_ctx_l
    return unit_rows(pool_segments(rows, config.max_ctx_l) if many else rows.astype(np.float64)).astype(
        np.float32
    )


def token_rows(tokens: NDArray, config: HLFormerConfig) -> NDArray[np.float32]:
    """The tokens (at most max_desc_l, D) of a caption."""
    return unit_rows(tokens[: config.max_desc_l].astype(np.float32))


def pack(folder: Path, config: HLFormerConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]) -> None:
    """Write the packed arrays and one index per split into a folder; `read` gives the inputs `video` and `text`.

    A video or caption of several splits is stored once. The tokens stay where they are stored, with the divisor that
    makes each a unit row; frames, whose unit rows are computed in float64, would take twice as long in every batch.
    """
    videos, captions = keys_of(splits)

    def of_video(item: str) -> dict[str, NDArray]:
        rows = checked_rows(item, read["video"](item).astype(np.float32))
        return {"clips": clip_rows(rows, config), "frames": frame_rows(rows, config)}

    def of_caption(caption: str) -> dict[str, NDArray]:
        rows = checked_rows(caption, read["text"](caption).astype(np.float32))
        return {"length": divisors(rows[: config.max_desc_l])}

    with PackWriter(folder, read) as out:
        made = out.make("videos", list(videos), of_video)
        out.write("clips", made["clips"], np.float32)
        out.write("frames", made["frames"], np.float32)
        divide = out.make("captions", list(captions), of_caption)["length"]
        out.write("tokens", out.stored("text", captions).cut(config.max_desc_l), np.float32, divide=divide)
    write_splits(folder, splits)


class HLFormerData(PlannedBatches):
    """Packed arrays as batches: training on videos with all their captions, evaluation on either alone."""

    def __init__(self, folder: Path, config: HLFormerConfig) -> None:
        self.config = config
        self.clips, self.frames, self.tokens = (
            Ragged.open(folder, name) for name in ("clips", "frames", "tokens")
        )
        self.splits = read_splits(folder)
        self.visual_dim = self.clips.row_shape[0]
        self.text_dim = self.tokens.row_shape[0]
        self._captions = {name: captions_of(index) for name, index in self.splits.items()}

    def train_items(self) -> list[int]:
        """The positions of the training videos: those of `train` that have a caption."""
        training_split(self.splits)
        return [item for item, captions in enumerate(self._captions["train"]) if captions]

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch; the last one may be smaller."""
        return -(-len(self.train_items()) // self.config.batch_size)

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """The videos of each batch of an epoch, shuffled by (seed, epoch), and the process that is to load its share.

        Of each batch a process takes every world-th video.
        """
        items = np.random.default_rng([seed, epoch]).permutation(self.train_items())
        return [
            (items[places.start : places.stop], rank, world)
            for places in stretches(len(items), self.config.batch_size)
        ]

    def planned(self, description: tuple[NDArray, int, int]) -> Batch:
        """The batch of some videos for a process."""
        return self._share(*description)

    def _share(self, items: NDArray, rank: int, world: int) -> Batch:
        """Part of the joint batch of some videos that a process takes, with places in that joint batch.

        `video_place` (V,) and `text_place` (Q,) say where its videos and captions stand. Every process must take part
        in every step: where videos run out, the first is seen twice.
        """
        videos = self._ordered("train", items)
        places = list(range(rank, len(videos), world)) or [0]
        captions = [self._captions["train"][video] for video in videos]
        starts = np.cumsum([0, *map(len, captions)])
        texts = [np.arange(starts[place], starts[place + 1]) for place in places]
        batch, _, _ = self.train_batch("train", [videos[place] for place in places])
        return {
            **batch,
            "video_place": torch.tensor(places),
            "text_place": torch.from_numpy(np.concatenate(texts)),
        }

    def _ordered(self, split: str, items: Sequence[int] | NDArray) -> list[int]:
        """The videos of a batch, the one with most frames first."""
        rows, lengths = self.splits[split].item_rows, self.frames.lengths
        return sorted((int(item) for item in items), key=lambda item: -lengths[rows[item]])

    def train_batch(self, split: str, items: Sequence[int] | NDArray) -> tuple[Batch, list[int], list[int]]:
        """Videos with all their captions, the one with most frames first, and the positions of both."""
        index = self.splits[split]
        videos = self._ordered(split, items)
        captions = [c for item in videos for c in self._captions[split][item]]
        owner = [row for row, item in enumerate(videos) for _ in self._captions[split][item]]
        batch = {**self._videos(index, videos), **self._texts(index, captions), "owner": torch.tensor(owner)}
        return batch, videos, captions

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        index = self.splits[split]
        for places in stretches(len(index.items), self.config.item_batch):
            yield self._videos(index, places)

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split, the longest of each batch first; `index` is their place in query order."""
        index = self.splits[split]
        for places in stretches(len(index.captions), self.config.text_batch):
            captions = sorted(places, key=lambda c: -self.tokens.lengths[index.caption_rows[c]])
            yield {**self._texts(index, captions), "index": torch.tensor(captions)}

    def _videos(self, index: SplitIndex, items: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = [index.item_rows[item] for item in items]
        frames, mask = padded(self.frames, rows)
        return {"clips": self.clips.padded(rows), "frames": frames, "frame_mask": mask}

    def _texts(self, index: SplitIndex, captions: Sequence[int]) -> dict[str, torch.Tensor]:
        tokens, mask = padded(self.tokens, [index.caption_rows[caption] for caption in captions])
        return {"tokens": tokens, "token_mask": mask}


def open_data(folder: Path, config: HLFormerConfig) -> HLFormerData:
    """The data that `pack` wrote into a folder."""
    return HLFormerData(folder, config)


def padded(arrays: Ragged, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of the arrays as one (N, L, D) padded with zeros, and its mask (N, L), 1 for real rows."""
    lengths = arrays.lengths[list(rows)]
    mask = np.arange(lengths.max()) < lengths[:, None]
    return arrays.padded(rows), torch.from_numpy(mask.astype(np.float32))
