"""Inputs of methods on pairs of a caption and a video: pictures and token ids, or CLIP's stored features.

Packing knows no store: it is handed the splits and functions that give an output of an item or caption.
Axes: n frames of a video, F frame slots, R pixels, D feature size, A captions, L tokens or stored states.

Batches of mode "finetune": `tokens` (A, L) int64, `word_mask` (A, L) bool, `frames` (V, F, R, R, 3) uint8,
`frame_mask` (V, F) bool. Of mode "frozen": `words` (A, L, D) and `word_mask`, `frames` (V, F, D) and
`frame_mask`; what the masks leave out is zero, unless states of padding were stored (`clip_text.pad`). In training
A = V, row i of both is a pair, `video` (A,) int64 is the place of its video in the split and `place` (A,) that of the
pair in the joint batch of all processes; captions of an evaluation carry `index` (A,), their place in query order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from pipeline.errors import ItemError, UserError
from pipeline.media import sampling
from pipeline.run.engines.machine import cores
from trainers.data import (
    PlannedBatches,
    Rows,
    Split,
    SplitIndex,
    keys_of,
    read_splits,
    stretches,
    training_split,
    write_splits,
)
from trainers.layers.clip_input import padded_frames, tokenise
from trainers.layers.pair_config import CLIP_TEXT, ClipPairConfig
from trainers.layers.rand_augment import RandAugment
from trainers.layers.rand_augment_tensors import augmented, encoded
from trainers.loop import distributed
from trainers.method import Batch
from trainers.packed import Ragged
from trainers.packing import PackWriter

PICTURE, FEATURES = 4, 2  # axes of the frames of a video in mode finetune and in mode frozen
POSITIONS = 77  # token positions of CLIP's captions: `clip_text` stores at most this many
REAL = "words.real.npy"  # (captions,) states that are no padding; there only where some are


def pack(folder: Path, config: ClipPairConfig, splits: Mapping[str, Split], read: Mapping[str, Rows]) -> None:
    """Write frames, captions and one index per split into a folder.

    Of a video with more than `max_frames` frames so many are taken (`taken`). Captions are token ids of their
    texts, and in mode frozen also the states that `read["text"]` gives (`states_of`). An item or caption of
    several splits is stored once; frames and states stay where they are stored, and memory holds one video at a time.
    """
    videos, captions = keys_of(splits)
    frozen = config.mode == "frozen"
    texts = {caption: text for _, queries in splits.values() for caption, text, _ in queries}

    def of_video(item: str) -> dict[str, NDArray]:
        rows = _checked(item, read["video"](item), FEATURES if frozen else PICTURE)
        positions = taken(config, len(rows), read["time"](item) if "time" in read else None)
        return {"positions": np.asarray(positions, np.int32)}

    def of_caption(caption: str) -> dict[str, NDArray]:
        ids, mask = tokenise([texts[caption]], config.max_words)
        tokens = {"tokens": ids[0, : mask[0].sum()]}
        return tokens | (states_of(config, caption, texts[caption], read["text"]) if frozen else {})

    with PackWriter(folder, read) as out:
        made = out.make("videos", list(videos), of_video)
        kind = np.float32 if frozen else np.uint8
        out.write("frames", out.stored("video", videos), kind, take=made["positions"])
        of = out.make("captions", list(captions), of_caption)
        out.write("tokens", of["tokens"], np.int64)
        if frozen:
            cut = of.get("states")
            states = out.stored("text", captions).cut(config.max_words, unless=cut)
            out.write("words", states, np.float32, take=cut)
            real = out.values(of["real"])[:, 0]
            lengths = (
                states.lengths if cut is None else np.where(cut.lengths > 0, cut.lengths, states.lengths)
            )
            if (real != lengths).any():
                np.save(folder / REAL, real)
    write_splits(folder, splits)


def states_of(config: ClipPairConfig, caption: str, text: str, read: Rows) -> dict[str, NDArray]:
    """Which stored states of a caption are packed, at most `max_words`, and the number of those that are no padding.

    The length of an array is its length: all of its states are real, whatever tokenizer made them. `clip_text`
    alone may store states of padding behind the end token (`pad`), and there CLIP's tokens are counted.
    """
    real = length = len(_checked(caption, read(caption), FEATURES))
    most = config.max_words
    if config.text_features == CLIP_TEXT and length > 1:
        _, mask = tokenise([text], POSITIONS)
        real = min(int(mask.sum()), length)
    counted = {"real": np.array([[min(real, most)]], np.int64)}
    if real <= most:  # the first ones
        return counted
    # of more real states than fit the first, and the last one, which is the end token's
    return counted | {"states": np.array([*range(most - 1), real - 1], np.int32)}


def taken(config: ClipPairConfig, total: int, times: NDArray | None) -> sampling.Positions:
    """Positions of the stored frames that are kept; `times` (n,) if all frames are stored, not only candidates."""
    candidates = np.arange(total)
    if times is not None:
        candidates = sampling.gare_candidates(total, sampling.average_fps(times), config.video_framerate)
    return sampling.select(candidates, config.max_frames, config.frame_select)


def _checked(name: str, rows: NDArray, axes: int) -> NDArray:
    if rows.ndim != axes or 0 in rows.shape:
        needed = "pictures" if axes == PICTURE else "rows of numbers"
        raise ItemError(name, f"its features have the shape {rows.shape}, {needed} are needed")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise ItemError(name, "its features are not all finite")
    return rows


class PairData(PlannedBatches):
    """Packed arrays as batches: training on pairs of a caption and its video, evaluation on either alone.

    `word_slots`: how many slots every batch of captions has; None: as many as its longest caption needs.
    `all_frame_slots`: whether every batch of videos has `max_frames` slots, or as many as its longest video needs.
    """

    def __init__(
        self,
        folder: Path,
        config: ClipPairConfig,
        word_slots: int | None = None,
        all_frame_slots: bool = True,
    ) -> None:
        self.config, self.word_slots, self.all_frame_slots = config, word_slots, all_frame_slots
        self.frames, self.tokens = Ragged.open(folder, "frames"), Ragged.open(folder, "tokens")
        self.splits = read_splits(folder)
        self.side: int = self.frames.row_shape[0]  # pixels, of pictures
        self.dims: int = self.frames.row_shape[-1]  # size of a feature vector
        if config.mode == "frozen":
            self.words = Ragged.open(folder, "words")
            self._real = np.load(folder / REAL) if (folder / REAL).is_file() else self.words.lengths
            if self.words.row_shape[-1] != self.dims:
                raise UserError(
                    f"captions have {self.words.row_shape[-1]} features and frames {self.dims}: both must be of one "
                    "CLIP network's space"
                )

    def train_steps(self, world: int = 1) -> int:
        """Batches in an epoch: whole ones alone, as published, unless there is not even one."""
        pairs = len(training_split(self.splits).captions)
        if pairs < 2:
            raise UserError(
                "it learns from pairs of different captions: the split 'train' needs two at least"
            )
        return max(1, pairs // self.config.batch_size)

    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """The captions of each batch of an epoch, their places in the joint batch, and what augmentation is drawn from.

        Shuffled by (seed, epoch); of each batch a process takes every world-th pair.
        """
        index, size = training_split(self.splits), self.config.batch_size
        order = np.random.default_rng([seed, epoch]).permutation(len(index.captions))
        plan = []
        for step in range(self.train_steps(world)):
            joint = order[step * size : (step + 1) * size]
            if len(joint) < world:
                raise UserError(f"a batch of {len(joint)} pairs cannot be shared by {world} processes")
            place = np.arange(rank, len(joint), world)
            plan.append((joint[place].tolist(), place, (seed, epoch)))
        return plan

    def planned(self, description: tuple[list[int], NDArray[np.int64], tuple[int, int]]) -> Batch:
        """Captions with the frames of their videos, augmented by (seed, epoch, caption).

        Where the device augments, `augment` says how (`rand_augment_tensors.encoded`).
        """
        captions, place, seeds = description
        index = training_split(self.splits)
        rows = [index.item_rows[index.caption_item[caption]] for caption in captions]
        generators = [np.random.default_rng([*seeds, caption]) for caption in captions]
        if not (self.config.augment and self.config.mode == "finetune"):
            videos = self._videos(rows)
        elif self.device_finishes:
            draws = [RandAugment().draw(generator) for generator in generators]
            videos = self._videos(rows) | {"augment": encoded(draws, RandAugment().operations)}
        else:
            frames = [self.frames[row] for row in rows]
            videos = self._padded(_on_threads(RandAugment(), frames, generators))
        video = torch.tensor([index.caption_item[caption] for caption in captions])
        pairs = {**self._texts(index, captions), **videos, "video": video}
        return {**pairs, "place": torch.from_numpy(place)}

    def finished(self, batch: Batch) -> Batch:
        """A batch whose pictures are augmented where they lie."""
        if "augment" not in batch:
            return batch
        rest = {name: values for name, values in batch.items() if name != "augment"}
        return rest | {"frames": augmented(batch["frames"], batch["frame_mask"], batch["augment"])}

    def item_batches(self, split: str) -> Iterator[Batch]:
        """The gallery of a split, in gallery order."""
        rows = self.splits[split].item_rows
        for places in stretches(len(rows), self.config.batch_size_val):
            yield self._videos([rows[place] for place in places])

    def text_batches(self, split: str) -> Iterator[Batch]:
        """The queries of a split; `index` is their place in query order."""
        index = self.splits[split]
        for places in stretches(len(index.captions), self.config.batch_size_val):
            yield {**self._texts(index, places), "index": torch.tensor(places)}

    def _slots(self, lengths: Sequence[int] | NDArray[np.int64]) -> int:
        """Frame slots of a batch of videos with so many frames."""
        slots = self.config.max_frames
        return slots if self.all_frame_slots else min(slots, int(max(lengths)))

    def _videos(self, rows: Sequence[int]) -> dict[str, Tensor]:
        lengths = self.frames.lengths[list(rows)]
        slots = self._slots(lengths)
        mask = torch.from_numpy(np.arange(slots) < lengths[:, None])
        return {"frames": self.frames.padded(rows, slots), "frame_mask": mask}

    def _padded(self, videos: Sequence[NDArray]) -> dict[str, Tensor]:
        """The same of frames that were augmented."""
        slots = self._slots([len(frames) for frames in videos])
        padded = [padded_frames(frames, slots) for frames in videos]
        frames, mask = (np.stack(part) for part in zip(*padded, strict=True))
        return {"frames": torch.from_numpy(frames), "frame_mask": torch.from_numpy(mask)}

    def _texts(self, index: SplitIndex, captions: Sequence[int]) -> dict[str, Tensor]:
        rows = [index.caption_rows[caption] for caption in captions]
        frozen = self.config.mode == "frozen"
        arrays = self.words if frozen else self.tokens
        slots = self.word_slots or int(arrays.lengths[rows].max())
        real = (self._real if frozen else self.tokens.lengths)[rows]
        mask = np.arange(slots) < real[:, None]
        name = "words" if frozen else "tokens"
        return {name: arrays.padded(rows, slots), "word_mask": torch.from_numpy(mask)}


def _on_threads(change: Callable[..., NDArray], *columns: Sequence[Any]) -> list[NDArray]:
    """The function of each row of some columns, on this process's share of the cores; one where it loads for another.

    Pillow works without the interpreter's lock.
    """
    if get_worker_info() is not None:
        return list(map(change, *columns))
    with ThreadPoolExecutor(max(1, cores() // distributed.local_world())) as pool:
        return list(pool.map(change, *columns))
