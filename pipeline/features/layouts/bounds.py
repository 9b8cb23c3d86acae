"""Limits for files from elsewhere: a file must hold its data itself, and its unpacked size is bounded.

An HDF5 file can refer to other files (external storage, virtual datasets, external links), whose bytes would
then be read as features. A compressed array of a few megabytes can announce gigabytes. Both are refused
before any value is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import UserError

LARGEST_BYTES = (
    2**31
)  # limit of one unpacked array: 3 hours of frames at 3 a second, 4,096 float32 each, are 0.5 GB
SMALL_BYTES = (
    2**26
)  # the ratio is not checked up to this size: the zeros behind a short caption compress without limit
SLACK_BYTES = 2**16  # compressed chunks may exceed twice their size by this; deflate adds at most 0.1 %
LARGEST_RATIO = 100  # unpacked to stored bytes of larger arrays; measured on padded features: 2 to 30


class Foreign(ValueError):
    """A file or array is refused; the message is the reason."""


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file, open for reading, that holds all its arrays itself.

    Raises UserError naming the first link or dataset in any group that refers to another file or name, and
    OSError if the file is not HDF5.
    """
    file = h5py.File(path, "r")
    try:
        for name, reason in elsewhere(file):
            raise UserError(f"{path}: {name!r} {reason}; only features that lie in the file itself are read")
    except BaseException:
        file.close()
        raise
    return file


def elsewhere(file: h5py.File) -> Iterator[tuple[str, str]]:
    """Name and reason of every link or dataset of a file whose values are not in the file itself.

    Each link is checked, because h5py's `visititems` skips all but hard links.
    """
    seen: set[Any] = set()  # addresses of visited groups, because hard links can form a cycle
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        for key in group.id:
            name = prefix + key.decode(errors="replace")
            kind = group.id.links.get_info(key).type
            if kind == h5py.h5l.TYPE_EXTERNAL:
                yield name, "is a link to another file"
            elif kind == h5py.h5l.TYPE_SOFT:
                yield name, "is a link to another name (a soft link)"
            elif kind != h5py.h5l.TYPE_HARD:
                yield name, "is a link of a kind of its own"
            else:
                found = h5py.h5o.open(group.id, key)
                if isinstance(found, h5py.h5g.GroupID):
                    address = h5py.h5o.get_info(found).addr
                    if address not in seen:
                        seen.add(address)
                        waiting.append((f"{name}/", h5py.Group(found)))
                elif isinstance(found, h5py.h5d.DatasetID) and (reason := _elsewhere(found)):
                    yield name, reason


def _elsewhere(dataset: h5py.h5d.DatasetID) -> str:
    """Reason why a dataset's values are not in the file itself; "" if they are."""
    created = dataset.get_create_plist()
    if created.get_layout() == h5py.h5d.VIRTUAL:
        return "is a virtual dataset, whose values lie in other files"
    if created.get_layout() == h5py.h5d.CONTIGUOUS and created.get_external_count():
        return "keeps its values in another file (external storage)"
    return ""


def require_dataset(dataset: h5py.Dataset) -> None:
    """Raise Foreign for a dataset that was not written completely, or whose unpacked size is over the limits.

    Chunks that were never written read as zeros, as after an extraction that was interrupted.

    HDF5 unpacks a whole chunk even to read one row, and deflate's output depends on the stored bytes, not on
    the size of the chunk. Therefore the stored bytes are also compared with the size of the chunks.
    """
    stored = dataset.id.get_storage_size()
    if dataset.size and not stored:
        raise Foreign(f"its values of shape {dataset.shape} were never written")
    require_size(dataset.shape, dataset.dtype, stored)
    if dataset.chunks is not None:
        require_size(dataset.chunks, dataset.dtype, stored)
        written = dataset.id.get_num_chunks()
        needed = math.prod(-(-n // chunk) for n, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        if written < needed:
            raise Foreign(
                f"only {written} of the {needed} chunks of its shape {dataset.shape} were ever written"
            )
        chunks = written * math.prod(dataset.chunks) * dataset.dtype.itemsize
        if stored > 2 * chunks + SLACK_BYTES:
            raise Foreign(f"its chunks of {_mega(chunks)} are stored in {_mega(stored)}: damaged or made up")


def require_size(shape: tuple[int, ...], dtype: np.dtype[Any], stored: int) -> None:
    """Raise Foreign for an array over LARGEST_BYTES, or a large one over LARGEST_RATIO times `stored`."""
    unpacked = math.prod(shape) * dtype.itemsize
    if unpacked > LARGEST_BYTES:
        raise Foreign(
            f"its shape {shape} unpacks to {_mega(unpacked)}; at most {_mega(LARGEST_BYTES)} an array are read"
        )
    if unpacked > SMALL_BYTES and unpacked > LARGEST_RATIO * stored:
        raise Foreign(
            f"its {_mega(stored)} unpack to {_mega(unpacked)}; over {_mega(SMALL_BYTES)} at most {LARGEST_RATIO} times "
            "the stored size is read"
        )


def require_npy(
    header: int, shape: tuple[int, ...], dtype: np.dtype[Any], unpacked: int, stored: int
) -> None:
    """Raise Foreign for an array of numpy's format whose unpacked size is over the limits or not its shape's.

    header: bytes before its values; unpacked, stored: its size with the header, and in the file that holds it.
    Object arrays are not checked: the reader refuses them without unpickling.
    """
    if dtype.hasobject:
        return
    require_size(shape, dtype, stored)
    announced = header + math.prod(shape) * dtype.itemsize
    if unpacked != announced:
        raise Foreign(
            f"it holds {unpacked} bytes, where an array of shape {shape} takes {announced}: damaged or made up"
        )


def _mega(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
