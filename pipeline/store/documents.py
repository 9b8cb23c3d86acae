"""JSON files of the store as typed models, read with suspicion: a missing or damaged file is named in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError


class Document(BaseModel):
    """Base of what a JSON file holds. Keys that the model does not know are left alone: later versions add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


D = TypeVar("D", bound=Document)


def read_document(path: Path, model: type[D], owner: str, remedy: str) -> D:
    """The content of a JSON file.

    `owner` says what leaves such a file, for instance "an evaluated method"; `remedy` says how it is made again.
    Raises UserError naming the file where it is missing, cannot be read, or does not hold what the model says.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no {path}; {path.parent} is not the folder of {owner}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise UserError(f"{path} is damaged or not of {owner}: {complaint(error)}; {remedy}") from None


def complaint(error: ValidationError) -> str:
    """The first complaint of a validation: the place of the value, if it has one, and what is wrong with it."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg'].lower()}" if place else str(first["msg"]).lower()
