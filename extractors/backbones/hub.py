"""Local files of published models: those of the Hugging Face hub, and torchvision's VGG16.

A Hugging Face model is a folder: its description, its tokenizer's files, its weights. It is given by
its name on the hub, by the path of such a folder, or as "crossreel-demo", a description and a small
vocabulary of our own whose weights are drawn from a seed. Nothing is fetched unless `download` says
so, and no code that comes with a model is run. Finding things imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extractors.backbones import caffe_vgg16
from extractors.backbones import weights as weight_files
from extractors.backbones.archives import Unreadable
from extractors.backbones.weights import NetworkSettings
from pipeline.errors import UserError, nearest
from pipeline.run.stage import Digests
from pipeline.store.fingerprint import digest_of

OWN_FOLDER = Path(__file__).parent / "models"
DEMO = "crossreel-demo"
PRETRAINED = "pretrained"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or an index of several such files, in this order
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
ORGANISATIONS = {  # organisations of names that the hub once listed without one; a cache may hold either name
    "albert": "albert",
    "bert": "google-bert",
    "distilbert": "distilbert",
    "roberta": "FacebookAI",
    "xlm": "FacebookAI",
}
VGG16_FILES = {"IMAGENET1K_V1": "vgg16-397923af.pth"}  # torchvision's names of weights that reach fc7


def identity(settings: NetworkSettings, known: Digests) -> dict[str, Any]:
    """The fingerprint's record of a Hugging Face model: digests of its weights, description and tokenizer.

    The weights are None if they are not on this machine. Names and places do not count, the bytes do.
    """
    folder = locate(settings)
    if folder is None:
        return {"weights": None, "model": settings.model}
    described = [folder / name for name in (CONFIG, *TOKENIZER) if (folder / name).is_file()]
    files = {path.name: known.file(path) for path in described}
    if weight_files.seed_of(settings.weights) is not None:
        return {"weights": weight_files.seed_name(settings.weights), "files": files}
    digests = [known.file(path) for path in weights_in(folder)]
    return {"weights": digests[0] if len(digests) == 1 else digest_of(digests), "files": files}


def require(settings: NetworkSettings) -> Path:
    """The folder of a Hugging Face model. Raises UserError if it is not on this machine."""
    folder = locate(settings)
    if folder is None:
        raise UserError(_not_here(settings, "was not to be downloaded"))
    return folder


def locate(settings: NetworkSettings) -> Path | None:
    """The folder of a Hugging Face model, complete with its weights unless they are drawn from a seed.

    None if a model of the hub is not on this machine and is not to be fetched.
    """
    model, seeded = settings.model, weight_files.seed_of(settings.weights) is not None
    if not seeded and settings.weights != PRETRAINED:
        raise UserError(
            f"weights {settings.weights!r} are not possible: {PRETRAINED} (the model's own) or seed:N; "
            "weights of your own are a model folder"
        )
    if model == DEMO:
        if not seeded:
            raise UserError(f"{DEMO} has no weights of its own; set its weights to seed:0")
        return OWN_FOLDER / DEMO
    if is_folder(model):
        return _checked_folder(Path(model), seeded)
    folder = _cached(model)
    if folder is not None and (seeded or weights_in(folder)):
        return folder
    return _fetched(settings) if settings.download else None


def is_folder(model: str) -> bool:
    """Whether a model is given as a folder; the experiment's own relative ones were made absolute."""
    return model.startswith(("/", "."))


def weights_in(folder: Path) -> list[Path]:
    """The weights of a model folder: one file, or an index and the files it names; [] if not all are there."""
    for name in WEIGHTS:
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [index, *(folder / Path(part).name for part in parts)]
            return files if all(file.is_file() for file in files) else []
    return []


def _checked_folder(folder: Path, seeded: bool) -> Path:
    if not folder.is_dir():
        raise UserError(f"no model folder {folder}")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a model folder: it lacks {CONFIG}")
    if not seeded and not weights_in(folder):
        raise UserError(f"the model folder {folder} lacks its weights: {' or '.join(WEIGHTS)}")
    return folder


