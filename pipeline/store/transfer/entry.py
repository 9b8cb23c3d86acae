"""The published entry of one segment or finished folder: a small JSON object that names its files.

entries/<stage>/<fingerprint>/segment-<id>.json    written last, when all files that it names are published
entries/<stage>/<fingerprint>/folder-<id>.json
data/ab/ab12...                                    the content of a file, named by its SHA-256

Each segment or folder has an entry of its own, which never changes, so that two machines can publish at the same
time. Anyone with write access can publish anything, so every name and number is checked before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.store.store import RECORD

MOST_ENTRY_BYTES = 64 << 20  # size limit of an entry's JSON, enough for 10^6 items
MOST_FILE_BYTES = 1 << 45
MOST_NAME_LETTERS, MOST_PATH_LETTERS, MOST_DEPTH = 200, 1000, 16
WHERE = re.compile(
    r"entries/([a-z0-9][a-z0-9_-]{0,99})/([0-9a-f]{20})/(segment|folder)-([0-9a-f]{32})\.json", re.ASCII
)
ITEM_FILE = re.compile(r"([0-9a-zA-Z_-]{1,2})/(\1[0-9a-zA-Z_-]{0,62})(\.[0-9a-z]{1,10})?", re.ASCII)
REFUSED = re.compile(
    r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u2028\u2029]'
)  # characters that names may not have: control characters, and those that lead to another root

Kind = Literal["segment", "folder"]
Item = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Untrusted(Exception):
    """Published content that no store would have written; the message is the reason why it is refused."""


class Where(NamedTuple):
    """The identity of a segment or finished folder; `id` is the segment's id, or a digest of the folder's record."""

    stage: str
    fingerprint: str
    kind: Kind
    id: str

    @property
    def path(self) -> str:
        """Path of the published entry."""
        return f"entries/{self.stage}/{self.fingerprint}/{self.kind}-{self.id}.json"

    @property
    def sentence(self) -> str:
        """A description for error messages."""
        return f"the {self.kind} {self.id[:12]} of {self.stage} {self.fingerprint}"

    @property
    def segment(self) -> str:
        """Path of the segment's file in a store."""
        return f"segments/{self.stage}/{self.fingerprint}/{self.id}.h5"

    @property
    def folder(self) -> str:
        """Path of the finished folder in a store."""
        return f"runs/{self.stage}/{self.fingerprint}"

    @property
    def files(self) -> str:
        """Path of the folder of the items' files in a store."""
        return f"files/{self.stage}/{self.fingerprint}"

    @classmethod
    def of(cls, path: str) -> Where | None:
        """Return the segment or folder that an object in `entries/` describes; None for any other object."""
        match = WHERE.fullmatch(path)
        return None if match is None else cls(match[1], match[2], _kind(match[3]), match[4])


def _kind(word: str) -> Kind:
    return "segment" if word == "segment" else "folder"


class Blob(BaseModel):
    """The content of a file, given by its size in bytes and its digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size: int = Field(ge=0, le=MOST_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def path(self) -> str:
        """Path of the published content."""
        return f"data/{self.sha256[:2]}/{self.sha256}"


class Entry(BaseModel):
    """The files of one segment or finished folder, by their names in a store, and its items."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal[1] = 1
    kind: Kind
    stage: str
    fingerprint: str
    id: str
    items: list[Item] = []
    files: dict[str, Blob]

    @property
    def where(self) -> Where:
        """The identity of the segment or folder."""
        return Where(self.stage, self.fingerprint, self.kind, self.id)

    @model_validator(mode="after")
    def _belongs_together(self) -> Entry:
        for name in self.files:
            require_plain(name)
        if Where.of(self.where.path) is None:
            raise ValueError("it is of no stage, fingerprint and segment")
        (_require_segment if self.kind == "segment" else _require_folder)(self)
        return self


def require_plain(name: str) -> None:
    """Raise ValueError unless a name, on any operating system, leads to a file below its folder."""
    parts = name.split("/")
    plain = (
        0 < len(name) <= MOST_PATH_LETTERS
        and len(parts) <= MOST_DEPTH
        and not REFUSED.search(name)
        and all(0 < len(part) <= MOST_NAME_LETTERS for part in parts)
        and not any(part.strip(". ") == "" or part[-1] in ". " for part in parts)
    )
    if not plain:
        raise ValueError(f"the name {name[:80]!r} is refused")


def _require_segment(entry: Entry) -> None:
    """Raise ValueError unless the files of an entry are the segment's own file and files of its items."""
    where, items = entry.where, set(entry.items)
    if where.segment not in entry.files or len(items) != len(entry.items):
        raise ValueError("it has no segment, or the same item twice")
    for name in entry.files:
        if name == where.segment:
            continue
        match = ITEM_FILE.fullmatch(name.removeprefix(f"{where.files}/"))
        if not name.startswith(f"{where.files}/") or match is None or match[2] not in items:
            raise ValueError(f"the file {name[:80]!r} is of none of its items")


def _require_folder(entry: Entry) -> None:
    """Raise ValueError unless a folder has its record, and no name is both a file and a folder."""
    inside = f"{entry.where.folder}/"
    if f"{inside}{RECORD}" not in entry.files or entry.items:
        raise ValueError(f"it has no {RECORD}, or items")
    for name in entry.files:
        if not name.startswith(inside):
            raise ValueError(f"the file {name[:80]!r} is not in its folder")
        if any(str(parent) in entry.files for parent in PurePosixPath(name).parents):
            raise ValueError(f"the name {name[:80]!r} leads through a file")


def read_entry(where: Where, content: bytes) -> Entry:
    """Return the entry of a segment or folder. Raises Untrusted unless it is complete, harmless and of that one."""
    try:
        entry = Entry.model_validate_json(content)
    except ValidationError as error:
        raise Untrusted(_first(error)) from None
    if entry.where != where:
        raise Untrusted(f"it says that it is {entry.where.sentence}")
    return entry


class Record(BaseModel):
    """The keys that the record of a finished folder must have; other keys are left to its readers."""

    model_config = ConfigDict(extra="ignore", strict=True)
    stage: str
    fingerprint: str
    components: dict[str, Any]
    files: dict[str, Annotated[Sequence[int | str], Field(min_length=2, max_length=2)]]


def read_record(content: bytes) -> Record:
    """Return a folder's record. Raises Untrusted if the content is not a record."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise Untrusted(f"its {RECORD} is damaged: {_first(error)}") from None


def sizes_of(record: Record) -> Mapping[str, Any]:
    """Return the size in bytes of every file that a folder's record lists."""
    return {name: size for name, (size, _) in record.files.items()}


def _first(error: ValidationError) -> str:
    """Return the first message of a validation error, shortened."""
    first = error.errors(include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")[:200]
