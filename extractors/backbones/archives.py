"""Tensors of the zip archives that torch writes, read without running anything in them.

`torch.jit.save` (the form of OpenAI's `ViT-B-32.pt`) and `torch.save` both write a zip file: `data.pkl` describes an
object, `data/<key>` holds the bytes of a storage. torch opens a TorchScript archive by compiling and running the code
in it. Here a restricted unpickler reads `data.pkl`: every class of a scripted module becomes a plain table of
attributes, the few functions that rebuild a tensor are known, and any other name is refused. Describing an archive
imports no torch.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.media.mistaken import mistaken_file

if TYPE_CHECKING:
    from torch import Tensor

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"  # first byte of a file of torch before 1.6
PICKLE_BYTES = 2**25  # largest data.pkl that is read; OpenAI's largest has less than a hundredth of it
CODE_BYTES = 2**26  # largest amount of code in an archive, which is searched as text
NAMES = (
    100_000  # limit on tensors and modules of one archive: a module that contains itself has endlessly many
)
DTYPES = {
    "DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1),
}  # fmt: skip
SCRIPTED = re.compile(
    r"^class (\w+)\(Module\):\n\s+__parameters__ = \[(.*?)\]\n\s+__buffers__ = \[(.*?)\]", re.MULTILINE
)
DAMAGED = (
    zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, OSError, LookupError, TypeError, ValueError,
    AttributeError, OverflowError, NotImplementedError, RuntimeError, AssertionError,
)  # fmt: skip
"""Exceptions that a damaged or hostile archive can cause in the modules zipfile and pickle."""


class Unreadable(ValueError):
    """An archive is damaged, or holds something else than tensors; the message gives the reason."""


class Storage(NamedTuple):
    """Bytes of the archive that tensors are views of."""

    key: str
    dtype: str
    bytes_each: int
    length: int  # number of elements


class TensorView(NamedTuple):
    """A tensor as `data.pkl` describes it: a view of a storage, with offset and stride in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Archive:
    """An open zip archive of torch. Raises Unreadable if the file is damaged or of another kind."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            (main,) = (name for name in self._zip.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
        except FileNotFoundError:
            raise
        except DAMAGED as error:
            raise Unreadable("it is truncated, or no archive of torch's") from error
        self._root = main.removesuffix("data.pkl")
        self._members = {info.filename: info for info in self._zip.infolist()}

    @property
    def scripted(self) -> bool:
        """Whether it is a TorchScript archive, as `torch.jit.save` writes it."""
        return f"{self._root}constants.pkl" in self._members

    def described(self) -> dict[str, TensorView]:
        """Its tensors by name: the parameters and buffers of a scripted module, or the entries of a state dict.

        Raises Unreadable for any other object, and for a tensor that reaches beyond its storage.
        """
        try:
            root = _Reader(io.BytesIO(self._bytes("data.pkl", PICKLE_BYTES))).load()
            named = dict(
                self._module_tensors(root) if isinstance(root, _Attributes) else _table_tensors(root)
            )
        except Unreadable:
            raise
        except DAMAGED as error:
            raise Unreadable(f"its description is not that of tensors ({reason(error)})") from error
        for name, tensor in named.items():
            self._check(name, tensor)
        return named

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, in main memory, in their stored dtypes. Raises Unreadable."""
        import torch

        storages: dict[str, Tensor] = {}
        out = {}
        for name, (storage, offset, size, stride) in self.described().items():
            if storage.key not in storages:
                raw = bytearray(self._bytes(f"data/{storage.key}", storage.length * storage.bytes_each))
                kind = getattr(torch, storage.dtype)
                storages[storage.key] = (
                    torch.frombuffer(raw, dtype=kind) if raw else torch.empty(0, dtype=kind)
                )
            if storages[storage.key].dtype is not getattr(torch, storage.dtype):
                raise Unreadable(f"the storage of {name} is used as two types")
            out[name] = storages[storage.key].as_strided(size, stride, offset)
        return out

    def code(self) -> Iterator[str]:
        """The source text of a TorchScript archive, file by file; none of it is run. Raises Unreadable."""
        left = CODE_BYTES
        for name in self._members:
            if name.startswith(f"{self._root}code/") and name.endswith(".py"):
                text = self._bytes(name.removeprefix(self._root), left).decode("utf-8", "replace")
                left -= len(text)
                yield text

    def _module_tensors(self, module: _Attributes) -> Iterator[tuple[str, TensorView]]:
        """Parameters and buffers of a module and its submodules by name; those of a module before its submodules'."""
        kept: dict[str, dict[str, set[str]]] = {}
        waiting, count = [("", module)], 0
        while waiting:
            prefix, one = waiting.pop()
            inner = []
            own = self._state_names(type(one).qualified, kept)
            for name, value in one.attributes.items():
                if isinstance(value, TensorView) and (own is None or name in own):
                    count += 1
                    yield prefix + name, value
                elif isinstance(value, _Attributes):
                    count += 1
                    inner.append((f"{prefix}{name}.", value))
                if count > NAMES:
                    raise Unreadable(f"it has more than {NAMES} tensors and modules")
            waiting += reversed(inner)

    def _state_names(self, qualified: str, kept: dict[str, dict[str, set[str]]]) -> set[str] | None:
        """Names of the parameters and buffers of a scripted class; None if its code does not list them.

        A tensor that is a plain attribute (a mask, for instance) is no part of a state dict.
        """
        module, _, name = qualified.rpartition(".")
        if module not in kept:
            file = f"code/{module.replace('.', '/')}.py"
            text = ""
            if f"{self._root}{file}" in self._members:
                text = self._bytes(file, CODE_BYTES).decode("utf-8", "replace")
            kept[module] = {c: set(re.findall(r'"([^"]*)"', p + b)) for c, p, b in SCRIPTED.findall(text)}
        return kept[module].get(name)

    def _check(self, name: str, tensor: TensorView) -> None:
        """Raise Unreadable if a tensor reaches beyond its storage, or the storage is incomplete."""
        storage, offset, size, stride = tensor
        info = self._members.get(f"{self._root}data/{storage.key}")
        if info is None or info.file_size != storage.length * storage.bytes_each:
            raise Unreadable(f"the bytes of {name} are not all there")
        # torch never compresses tensors; compressed bytes could unpack to more than memory holds.
        if info.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(f"the bytes of {name} are compressed")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) > storage.length or (0 not in size and last >= storage.length):
            raise Unreadable(f"{name} reaches beyond its storage")

    def _bytes(self, name: str, most: int) -> bytes:
        """A member's bytes, verified by their checksum. Raises Unreadable if there are more than `most`."""
        try:
            info = self._members[self._root + name]
            if info.file_size > most:
                raise Unreadable(f"{name} has {info.file_size} bytes, {most} at most are read")
            with self._zip.open(info) as file:
                out = file.read(most + 1)
        except Unreadable:
            raise
        except DAMAGED as error:
            raise Unreadable(f"{name} is damaged ({reason(error)})") from error
        if len(out) != info.file_size:
            raise Unreadable(f"{name} is truncated")
        return out


