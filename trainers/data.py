"""Contiguous, memory-mapped inputs of a method, built once from the store: rows, offsets and splits."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipeline.errors import ItemError, UserError, nearest
from trainers.relevance import Relevance

if TYPE_CHECKING:
    from torch import Tensor

Split = tuple[Sequence[str], Sequence[tuple[str, str, str]]]
"""Item ids in gallery order, and (caption id, text, item id) in query order."""

Rows = Callable[[str], NDArray]
"""One output of a stage, by the key of an item or caption."""

SPLITS = "splits"  # the folder of the splits' indexes


def write_ragged(
    folder: Path, name: str, arrays: Iterable[NDArray], lengths: Sequence[int], dtype: DTypeLike = np.float32
) -> None:
    """Write arrays (rows_i, ...) end to end; the lengths are known beforehand, so memory holds one array."""
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)
    out: np.memmap | None = None
    for index, array in enumerate(arrays):
        if len(array) != lengths[index]:
            raise ValueError(f"{name}[{index}] has {len(array)} rows, {lengths[index]} were announced")
        if out is None:
            shape = (int(offsets[-1]), *array.shape[1:])
            out = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        out[offsets[index] : offsets[index + 1]] = array
    if out is None:
        raise ValueError(f"nothing to write for {name}")
    out.flush()
    np.save(folder / f"{name}.offsets.npy", offsets)


@dataclass(frozen=True)
class SplitIndex:
    """Members of a split: gallery items, captions in query order, and the item of each caption.

    `item_rows` and `caption_rows` are the positions of their arrays among the packed rows. The item of a
    caption is a position in `items`. `caption_also` has the other items that each caption describes equally
    well, and is empty if no caption of the split has any.
    """

    items: list[str]
    item_rows: list[int]
    captions: list[str]
    caption_rows: list[int]
    caption_item: list[int]
    texts: list[str]
    caption_also: list[list[int]] = field(default_factory=list)

    @property
    def positives(self) -> list[list[int]]:
        """Positions of the positives of each caption, the item it belongs to first."""
        also = self.caption_also or [[]] * len(self.caption_item)
        return [[item, *others] for item, others in zip(self.caption_item, also, strict=True)]

    @property
    def relevance(self) -> Relevance:
        """The positives of each caption in the form that the rank metrics take."""
        if not self.caption_also:
            return Relevance.one_each(np.asarray(self.caption_item, np.int64), len(self.items))
        return Relevance.of(self.positives, len(self.items))

    def write(self, path: Path) -> None:
        """Save as JSON."""
        saved = asdict(self)
        if not self.caption_also:
            del saved["caption_also"]  # an index without others has the bytes it always had
        path.write_text(json.dumps(saved), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> SplitIndex:
        """The index from a file that `write` saved."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def checked_rows(name: str, rows: NDArray) -> NDArray:
    """The features (L, D) of an item or caption, as they are. Raises ItemError unless they are finite rows."""
    if rows.ndim != 2 or 0 in rows.shape:
        raise ItemError(name, f"its features have the shape {rows.shape}, rows of numbers are needed")
    if not np.isfinite(rows).all():
        raise ItemError(name, "its features are not all finite")
    return rows


def training_split(splits: Mapping[str, SplitIndex]) -> SplitIndex:
    """The split that is learned from. Raises UserError where there is none."""
    if "train" not in splits:
        raise UserError(f"there is no split 'train' to learn from; {nearest('train', splits)}")
    return splits["train"]


