"""Checkpoints: named tensors and JSON in one safetensors file that vouches for itself. Nothing is unpickled.

A file is written aside, flushed to the disk and renamed, so a reader sees the old one or the new one
whole; its digest covers every tensor and the JSON, so a damaged file is refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from extractors.backbones import tensor_files
from pipeline.errors import UserError, nearest

SEAL = "crossreel"  # one key: safetensors writes several in a random order, and equal content in other bytes
_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def read_foreign(path: Path) -> Any:
    """The content of somebody else's checkpoint: the tensors of a .safetensors file, or what was pickled.

    Nothing in it is executed. Raises UserError, one sentence, for whatever cannot be read so.
    """
    try:
        return tensor_files.read(path)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except (OSError, tensor_files.NotTensors) as error:
        raise UserError(f"{path} is not a checkpoint that can be read safely: {error}") from None


def named_tensors(content: Any, prefix: str = "") -> dict[str, Tensor] | None:
    """The tensors of a state dict by name, without a prefix of their names; None if it is anything else."""
    if not isinstance(content, Mapping):
        return None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return None
    return {name.removeprefix(prefix): value for name, value in content.items()}


class DamagedCheckpoint(Exception):
    """The file is not what was written: one sentence that names the file and the reason."""


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able `meta` as one file, replacing an older one whole or not at all."""
    # Own contiguous memory for each: safetensors refuses tied weights and views of one buffer.
    ready = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta)
    data = to_bytes(ready, {SEAL: json.dumps({"meta": text, "sha256": _digest(ready, text)})})
    aside = path.with_name(path.name + ".aside")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the JSON that `save` wrote. Raises DamagedCheckpoint with the reason."""
    try:
        with safe_open(path, framework="pt") as file:
            sealed = (file.metadata() or {}).get(SEAL)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise DamagedCheckpoint(f"{path} is damaged: {error}") from None
    try:
        kept = json.loads(sealed or "")
        text, digest = kept["meta"], kept["sha256"]
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{path} is damaged: it carries no checksum") from None
    if _digest(tensors, text) != digest:
        raise DamagedCheckpoint(f"{path} is damaged: its content does not match its checksum")
    return tensors, json.loads(text)


def sync_folder(folder: Path) -> None:
    """Make the renames done in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path, method: nn.Module, meta: Mapping[str, Any]) -> None:
    """Write only the weights and buffers of a method, with metadata."""
    save(path, method.state_dict(), meta)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file by name, and their metadata. Raises UserError for a missing or damaged file."""
    if not path.is_file():
        raise UserError(f"no weights at {path}")
    try:
        return load(path)
    except DamagedCheckpoint as error:
        raise UserError(str(error)) from None


def load_weights(path: Path, method: nn.Module, whole: bool = False) -> dict[str, Any]:
    """Fill a method with saved weights and return their metadata. Raises UserError naming the first misfit.

    A part with `passing = True`, such as a memory bank, is not filled, because it belongs to the run that saved the
    weights. With `whole`, for an evaluation of that run, it is filled too if the file holds it.
    """
    tensors, meta = load_tensors(path)
    own = method.state_dict()
    passing = tuple(f"{part}." for part in _passing(method))
    kept = [name for name in own if name.startswith(passing) and not (whole and name in tensors)]
    fill_weights(method, {**tensors, **{name: own[name] for name in kept}}, str(path))
    return meta


def _passing(method: nn.Module) -> list[str]:
    """Names of the parts that belong to one run: a resumed run fills them, a new run starts with empty ones."""
    return [name for name, part in method.named_modules() if getattr(part, "passing", False)]


def fill_weights(method: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a method. Raises UserError naming the first that does not match."""
    require_fit(method.state_dict(), tensors, f"the weights of {source} do not fit {type(method).__name__}")
    method.load_state_dict(dict(tensors))


def require_fit(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], meaning: str, called: Callable[[str], str] = str
) -> None:
    """Raise UserError naming the first tensor that is missing, not known or of another shape, and what that means.

    `called` gives the name under which the user knows a tensor.
    """
    for name in [*own, *given]:
        if name not in own or name not in given:
            what = "missing" if name in own else "not known"
            others = given.keys() - own.keys() if name in own else own.keys()
            hint = nearest(called(name), map(called, others))
            close = f"; {hint}" if hint.startswith("did you mean") else ""
            raise UserError(f"{meaning}: the tensor {called(name)} is {what}{close}")
        if own[name].shape != given[name].shape:
            shapes = f"{tuple(given[name].shape)}, {tuple(own[name].shape)} is needed"
            raise UserError(f"{meaning}: the tensor {called(name)} is {shapes}")


def flatten(tree: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as JSON, and its tensors by name; `unflatten` gives it back exactly.

    JSON alone would turn tuples into lists and the integer keys of an optimizer's state into text.
    """
    tensors: dict[str, Tensor] = {}

    def plain(node: Any, name: str) -> Any:
        if isinstance(node, Tensor):
            tensors[name] = node
            return {_TENSOR: name}
        if isinstance(node, dict):
            return {_PAIRS: [[key, plain(value, f"{name}.{key}")] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            inner = [plain(value, f"{name}.{index}") for index, value in enumerate(node)]
            return {_TUPLE: inner} if isinstance(node, tuple) else inner
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(f"{name} is a {type(node).__name__}: only numbers, text and tensors can be kept")

    return plain(tree, prefix), tensors


def unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten` was given."""
    if isinstance(node, list):
        return [unflatten(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if _TENSOR in node:
        return tensors[node[_TENSOR]]
    if _TUPLE in node:
        return tuple(unflatten(value, tensors) for value in node[_TUPLE])
    return {key: unflatten(value, tensors) for key, value in node[_PAIRS]}
