"""VGG16 as it was trained in Caffe, from the usual files of its weights: tensorflow-vgg's and Keras's.

`vgg16.npy` of tensorflow-vgg is a pickled table, layer to [kernel, bias]; it is read by an unpickler that knows nothing
but arrays of numbers, so that nothing in it is run. Keras's HDF5 files hold the same arrays under names of their own.
Both expect blue, green and red in 0..255 with the means of ImageNet subtracted. Imports no torch.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from extractors.backbones.archives import DAMAGED, Function, Unreadable, reason
from pipeline.features.layouts.bounds import open_hdf5, require_dataset
from pipeline.media.mistaken import mistaken_file

SUFFIXES = (".npy", ".h5", ".hdf5")
MEANS = (103.939, 116.779, 123.68)  # mean blue, green and red over ImageNet, in 0..255
BLOCKS = (2, 2, 3, 3, 3)  # convolutions between two poolings
FC6_SIDE = 7  # side of the pooled maps of the last convolution, which fc6 reads
FLOATS = ("f2", "f4", "f8")  # numpy's names of the types that kernels are stored in

Kernels = dict[str, tuple[NDArray, NDArray]]
"""Kernel and bias of each layer by Caffe's name: conv1_1 ... conv5_3 (h, w, in, out), fc6 and fc7 (in, out)."""


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of a file up to fc7, under torchvision's names and in its order of axes.

    Raises Unreadable for a damaged file, one that lacks a layer, and one that holds more than arrays of numbers.
    """
    try:
        require(path)
        kernels = _of_table(_unpickled(path)) if path.suffix == ".npy" else _of_keras(path)
        return dict(_as_torchvision(kernels))
    except Unreadable:
        raise
    except DAMAGED as error:
        raise Unreadable(f"it is damaged, or in another layout ({reason(error)})") from error


def require(path: Path) -> None:
    """Raise Unreadable unless a file begins like one of its format; its arrays are read later."""
    if mistaken := mistaken_file(path):
        raise Unreadable(f"it is {mistaken}")
    if path.suffix == ".npy":
        with path.open("rb") as file:
            _skip_header(file)
    elif not h5py.is_hdf5(path):
        raise Unreadable("it is no HDF5 file")


def _as_torchvision(kernels: Kernels) -> Iterator[tuple[str, NDArray[np.float32]]]:
    place, last = 0, 0
    for block, count in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            kernel, bias = kernels[f"conv{block}_{number}"]
            yield f"features.{place}.weight", _float(kernel.transpose(3, 2, 0, 1))
            yield f"features.{place}.bias", _float(bias)
            place, last = place + 2, kernel.shape[3]  # each is followed by a ReLU
        place += 1  # the pooling
    kernel, bias = kernels["fc6"]
    # Caffe's fc6 reads a picture as rows, columns, channels, and torch's as channels, rows, columns.
    folded = kernel.reshape(FC6_SIDE, FC6_SIDE, last, -1).transpose(2, 0, 1, 3)
    yield "classifier.0.weight", _float(folded.reshape(len(kernel), -1).T)
    yield "classifier.0.bias", _float(bias)
    yield "classifier.3.weight", _float(kernels["fc7"][0].T)
    yield "classifier.3.bias", _float(kernels["fc7"][1])


def _names() -> dict[str, str]:
    """Caffe's names of the layers, and Keras's."""
    convolutions = {
        f"conv{block}_{n}": f"block{block}_conv{n}"
        for block, count in enumerate(BLOCKS, 1)
        for n in range(1, count + 1)
    }
    return convolutions | {"fc6": "fc1", "fc7": "fc2"}


def _of_table(table: Any) -> Kernels:
    """The layers of tensorflow-vgg's table."""
    if not isinstance(table, dict):
        raise Unreadable("it is not a table of layers")
    found = {name.decode("latin1") if isinstance(name, bytes) else name: pair for name, pair in table.items()}
    out = {}
    for name in _names():
        pair = found.get(name)
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise Unreadable(f"it has no kernel and bias of the layer {name}")
        out[name] = _pair(name, [value.values if isinstance(value, _Array) else None for value in pair])
    return out


