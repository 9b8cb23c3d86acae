"""From the annotation files of a public corpus and a folder of its videos to items under a named protocol."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.corpus.importers.annotations import Absent, Annotation, Annotations
from pipeline.corpus.importers.folder import VIDEO_SUFFIXES, media_files
from pipeline.corpus.importers.table import Imported, relative
from pipeline.corpus.manifest import SPLITS, Caption, Item, Protocol
from pipeline.errors import UserError, nearest
from pipeline.store.fingerprint import digest_of, digest_text

HELD_OUT = 500  # videos, or a tenth of the training videos where that is less
PAPERS = "papers"
UNITS = {
    "paragraph": "all sentences of a video are one caption",
    "moments": "every sentence is a caption",
}
HOME = ("train", "test", "val")  # the split of a video that several have: the first of these

Splits = Mapping[str, Callable[[], list[Annotation]]]
"""How the captions of each split are read."""


@dataclass(frozen=True)
class Choice:
    """What the user may choose about an import; empty where it is left to the corpus."""

    protocol: str = ""
    captions: str = ""
    val: str = ""
    splits: tuple[str, ...] = SPLITS
    media: Path | None = None
    no_media: bool = False


@dataclass(frozen=True)
class Published:
    """A public corpus: its protocols in words, and how each split is read under one of them.

    read(annotations, protocol, unit) gives the splits; without `val` among them, validation videos are
    held out of the training videos. `units` are what a caption can be, the first one by default.
    `stems(id)` are the names, without suffix, that the video file may have.
    """

    name: str
    protocols: Mapping[str, str]
    read: Callable[[Annotations, str, str], Splits]
    units: tuple[str, ...] = ()
    usual: Mapping[str, str] = field(default_factory=dict)  # unit -> its protocol; else the first
    stems: Callable[[str], Sequence[str]] = lambda video: (video,)

    def choose(self, choice: Choice) -> tuple[str, str]:
        """The protocol and the unit. Raises UserError for those it has not."""
        unit = choice.captions or next(iter(self.units), "")
        if choice.captions and not self.units:
            raise UserError(f"a caption of {self.name} is always one sentence; leave --captions out")
        if unit not in self.units and self.units:
            raise UserError(f"{self.name} has no captions {unit!r}; {nearest(unit, self.units)}")
        protocol = choice.protocol or self.usual.get(unit) or next(iter(self.protocols))
        if protocol not in self.protocols:
            raise UserError(f"{self.name} has no protocol {protocol!r}; {nearest(protocol, self.protocols)}")
        return protocol, unit


def read_published(corpus: Published, source: Path, relative_to: Path, choice: Choice) -> Imported:
    """The items of a public corpus, with what was left out and the protocol in one sentence."""
    for split in choice.splits:
        if split not in SPLITS:
            raise UserError(f"{corpus.name} has no split {split!r}; {nearest(split, SPLITS)}")
    protocol, unit = corpus.choose(choice)
    annotations = Annotations(source)
    splits = corpus.read(annotations, protocol, unit)
    captions, validated = _usable(_read(splits, annotations, choice), annotations), ""
    if "val" not in splits:
        captions, validated = _validated(captions, choice.val)
    elif choice.val:
        raise UserError(f"{corpus.name} {protocol} has a validation split of its own; leave --val out")
    captions = {split: captions[split] for split in SPLITS if split in captions and split in choice.splits}
    if not any(captions.values()):
        raise UserError(f"{source} gives no captions of {corpus.name}; {'; '.join(annotations.left_out[:3])}")
    items = _items(captions, annotations)
    kept = _without_media(items, corpus.name) if choice.no_media else _with_media(
        items, corpus, choice.media or source, relative_to, annotations
    )  # fmt: skip
    words = [f"{corpus.name} {protocol}: {corpus.protocols[protocol]}", UNITS.get(unit, ""), validated]
    if len(captions) < len(SPLITS):
        words.append(f"imported: {', '.join(captions)} alone")
    if missing := len(items) - len(kept):
        words.append(f"{missing} of {len(items)} videos are missing")
    return Imported(
        kept, annotations.left_out, annotations.notes,
        Protocol(f"{corpus.name} {protocol}", "; ".join(word for word in words if word)),
    )  # fmt: skip


def _read(splits: Splits, annotations: Annotations, choice: Choice) -> dict[str, list[Annotation]]:
    """The captions of every split that is needed; one whose files are not there is named."""
    needed = set(choice.splits)
    if "val" in needed - splits.keys():
        needed.add("test" if choice.val == PAPERS else "train")
    out = {}
    for split in sorted(needed & splits.keys(), key=SPLITS.index):
        try:
            out[split] = splits[split]()
        except Absent as error:
            annotations.left_out.append(f"the split {split}: {error}")
    return out


def _validated(captions: dict[str, list[Annotation]], val: str) -> tuple[dict[str, list[Annotation]], str]:
    """The splits with one for validation, and in words what it is. Raises UserError for a wrong `val`."""
    if val == PAPERS and "test" not in captions:
        return captions, ""
    if val == PAPERS:
        again = [replace(caption, id=f"{caption.id}@val") for caption in captions["test"]]
        return captions | {"val": again}, "validated on the test split, as the papers do"
    train = captions.get("train", [])
    held = held_out({caption.video for caption in train}, val, HELD_OUT, "videos")
    if not held:
        return captions, ""
    parts = {
        "train": [caption for caption in train if caption.video not in held],
        "val": [caption for caption in train if caption.video in held],
    }
    return captions | parts, f"validated on {len(held)} training videos held out by a digest of their ids"


def held_out(ids: Iterable[str], val: str, most: int, what: str) -> set[str]:
    """Which of the training ids are held out, by a digest of each: a tenth and at most so many, or `val`.

    Raises UserError for a `val` that is no such number.
    """
    ordered = sorted(ids, key=digest_text)
    if not val:
        return set(ordered[: min(most, len(ordered) // 10)])
    if val.isdecimal() and (int(val) < len(ordered) or not ordered):
        return set(ordered[: int(val)])
    raise UserError(
        f"--val {val}: possible are {PAPERS} and a number of the {len(ordered)} training {what} to hold out"
    )


def _usable(
    captions: Mapping[str, Iterable[Annotation]], annotations: Annotations
) -> dict[str, list[Annotation]]:
    """The captions that a manifest can hold, each with an id of its own: the file's, else its number."""
    own = {_name(said, said.id) for found in captions.values() for said in found if said.id}
    numbers: dict[str, Iterator[int]] = {}
    seen: dict[str, str] = {}

    def named(said: Annotation) -> Annotation:
        number = numbers.setdefault(said.video, itertools.count())
        free = (str(n) for n in number if _name(said, str(n)) not in own)
        return replace(said, id=said.id or next(free))

    def usable(said: Annotation) -> bool:
        name = _name(said, said.id)
        if not _is_text(name + said.text):
            annotations.left_out.append(f"{said.where}: it holds half a character")
            return False
        if name in seen:
            annotations.left_out.append(f"{said.where}: the id {said.id} stands already at {seen[name]}")
            return False
        seen[name] = said.where
        return True

    return {
        split: [_in_order(said, annotations) for said in map(named, found) if usable(said)]
        for split, found in captions.items()
    }


