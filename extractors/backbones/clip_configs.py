"""Names and configurations of CLIP networks, read from files and without torch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, nearest

OWN_FOLDER = Path(__file__).parent / "models"
NEEDED = ("embed_dim", "vision_cfg", "text_cfg")
QUICK = "-quickgelu"  # ends open_clip's names of networks with OpenAI's activation, x * sigmoid(1.702 x)
OPENAI = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
"""OpenAI's names of its networks, and open_clip's names of the same."""

Config = dict[str, Any]


def names() -> list[str]:
    """Names of networks that need no path: our own small ones and those of open_clip."""
    return sorted(_files())


def resolve(model: str) -> str:
    """open_clip's name of a network given by OpenAI's name; any other name unchanged."""
    return OPENAI.get(model, model)


def other_activation(model: str) -> str:
    """The name of the same network with the other activation, "" if there is none."""
    model = resolve(model)
    other = model.removesuffix(QUICK) if model.endswith(QUICK) else model + QUICK
    return other if other in _files() else ""


def read(model: str) -> Config:
    """The configuration, in open_clip's form, of a named network or of the JSON file at a path."""
    path = path_of(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no CLIP model file {path}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a CLIP model in JSON: {error}") from None
    missing = [key for key in NEEDED if not isinstance(config, dict) or key not in config]
    if missing:
        raise UserError(f"{path} is not a CLIP model: it lacks {', '.join(missing)}")
    _refuse_foreign_text(model, config["text_cfg"])
    return config


def path_of(model: str) -> Path:
    """The JSON file of a model. Raises UserError with the nearest name if there is no such network."""
    if is_path(model):
        return Path(model)
    files = _files()
    if resolve(model) not in files:
        possible = OPENAI if "/" in model else files
        raise UserError(f"unknown CLIP model {model!r}; {nearest(model, possible)}")
    return files[resolve(model)]


def is_path(model: str) -> bool:
    """Whether a model is given as a file rather than by name."""
    return model.endswith(".json")


def _files() -> dict[str, Path]:
    return {path.stem: path for folder in (_open_clip_folder(), OWN_FOLDER) for path in folder.glob("*.json")}


def _open_clip_folder() -> Path:
    """The folder of open_clip's model files, found without importing open_clip, which takes seconds."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise UserError("open_clip is not installed: pip install open_clip_torch")
    return Path(spec.origin).parent / "model_configs"


def _refuse_foreign_text(model: str, text: Config) -> None:
    """Raise UserError unless the text tower pools at the end token of open_clip's tokenizer, where states are cut."""
    foreign = "hf_model_name" in text or "hf_tokenizer_name" in text or text.get("embed_cls")
    if foreign or text.get("pool_type", "argmax") != "argmax":
        raise UserError(
            f"the text tower of {model!r} does not end its captions as CLIP does; "
            "possible are CLIP networks such as ViT-B-32-quickgelu, ViT-L-14 or RN50"
        )