def _of_keras(path: Path) -> Kernels:
    """The layers of a Keras file: of weights alone, or of a whole model."""
    with open_hdf5(path) as file:
        root = file.get("model_weights", file)
        out = {}
        for name, keras in _names().items():
            group = root.get(keras, root.get(name))
            if not isinstance(group, h5py.Group):
                raise Unreadable(f"it has no layer {keras}")
            found: list[h5py.Dataset] = []
            group.visititems(lambda _, one, f=found: f.append(one) if isinstance(one, h5py.Dataset) else None)
            for dataset in found:
                require_dataset(dataset)
            out[name] = _pair(keras, sorted((one[()] for one in found), key=np.ndim, reverse=True))
    return out


def _pair(name: str, arrays: list[Any]) -> tuple[NDArray, NDArray]:
    """Kernel and bias, checked for their axes."""
    axes = 4 if "conv" in name else 2
    if [getattr(array, "ndim", 0) for array in arrays] != [axes, 1]:
        raise Unreadable(f"the layer {name} is not a kernel of {axes} axes and a bias")
    return arrays[0], arrays[1]


def _float(values: NDArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)


def _skip_header(file: Any) -> None:
    """Move a .npy file to its content. Raises Unreadable unless that is a Python object, as tensorflow-vgg saves it."""
    try:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = (
            np.lib.format.read_array_header_1_0(file)
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0(file)
        )
    except (ValueError, EOFError) as error:
        raise Unreadable("it is truncated, or no .npy file") from error
    if shape != () or not dtype.hasobject:
        raise Unreadable(f"it is an array {shape} of {dtype}, not a table of layers")


def _unpickled(path: Path) -> Any:
    """The object in a .npy file, its arrays as `_Array`."""
    with path.open("rb") as file:
        _skip_header(file)
        found = _Reader(file, encoding="bytes").load()  # the usual file was written by Python 2
    if not isinstance(found, _Array) or not isinstance(found.values, list) or len(found.values) != 1:
        raise Unreadable("it is not a table of layers")
    return found.values[0]


class _Array:
    """An array of a pickle: numbers, or a list of objects."""

    values: NDArray | list[Any]

    def __init__(self) -> None:
        self.values = []

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, raw = state
        if not isinstance(kind, _Kind):
            raise Unreadable("it holds an array of unknown numbers")
        if kind.objects:
            self.values = raw if isinstance(raw, list) else []
            return
        dtype = np.dtype(f"{kind.order}{kind.code}")
        if not isinstance(raw, bytes) or math.prod(shape) * dtype.itemsize != len(raw):
            raise Unreadable("an array in it is not all there")
        self.values = np.frombuffer(raw, dtype).reshape(shape, order="F" if by_columns else "C")


class _Kind:
    """A dtype in a pickle; only floats and objects are known."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else str(code)
        self.objects, self.order = self.code.startswith("O"), "<"
        if not self.objects and self.code not in FLOATS:
            raise Unreadable(f"it holds an array of {self.code!r}")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.order = ">" if order == ">" else "<"


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes in the form in which Python 3 pickles them for older versions: text with one character for each byte."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise Unreadable("it holds bytes in a way that is not known")
    return text.encode("latin1")


class _Reader(pickle._Unpickler):
    """Restricted unpickler that reads only tables, lists and arrays of numbers."""

    known: Mapping[tuple[str, str], Any] = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: _Array() for core in ("core", "_core")},
        ("numpy", "dtype"): lambda code, *_: _Kind(code),
        ("numpy", "ndarray"): lambda *_: None,  # the first argument of _reconstruct, never called
        ("_codecs", "encode"): _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a class or function by name. Raises Unreadable for all that is not part of an array."""
        if (module, name) not in self.known:
            raise Unreadable(f"it holds a {module}.{name}")
        return Function(self.known[module, name])

    def get_extension(self, code: int) -> None:
        """Raise Unreadable: numpy writes no extension codes."""
        raise Unreadable(f"it holds the extension {code}")
