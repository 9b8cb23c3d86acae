"""A fingerprint: a short hex digest of everything that can change a number; and the difference between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

CONTENT_BYTES = (
    16  # length of the digest of an item or caption: 10^9 items collide with a probability of 10^-21
)
STAGE_BYTES = 10
JSON_ENTRIES = 10_000  # entries that are encoded at a time

METHOD_VERSION = "method_version"
UNSAID = {METHOD_VERSION: 1}  # components that are left out while they have this value


def digest_text(text: str) -> str:
    """Return the digest of a text, 32 hex digits: the key of a caption."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=CONTENT_BYTES).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file's bytes, 32 hex digits: the key of an item. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=CONTENT_BYTES)).hexdigest()


def digest_of(value: Any) -> str:
    """Return the digest of plain data (numbers, texts, lists, tables), independent of the order of keys."""
    return digest_text(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def digest_of_lists(*lists: Iterable[Any]) -> str:
    """Return `digest_of([[...], [...], ...])` for lists that need not be in memory."""
    digest = hashlib.blake2b(digest_size=CONTENT_BYTES)
    before = "["
    for values in lists:
        digest.update(f"{before}[".encode())
        before, comma = ",", ""
        for part in batched(values, JSON_ENTRIES):
            text = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False)
            digest.update((comma + text[1:-1]).encode("utf-8"))
            comma = ","
        digest.update(b"]")
    digest.update(b"]")
    return digest.hexdigest()


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` consecutive values; the last one may be shorter."""
    every = iter(values)
    while part := list(islice(every, size)):
        yield part


@dataclass(frozen=True)
class Fingerprint:
    """The components that decide an artifact's content, and their digest, 20 hex digits."""

    hex: str
    components: Mapping[str, Any]

    @classmethod
    def of(cls, components: Mapping[str, Any]) -> Fingerprint:
        """The fingerprint of named components, which are plain data."""
        return cls(digest_of(components)[: 2 * STAGE_BYTES], components)


def differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the components in which two fingerprints differ: dotted name, value in `mine`, value in `other`.

    A missing value is None, except for the components in UNSAID, which have the value given there.
    """
    for key in sorted(set(mine) | set(other)):
        a, b = (values.get(key, UNSAID.get(key)) for values in (mine, other))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from ((f"{key}.{name}", x, y) for name, x, y in differences(a, b))
        elif a != b:
            yield key, a, b
