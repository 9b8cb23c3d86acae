"""Point clouds as numpy arrays: .npy with a table, .npz with a table or with coordinates and colours."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import LARGEST_BYTES, Cloud, Columns, Refused, finite, from_table

COORDINATES = ("xyz", "points", "coords", "coord", "pos", "arr_0", "data")  # the first name present is used
UNREADABLE = (  # exceptions that numpy raises for a damaged header, which is a Python literal
    ValueError, EOFError, TypeError, SyntaxError, OverflowError, TokenError, RecursionError, MemoryError,
)  # fmt: skip
COLOURS = ("rgb", "colors", "colours", "color", "colour")


def read_npy(data: bytes, columns: Columns | None) -> Cloud:
    """The cloud of an array (N, columns). Raises Refused; nothing is unpickled."""
    return from_table(_table(_array(data), "its array"), columns)


def read_npz(data: bytes, columns: Columns | None) -> Cloud:
    """The cloud of an archive with a table, or with coordinates (N, 3) and colours (N, 3). Raises Refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist()}
            points = next((names[name] for name in COORDINATES if name in names), None)
            colours = next((names[name] for name in COLOURS if name in names), None)
            if points is None:
                raise Refused(
                    f"it has no array {' or '.join(COORDINATES)}; its arrays: {', '.join(names) or 'none'}"
                )
            table = _table(_member(archive, points), points)
            if colours is None or table.shape[1] > 3:
                return from_table(table, columns)
            rgb = _table(_member(archive, colours), colours)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise Refused(f"it is no .npz file that can be read ({error})") from None
    if rgb.shape != (len(table), 3) or table.shape[1] != 3:
        raise Refused(f"its coordinates are of shape {table.shape}, its colours of {rgb.shape}")
    if columns is not None and not columns.coloured:
        return finite(table.astype(np.float64))
    return finite(np.concatenate([table, rgb], axis=1).astype(np.float64))


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    if archive.getinfo(name).file_size > LARGEST_BYTES:
        raise Refused(
            f"{name} unpacks to {archive.getinfo(name).file_size} bytes; at most {LARGEST_BYTES} are read"
        )
    return _array(archive.read(name))


def _array(data: bytes) -> NDArray[Any]:
    """The array of a .npy file. Raises Refused before memory is allocated for more values than the file holds."""
    try:
        file = io.BytesIO(data)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, kind = read(file)
        if kind.hasobject:
            raise Refused("it holds Python objects, which are never unpickled")
        if kind.itemsize * math.prod(shape) > len(data) - file.tell():
            raise Refused(f"it announces an array of shape {shape}, which is more than it holds: truncated")
        rest = data[file.tell() + kind.itemsize * math.prod(shape) :]
        if len(rest) >= kind.itemsize and rest.strip(b"\0"):
            raise Refused(f"it announces an array of shape {shape}, and holds {len(rest)} bytes more")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except UNREADABLE as error:
        words = str(error).splitlines() or [type(error).__name__]
        raise Refused(f"it is no array of numpy's that can be read ({words[0][:120]})") from None


def _table(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise Refused(
            f"{name} is of shape {array.shape} and type {array.dtype}; a table of numbers is needed"
        )
    return array
