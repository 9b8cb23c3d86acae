"""Search with a trained method: a split's encodings on disk, the encoding of a new query, and its best matches.

Axes: V entries of an index (items, or captions), K places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from trainers.measure.encoding_files import room
from trainers.measure.metrics import require_finite, top
from trainers.method import Batch, Encoded, MethodData
from trainers.relevance import Positions
from trainers.trained import open_trained, read_settings

QUERY = "query"  # the split that a new caption or item is packed as
MEMORY_MB = 512
Read = Callable[[str, str, str], NDArray[Any]]
"""Function from stage, output ("" for the first) and key of an item or caption to the stored array."""

Score = Callable[[Encoded], Tensor]
"""Scores (V,) of one query with a block of encodings."""


class Encodings:
    """The encodings of a split's items or captions in a file: memory-mapped, so that only used parts are read."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self._tensors = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping

    def __len__(self) -> int:
        return int(next(iter(self._tensors.values())).get_shape()[0])

    @property
    def bytes_each(self) -> int:
        """Size of one entry in bytes."""
        return max(1, sum(values[:1].nbytes for values in self._tensors.values()))

    def block(self, first: int, last: int, device: str | torch.device = "cpu") -> Encoded:
        """The entries from `first` to before `last`, or to the end."""
        return {name: values[first:last].to(device) for name, values in self._tensors.items()}

    def rows(self, places: Sequence[int], device: str | torch.device = "cpu") -> Encoded:
        """The entries at some places, in their order."""
        each = [self.block(place, place + 1, device) for place in places]
        return {name: torch.cat([row[name] for row in each]) for name in self._tensors}


def write_encodings(
    path: Path,
    encode: Callable[[Batch], Encoded],
    batches: Iterable[Batch],
    count: int,
    device: str | torch.device = "cpu",
) -> None:
    """Encode everything exactly once, each at the `index` of its batch, or in order where it has none.

    Written as it comes: memory holds one batch, however many there are.
    """
    out: Encoded = {}
    seen, place = np.zeros(count, np.int64), 0
    with torch.inference_mode():
        for batch in batches:
            encoded = encode({name: values.to(device) for name, values in batch.items()})
            size = len(next(iter(encoded.values())))
            where = batch["index"] if "index" in batch else torch.arange(place, place + size)
            out = out or room(path, encoded, count)
            for name, values in encoded.items():
                if values.shape != (size, *out[name].shape[1:]):
                    raise ValueError(f"{name} changes its shape from batch to batch: {tuple(values.shape)}")
                out[name][where] = values.cpu()
            np.add.at(seen, where.numpy(), 1)
            place += size
    if not (seen == 1).all():
        raise ValueError(f"of {count} entries {int((seen != 1).sum())} were not encoded exactly once")


def every_score(
    score: Score, among: Encodings, device: str | torch.device = "cpu", memory_mb: float = MEMORY_MB
) -> NDArray[np.float32]:
    """The scores (V,) of all entries, computed a block at a time that keeps within the memory.

    score: returns the scores of one query with a block, (v,). Four bytes an entry are kept, so a million of them take
    4 MB beside the block. Raises TrainingError for a score that is not finite.
    """
    out = np.empty(len(among), np.float32)
    for first, found in _blocks(score, among, device, memory_mb):
        require_finite(found)
        out[first : first + len(found)] = found
    return out


def every_pair(
    scores: Score,
    texts: int,
    among: Encodings,
    device: str | torch.device = "cpu",
    memory_mb: float = MEMORY_MB,
) -> NDArray[np.float32]:
    """The scores (A, V) of `texts` = A queries with all entries. scores: returns those of a block, (A, v)."""
    out = np.empty((texts, len(among)), np.float32)
    for first, found in _blocks(scores, among, device, memory_mb / max(texts, 1)):
        require_finite(found)
        out[:, first : first + found.shape[1]] = found
    return out


