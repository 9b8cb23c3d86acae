"""Reader of features from elsewhere, by name: an HDF5 file, or .npy, .npz, .pt and .safetensors files.

Nothing is unpickled: object arrays are refused, and the caller passes a function that reads only tensors
from .pt files, because this floor does not import torch. Axes: T rows (frames or tokens) of D numbers.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import h5py
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.errors import ItemError, UserError, nearest
from pipeline.features.layouts.bounds import open_hdf5, require_dataset, require_npy
from pipeline.media.mistaken import mistaken_file
from pipeline.store.segments import Array

SUFFIXES = {
    "hdf5": (".hdf5", ".h5"), "npy": (".npy",), "npz": (".npz",), "pt": (".pt", ".pth"),
    "safetensors": (".safetensors",),
}  # fmt: skip
MAPS = ("npz", "pt", "safetensors")  # layouts whose single file holds one array for each item
LONGEST_HEADER = 2**16  # bytes of a .npy file; numpy refuses headers of more than 10,000 characters
ZIP = b"PK\x03\x04"  # .npz and .pt are archives
INDEX = "index.json"  # index that `crossreel export features` writes, as its files are named by digests
UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error, SafetensorError,
)  # fmt: skip
"""Exceptions of the readers for a file that is cut short, overwritten or not of its suffix's kind."""


@dataclass(frozen=True)
class Entry:
    """An array before it is read: shape and dtype from the file's header, and a function that reads it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], Array]


def no_numbers(shape: tuple[int, ...]) -> Entry:
    """Placeholder for an array whose type numpy does not have; `as_rows` refuses it."""
    return Entry(shape, np.dtype(object), lambda: np.empty(0, object))


def unreadable(reason: str) -> Entry:
    """Placeholder for an array of a file whose other arrays are healthy; reading it raises ValueError."""

    def read() -> Array:
        raise ValueError(reason)

    return Entry((), np.dtype(object), read)


OpenFile = Callable[[Path, ExitStack], Mapping[str, Entry]]
"""Opens a file until the stack closes, and returns its arrays by name ("" for an array without one)."""


class FeatureFiles:
    """Arrays of a file or folder by name, read one at a time; `failed` has the reasons of unreadable ones."""

    def __init__(
        self, path: Path, entries: Mapping[str, Entry], failed: Mapping[str, str], stack: ExitStack
    ) -> None:
        self.path, self.failed = path, dict(failed)
        self._entries, self._stack = entries, stack

    @classmethod
    def open(
        cls, path: Path, layout: str, array: str = "", open_tensors: OpenFile | None = None
    ) -> FeatureFiles:
        """Open a source; `array` names the array of each item where there are several (HDF5: in each group).

        Raises UserError if the path does not have this layout.
        """
        openers: dict[str, OpenFile] = {"npy": _open_npy, "npz": _open_npz, "safetensors": _open_safetensors}
        if open_tensors is not None:
            openers["pt"] = open_tensors
        if not path.exists():
            raise UserError(f"{path} does not exist")
        if layout == "hdf5":
            openers["hdf5"] = partial(_open_hdf5, dataset=array)
        if path.is_dir() and layout != "hdf5":
            return cls(path, *_one_an_item(path, layout, openers[layout], array), ExitStack())
        return cls(path, *_one_file(path, layout, openers[layout], array))

    def __enter__(self) -> FeatureFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> Collection[str]:
        """Names of all arrays, including those that cannot be opened."""
        return [*self._entries, *self.failed]

    def dims(self, names: Iterable[str]) -> int:
        """The width D that most of the named arrays have; 0 where none of them has rows."""
        widths = Counter(
            shape[1]
            for name in names
            if name in self._entries and (shape := _rows_shape(self._entries[name]))
        )
        return widths.most_common(1)[0][0] if widths else 0

    def half(self, names: Iterable[str]) -> bool:
        """Whether every one of the named arrays that holds numbers is float16."""
        kinds = {
            entry.dtype for name in names if (entry := self._entries.get(name)) and entry.dtype.kind in "fiu"
        }
        return kinds == {np.dtype(np.float16)}

    def rows(self, name: str) -> Array:
        """Rows (T, D) of an array. Raises ItemError if it cannot be read or has another shape."""
        if name in self.failed:
            raise ItemError(name, self.failed[name])
        try:
            array = self._entries[name].read()
        except UNREADABLE as error:
            raise ItemError(name, f"it cannot be read ({_first_line(error)})") from None
        return as_rows(name, array)


def as_rows(name: str, array: Array) -> Array:
    """An array as rows (T, D): a vector (D,) is one row, and (1, T, D) loses its first axis.

    Raises ItemError for any other shape, an empty array, and values that are not finite numbers.
    """
    if array.dtype.kind not in "fiu":
        raise ItemError(name, f"it holds {array.dtype}, numbers are needed")
    shape = _shape(array.shape)
    if shape is None:
        raise ItemError(name, f"it has the shape {array.shape}, rows of numbers (T, D) are needed")
    if 0 in shape:
        raise ItemError(name, f"it is empty, of shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ItemError(name, "it holds NaN or infinity")
    return array.reshape(shape)


def _shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 1:
        return (1, shape[0])
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _rows_shape(entry: Entry) -> tuple[int, int] | None:
    return _shape(entry.shape) if entry.dtype.kind in "fiu" and 0 not in entry.shape else None


def match(ids: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Name of the array for each id: the equal name, else that of the same stem if both have it once.

    The stem is the last part of a path without the suffix of a file: `videos/a.mp4` and `clip/a` are both `a`.
    """
    ids, names = list(ids), set(names)
    ours = Counter(_stem(one) for one in ids)
    theirs = Counter(_stem(name) for name in names)
    by_stem = {_stem(name): name for name in names}
    out = {}
    for one in ids:
        stem = _stem(one)
        if one in names:
            out[one] = one
        elif ours[stem] == theirs[stem] == 1:
            out[one] = by_stem[stem]
    return out


