"""The content of a corpus: the digest of every item, remembered by path, size and time of its file.

The digest of a video of which only a window counts is that of its bytes and of the window, so that the same file under
another window, or under none, is another item to every stage.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

from pipeline.corpus.manifest import Caption, Corpus, Item
from pipeline.memory import no_collection
from pipeline.store.fingerprint import digest_file, digest_of
from pipeline.store.index import Index

HASHING_THREADS = 4  # hashing releases the interpreter lock; more threads only seek more
REMEMBER_EVERY = 512


@dataclass(frozen=True)
class Contents:
    """A corpus with the digests of its items; those whose media cannot be read have a reason instead."""

    corpus: Corpus
    digests: Mapping[str, str]  # item id -> digest
    unreadable: Mapping[str, str] = field(default_factory=dict)  # item id -> reason
    split_digests: dict[str, str] = field(
        default_factory=dict, compare=False
    )  # by split, computed at first use

    def items(self) -> Mapping[str, Item]:
        """Digest -> item, in manifest order; of items with the same bytes, the first."""
        return self._items

    def captions(self) -> Mapping[str, Caption]:
        """Digest -> caption, distinct ones in manifest order."""
        return self._captions

    @functools.cached_property
    def _items(self) -> dict[str, Item]:
        out: dict[str, Item] = {}
        for item in self.corpus.items:
            if item.id in self.digests:
                out.setdefault(self.digests[item.id], item)
        return out

    @functools.cached_property
    def _captions(self) -> dict[str, Caption]:
        out: dict[str, Caption] = {}
        for item in self.corpus.items:
            for caption in item.captions:
                out.setdefault(caption.digest, caption)
        return out

    def of_kind(self, kind: str) -> Contents:
        """The items of one kind and their captions alone, without items of other kinds as further positives.

        The contents themselves are returned for a corpus without another kind, and for "" or an absent kind.
        """
        if len(self.corpus.kinds) < 2 or kind not in self.corpus.kinds:
            return self
        return self._by_kind[kind]

    @functools.cached_property
    def _by_kind(self) -> dict[str, Contents]:
        parts = [self.corpus.of_kind(kind) for kind in self.corpus.kinds]
        ids = {part.part: {item.id for item in part.items} for part in parts}
        return {
            part.part: Contents(
                part,
                {name: digest for name, digest in self.digests.items() if name in ids[part.part]},
                {name: reason for name, reason in self.unreadable.items() if name in ids[part.part]},
            )
            for part in parts
        }

    def names(self, over: str) -> dict[str, str]:
        """Id -> digest of every caption, or of every readable item: several may share one."""
        if over == "captions":
            return {caption.id: caption.digest for item in self.corpus.items for caption in item.captions}
        return {item.id: self.digests[item.id] for item in self.corpus.items if item.id in self.digests}

    def gallery(self, split: str) -> list[tuple[str, Item]]:
        """The readable items of a split with their digests."""
        return [(self.digests[i.id], i) for i in self.corpus.gallery(split) if i.id in self.digests]

    def queries(self, split: str) -> Iterator[tuple[str, Item, Caption]]:
        """The captions of a split whose items are readable: item digest, item, caption."""
        for item, caption in self.corpus.captions(split):
            if item.id in self.digests:
                yield self.digests[item.id], item, caption


def read_contents(
    corpus: Corpus, index: Index, hashed: Callable[[int, int], None] = lambda n, of: None
) -> Contents:
    """The contents of a corpus; only files that are new or changed are read, `hashed` counts them."""
    with no_collection():
        return _read(corpus, index, hashed)


def _read(corpus: Corpus, index: Index, hashed: Callable[[int, int], None]) -> Contents:
    known = index.known_files()
    digests: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    unknown: list[tuple[Item, Path, int, int]] = []
    for item in corpus.items:
        place = corpus.media_place(item)
        if place is None:
            digests[item.id] = item.digest
            continue
        try:
            status = os.stat(place)
        except (OSError, ValueError) as error:
            unreadable[item.id] = _reason(error)
            continue
        if not S_ISREG(status.st_mode):
            unreadable[item.id] = f"{place} is not a file"
        elif (entry := known.get(place)) and entry[:2] == (status.st_size, status.st_mtime_ns):
            digests[item.id] = entry[2]
        else:
            unknown.append((item, Path(place), status.st_size, status.st_mtime_ns))
    _hash(unknown, index, digests, unreadable, hashed)
    for item in corpus.items:
        if item.window and item.media is not None and item.id in digests:
            digests[item.id] = digest_of([digests[item.id], {"window": item.window}])
    return Contents(corpus, digests, unreadable)


def _hash(
    unknown: list[tuple[Item, Path, int, int]], index: Index, digests: dict[str, str],
    unreadable: dict[str, str], hashed: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Hash what is unknown, and remember it as it goes, so that a killed run does not hash it twice."""

    def one(path: Path) -> str | OSError:
        try:
            return digest_file(path)
        except OSError as error:
            return error

    rows: list[tuple[str, int, int, str]] = []
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        results = pool.map(one, [path for _, path, _, _ in unknown])
        for count, ((item, path, size, mtime), result) in enumerate(
            zip(unknown, results, strict=True), start=1
        ):
            if isinstance(result, OSError):
                unreadable[item.id] = _reason(result)
            else:
                digests[item.id] = result
                rows.append((str(path), size, mtime, result))
            if rows and (len(rows) == REMEMBER_EVERY or count == len(unknown)):
                index.remember_files(rows)
                rows = []
            hashed(count, len(unknown))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"the media file {error.filename} does not exist"
    return f"the media file cannot be read: {getattr(error, 'strerror', None) or error}"


class RememberedDigests:
    """Digests and paths of weights, kept in the index between runs."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def file(self, path: Path) -> str:
        """The digest of a file's bytes; read again only when its size or time changed."""
        path = path.absolute()
        status = path.stat()
        entry = self.index.known_files_at(str(path))
        if entry and entry[:2] == (status.st_size, status.st_mtime_ns):
            return entry[2]
        digest = digest_file(path)
        self.index.remember_files([(str(path), status.st_size, status.st_mtime_ns, digest)])
        return digest

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        """The remembered path of `name`, if it still exists; else the result of `find`, which is remembered."""
        entry = self.index.known_files_at(f"located:{name}")
        if entry and Path(entry[2]).is_file():
            return Path(entry[2])
        found = find()
        if found is not None:
            self.index.remember_files([(f"located:{name}", 0, 0, str(found))])
        return found
