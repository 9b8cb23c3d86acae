"""The corpus: items with captions and splits, described by a manifest of one JSON object a line."""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.corpus.splits import SPLITS, split_named
from pipeline.errors import UserError, nearest
from pipeline.media.mistaken import mistaken_for
from pipeline.memory import no_collection
from pipeline.store.fingerprint import digest_of, digest_text

KINDS = ("video", "pointcloud")
ITEM_KEYS = {"id", "media", "kind", "split", "captions", "meta", "digest", "window"}
LONGEST_SECONDS = 1e9  # 30 years; larger times are infinite or mistyped and are refused
CAPTION_KEYS = {"id", "text", "start", "end", "split", "also", "digest"}
PLAIN = {"id", "text"}  # keys of a caption that says nothing more
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # with which UTF-16 begins
NO_META: dict[str, Any] = {}  # shared by all items without meta
NOT_JSON, TABLES = "not valid JSON", (".csv", ".tsv")
SUGGESTIONS = 20  # most suggestions of a nearest id; each compares with all ids


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about an item; of a moment, with its start and end in seconds.

    `split` is set where it differs from the item's (public sets exist whose val and test share
    videos); `digest` names the caption where its text alone does not (imported features). `also` has the ids of other
    items of the split that the caption describes just as well: they are positives too.
    """

    id: str
    text: str
    start: float | None = None
    end: float | None = None
    split: str | None = None
    digest: str = ""
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", digest_text(self.text))


@dataclass(frozen=True, slots=True)
class Item:
    """One video or point cloud. `digest` is known only where there is no media to take it from.

    Where a manifest gives neither, as one of features alone does, the item is known by its id (`digest_of_id`).
    `window` are the seconds of a video, start and end included, that stages read frames of; None: all of it.
    """

    id: str
    split: str
    captions: tuple[Caption, ...] = ()
    media: str | None = None
    kind: str = "video"
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    digest: str = ""
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Problem:
    """The fault of one line of a manifest."""

    line: int
    sentence: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.sentence}" if self.line else self.sentence


@dataclass(frozen=True)
class Protocol:
    """The published protocol that a manifest was imported under: its name, and in words who is in which split."""

    name: str
    sentence: str


@dataclass(frozen=True)
class Corpus:
    """The items of a manifest, in its order; media paths are relative to its folder."""

    path: Path
    items: tuple[Item, ...]
    part: str = ""  # the kind of its items, if items of other kinds of the manifest are left out

    @classmethod
    def read(cls, path: Path) -> Corpus:
        """The corpus of a manifest. Raises UserError naming the first bad line and how many there are."""
        items, problems = parse(path)
        if problems:
            more = f" (and {len(problems) - 1} more; `crossreel corpus check` lists them)"
            raise UserError(f"{path}, {problems[0]}{more if len(problems) > 1 else ''}")
        return cls(path, tuple(items))

    def media_path(self, item: Item) -> Path | None:
        """The path of the item's media file, which may be missing; None if its features were imported."""
        return None if item.media is None else self.path.parent / item.media

    def media_place(self, item: Item) -> str | None:
        """`media_path` as text; plain names, as nearly all are, without taking them apart."""
        name = item.media
        if name is None or "//" in name or "./" in name or name[-1] in "/." or name[0] == "/":
            path = self.media_path(item)
            return None if path is None else str(path)
        return f"{self._folder}/{name}" if self._folder != "." else name

    @functools.cached_property
    def _folder(self) -> str:
        return str(self.path.parent)

    def captions(self, split: str) -> Iterator[tuple[Item, Caption]]:
        """The queries of a split, in manifest order, each with its item."""
        for item in self.items:
            for caption in item.captions:
                if (caption.split or item.split) == split:
                    yield item, caption

    def gallery(self, split: str) -> list[Item]:
        """The items of a split: its own, and those that lend it a caption."""
        return [
            item
            for item in self.items
            if item.split == split or any(caption.split == split for caption in item.captions)
        ]

    @property
    def splits(self) -> list[str]:
        """The names of the splits that have items, the usual ones first."""
        found = {item.split for item in self.items} | {
            caption.split for item in self.items for caption in item.captions if caption.split
        }
        return [s for s in SPLITS if s in found] + sorted(found - set(SPLITS))

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the items, in the order of the manifest."""
        return tuple(dict.fromkeys(item.kind for item in self.items))

    def of_kind(self, kind: str) -> Corpus:
        """The items of one kind alone; this corpus itself if it holds no other kind, and for "" or an absent kind."""
        if len(self.kinds) < 2 or kind not in self.kinds:
            return self
        return Corpus(self.path, tuple(item for item in self.items if item.kind == kind), kind)

    def kind(self, split: str) -> str:
        """The kind of the items of a split: "pointcloud" if all are point clouds, else "video"."""
        return "pointcloud" if {item.kind for item in self.gallery(split)} == {"pointcloud"} else "video"

    def split_digest(self, split: str) -> str:
        """16 hex digits of a split's members by id, text and moment, regardless of media, order and caption ids.

        Further positives of a caption count.

        Two parties whose digests agree judge the same queries, however their videos are encoded.
        """
        queries = [
            [item.id, c.text, c.start, c.end, *([sorted(c.also)] if c.also else [])]
            for item, c in self.captions(split)
        ]
        return digest_of([sorted(item.id for item in self.gallery(split)), sorted(map(json.dumps, queries))])[
            :16
        ]

    def protocol(self, split: str) -> dict[str, Any] | None:
        """The published protocol that metrics of a split quote; None without one, or if the corpus changed since.

        {"name", "sentence", "queries", "gallery", "digest"}, the sizes before any item failed. Since the
        sentence speaks of all splits, a change to any of them takes it away.
        """
        stored = self._stored_protocol()
        if stored is None:
            return None
        described = self.describe()
        if stored["splits"] != described or split not in described:
            return None
        return {"name": stored.get("name"), "sentence": stored.get("sentence"), **described[split]}

    def claimed_protocol(self) -> dict[str, Any] | None:
        """Name and sentence of the published protocol of the import, if every split has its size still; else None.

        For choosing settings, in a tenth of the time of `protocol`, which compares every caption: figures quote that.
        """
        stored = self._stored_protocol()
        if stored is None or stored["splits"].keys() != set(self.splits):
            return None
        for split, size in stored["splits"].items():
            there = {"queries": sum(1 for _ in self.captions(split)), "gallery": len(self.gallery(split))}
            if not isinstance(size, dict) or any(size.get(key) != value for key, value in there.items()):
                return None
        return {"name": stored.get("name"), "sentence": stored.get("sentence")}

    def _stored_protocol(self) -> dict[str, Any] | None:
        """What the import wrote beside the manifest; None where there is nothing, or nothing that can be read."""
        try:
            stored = json.loads(protocol_path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(stored, dict) and isinstance(stored.get("splits"), dict)
        return stored if whole else None

    def describe(self) -> dict[str, dict[str, Any]]:
        """By split, the numbers of queries and gallery items and the digest: {"queries", "gallery", "digest"}."""
        return {
            split: {
                "queries": sum(1 for _ in self.captions(split)),
                "gallery": len(self.gallery(split)),
                "digest": self.split_digest(split),
            }
            for split in self.splits
        }

    def require_queries(self, split: str) -> None:
        """Raise UserError where a split that is needed has no captions."""
        if next(self.captions(split), None) is None:
            having = [s for s in self.splits if next(self.captions(s), None) is not None]
            where = f"{self.path}, items of the kind {self.part}" if self.part else str(self.path)
            raise UserError(
                f"{where}: the split {split!r} has no captions, so there is nothing to query with; "
                f"splits with captions: {', '.join(having) or 'none'}"
            )


def protocol_path(manifest: Path) -> Path:
    """The file beside a manifest that says which published protocol it was imported under."""
    return manifest.with_name(f"{manifest.stem}.protocol.json")


def write_manifest(path: Path, items: Iterable[Item], protocol: Protocol | None = None) -> None:
    """Write a manifest, aside and then renamed, so that a reader never sees half of it.

    With a protocol, the sizes and digests of its splits are written beside it; without, none stays there.
    """
    items = tuple(items)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(_as_json(item), ensure_ascii=False) + "\n")
    aside.replace(path)
    beside = protocol_path(path)
    if protocol is None:
        beside.unlink(missing_ok=True)
        return
    stored = {"name": protocol.name, "sentence": protocol.sentence, "splits": Corpus(path, items).describe()}
    aside.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    aside.replace(beside)


def _as_json(item: Item) -> dict[str, Any]:
    captions = []
    for caption in item.captions:
        entry: dict[str, Any] = {"id": caption.id, "text": caption.text}
        for key in ("start", "end", "split"):
            if getattr(caption, key) is not None:
                entry[key] = getattr(caption, key)
        if caption.also:
            entry["also"] = list(caption.also)
        if caption.digest != digest_text(caption.text):
            entry["digest"] = caption.digest
        captions.append(entry)
    out: dict[str, Any] = {"id": item.id, "media": item.media, "kind": item.kind, "split": item.split}
    if item.window:
        out["window"] = list(item.window)
    out["captions"] = captions
    return out | ({"meta": item.meta} if item.meta else {}) | ({"digest": item.digest} if item.digest else {})


def parse(path: Path) -> tuple[list[Item], list[Problem]]:
    """The items of a manifest and everything that is wrong with it, by line. Raises UserError if unreadable."""
    items, problems = read_lines(path)
    if (
        path.suffix.lower() in TABLES
        and not items
        and all(NOT_JSON in problem.sentence for problem in problems)
    ):
        raise UserError(
            f"{path} is a table and not a corpus manifest (JSON Lines, one item a line); `crossreel corpus import csv` "
            "makes one of it"
        )
    return items, problems


def read_lines(path: Path) -> tuple[list[Item], list[Problem]]:
    """As `parse`, also of a table, each of whose lines is wrong."""
    try:
        try:
            with path.open(encoding="utf-8-sig", newline="\n") as file, no_collection():
                return _parse(file)
        except (
            UnicodeDecodeError
        ):  # again, with what is no UTF-8 as surrogates, so that its lines can be named
            if path.open("rb").read(2) in WIDE_MARKS:
                raise
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
                return _parse(_utf8_or_wrong(file))
    except FileNotFoundError:
        raise UserError(f"no corpus manifest {path}; `crossreel corpus import` writes one") from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not a corpus manifest in UTF-8 (JSON Lines, one item a line): it begins as UTF-16 does"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is not a corpus manifest (JSON Lines, one item a line)") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _utf8_or_wrong(lines: Iterable[str]) -> Iterator[str | _Wrong]:
    """The lines that are UTF-8; for another one, what is wrong with it."""
    for line in lines:
        try:
            line.encode()
            yield line
        except UnicodeEncodeError as error:
            piece = line[error.start : error.end].encode("utf-8", "surrogateescape")
            yield _Wrong(f"not UTF-8 ({piece!r} at column {error.start + 1})")


def _parse(lines: Iterable[str | _Wrong]) -> tuple[list[Item], list[Problem]]:
    items: list[Item] = []
    problems: list[Problem] = []
    numbers: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            if isinstance(line, _Wrong):
                raise line
            if not line.strip():
                continue
            items.append(_item(line))
            numbers.append(number)
        except _Wrong as error:
            problems.append(Problem(number, str(error)))
    if bare := list(_without_media(items, numbers)):
        problems.extend(bare)
        wrong = {problem.line for problem in bare}
        items = [item for item, number in zip(items, numbers, strict=True) if number not in wrong]
        numbers = [number for number in numbers if number not in wrong]
    whole = not problems
    problems.extend(_duplicates(items, numbers))
    problems.extend(_others(items, numbers, whole))
    if not items and not problems:
        problems.append(Problem(0, "the manifest holds no items"))
    return items, sorted(problems, key=lambda problem: problem.line)


class _Wrong(Exception):
    """A line of the manifest is wrong, in one sentence."""


def _duplicates(items: Sequence[Item], numbers: Sequence[int]) -> Iterator[Problem]:
    """Problems of ids that an earlier line has; after one, the id counts as this line's."""
    of_items, of_captions = (item.id for item in items), (c.id for item in items for c in item.captions)
    if len(set(of_items)) == len(items) and len(set(of_captions)) == sum(len(i.captions) for i in items):
        return
    seen: dict[str, int] = {}
    captions_seen: dict[str, int] = {}
    for item, number in zip(items, numbers, strict=True):
        if (line := seen.setdefault(item.id, number)) != number:
            yield Problem(number, f"the item id {item.id!r} stands already on line {line}")
        for caption in item.captions:
            if caption.id in captions_seen:
                line = captions_seen[caption.id]
                yield Problem(number, f"the caption id {caption.id!r} stands already on line {line}")
            captions_seen[caption.id] = number


