"""References to the weights of a backbone: their files, and their names in a fingerprint.

A reference is one of: a tag that open_clip publishes ("openai", "laion2b_s34b_b79k"), the path of a local file
(OpenAI's own, safetensors, or a state dict of torch), or "seed:N", random weights for tests and the demo. Nothing is
downloaded unless the setting `download` is true. Files and seeds are the same for every backbone; `hub` handles
networks that others publish by name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from extractors.backbones import archives, clip_configs, clip_weights, tensor_files
from pipeline.errors import UserError, nearest
from pipeline.run.stage import Digests

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SEED = "seed:"
DRAWING = 3  # raise it when a change of seeded.py or of a file in models/ gives a seed other weights

log = logging.getLogger(__name__)


class NetworkSettings(Protocol):
    """The settings that choose a network and its weights."""

    @property
    def model(self) -> str:
        """The network's name or JSON file."""
        ...

    @property
    def weights(self) -> str:
        """A tag, a file, or seed:N."""
        ...

    @property
    def download(self) -> bool:
        """Whether a tag's file may be fetched."""
        ...


def identity(settings: NetworkSettings, known: Digests) -> str | None:
    """The name of these weights in a fingerprint, or None if a tag's file is not on this machine.

    A seed is named by its number and the version of the drawing, a file by its digest, wherever it lies. A network
    described by the user's own file adds the digest of that description. `known` caches digests and the place of a
    tag's file: locating it needs open_clip, which takes seconds to import.
    """
    model, weights = settings.model, settings.weights
    if seed_of(weights) is not None:
        name = seed_name(weights)
    else:
        clip_configs.path_of(model)  # complains about an unknown name at once
        path = Path(weights) if is_path(weights) else known.located(
            f"clip {model} {weights}", lambda: locate(model, weights, settings.download)
        )  # fmt: skip
        if path is None:
            return None
        if not path.is_file():
            raise UserError(f"no weights file {path}")
        name = known.file(path)
    return f"{name} of {known.file(clip_configs.path_of(model))}" if clip_configs.is_path(model) else name


def require(settings: NetworkSettings) -> None:
    """Raise UserError if the weights are not on this machine or cannot be those of the network.

    This runs before a run begins, and reads only names and shapes. A file that does not show which activation it was
    trained with causes one warning.
    """
    clip_configs.path_of(settings.model)  # a network that nobody knows has no seeded weights either
    if seed_of(settings.weights) is not None:
        return
    path = locate(settings.model, settings.weights, settings.download)
    if path is None:
        raise UserError(_not_here(settings.model, settings.weights, "were not to be downloaded"))
    clip_weights.require_fit(path, settings.model)
    require_activation(settings.model, settings.weights)
    _warn_of_activation(clip_configs.resolve(settings.model), settings.weights)


def require_activation(model: str, weights: str) -> None:
    """Raise UserError if weights were not trained with the activation of a named network, where that is known.

    OpenAI's weights need QuickGELU; with the plain GELU every feature is slightly wrong and no error shows it.
    """
    trained_with, other = _trained_with(model, weights), clip_configs.other_activation(model)
    if other and trained_with is not None and trained_with != _has_quick_gelu(model):
        raise UserError(
            f"weights {weights!r} were not trained with the activation of {clip_configs.resolve(model)}; set the model "
            f"to {other!r} (extractors.clip.model, or base_encoder of a method that trains CLIP)"
        )


def _trained_with(model: str, weights: str) -> bool | None:
    """Whether weights of a tag or a file were trained with QuickGELU, None where that is not known."""
    if is_path(weights):
        return clip_weights.quick_gelu(file_of(weights))
    return bool(tag_config(model, weights).get("quick_gelu"))


def _has_quick_gelu(model: str) -> bool:
    return bool(clip_configs.read(model).get("quick_gelu"))


@functools.cache  # `clip` and `clip_text` ask for the same file
def _warn_of_activation(model: str, weights: str) -> None:
    """Log a warning where a network may compute another activation than its weights were trained with."""
    trained_with, has = _trained_with(model, weights), _has_quick_gelu(model)
    names = {True: "QuickGELU (OpenAI's)", False: "GELU"}
    other = clip_configs.other_activation(model)
    if trained_with is None and other:
        log.warning(
            "%s does not show its activation; %s computes %s, and %s the other",
            weights,
            model,
            names[has],
            other,
        )
    elif trained_with is not None and trained_with != has:  # a network of the user's own description
        log.warning(
            "%s was trained with %s, and %s computes %s", weights, names[trained_with], model, names[has]
        )


def seed_of(weights: str) -> int | None:
    """The N of "seed:N", None for weights of any other kind."""
    if not weights.startswith(SEED):
        return None
    digits = weights.removeprefix(SEED)
    if not digits.isdecimal():
        raise UserError(f"weights {weights!r} are not possible: a seed is a number, as in seed:0")
    return int(digits)


def seed_name(weights: str) -> str:
    """The name of seeded weights in a fingerprint: the seed and the version of the drawing."""
    return f"{weights}, drawing {DRAWING}"


def is_path(weights: str) -> bool:
    """Whether weights are given as a local file rather than by a tag or a seed."""
    return "/" in weights or weights.endswith(SUFFIXES)