def stretches(count: int, size: int) -> Iterator[range]:
    """Consecutive positions 0 to `count`, `size` at a time; the last stretch may be shorter."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def numbered(ids: Iterable[str]) -> dict[str, int]:
    """The distinct ids with their row, in order of first appearance."""
    return {name: row for row, name in enumerate(dict.fromkeys(ids))}


def keys_of(splits: Mapping[str, Split]) -> tuple[dict[str, int], dict[str, int]]:
    """The items and the captions of all splits with their rows; one of several splits is stored once."""
    items = numbered(item for gallery, _ in splits.values() for item in gallery)
    return items, numbered(caption for _, queries in splits.values() for caption, _, _ in queries)


def write_splits(folder: Path, splits: Mapping[str, Split]) -> None:
    """Write one index a split, whose rows are those of `keys_of`."""
    items, captions = keys_of(splits)
    (folder / SPLITS).mkdir()
    for name, (gallery, queries) in splits.items():
        split_index(gallery, queries, items, captions).write(folder / SPLITS / f"{name}.json")


def split_columns(
    items: Iterable[str], captions: Iterable[tuple[str, str, str, Sequence[str]]]
) -> dict[str, list[Any]]:
    """The members of a split as columns for JSON: items, and of each caption the id, text, item and other positives.

    captions: (caption id, text, item id, ids of other items that it describes). The item of a caption is a position in
    `items`; `also` is empty if no caption of the split has others. Columns, because an object for each caption takes
    three times the memory: 170,000 captions 160 MB.
    """
    found: dict[str, list[Any]] = {
        "items": list(dict.fromkeys(items)), "captions": [], "texts": [], "item": [], "also": [],
    }  # fmt: skip
    position = {item: number for number, item in enumerate(found["items"])}
    for caption, text, item, also in captions:
        found["captions"].append(caption)
        found["texts"].append(text)
        found["item"].append(position[item])
        found["also"].append(also)
    if not any(found["also"]):
        found["also"] = []
    return found


def split_of(columns: Mapping[str, list[Any]]) -> Split:
    """The split of `split_columns`."""
    items = columns["items"]
    captions = zip(columns["captions"], columns["texts"], columns["item"], strict=True)
    return items, [(caption, text, items[item]) for caption, text, item in captions]


def write_also(folder: Path, also: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Add the other positives (item ids) of each caption to packed indexes, by split and in query order.

    A method packs the features of captions and items. The other positives are the same for all methods, and
    are added afterwards. The index of a split without other positives is not changed.
    """
    for split, named in also.items():
        if any(named):
            path = folder / SPLITS / f"{split}.json"
            index = SplitIndex.read(path)
            position = {item: number for number, item in enumerate(index.items)}
            others = [
                sorted({position[item] for item in found} - {own})
                for own, found in zip(index.caption_item, named, strict=True)
            ]
            replace(index, caption_also=others if any(others) else []).write(path)


def read_splits(folder: Path) -> dict[str, SplitIndex]:
    """Indexes that `write_splits` saved, by split."""
    return {path.stem: SplitIndex.read(path) for path in sorted((folder / SPLITS).glob("*.json"))}


def split_index(
    gallery: Sequence[str], queries: Sequence[tuple[str, str, str]], items: Mapping[str, int],
    captions: Mapping[str, int],
) -> SplitIndex:  # fmt: skip
    """Index of a split. Raises UserError for a caption whose item is not in the split."""
    position = {item: number for number, item in enumerate(gallery)}
    for caption, _, item in queries:
        if item not in position:
            raise UserError(f"caption {caption!r} belongs to {item!r}, which is not in its split")
    return SplitIndex(
        items=list(gallery),
        item_rows=[items[item] for item in gallery],
        captions=[caption for caption, _, _ in queries],
        caption_rows=[captions[caption] for caption, _, _ in queries],
        caption_item=[position[item] for _, _, item in queries],
        texts=[text for _, text, _ in queries],
    )


class PlannedBatches(ABC):
    """Training batches that are described first and made later, each by itself, so that processes can make them ahead.

    A description is small and says everything: what is drawn for a batch is drawn from a seed in it.
    """

    device_finishes: bool = False
    """Whether `planned` leaves to `finished` what the device of the training does better than a core."""

    @abstractmethod
    def train_plan(self, epoch: int, seed: int, rank: int = 0, world: int = 1) -> Sequence[Any]:
        """Descriptions of the batches of an epoch of the split `train`, in order, shuffled by (seed, epoch)."""

    @abstractmethod
    def planned(self, description: Any) -> Mapping[str, Tensor]:
        """The batch of a description."""

    def finished(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch that lies on the device of the training, after what `planned` has left to it."""
        return batch

    def train_batches(
        self, epoch: int, seed: int, rank: int = 0, world: int = 1
    ) -> Iterator[Mapping[str, Tensor]]:
        """The batches of an epoch; of each joint batch this is the share of one of `world` processes."""
        return map(self.planned, self.train_plan(epoch, seed, rank, world))


def captions_of(index: SplitIndex) -> list[list[int]]:
    """The captions of each item, by position, in query order."""
    owned: list[list[int]] = [[] for _ in index.items]
    for caption, item in enumerate(index.caption_item):
        owned[item].append(caption)
    return owned
