"""Files of CLIP's weights: their tensors, the shapes of these (read without torch), and the activation they need.

A file is OpenAI's own (a TorchScript archive), safetensors, or a state dict that torch saved, also one under
`state_dict` and one whose names begin with `module.`. No code in a file is run, and no object is unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.backbones import archives, clip_configs, tensor_files
from extractors.backbones.archives import Archive, Unreadable
from pipeline.errors import UserError
from pipeline.media.mistaken import mistaken_file

if TYPE_CHECKING:
    from torch import Tensor

NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # integers in OpenAI's archives
NESTED, PREFIX = "state_dict", "module."
HEADER_BYTES = 2**27  # largest header of a safetensors file, which that format limits

RESNETS = tuple(f"RN{size}-quickgelu" for size in ("50", "101", "50x4", "50x16", "50x64"))

Shapes = dict[str, tuple[int, ...]]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file under OpenAI's and open_clip's names, in their stored dtypes.

    Raises Unreadable or NotTensors for a damaged file, one of another kind, or one that holds more than tensors.
    """
    import torch

    if path.suffix != ".safetensors":
        archives.require_torch_file(path)
        if archives.is_zip(path) and (archive := Archive(path)).scripted:
            return _named(archive.tensors())
    state = tensor_files.read(path)
    if isinstance(state, Mapping) and isinstance(state.get(NESTED), Mapping):
        state = state[NESTED]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Unreadable("it is not a table of tensors by name")
    return _named(state)


def shapes(path: Path) -> Shapes | None:
    """The shapes of a file's tensors by name, read without torch; None if torch alone can read this kind of file.

    Raises Unreadable for a damaged file or one of another kind.
    """
    if path.suffix == ".safetensors":
        return _named(_header(path))
    archives.require_torch_file(path)
    if not archives.is_zip(path):
        return None
    archive = Archive(path)
    try:
        return _named({name: tensor.size for name, tensor in archive.described().items()})
    except Unreadable:
        if archive.scripted:
            raise
        return None  # torch can read a few more types in a state dict


def require_fit(path: Path, model: str) -> None:
    """Raise UserError if a file cannot hold the weights of a network, as far as shapes show it without torch."""
    try:
        found = shapes(path)
    except Unreadable as error:
        raise UserError(f"{path} cannot be read as weights of {model}: {error}") from error
    if found is None:
        return
    for name, shape in expected(model).items():
        if name not in found:
            raise UserError(f"the weights in {path} do not fit {model}: {name} is missing{_instead(found)}")
        if found[name] != shape:
            raise UserError(
                f"the weights in {path} do not fit {model}: {name} is {_times(found[name])} where "
                f"{_times(shape)} is needed{_instead(found)}"
            )


def quick_gelu(path: Path) -> bool | None:
    """Whether the weights of a file need OpenAI's activation, x * sigmoid(1.702 x); None if the file does not show it.

    The code of a TorchScript archive shows it. A state dict with the integers of OpenAI's archives was made from one.
    """
    try:
        if path.suffix != ".safetensors" and archives.is_zip(path):
            archive = Archive(path)
            if archive.scripted:
                return _activation(archive.code())
            return True if set(NO_WEIGHTS) <= set(archive.described()) else None
        if path.suffix == ".safetensors":
            return True if set(NO_WEIGHTS) <= set(_header(path)) else None
    except Unreadable:
        pass  # reading the file reports it
    return None


def expected(model: str) -> Shapes:
    """The shapes that distinguish networks, for one with open_clip's own two towers; {} for any other."""
    config = clip_configs.read(model)
    vision, text, dims = config["vision_cfg"], config["text_cfg"], int(config["embed_dim"])
    if config.get("custom_text") or "timm_model_name" in vision:
        return {}
    width = text.get("width", 512)
    out: Shapes = {
        "token_embedding.weight": (text.get("vocab_size", 49408), width),
        "positional_embedding": (text.get("context_length", 77), width),
        f"transformer.resblocks.{text.get('layers', 12) - 1}.ln_1.weight": (width,),
    }
    layers, patch, pixels = (vision.get(key, usual) for key, usual in USUAL_VISION.items())
    if isinstance(layers, list):
        first = vision.get("width", 64)
        out["visual.conv1.weight"] = (first // 2, 3, 3, 3)
        out["visual.attnpool.positional_embedding"] = ((pixels // 32) ** 2 + 1, first * 32)
        out[f"visual.layer3.{layers[2] - 1}.bn1.weight"] = (first * 4,)
    elif isinstance(patch, int) and isinstance(pixels, int):
        wide = vision.get("width", 768)
        out["visual.conv1.weight"] = (wide, 3, patch, patch)
        out["visual.positional_embedding"] = ((pixels // patch) ** 2 + 1, wide)
        out[f"visual.transformer.resblocks.{layers - 1}.ln_1.weight"] = (wide,)
        if not vision.get("attentional_pool"):
            out["visual.proj"] = (wide, dims)
    return out


USUAL_VISION = {"layers": 12, "patch_size": 16, "image_size": 224}  # open_clip's defaults


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are weights, without the prefix `module.` if all names begin with it."""
    if found and all(name.startswith(PREFIX) for name in found):
        found = {name.removeprefix(PREFIX): value for name, value in found.items()}
    return {name: value for name, value in found.items() if name not in NO_WEIGHTS}


def _header(path: Path) -> Shapes:
    """The shapes in the header of a safetensors file. Raises Unreadable if it is damaged or truncated."""
    if mistaken := mistaken_file(path, expected=(archives.ZIP,)):
        raise Unreadable(f"it is {mistaken}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else HEADER_BYTES
        if length > min(HEADER_BYTES, size - 8):
            raise Unreadable("it is truncated, or no safetensors file")
        try:
            table = json.loads(file.read(length))
            entries = {name: one for name, one in table.items() if name != "__metadata__"}
            ends = [int(one["data_offsets"][1]) for one in entries.values()]
            found = {name: tuple(map(int, one["shape"])) for name, one in entries.items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Unreadable("its header is damaged, or it is no safetensors file") from error
    if max(ends, default=0) != size - 8 - length:
        raise Unreadable("it is truncated")
    return found


def _activation(code: Iterable[str]) -> bool | None:
    """Whether traced code computes QuickGELU; None if that is not clear.

    QuickGELU is traced to a sigmoid and a product, GELU to a call of its own, and neither contains the other's call.
    """
    text = [("torch.sigmoid(" in part, "torch.gelu(" in part) for part in code]
    sigmoid, plain = (any(flags) for flags in zip(*text, strict=True)) if text else (False, False)
    return None if sigmoid == plain else sigmoid


def _instead(found: Shapes) -> str:
    """The end of an error message: the CLIP network whose weights these are, or that they are none of CLIP's."""
    patches, tokens = found.get("visual.conv1.weight"), found.get("token_embedding.weight")
    if patches is None or tokens is None or len(patches) != 4 or len(tokens) != 2:
        return "; they are not those of a CLIP network"
    name = next((name for name in (*clip_configs.OPENAI, *RESNETS) if fits(found, name)), None)
    return f"; they are those of {name}" if name else ""


def fits(found: Shapes, model: str) -> bool:
    """Whether shapes agree with all that `expected` gives for a network."""
    return all(found.get(name) == shape for name, shape in expected(model).items())


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
