"""What is published of one segment or finished folder: a small JSON object that names its files.

entries/<stage>/<fingerprint>/segment-<id>.json    written last: what it names is there
entries/<stage>/<fingerprint>/folder-<id>.json
data/ab/ab12...                                    the content of a file, named by its SHA-256

One object each, never changed: who publishes at the same time as another loses nothing. Whoever can
write there can write anything, so that every name and number read here is checked before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from pipeline.store.store import RECORD

MOST_ENTRY_BYTES = 64 << 20  # of the JSON of an entry: 10^6 items
MOST_FILE_BYTES = 1 << 45
MOST_NAME_LETTERS, MOST_PATH_LETTERS, MOST_DEPTH = 200, 1000, 16
WHERE = re.compile(
    r"entries/([a-z0-9][a-z0-9_-]{0,99})/([0-9a-f]{20})/(segment|folder)-([0-9a-f]{32})\.json", re.ASCII
)
ITEM_FILE = re.compile(r"([0-9a-zA-Z_-]{1,2})/(\1[0-9a-zA-Z_-]{0,62})(\.[0-9a-z]{1,10})?", re.ASCII)
REFUSED = re.compile(
    r'[\x00-\x1f\x7f-\x9f\\:*?"<>|\u2028\u2029]'
)  # of names: control characters, other roots

Kind = Literal["segment", "folder"]
Item = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Untrusted(Exception):
    """What was published is not what a store would have: refused, with the reason."""


class Where(NamedTuple):
    """Which segment or finished folder an entry is of; `id` is the segment's, or of its record's content."""

    stage: str
    fingerprint: str
    kind: Kind
    id: str

    @property
    def path(self) -> str:
        """Where the entry is published."""
        return f"entries/{self.stage}/{self.fingerprint}/{self.kind}-{self.id}.json"

    @property
    def sentence(self) -> str:
        """For people."""
        return f"the {self.kind} {self.id[:12]} of {self.stage} {self.fingerprint}"

    @property
    def segment(self) -> str:
        """The segment's file in a store."""
        return f"segments/{self.stage}/{self.fingerprint}/{self.id}.h5"

    @property
    def folder(self) -> str:
        """The finished folder in a store."""
        return f"runs/{self.stage}/{self.fingerprint}"

    @property
    def files(self) -> str:
        """The folder of the items' files in a store."""
        return f"files/{self.stage}/{self.fingerprint}"

    @classmethod
    def of(cls, path: str) -> Where | None:
        """What an object in `entries/` is of; None where it is nothing of ours."""
        found = WHERE.fullmatch(path)
        return None if found is None else cls(found[1], found[2], _kind(found[3]), found[4])


def _kind(word: str) -> Kind:
    return "segment" if word == "segment" else "folder"


class Blob(BaseModel):
    """The content of a file: bytes and digest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    size: int = Field(ge=0, le=MOST_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def path(self) -> str:
        """Where the content is published."""
        return f"data/{self.sha256[:2]}/{self.sha256}"


class Entry(BaseModel):
    """The files of one segment or finished folder, by their names in a store, and the items it has."""

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
        """Which one it is."""
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
    """Raise ValueError unless a name leads to a file below a folder on any system, with no way out."""
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
    """A segment has its own file, and files of its items."""
    where, items = entry.where, set(entry.items)
    if where.segment not in entry.files or len(items) != len(entry.items):
        raise ValueError("it has no segment, or the same item twice")
    for name in entry.files:
        if name == where.segment:
            continue
        found = ITEM_FILE.fullmatch(name.removeprefix(f"{where.files}/"))
        if not name.startswith(f"{where.files}/") or found is None or found[2] not in items:
            raise ValueError(f"the file {name[:80]!r} is of none of its items")


def _require_folder(entry: Entry) -> None:
    """A folder has its record, and no name that is a file and a folder at once."""
    inside = f"{entry.where.folder}/"
    if f"{inside}{RECORD}" not in entry.files or entry.items:
        raise ValueError(f"it has no {RECORD}, or items")
    for name in entry.files:
        if not name.startswith(inside):
            raise ValueError(f"the file {name[:80]!r} is not in its folder")
        if any(str(parent) in entry.files for parent in PurePosixPath(name).parents):
            raise ValueError(f"the name {name[:80]!r} leads through a file")


def read_entry(where: Where, content: bytes) -> Entry:
    """The entry published somewhere. Raises Untrusted for anything but a whole, harmless entry of just that."""
    try:
        entry = Entry.model_validate_json(content)
    except ValidationError as error:
        raise Untrusted(_first(error)) from None
    if entry.where != where:
        raise Untrusted(f"it says that it is {entry.where.sentence}")
    return entry


class Record(BaseModel):
    """What a finished folder's own record must say; whatever else it says is for its readers."""

    model_config = ConfigDict(extra="ignore", strict=True)
    stage: str
    fingerprint: str
    components: dict[str, Any]
    files: dict[str, Annotated[Sequence[int | str], Field(min_length=2, max_length=2)]]


def read_record(content: bytes) -> Record:
    """A folder's record. Raises Untrusted where it is none."""
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise Untrusted(f"its {RECORD} is damaged: {_first(error)}") from None


def sizes_of(record: Record) -> Mapping[str, Any]:
    """Bytes of every file that a folder's record lists."""
    return {name: size for name, (size, _) in record.files.items()}


def _first(error: ValidationError) -> str:
    """The first complaint of a validation, short."""
    first = error.errors(include_input=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")[:200]