def file_of(weights: str, suffixes: tuple[str, ...] = SUFFIXES) -> Path:
    """The local file of a path. Raises UserError if there is none, or none that holds weights."""
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if path.suffix not in suffixes:
        raise UserError(f"weights {weights!r} are not possible: a file ends in {', '.join(suffixes)}")
    return path


def locate(model: str, weights: str, download: bool = False) -> Path | None:
    """The file of a path or a tag; None if a tag's file is not on this machine and is not to be fetched."""
    if not is_path(weights):
        try:
            return _locate_tag(tag_config(model, weights), download)
        except (
            OSError,
            RuntimeError,
        ) as error:  # no network, no such file, a wrong digest
            raise UserError(_not_here(model, weights, "could not be downloaded")) from error
    return file_of(weights)


def tag_config(model: str, tag: str) -> dict[str, Any]:
    """open_clip's record of a model's tag: the address of its file, and the preprocessing of its images."""
    open_clip, model = import_open_clip(), clip_configs.resolve(model)
    config: dict[str, Any] = open_clip.get_pretrained_cfg(model, tag)
    if config:
        return config
    clip_configs.path_of(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    raise UserError(
        f"unknown weights {tag!r} of {model}; {nearest(tag, tags) if tags else 'no tag is published for it'}"
        " (or give a local file or seed:N)"
    )


def any_tag_config(model: str) -> dict[str, Any]:
    """open_clip's record of the first tag of a model; {} if it publishes none."""
    tags = import_open_clip().list_pretrained_tags_by_model(clip_configs.resolve(model))
    return tag_config(model, tags[0]) if tags else {}


def load(network: nn.Module, model: str, weights: str, download: bool = False) -> None:
    """Fill a network from a path or a tag. Raises UserError if the file is missing or does not fit."""
    path = locate(model, weights, download)
    if path is None:
        raise UserError(_not_here(model, weights, "were not to be downloaded"))
    with fitting(path, model):
        _put(network, clip_weights.read(path))


def _put(network: Any, state: dict[str, Tensor]) -> None:
    """Fill a network of open_clip from tensors by name. Raises what torch raises if they do not fit.

    open_clip's own `load_checkpoint` makes the same conversions, but would also stretch positions of another picture
    size or context length without a word; here they do not fit.
    """
    import_open_clip()
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(network, state)
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # a number in some files, one of a list in others
        if name in state and getattr(network, name, None) is not None:
            state[name] = state[name].reshape(getattr(network, name).shape)
    network.load_state_dict(state, strict=True)


def read_state(path: Path, nested: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a weights file by name; no object is unpickled. For use within `fitting`.

    `nested` are the keys under which a checkpoint may hold this table beside other entries.
    """
    import torch

    if path.suffix != ".safetensors":
        archives.require_torch_file(path)
    state = tensor_files.read(path)
    if isinstance(state, Mapping):
        state = next((state[key] for key in nested if isinstance(state.get(key), Mapping)), state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise TypeError("it is not a table of tensors by name")
    return dict(state)


@contextlib.contextmanager
def fitting(path: Path, model: str) -> Iterator[None]:
    """Turn an error while a file's weights are loaded into a network into a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (pickle.UnpicklingError, tensor_files.MoreThanTensors):
        raise UserError(
            f"{path} holds more than tensors and is not read; convert it to safetensors"
        ) from None
    except (archives.Unreadable, tensor_files.NotTensors) as error:
        raise UserError(f"{path} cannot be read as weights of {model}: {error}") from error
    except (RuntimeError, SafetensorError, LookupError, TypeError, AttributeError, EOFError) as error:
        reason = str(error).strip().splitlines()[-1].strip() if str(error) else type(error).__name__
        raise UserError(f"the weights in {path} do not fit {model}: {reason}") from error


def import_open_clip() -> Any:
    """The module open_clip, importable also where torchvision and torch were built apart."""
    from extractors.backbones import torchvision_ops

    torchvision_ops.ensure()
    import open_clip

    return open_clip


def _locate_tag(config: dict[str, Any], download: bool) -> Path | None:
    """The file of a published tag: where the Hugging Face hub or open_clip itself caches it, else fetched."""
    from huggingface_hub import try_to_load_from_cache

    repository, files = _hub_files(config)
    for file in files:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    if config.get("url"):
        fetched = Path("~/.cache/clip").expanduser() / Path(config["url"]).name
        if fetched.is_file():
            return fetched
    return Path(import_open_clip().download_pretrained(config)) if download else None


def _hub_files(config: dict[str, Any]) -> tuple[str, list[str]]:
    """The hub repository of a tag and its files in the order in which open_clip prefers them."""
    repository, _, file = config.get("hf_hub", "").rpartition("/")
    if not repository:
        return "", []
    if not file:  # "organisation/name/" stands for the usual file names
        return repository, [
            "open_clip_model.safetensors",
            "open_clip_pytorch_model.bin",
        ]
    return repository, [str(Path(file).with_suffix(".safetensors")), file]


def _not_here(model: str, weights: str, why: str) -> str:
    return (
        f"weights {weights!r} of {model} are not on this machine and {why}; "
        "set extractors.clip.weights (of a method that trains CLIP: its backbone_weights) to a local file, "
        "or extractors.clip.download (its backbone_download) to true where there is a network"
    )
