"""JSON files of the store as typed models. A missing or damaged file is a UserError that names it in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError


class Document(BaseModel):
    """Base class for the content of a JSON file. Unknown keys are ignored, because later versions may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


D = TypeVar("D", bound=Document)


def read_document(path: Path, model: type[D], owner: str, remedy: str) -> D:
    """Return the content of a JSON file.

    `owner` says what writes such a file, for instance "an evaluated method"; `remedy` says how to make it again.
    Raises UserError, with the name of the file, if it is missing, cannot be read, or does not fit the model.
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
    """Return the first message of a validation error, after the name of the key if there is one."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg'].lower()}" if place else str(first["msg"]).lower()
