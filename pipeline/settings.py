"""TOML files and `--set a.b=c` become small frozen models; an unknown key names its nearest neighbour."""

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

from pipeline.errors import UserError, nearest


class Role(Enum):
    """What a setting does besides deciding a number, stated in its annotation: `lr: Annotated[float, SPEED]`."""

    PACKS = (
        "packs"  # it shapes the packed inputs of a method; any other setting retrains without packing again
    )
    SPEED = (
        "speed"  # it changes only speed, memory or whether something is downloaded: no part of a fingerprint
    )
    DIGESTED = "digested"  # it says where something is whose digest enters the fingerprint in its place
    UNSEEN = "unseen"  # it changes the scores of trained weights and shows in no name or shape of them
    PATH = "path"  # it may name a file, relative to the folder of the experiment's file
    FILLS = "fills"  # it gives values to other settings, which enter the fingerprint in its place


PACKS, SPEED, DIGESTED, UNSEEN, PATH = Role.PACKS, Role.SPEED, Role.DIGESTED, Role.UNSEEN, Role.PATH
FILLS = Role.FILLS


class Params(BaseModel):
    """What can change a number. Fields marked SPEED, DIGESTED or FILLS do not enter the fingerprint of their stage."""

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
    """The roles among what stands in a field's annotation."""
    return [mark for mark in metadata if isinstance(mark, Role)]


def located(tree: Mapping[str, Any], model: type[Params], base: Path) -> Tree:
    """The table with file names relative to `base` made absolute, where such a file is there.

    Of a name with `{area}` or another word in braces it is enough that one file is there which it can stand for.
    """
    out = dict(tree)
    for name in model.marked(PATH):
        value = out.get(name)
        if isinstance(value, str) and value and _is_there(base / value):
            out[name] = str((base / value).absolute())
    return out


def _is_there(path: Path) -> bool:
    """Whether a path exists, or one with anything at all in the place of its words in braces."""
    if path.exists():
        return True
    parts = re.split(r"\{\w+\}", str(path))
    return len(parts) > 1 and next(glob.iglob("*".join(map(glob.escape, parts))), None) is not None


class Options(BaseModel):
    """What changes only speed or place (device, workers). Never enters a fingerprint."""

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
    """A copy of the tree with every `a.b=value` applied; a value is TOML, and a bare word is text."""
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


def fill(model: type[Model], tree: Mapping[str, Any], where: str) -> Model:
    """The model filled from a table. Raises UserError naming the key, its value and what is possible."""
    try:
        return model(**tree)
    except ValidationError as error:
        raise UserError(_sentence(model, error, where)) from None


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """The first complaint of a validation, in one sentence."""
    first = error.errors()[0]
    key = ".".join([where, *(str(part) for part in first["loc"])]).strip(".")
    if first["type"] == "extra_forbidden":
        owner = _owner(model, first["loc"][:-1])
        return f"unknown setting {key}; {nearest(str(first['loc'][-1]), owner.model_fields)}"
    if first["type"] == "missing":
        return f"the setting {key} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key} = {first['input']!r} is not possible: {message[:1].lower()}{message[1:]}"


def _owner(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The nested model that a location inside another points to."""
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