def _blocks(
    score: Score, among: Encodings, device: str | torch.device, memory_mb: float
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the position of the first entry of each block, and the block's scores."""
    step = max(1, int(memory_mb * 2**20) // (2 * among.bytes_each))  # the other half is for its scores
    for first in range(0, len(among), step):
        with torch.inference_mode():
            yield first, score(among.block(first, first + step, device)).float().cpu().numpy()


def best(
    score: Score, among: Encodings, count: int, device: str | torch.device = "cpu",
    memory_mb: float = MEMORY_MB,
) -> tuple[Positions, NDArray[np.float32]]:  # fmt: skip
    """Positions and scores (K,) of the best entries, best first, equal scores in their order; K = min(count, V).

    Every entry is scored, a block at a time that keeps within the memory.
    """
    positions, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for first, found in _blocks(score, among, device, memory_mb):
        require_finite(found)
        # those kept stand in front, and of equal ones in order, so that the first of equal ones stays
        positions = np.concatenate([positions, first + np.arange(len(found))])
        places, kept = top(np.concatenate([scores, found])[None], count)
        positions, scores = positions[places[0]], kept[0]
    return positions, scores


def places_of(scores: NDArray[np.float32], positions: Sequence[int]) -> NDArray[np.int64]:
    """The place of each position (n,) in the ranking of scores (V,); 1 is best, equal scores stand in their order."""
    own = [scores[position] for position in positions]
    before = [
        int(np.count_nonzero(scores > score) + np.count_nonzero(scores[:position] == score))
        for position, score in zip(positions, own, strict=True)
    ]
    return 1 + np.array(before, np.int64)


class Trained:
    """A trained method that encodes a caption or an item it has never seen, from features of the usual stages."""

    def __init__(self, folder: Path, packed: Path, device: str | torch.device, memory_mb: int) -> None:
        self.device = torch.device(device)
        self._declared, self._config = read_settings(folder)
        self.method, _ = open_trained(folder, packed, self.device)
        self.method.work_bytes = memory_mb * 2**20 // 2

    def encode_texts(self, texts: Sequence[tuple[str, str]], item: str, read: Read, work: Path) -> Encoded:
        """The encodings of captions, each a pair of its key and its text, in order.

        They are packed as the captions of a split with one item, any that has features, because a method packs both;
        `read` knows the keys of the captions and of `item`, `work` is a folder that is not there yet.
        """
        pairs = [(caption, text, item) for caption, text in texts]
        with self._packed([item], pairs, read, work) as data:
            return self._encoded(self.method.encode_texts, data.text_batches(QUERY), len(texts))

    def encode_items(self, items: Sequence[str], caption: tuple[str, str], read: Read, work: Path) -> Encoded:
        """The encodings of items, by their keys, packed with any caption (its key and text) that has features."""
        with self._packed(items, [(*caption, item) for item in items], read, work) as data:
            return self._encoded(self.method.encode_items, data.item_batches(QUERY), len(items))

    @contextmanager
    def _packed(
        self, items: Sequence[str], captions: Sequence[tuple[str, str, str]], read: Read, work: Path
    ) -> Iterator[MethodData]:
        """The data of a split of these items and captions. Raises ItemError where a method cannot read them."""
        inputs = self._config.inputs()
        named = {name: partial(read, stage, output) for name, (stage, output) in inputs.items()}
        work.mkdir()
        self._declared.pack(work, self._config, {QUERY: (items, captions)}, named)
        yield self._declared.open_data(work, self._config)

    def _encoded(self, encode: Callable[[Batch], Encoded], batches: Iterator[Batch], count: int) -> Encoded:
        """The encodings of `count` entries, each at the `index` of its batch, or in order where it has none."""
        places: list[Tensor] = []
        parts: list[Encoded] = []
        for batch in batches:
            with torch.inference_mode():
                parts.append(encode({name: values.to(self.device) for name, values in batch.items()}))
            size, first = len(next(iter(parts[-1].values()))), sum(len(each) for each in places)
            places.append(batch["index"] if "index" in batch else torch.arange(first, first + size))
        order = torch.argsort(torch.cat(places))
        if len(order) != count:
            raise ValueError(f"of {count} entries {len(order)} were encoded")
        return {name: torch.cat([part[name] for part in parts])[order.to(self.device)] for name in parts[0]}

    def explain(self, texts: Encoded, items: Encoded) -> dict[str, NDArray[Any]]:
        """The method's explanation of one caption and each of K items, arrays (K, ...); {} if it gives none."""
        with torch.inference_mode():
            explained = self.method.explain(texts, items)
        return {name: np.ascontiguousarray(values[0].cpu().numpy()) for name, values in explained.items()}


def best_stretches(clip_scores: NDArray[Any]) -> NDArray[np.float64]:
    """Start and end of the best clip of each item, (K, 2), as shares of its length.

    clip_scores: (K, T), of T stretches of equal length; of equal scores the first counts.
    """
    start = clip_scores.argmax(1)
    return np.stack([start, start + 1], 1) / clip_scores.shape[1]
