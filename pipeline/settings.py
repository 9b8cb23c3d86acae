"""Settings: TOML files and `--set a.b=c` fill small frozen models; an error suggests the nearest possible key."""

from __future__ import annotations

import glob
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError, nearest, numbered


class Role(Enum):
    """The role of a setting in fingerprints and paths, stated in its annotation: `lr: Annotated[float, SPEED]`."""

    # Shapes the packed inputs of a method. A change of any other setting retrains without packing again.
    PACKS = "packs"
    # Changes only speed, memory or whether something is downloaded. Left out of fingerprints.
    SPEED = "speed"
    # Names a file or model whose digest enters the fingerprint in its place.
    DIGESTED = "digested"
    # Changes the scores of trained weights although no name or shape of the weights shows it.
    UNSEEN = "unseen"
    # May name a file, relative to the folder of the experiment file.
    PATH = "path"
    # Gives values to other settings, which enter the fingerprint in its place.
    FILLS = "fills"


PACKS, SPEED, DIGESTED, UNSEEN, PATH = Role.PACKS, Role.SPEED, Role.DIGESTED, Role.UNSEEN, Role.PATH
FILLS = Role.FILLS


class Params(BaseModel):
    """Settings that can change a number. Fields marked SPEED, DIGESTED or FILLS do not enter the fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def marked(cls, *roles: Role) -> frozenset[str]:
        """Names of the fields whose annotation states one of the roles, here or in a base class.

        A subclass that declares a field again, for another default, keeps the roles of its base.
        """
        return _marked(cls, roles)

    def decisive(self) -> dict[str, Any]:
        """The settings that can change a number, as plain data."""
        return self.model_dump(mode="json", exclude=set(self.marked(SPEED, DIGESTED, FILLS)))


@cache
def _marked(model: type[Params], roles: tuple[Role, ...]) -> frozenset[str]:
    """`Params.marked`, computed once a class."""
    declared = [base.model_fields for base in model.__mro__ if issubclass(base, Params)]
    return frozenset(
        name
        for fields in declared
        for name, field in fields.items()
        if set(roles) & set(_roles(field.metadata))
    )


def _roles(metadata: Sequence[Any]) -> list[Role]:
    """The roles in the metadata of a field's annotation."""
    return [mark for mark in metadata if isinstance(mark, Role)]


def located(tree: Mapping[str, Any], model: type[Params], base: Path) -> Tree:
    """The table with file names relative to `base` made absolute, if the file exists.

    A name with `{area}` or another word in braces is made absolute if at least one file matches it.
    """
    out = dict(tree)
    for name in model.marked(PATH):
        value = out.get(name)
        if isinstance(value, str) and value and _is_there(base / value):
            out[name] = str((base / value).absolute())
    return out


def _is_there(path: Path) -> bool:
    """Whether a path exists; a word in braces matches any text."""
    if path.exists():
        return True
    parts = re.split(r"\{\w+\}", str(path))
    return len(parts) > 1 and next(glob.iglob("*".join(map(glob.escape, parts))), None) is not None


class Options(BaseModel):
    """Settings that change only speed or place (device, workers). They never enter a fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)
Tree = dict[str, Any]


def read_toml(path: Path) -> Tree:
    """The tables of a TOML file. Raises UserError for a missing or malformed file, with the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no experiment file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, an experiment is a TOML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; an experiment is a TOML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def apply_sets(tree: Tree, sets: Sequence[str]) -> Tree:
    """A copy of the tree with every `a.b=value` applied; a value that is not valid TOML is taken as text."""
    out: Tree = json.loads(json.dumps(tree, default=str))
    for text in sets:
        key, sign, raw = text.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not sign or not all(parts):
            raise UserError(f"--set {text!r} is not of the form name.of.key=value")
        table = out
        for part in parts[:-1]:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {text!r}: {part!r} is a value, not a table")
        table[parts[-1]] = _value(raw.strip())
    return out


def _value(raw: str) -> Any:
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


class WrongSettings(UserError):
    """Settings that are unknown, missing or impossible: a sentence, or a numbered list of sentences."""

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = tuple(dict.fromkeys(sentences))
        super().__init__(numbered("settings have to be changed:", self.sentences))


class Faults:
    """Gathers what is wrong in several tables: each is filled in a `with` block of its own, then `require_none`."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def __enter__(self) -> None:
        """Begin a block."""

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        """Keep the sentences of WrongSettings and go on after the block."""
        if not isinstance(error, WrongSettings):
            return False
        self.sentences += error.sentences
        return True

    def require_none(self) -> None:
        """Raise WrongSettings if a block did."""
        if self.sentences:
            raise WrongSettings(self.sentences)


def fill(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """The model filled from a table. Raises WrongSettings naming each wrong key, its value and what is possible."""
    try:
        return model(**tree)
    except ValidationError as error:
        firsts: dict[str, Mapping[str, Any]] = {}  # of a union each alternative has an error
        for one in error.errors():
            firsts.setdefault(_setting(model, one["loc"]), dict(one))
        raise WrongSettings([_sentence(model, one, where) for one in firsts.values()]) from None


def _setting(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """The dotted name of the setting that an error is about, without the place within its value."""
    owner, depth = _owner(model, location), 0
    while depth < len(location) and _owner(model, location[:depth]) is not owner:
        depth += 1
    return ".".join(map(str, location[: depth + 1]))


def _sentence(model: type[BaseModel], error: Mapping[str, Any], where: str) -> str:
    """An error of a validation as one sentence."""
    key = ".".join([where, *(str(part) for part in error["loc"])]).strip(".")
    if error["type"] == "extra_forbidden":
        owner = _owner(model, error["loc"][:-1])
        return f"unknown setting {key}; {nearest(str(error['loc'][-1]), owner.model_fields)}"
    if error["type"] == "missing":
        return f"the setting {key} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r} is not possible: {message[:1].lower()}{message[1:]}"


def _owner(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The nested model that a location within `model` points to."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        kinds = [field.annotation]
        if typing.get_origin(field.annotation) in (typing.Union, types.UnionType):
            kinds = list(typing.get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            model = inner[0]
    return model