def _without_media(items: Sequence[Item], numbers: Sequence[int]) -> Iterator[Problem]:
    """Problems of items with neither media nor digest, in a manifest where other items have media."""
    if all(item.media is None for item in items):
        return
    for item, number in zip(items, numbers, strict=True):
        if item.media is None and item.digest == digest_of_id(item.id):
            yield Problem(
                number,
                f"item {item.id!r} has neither media nor a digest of imported features, and other items have media; "
                "only a manifest of features alone may do without both",
            )


def _others(items: Sequence[Item], lines: Sequence[int], whole: bool) -> Iterator[Problem]:
    """Problems of the further positives (`also`) of captions; unknown ids only if every line could be read."""
    naming = [(n, item, c) for n, item in zip(lines, items, strict=True) for c in item.captions if c.also]
    if not naming:
        return
    galleries: dict[str, set[str]] = {}
    for item in items:
        for split in {item.split, *(caption.split for caption in item.captions if caption.split)}:
            galleries.setdefault(split, set()).add(item.id)
    known = set().union(*galleries.values())
    hints = iter(range(SUGGESTIONS))
    for number, item, caption in naming:
        split = caption.split or item.split
        for other in caption.also:
            start = f"the caption {caption.id!r} also names {other!r}, which is"
            if other == item.id:
                yield Problem(number, f"{start} its own item")
            elif other in known and other not in galleries[split]:
                yield Problem(number, f"{start} not in its split {split!r}")
            elif other not in known and whole:
                near = _nearest_id(other, galleries[split]) if next(hints, None) is not None else ""
                yield Problem(number, f"{start} no item of this corpus{near}")


