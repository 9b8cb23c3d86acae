"""spaCy models on this machine: packages that are installed, or folders, found and checked without importing spaCy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from extractors.backbones.clear_nlp import is_clear_nlp
from pipeline.errors import UserError
from pipeline.run.stage import Digests

DEFAULT = "en_core_web_sm"  # the model of the package "default"
INSTALL = "pip install 'crossreel[spacy]'"
NOT_USED = (  # components of a pipeline that decide no triple
    "entity_linker", "entity_ruler", "lemmatizer", "ner", "senter", "spancat", "textcat", "textcat_multilabel",
    "trainable_lemmatizer",
)  # fmt: skip
NO_CONTENT = ("accuracy.json", "LICENSE", "LICENSES_SOURCES", "meta.json", "README.md")
TAGGERS = {"attribute_ruler", "morphologizer"}  # what writes parts of speech


@dataclass(frozen=True)
class SpacyModel:
    """A model's folder and what its meta.json says of it. clear_nlp: whether its labels are ClearNLP's, not UD's."""

    folder: Path
    name: str
    version: str
    clear_nlp: bool


def identity(package: str, known: Digests) -> Mapping[str, Any] | None:
    """Name, version and digests of a model, and spaCy's version; None if one of them is not on this machine."""
    model, release = find(package), spacy_version()
    if model is None or release is None:
        return None
    files = {str(file.relative_to(model.folder)): known.file(file) for file in _content(model.folder)}
    return {"spacy": release, "model": model.name, "version": model.version, "files": files}


def require(package: str) -> SpacyModel:
    """The model of this name or folder. Raises UserError if spaCy, the model or a package it needs is not here."""
    name = _name(package)
    fetch = f"`python -m spacy download {name}`"
    if spacy_version() is None:
        then = "" if _is_folder(package) else f", then {fetch}"
        raise UserError(
            f"extractors.triples.backend = 'spacy' needs spaCy, which is not installed: {INSTALL}{then}"
        )
    model = find(package)
    if model is None:
        raise UserError(
            f"the spaCy model {name!r} is not on this machine; run {fetch} where there is a network, or copy the "
            "model's folder and set extractors.triples.package to it"
        )
    return model


def spacy_version() -> str | None:
    """The version of spaCy, or None if it is not installed."""
    try:
        return version("spacy")
    except PackageNotFoundError:
        return None


def find(package: str) -> SpacyModel | None:
    """The model of an installed package or in a folder, or None if there is no package of this name.

    Raises UserError for a folder that holds no model, and for a model whose parses give no triples here.
    """
    name = _name(package)
    if _is_folder(package):
        return _described(Path(package), package)
    spec = find_spec(name) if name.isidentifier() else None
    return _described(Path(spec.origin).parent, name) if spec and spec.origin else None


def _is_folder(package: str) -> bool:
    return "/" in package or Path(package).is_dir()


def _name(package: str) -> str:
    return DEFAULT if package == "default" else package


def _described(place: Path, package: str) -> SpacyModel:
    """The model in a folder that spaCy wrote, or in that of an installed package, which holds such a folder."""
    meta = _meta(place, package)
    inner = place / f"{meta.get('lang')}_{meta.get('name')}-{meta.get('version')}"
    folder = next((one for one in (place, inner) if (one / "config.cfg").is_file()), None)
    if folder is None:
        raise UserError(f"{package} is no spaCy model: it holds no config.cfg; copy the model's whole folder")
    components = meta.get("pipeline") or []
    if "parser" not in components or not TAGGERS & set(components):
        raise UserError(
            f"the spaCy model {package} has no parser of dependencies or no parts of speech; it needs the components "
            f"parser and {' or '.join(sorted(TAGGERS))}, and has {', '.join(components) or 'none'}"
        )
    scheme = is_clear_nlp((meta.get("labels") or {}).get("parser") or ())
    if scheme is None:
        raise UserError(
            f"the spaCy model {package} has dependency labels that are neither ClearNLP's nor those of Universal "
            "Dependencies; set extractors.triples.package to an English model, such as en_core_web_sm"
        )
    _require_packages(meta.get("requirements") or (), package)
    return SpacyModel(folder, f"{meta.get('lang')}_{meta.get('name')}", str(meta.get("version")), scheme)


def _meta(place: Path, package: str) -> dict[str, Any]:
    try:
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        meta = None
    if not isinstance(meta, dict):
        raise UserError(f"{package} is no spaCy model: it holds no meta.json; copy the model's whole folder")
    return meta


def _require_packages(requirements: Any, package: str) -> None:
    """Raise UserError if a package that the model names, such as that of its transformer, is not installed."""
    for requirement in requirements:
        needed = re.match(r"[\w.-]+", requirement)
        try:
            version(needed.group() if needed else requirement)
        except PackageNotFoundError:
            if needed and needed.group() == "spacy":
                continue  # `require` has its own sentence
            raise UserError(
                f"the spaCy model {package} needs a package that is not installed: pip install '{requirement}'"
            ) from None


def _content(folder: Path) -> Iterator[Path]:
    """The files that decide what the model's parser gives, in the order of their names."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_file() and parts[0] not in (*NOT_USED, *NO_CONTENT, "__pycache__"):
            yield file