def _name(said: Annotation, own: str) -> str:
    """What a caption is called in the manifest."""
    return f"{said.video}#{own}"


def _in_order(said: Annotation, annotations: Annotations) -> Annotation:
    """A moment whose end is given first, as in four lines of Charades-STA, the right way round."""
    start, end = said.start, said.end
    if start is None or end is None or start <= end:
        return said
    annotations.notes.append(f"{said.where}: {start} s to {end} s is read as {end} s to {start} s")
    return replace(said, start=end, end=start)


def _items(captions: Mapping[str, Iterable[Annotation]], annotations: Annotations) -> list[Item]:
    """One item a video, in the order of the splits; a caption of another split than its item's says so."""
    of: dict[str, list[tuple[str, Annotation]]] = {}
    for split, found in captions.items():
        for said in found:
            of.setdefault(said.video, []).append((split, said))
    items = []
    shared: dict[str, list[str]] = {}
    for video, group in of.items():
        splits = {split for split, _ in group}
        home = next(split for split in HOME if split in splits)
        for other in splits - {home} if home == "train" else ():
            shared.setdefault(other, []).append(video)
        items.append(Item(video, home, tuple(
            Caption(_name(said, said.id), said.text, said.start, said.end, None if split == home else split)
            for split, said in group
        )))  # fmt: skip
    for other, videos in sorted(shared.items()):
        annotations.notes.append(f"train and {other} share {len(videos)} videos, {videos[0]} is one")
    return items


def _is_text(value: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_media(items: Iterable[Item], name: str) -> list[Item]:
    """Items that are known by the corpus and their id, because there is no file to know them by."""
    return [replace(item, digest=digest_of([name, item.id])) for item in items]


def _with_media(
    items: Sequence[Item], corpus: Published, folder: Path, relative_to: Path, annotations: Annotations
) -> list[Item]:
    """The items whose video is in or below a folder; the others are left out and named."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of videos")
    files: dict[str, list[Path]] = {}
    for path in sorted(media_files(folder)):
        if path.is_file() and _is_text(str(path)):
            files.setdefault(stem(path.name), []).append(path)
    kept, used = [], set()
    for item in items:
        found = next((name for name in corpus.stems(item.id) if name in files), None)
        if found is None:
            annotations.left_out.append(f"{item.id}: no video of that name in {folder}")
            continue
        used.add(found)
        first, *others = files[found]
        if others:
            names = ", ".join(os.path.relpath(path, folder) for path in others)
            annotations.notes.append(
                f"{item.id}: {os.path.relpath(first, folder)} is taken, first by name, not {names}"
            )
        kept.append(replace(item, media=relative(first, relative_to)))
    if not kept:
        raise UserError(
            f"{folder} holds none of the {len(items)} videos, {items[0].id} for instance; "
            "name their folder with --media, or import the annotations alone with --no-media"
        )
    if unused := sorted(files.keys() - used):
        annotations.notes.append(
            f"{len(unused)} videos in {folder} are in no imported split, {unused[0]} is one"
        )
    return kept


def stem(name: str) -> str:
    """A video file's name without its suffixes, of which downloads may have two (`x.mov.mp4`).

    >>> stem("vid_210.0_360.0.mp4")
    'vid_210.0_360.0'
    """
    while (suffix := Path(name).suffix).lower() in VIDEO_SUFFIXES:
        name = name[: -len(suffix)]
    return name
