"""All captions or items of a split, encoded once; where they are many, into a file that the page cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainers.loop import distributed
from trainers.measure.encoding_files import room
from trainers.measure.pace import Pace
from trainers.method import Batch, Encoded
from trainers.relevance import Positions


def encode_all(
    encode: Callable[[Batch], Encoded],
    batches: Iterable[Batch],
    count: int,
    what: str,
    device: str | torch.device,
    *,
    file: Path | None = None,
    most_bytes: int = 0,
    pace: Pace | None = None,
) -> Encoded:
    """All encodings on the host of every process, put at the `index` of their batch, or in order where it has none.

    With a `file`, encodings of more than `most_bytes` are written there and mapped, so that they are no memory of this
    process. With several processes, each encodes its share of the batches. All then score all pairs: encoding takes
    most of the time, and blocks of the same shape give every process the same numbers as a single process.
    """
    out: Encoded = {}
    seen = torch.zeros(count, dtype=torch.int64)
    place = 0
    pace = pace or Pace()
    pace.begin(f"encoding {what}", count)
    for batch, ours in _own(batches):
        encoded = encode({name: values.to(device, non_blocking=True) for name, values in batch.items()})
        encoded = _joint(encoded, ours)
        size = count_of(encoded)
        where = torch.arange(place, place + size)
        if "index" in batch:
            where = _joint({"index": batch["index"].to(device)}, ours)["index"]
        out = out or _allocated(encoded, count, file, most_bytes)
        for name, values in encoded.items():
            if values.shape != (len(where), *out[name].shape[1:]):
                raise ValueError(f"{name} of {what} changes its shape from batch to batch: {values.shape}")
            out[name][where] = values
        seen.index_add_(0, where, torch.ones_like(where))
        place += size
        pace.add(size)
    if not (seen == 1).all():
        raise ValueError(f"of {count} {what} {int((seen != 1).sum())} were not encoded exactly once")
    return out


def only(batches: Iterable[Batch], places: Positions) -> Iterator[Batch]:
    """Of batches of captions, those at some `places` of the split (n,), ascending; `index` then counts these alone."""
    kept = torch.from_numpy(places)
    for batch in batches:
        position = torch.searchsorted(kept, batch["index"]).clamp_max(len(kept) - 1)
        chosen = kept[position] == batch["index"]
        if chosen.any():
            yield {name: values[chosen] for name, values in batch.items()} | {"index": position[chosen]}


def _allocated(like: Encoded, count: int, file: Path | None, most_bytes: int) -> Encoded:
    """Tensors (count, ...) of the kinds of a first batch, in memory or in a file."""
    if file is not None and count * bytes_each(like) > most_bytes:
        return room(file, like, count)
    return {
        name: torch.empty((count, *values.shape[1:]), dtype=values.dtype) for name, values in like.items()
    }


def _own(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield this process's batch of every `world` consecutive ones, and whether its encodings count.

    If the last group has fewer batches than there are processes, a process without one encodes the first batch of the
    group and its result is discarded: all processes must take part in every gather, and each must know the shapes.
    """
    rank, world = distributed.rank(), distributed.world()
    chosen: tuple[Batch, bool] | None = None
    for number, batch in enumerate(batches):
        if number % world == 0 and chosen:
            yield chosen
        if number % world in (0, rank):
            chosen = batch, number % world == rank
    if chosen:
        yield chosen


def _joint(rows: Mapping[str, Tensor], ours: bool) -> Encoded:
    """The rows of all processes whose encodings count, on the host, in order of rank."""
    return {
        name: torch.cat(distributed.gather(values if ours else values[:0])).cpu()
        for name, values in rows.items()
    }


def count_of(encoded: Encoded) -> int:
    """Number of captions or items."""
    return len(next(iter(encoded.values())))


def bytes_each(encoded: Encoded) -> int:
    """Size of one encoding in bytes."""
    return max(1, sum(values[:1].nbytes for values in encoded.values()))


def bytes_of(encoded: Encoded) -> int:
    """Size of all encodings in bytes."""
    return sum(values.nbytes for values in encoded.values())


def part(encoded: Encoded, where: slice, device: str | torch.device) -> Encoded:
    """The encodings at `where`, on a device."""
    return {name: values[where].to(device) for name, values in encoded.items()}
