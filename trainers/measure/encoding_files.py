"""Encodings in a safetensors file that is filled through memory maps: the page cache holds them, not the process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import torch

from trainers.method import Encoded

DTYPES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # names of safetensors


def room(path: Path, like: Encoded, count: int) -> Encoded:
    """Tensors (count, ...) that are the content of a new safetensors file, of the kinds of a first batch.

    The library writes what is in memory whole; the layout is a length, a JSON header, and the bytes. Raises OSError
    if the disk has no room for them.
    """
    header, end = {}, 0
    for name in sorted(
        like, key=lambda name: (-like[name].element_size(), name)
    ):  # each aligned for its type
        values = like[name]
        start, end = end, end + count * values[:1].nbytes
        shape = [count, *values.shape[1:]]
        header[name] = {"dtype": DTYPES[values.dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(
            file.fileno(), 0, file.tell() + end
        )  # a full disk raises here; in the map it is a SIGBUS
    raw = torch.from_numpy(np.memmap(path, np.uint8, "r+", offset=8 + len(text)))
    return {
        name: raw[slice(*entry["data_offsets"])].view(like[name].dtype).reshape(entry["shape"])
        for name, entry in header.items()
    }
