"""Reader of other people's tensor files (.pt, .pth, .t7, .safetensors), which executes and unpacks nothing in them.

torch's restricted unpickler runs no code, but a hostile file can make it raise nearly any exception, and a tensor of
stride 0 or a compressed part turns a few bytes into gigabytes. Importing this module imports no torch.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipeline.media.mistaken import mistaken_file

if TYPE_CHECKING:
    from torch import Tensor

ZIP = b"PK\x03\x04"  # torch writes archives
SMALL_BYTES = 2**26  # size up to which a tensor may repeat its storage: masks and tables of positions do so
UNREADABLE = (
    SafetensorError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError, ValueError,
    LookupError, TypeError, AttributeError, AssertionError, MemoryError, OverflowError, ImportError,
)  # fmt: skip
"""Exceptions that torch's and safetensors' readers raise for a damaged file or one of another kind."""


class NotTensors(Exception):
    """A file cannot be read safely; the message gives the reason."""


class MoreThanTensors(NotTensors):
    """A file holds Python objects besides tensors and plain values, or its pickle is damaged."""


def read(path: Path, mapped: bool = False) -> Any:
    """The content of a file: tensors on the CPU, plain values, and lists and tables of them; nothing is executed.

    mapped: leave tensors in the file until they are used, if the format allows it. Raises NotTensors with the reason,
    and OSError if the file cannot be opened.
    """
    import torch

    # the caller reports a missing or unreadable file, an OSError here, as such
    if found := mistaken_file(path, expected=(ZIP,)):
        raise NotTensors(f"it is {found}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        archive = zipfile.is_zipfile(path)
        if archive:
            _require_plain(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
        for name, tensor in _tensors(content):
            _require_stored(name, tensor)
    except pickle.UnpicklingError:  # torch's message advises to unpickle everything
        raise MoreThanTensors(
            "it is damaged, or holds more than tensors (arrays of numpy, say), and nothing else is unpickled"
        ) from None
    except UNREADABLE as error:
        raise NotTensors(_reason(error)) from None
    return content


def _require_plain(path: Path) -> None:
    """Raise ValueError for an archive whose parts are compressed, which torch never writes."""
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its part {part.filename} is compressed, which torch never writes")


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in tables and lists, with its dotted path of keys."""
    import torch

    waiting, seen = [(name, content)], set()
    while waiting:
        name, thing = waiting.pop()
        if isinstance(thing, torch.Tensor):
            yield name, thing
        elif isinstance(thing, (Mapping, list, tuple)) and id(thing) not in seen:
            seen.add(id(thing))  # a pickle can hold itself
            pairs = thing.items() if isinstance(thing, Mapping) else enumerate(thing)
            waiting += [(f"{name}.{key}" if name else str(key), value) for key, value in pairs]


def _require_stored(name: str, tensor: Tensor) -> None:
    """Raise ValueError for a large tensor with more numbers than its storage holds."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized:
        return
    size = math.prod(tensor.shape) * tensor.element_size()
    stored = tensor.untyped_storage().nbytes()
    if size > SMALL_BYTES and size > stored:
        raise ValueError(
            f"the tensor {name or 'it holds'} of shape {tuple(tensor.shape)} takes {size} bytes, {stored} are stored"
        )


def _reason(error: BaseException) -> str:
    """The reason in one line, from the first line of an error's message."""
    words = (str(error).strip().splitlines() or [""])[0]
    return f"it is damaged, or something else than its name says ({words[:160] or type(error).__name__})"