def is_zip(path: Path) -> bool:
    """Whether a file begins like a zip archive; the archive may be truncated."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def require_torch_file(path: Path) -> None:
    """Raise Unreadable unless a file begins like one that torch wrote."""
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    if not start.startswith((ZIP, PICKLE)):
        raise Unreadable(f"it is {mistaken_file(path) or 'no weights file that torch wrote'}")


class _Attributes:
    """An object of a scripted class: its attributes without its code."""

    qualified = ""
    attributes: Mapping[str, Any]

    def __init__(self) -> None:
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise Unreadable("the attributes of a module are not a table by name")
        self.attributes = state


class _Table(dict[Any, Any]):
    """An OrderedDict as torch saves one; attributes set on it besides its entries (`_metadata`) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class Function:
    """One of the few functions that a description may call; a pickle can set no attribute on it."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise Unreadable("it changes a function")


class _Reader(pickle._Unpickler):
    """Restricted unpickler of a description, based on Python's implementation and not on the one in C.

    The one in C allocates an array as long as the highest memo index, so that a file of ten bytes can claim 32 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a class or function by name. Raises Unreadable for names that rebuild no tensor."""
        if module == "__torch__" or module.startswith("__torch__."):
            return self._scripted(f"{module}.{name}")
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) in FUNCTIONS:
            return Function(FUNCTIONS[module, name])
        raise Unreadable(f"it holds a {module}.{name}")

    def persistent_load(self, identity: Any) -> Storage:
        """The storage that an entry ("storage", type, key, device, count) names."""
        what, (dtype, bytes_each), key, _, count = identity
        if what != "storage" or type(key) is not str or not _is_count(count):
            raise Unreadable("it describes a storage in a way that is not known")
        return Storage(key, dtype, bytes_each, count)

    def get_extension(self, code: int) -> None:
        """Raise Unreadable: torch writes no extension codes."""
        raise Unreadable(f"it holds the extension {code}")

    def _scripted(self, qualified: str) -> type[_Attributes]:
        """The class of a scripted module, one for each name."""
        known: dict[str, type[_Attributes]] = self.__dict__.setdefault("_known", {})
        if qualified not in known:
            known[qualified] = type("_Scripted", (_Attributes,), {"qualified": qualified})
        return known[qualified]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> TensorView:
    """The tensor of `torch._utils._rebuild_tensor_v2`; the arguments on gradients and hooks are ignored."""
    counts = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride) or not all(map(_is_count, counts)):
        raise Unreadable("it describes a tensor in a way that is not known")
    return TensorView(storage, offset, tuple(size), tuple(stride))


def _first(value: Any = None, *_: Any) -> Any:
    """The first argument, uncopied: the list of a typed list, the tensor of a parameter.

    Copies could add up to more than memory holds: a file may call this any number of times.
    """
    return value


FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("collections", "OrderedDict"): lambda *_: _Table(),
    ("torch", "device"): _first,
    ("torch", "Size"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{("torch.jit._pickle", f"build_{kind}list"): _first for kind in ("int", "double", "bool", "tensor")},
}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _table_tensors(found: Any) -> Iterator[tuple[str, TensorView]]:
    """The entries of a state dict, or of one under `state_dict` in a checkpoint."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, TensorView) for value in found.values()):
        raise Unreadable("it is not a table of tensors by name")
    yield from ((str(name), value) for name, value in found.items())


def reason(error: Exception) -> str:
    """The last line of an error's message, or the name of its class if it has none."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