def _nearest_id(name: str, ids: Collection[str]) -> str:
    """The end of a sentence about an unknown id, suggesting the nearest id; "" if none is near."""
    close = difflib.get_close_matches(name, sorted(ids), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _item(line: str) -> Item:
    """One line of a manifest. Raises _Wrong."""
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        if found := mistaken_for(line.encode(errors="replace")):
            raise _Wrong(f"the file is {found}") from None
        raise _Wrong(f"{NOT_JSON} ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise _Wrong(f"{NOT_JSON} ({error})") from None
    if not isinstance(raw, dict):
        raise _Wrong("not a JSON object")
    if "\\ud" in line or "\\uD" in line:
        _require_text(raw)
    if "\\u0000" in line:
        _require_no_nul({key: raw.get(key) for key in ("id", "split", "captions")})
    if not raw.keys() <= ITEM_KEYS:
        _require_known(raw, ITEM_KEYS, "an item")
    if line.count(":") != _members(
        raw
    ):  # each member has a colon; there is another, in a text or of a lost member
        _require_once(line)
    name = _text(raw, "id", "the item")
    split = _split(_text(raw, "split", f"item {name!r}"))
    kind = raw.get("kind", "video")
    if kind not in KINDS:
        raise _Wrong(f"item {name!r} is of kind {kind!r}; {nearest(str(kind), KINDS)}")
    media, digest = raw.get("media"), raw.get("digest", "")
    if media is not None and (not isinstance(media, str) or not media or "\0" in media):
        raise _Wrong(f"item {name!r} has a media path that is not a text: {media!r}")
    if media is None and not digest:
        digest = digest_of_id(name)
    captions = raw.get("captions", [])
    if not isinstance(captions, list):
        raise _Wrong(f"item {name!r}: captions is not a list")
    meta = raw.get("meta") or NO_META
    if not isinstance(meta, dict):
        raise _Wrong(f"item {name!r}: meta is not an object")
    return Item(
        name,
        sys.intern(split),
        _captions(captions, name, media is None),
        media,
        sys.intern(kind),
        meta,
        str(digest),
        _window(raw["window"], name, kind) if raw.get("window") is not None else None,
    )


def _window(value: Any, item: str, kind: str) -> tuple[float, float]:
    """The window of a video, start and end in seconds. Raises _Wrong."""
    if kind != "video":
        raise _Wrong(f"item {item!r} is of kind {kind!r} and has a window; only videos have seconds")
    if not isinstance(value, list) or len(value) != 2 or not all(map(_is_time, value)) or value[0] > value[1]:
        raise _Wrong(f"item {item!r} has the window {value!r}; a start and an end in seconds are needed")
    return float(value[0]), float(value[1])


def digest_of_id(name: str) -> str:
    """The digest that stands for an item of features alone: there are no bytes, so its id is all that is known."""
    return digest_of(["an item without media", name])


def _captions(raw: Sequence[Any], item: str, alone: bool) -> tuple[Caption, ...]:
    """The captions of an item; `alone`: it has no media, so that captions may have no text. Raises _Wrong."""
    return tuple([_plain(entry) or _caption(entry, index, item, alone) for index, entry in enumerate(raw)])


def _plain(entry: Any) -> Caption | None:
    """A caption that is an id and a text, as nearly all are, without further ado; None for any other."""
    if type(entry) is not dict or entry.keys() != PLAIN:
        return None
    name, text = entry["id"], entry["text"]
    if type(name) is not str or type(text) is not str or not name or not text or text.isspace():
        return None
    return Caption(name, text)


def _caption(entry: Any, index: int, item: str, alone: bool) -> Caption:
    """A caption with any of its optional keys. Raises _Wrong."""
    if not isinstance(entry, dict):
        raise _Wrong(f"caption {index} of item {item!r} is not an object")
    if not entry.keys() <= CAPTION_KEYS:
        _require_known(entry, CAPTION_KEYS, "a caption")
    name = _text(entry, "id", f"caption {index} of item {item!r}") if "id" in entry else f"{item}#{index}"
    text, split = entry.get("text"), entry.get("split")
    if alone and "text" not in entry:
        text = f"({name}; its words were not published)"  # names it, so that no two such captions are one
    if not isinstance(text, str) or not text.strip():
        raise _Wrong(f"caption {name!r} of item {item!r} is empty")
    start, end = _seconds(entry.get("start"), name), _seconds(entry.get("end"), name)
    if start is not None and end is not None and end < start:
        raise _Wrong(f"caption {name!r} ends at {end} s, before its start at {start} s")
    if split is not None and (not isinstance(split, str) or not split):
        raise _Wrong(f"caption {name!r} has the split {split!r}, which is not a name")
    also = _also(entry["also"], name) if "also" in entry else ()
    return Caption(
        name, text, start, end, split and sys.intern(_split(split)), str(entry.get("digest", "")), also
    )


def _split(name: str) -> str:
    """The split that a name means ("validation" is val); a split of the user's own, such as "other", as it is."""
    return name if name in SPLITS else split_named(name) or name


def _members(value: Any) -> int:
    """Total number of members in all objects of a JSON value."""
    if isinstance(value, dict):
        return len(value) + sum(_members(inside) for inside in value.values() if type(inside) in (dict, list))
    if isinstance(value, list):
        return sum(_members(inside) for inside in value)
    return 0


def _require_once(line: str) -> None:
    """Raise _Wrong where a key stands twice in one object: the parser would take the last and lose the others."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
            raise _Wrong(f"the key {twice!r} stands twice in one object")
        return out

    json.loads(line, object_pairs_hook=once)


def _also(raw: Any, caption: str) -> tuple[str, ...]:
    """The ids of the further positives that a caption names. Raises _Wrong."""
    if not isinstance(raw, list):
        raise _Wrong(f"caption {caption!r}: also is not a list of item ids")
    ids = [_text({"id": value}, "id", f"caption {caption!r}: an entry of also") for value in raw]
    doubled = [name for name, times in Counter(ids).items() if times > 1]
    if doubled:
        raise _Wrong(f"caption {caption!r} names the item {doubled[0]!r} twice in also")
    return tuple(ids)


def _seconds(value: Any, caption: str) -> float | None:
    if value is None:
        return None
    if not _is_time(value):
        raise _Wrong(f"caption {caption!r} has the time {value!r}, which is not a number of seconds")
    return float(value)


def _is_time(value: Any) -> bool:
    """Whether a value of JSON is a number of seconds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= LONGEST_SECONDS


def _text(raw: dict[str, Any], key: str, whose: str) -> str:
    value = raw.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise _Wrong(f"{whose} has no {key}")
    return value


def _require_text(value: Any) -> None:
    """Raise _Wrong for half a surrogate pair, which JSON can spell and no file name or digest can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _Wrong(f"it holds {error.object[error.start : error.end]!a}, half a character") from None


def _require_no_nul(value: Any) -> None:
    """Raise _Wrong for a NUL byte in a text, which no name of a file or argument can hold."""
    if isinstance(value, str) and "\0" in value:
        raise _Wrong(f"it holds a NUL byte, in {value!r}")
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            _require_no_nul(inner)


def _require_known(raw: dict[str, Any], keys: set[str], what: str) -> None:
    """Raise _Wrong for an unknown key."""
    unknown = next(key for key in raw if key not in keys)
    raise _Wrong(f"unknown key {unknown!r} of {what}; {nearest(unknown, keys)}")