def _cached(model: str) -> Path | None:
    """The folder of a model in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = [model]
    organisation = ORGANISATIONS.get(model.partition("-")[0])
    if "/" not in model and organisation:
        names.append(f"{organisation}/{model}")
    try:
        cached = [try_to_load_from_cache(name, CONFIG) for name in names]
    except HFValidationError:
        raise UserError(
            f"model {model!r} is neither the path of a folder nor a name of the Hugging Face hub"
        ) from None
    return next((Path(path).parent for path in cached if isinstance(path, str)), None)


def _fetched(settings: NetworkSettings) -> Path:
    """The folder of a model, fetched into the hub's cache: safetensors if it has them."""
    import httpx
    from huggingface_hub import snapshot_download

    described = [CONFIG, *TOKENIZER]
    try:
        for name in WEIGHTS:
            stem, suffix = os.path.splitext(name)
            patterns = [*described, name, f"{stem}-*{suffix}", f"{name}.index.json"]
            folder = Path(snapshot_download(settings.model, allow_patterns=patterns))
            if weights_in(folder):
                return folder
    except (OSError, httpx.HTTPError) as error:
        raise UserError(_not_here(settings, "could not be downloaded")) from error
    raise UserError(
        f"the model {settings.model!r} came without weights that are read: {' or '.join(WEIGHTS)}"
    )


def _not_here(settings: NetworkSettings, why: str) -> str:
    return (
        f"the model {settings.model!r} is not on this machine and {why}; "
        f"set extractors.bert.model to a local folder, or extractors.bert.download to true where there "
        f"is a network, or extractors.bert.model to {DEMO} and its weights to seed:0 (random, to try things)"
    )


# VGG16 ------------------------------------------------------------------------------------------


def vgg16_identity(settings: NetworkSettings, known: Digests) -> Mapping[str, Any]:
    """The fingerprint's record of VGG16's weights: a digest, None if a published file is not on this machine."""
    if weight_files.seed_of(settings.weights) is not None:
        return {"weights": weight_files.seed_name(settings.weights)}
    path = _vgg16_path(settings.model, settings.weights)
    if not path.is_file() and settings.download:
        _fetch_vgg16(settings.weights)
    return {"weights": known.file(path) if path.is_file() else None}


def vgg16_file(model: str, weights: str, convention: str = "torchvision") -> Path:
    """The file of VGG16's weights. Raises UserError if it is not on this machine, or not of the convention.

    Files in the layouts of tensorflow-vgg and Keras hold Caffe's network, and torchvision's names its own; a state
    dict may hold either.
    """
    path = _vgg16_path(model, weights)
    if not path.is_file():
        raise UserError(_vgg16_not_here(weights, "were not to be downloaded"))
    caffe = path.suffix in caffe_vgg16.SUFFIXES
    if caffe and convention != "caffe":
        raise UserError(
            f"{path} is in a layout of Caffe's VGG16, whose pictures are blue, green, red in 0..255; "
            "set extractors.vgg16.convention to 'caffe'"
        )
    if convention == "caffe" and not _is_vgg16_path(weights):
        raise UserError(
            f"weights {weights!r} are torchvision's, and extractors.vgg16.convention is 'caffe'; set "
            "extractors.vgg16.weights to a file of Caffe's network (vgg16.npy of tensorflow-vgg, Keras's .h5)"
        )
    if caffe:
        try:
            caffe_vgg16.require(path)
        except Unreadable as error:
            raise UserError(f"{path} cannot be read as weights of {model}: {error}") from error
    return path


def _is_vgg16_path(weights: str) -> bool:
    return weight_files.is_path(weights) or weights.endswith(caffe_vgg16.SUFFIXES)


def _vgg16_path(model: str, weights: str) -> Path:
    """The path of a weights file, which for published weights need not exist yet."""
    if _is_vgg16_path(weights):
        return weight_files.file_of(weights, (*weight_files.SUFFIXES, *caffe_vgg16.SUFFIXES))
    if model == DEMO:
        raise UserError(
            f"no weights are published for {DEMO}; set extractors.vgg16.weights to seed:0 or a local file"
        )
    if weights not in VGG16_FILES:
        raise UserError(
            f"unknown weights {weights!r} of vgg16; {nearest(weights, VGG16_FILES)} (or give a local file or seed:N)"
        )
    return torch_folder() / VGG16_FILES[weights]


def torch_folder() -> Path:
    """The folder of torch's downloads, by the rule that torch follows, but without importing it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "hub/checkpoints"


def _fetch_vgg16(weights: str) -> None:
    """Let torchvision download its file and check the digest in the file's name."""
    from extractors.backbones import torchvision_ops

    torchvision_ops.ensure()
    from torchvision.models import VGG16_Weights

    try:
        VGG16_Weights[weights].get_state_dict(check_hash=True, progress=False)
    except (OSError, RuntimeError) as error:  # no network, a wrong digest
        raise UserError(_vgg16_not_here(weights, "could not be downloaded")) from error


def _vgg16_not_here(weights: str, why: str) -> str:
    return (
        f"weights {weights!r} of vgg16 are not on this machine and {why}; set extractors.vgg16.weights to a "
        "local file or seed:N (random, to try things), or extractors.vgg16.download to true where there is a network"
    )