def _stem(name: str) -> str:
    """Last part of a path without a file suffix. A suffix begins with a letter: `take_0.5` stays whole."""
    return re.sub(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", "", PurePosixPath(name).name)


def layout_of(path: Path) -> str:
    """Layout of a file or folder by its files' suffixes. Raises UserError unless there is exactly one."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if not p.name.startswith(".")]
    layouts = {
        layout for layout, suffixes in SUFFIXES.items() if any(file.suffix in suffixes for file in files)
    }
    if len(layouts) != 1:
        raise UserError(
            f"{path} holds {' and '.join(sorted(layouts)) or 'no'} features; "
            f"files of one kind are needed: {', '.join(suffix for all_ in SUFFIXES.values() for suffix in all_)}"
        )
    return layouts.pop()


def _one_file(
    path: Path, layout: str, open_file: OpenFile, array: str
) -> tuple[dict[str, Entry], dict[str, str], ExitStack]:
    """Entries and failures of a single file: one array for each item, or one array named after the file."""
    if not path.is_file():
        raise UserError(f"{path} is a folder; the layout {layout} is one file")
    if array and layout in MAPS:
        raise UserError(
            f"{path} is one file, its arrays are the items': there is none to choose with {array!r}"
        )
    stack = ExitStack()
    try:
        found = dict(open_file(path, stack))
    except ItemError as error:
        raise UserError(f"{path}: {_mistaken(path) or error.reason}") from None
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as {layout} ({_reason(path, error)})") from None
    if not found:
        raise UserError(f"{path} holds no arrays" + (f" called {array!r}" if array else ""))
    return {name or path.stem: entry for name, entry in found.items()}, {}, stack


def _one_an_item(
    folder: Path, layout: str, open_file: OpenFile, array: str
) -> tuple[dict[str, Entry], dict[str, str]]:
    """A folder, searched to its depth: a file an item, named by its path without the suffix."""
    entries: dict[str, Entry] = {}
    failed: dict[str, str] = {}
    for name, path in _named(folder, SUFFIXES[layout]).items():

        def chosen(stack: ExitStack, name: str = name, path: Path = path) -> Entry:
            return _choose(name, open_file(path, stack), array)

        def read(chosen: Callable[[ExitStack], Entry] = chosen) -> Array:
            with ExitStack() as stack:
                return chosen(stack).read()

        try:
            with ExitStack() as stack:  # closed at once: thousands of files cannot stay open
                head = chosen(stack)
            entries[name] = Entry(head.shape, head.dtype, read)
        except ItemError as error:
            failed[name] = _mistaken(path) or error.reason
        except UNREADABLE as error:
            failed[name] = f"it cannot be read ({_reason(path, error)})"
    return entries, failed


def _named(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by name: the names in an export's index, else the paths without suffix."""
    if (folder / INDEX).is_file():
        try:
            files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
            named = {str(name): folder / str(file) for name, file in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{folder / INDEX} is not the index that `crossreel export features` writes"
            ) from None
    else:
        paths = sorted(
            path for path in folder.rglob("*")
            if path.suffix in suffixes and path.is_file() and not path.name.startswith(".")
        )  # fmt: skip
        named = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    if not named:
        raise UserError(f"{folder} holds no {' or '.join(suffixes)} files")
    return named


def _choose(name: str, entries: Mapping[str, Entry], array: str) -> Entry:
    """The named array, or the only one, or the only one with two axes (exports have `time` and `frame`)."""
    if array:
        if array not in entries:
            raise ItemError(name, f"it has no array {array!r}; {nearest(array, entries)}")
        return entries[array]
    likely = list(entries) if len(entries) == 1 else [k for k, e in entries.items() if len(e.shape) == 2]
    if len(likely) != 1:
        raise ItemError(name, f"it has {len(entries)} arrays, name one; {nearest('', entries)}")
    return entries[likely[0]]


def _open_hdf5(path: Path, stack: ExitStack, dataset: str = "") -> dict[str, Entry]:
    """Every dataset by its path; with `dataset`, only the datasets of that name, by the path of their group.

    Raises UserError if any link or dataset of the file refers to another file.
    """
    file = stack.enter_context(open_hdf5(path))
    entries: dict[str, Entry] = {}

    def read(name: str) -> Array:
        require_dataset(file[name])
        return np.asarray(file[name])

    def visit(name: str) -> None:
        thing, end = file[name], f"/{dataset}" if dataset else ""
        if not isinstance(thing, h5py.Dataset) or thing.shape is None or not name.endswith(end):
            return
        try:
            entries[name.removesuffix(end)] = Entry(thing.shape, thing.dtype, partial(read, name))
        except TypeError:  # a type that numpy does not have, such as a bit field
            entries[name.removesuffix(end)] = no_numbers(thing.shape)

    file.visit_links(visit)  # `visititems` would pass over the second name of an array
    return entries


def _open_npy(path: Path, stack: ExitStack) -> dict[str, Entry]:
    with path.open("rb") as file:
        shape, dtype, header = _npy_head(file)

    def read() -> Array:
        size = path.stat().st_size
        require_npy(header, shape, dtype, size, size)
        return np.asarray(np.load(path, allow_pickle=False))

    return {"": Entry(shape, dtype, read)}


def _open_npz(path: Path, stack: ExitStack) -> dict[str, Entry]:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("one array, not an archive of arrays")
    stack.enter_context(archive)
    assert archive.zip is not None  # the archive is open here
    entries = {}
    for name, times in Counter(member.removesuffix(".npy") for member in archive.zip.namelist()).items():
        if times > 1:
            entries[name] = unreadable(f"the archive holds {times} arrays of this name")
            continue
        member = archive.zip.getinfo(name if name in archive.zip.NameToInfo else f"{name}.npy")
        try:
            with archive.zip.open(member) as file:
                shape, dtype, header = _npy_head(file)
        except UNREADABLE as error:
            entries[name] = unreadable(_first_line(error))
            continue
        entries[name] = Entry(
            shape, dtype, partial(_read_member, archive, name, member, header, shape, dtype)
        )
    return entries


def _read_member(
    archive: np.lib.npyio.NpzFile, key: str, member: zipfile.ZipInfo, header: int, shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Array:  # fmt: skip
    """An array of an archive; refused before unpacking if its size is over the limit or not its shape's."""
    require_npy(header, shape, dtype, member.file_size, member.compress_size)
    return np.asarray(archive[key])


def _npy_head(file: BinaryIO | Any) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and header length of a .npy file, of which at most LONGEST_HEADER bytes are read."""
    head = io.BytesIO(file.read(LONGEST_HEADER))
    major, _ = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head)
    return shape, dtype, head.tell()


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, Entry]:
    file = stack.enter_context(safe_open(path, framework="numpy"))
    kinds = {"F16": np.float16, "F64": np.float64}
    entries = {}
    for key in file.keys():  # noqa: SIM118  # h5py's file is no mapping
        part = file.get_slice(key)
        dtype = np.dtype(kinds.get(part.get_dtype(), np.float32))
        entries[key] = Entry(tuple(part.get_shape()), dtype, partial(file.get_tensor, key))
    return entries


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _reason(path: Path, error: BaseException) -> str:
    """Why a file cannot be opened: what it is instead of arrays, else the first line of the reader's error."""
    return _mistaken(path) or _first_line(error)


def _mistaken(path: Path) -> str:
    found = mistaken_file(path, expected=(ZIP,)) if path.is_file() else None
    return f"it is {found}" if found else ""
