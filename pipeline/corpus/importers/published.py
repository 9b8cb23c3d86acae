"""From the annotation files of a public corpus and a folder of its videos to items under a named protocol."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.importers.annotations import Absent, Annotation, Annotations
from pipeline.corpus.importers.folder import VIDEO_SUFFIXES, media_files
from pipeline.corpus.importers.table import Imported, relative
from pipeline.corpus.manifest import SPLITS, Caption, Item, Protocol
from pipeline.errors import UserError, nearest
from pipeline.store.fingerprint import digest_of, digest_text

HELD_OUT = 500  # most training videos held out for validation, and at most a tenth of them
PAPERS = "papers"
MISSING = "videos are missing"  # how the sentence of a corpus tells that videos were not there
VALIDATED_ON_TEST = "validated on the test split"
UNITS = {
    "paragraph": "all sentences of a video are one caption",
    "moments": "every sentence is a caption",
}
HOME = ("train", "test", "val")  # a video with captions of several splits belongs to the first of these

Splits = Mapping[str, Callable[[], list[Annotation]]]
"""For each split, a function that reads its captions."""


@dataclass(frozen=True)
class Choice:
    """The user's choices for an import; an empty value leaves the choice to the corpus."""

    protocol: str = ""
    captions: str = ""
    val: str = ""
    splits: tuple[str, ...] = SPLITS
    media: Path | None = None
    no_media: bool = False


@dataclass(frozen=True)
class Published:
    """A public corpus: the sentences of its protocols, and how each split is read under one of them.

    read(annotations, protocol, unit) returns the splits; if `val` is missing, validation videos are held out of the
    training videos. `units` are the possible units of a caption (paragraph, moments), the first is the default.
    `stems(id)` are the possible names of the video file, without suffix. `window`: every item gets it.
    """

    name: str
    protocols: Mapping[str, str]
    read: Callable[[Annotations, str, str], Splits]
    units: tuple[str, ...] = ()
    stems: Callable[[str], Sequence[str]] = lambda video: (video,)
    window: tuple[float, float] | None = None  # seconds of every video that count

    def choose(self, choice: Choice) -> tuple[str, str]:
        """The chosen protocol and caption unit. Raises UserError if the corpus does not have them."""
        unit = choice.captions or next(iter(self.units), "")
        if choice.captions and not self.units:
            raise UserError(f"a caption of {self.name} is always one sentence; leave --captions out")
        if unit not in self.units and self.units:
            raise UserError(f"{self.name} has no captions {unit!r}; {nearest(unit, self.units)}")
        protocol = choice.protocol or next(iter(self.protocols))
        if protocol not in self.protocols:
            raise UserError(f"{self.name} has no protocol {protocol!r}; {nearest(protocol, self.protocols)}")
        return protocol, unit


def read_published(corpus: Published, source: Path, relative_to: Path, choice: Choice) -> Imported:
    """The items of a public corpus, with the lines that were left out and the protocol in one sentence."""
    for split in choice.splits:
        if split not in SPLITS:
            raise UserError(f"{corpus.name} has no split {split!r}; {nearest(split, SPLITS)}")
    protocol, unit = corpus.choose(choice)
    annotations = Annotations(source)
    splits = corpus.read(annotations, protocol, unit)
    captions, validated = _usable(_read(splits, annotations, choice), annotations), ""
    if "val" not in splits or choice.val == PAPERS:
        captions, validated = _validated(captions, choice.val)
    elif choice.val:
        raise UserError(
            f"{corpus.name} {protocol} has a validation split of its own; leave --val out, or validate on the test "
            f"split with --val {PAPERS}"
        )
    captions = {split: captions[split] for split in SPLITS if split in captions and split in choice.splits}
    if not any(captions.values()):
        raise UserError(f"{source} gives no captions of {corpus.name}; {'; '.join(annotations.left_out[:3])}")
    items = [replace(item, window=corpus.window) for item in _items(captions, annotations)]
    kept = _without_media(items, corpus.name) if choice.no_media else _with_media(
        items, corpus, choice.media or source, relative_to, annotations
    )  # fmt: skip
    words = [f"{corpus.name} {protocol}: {corpus.protocols[protocol]}", UNITS.get(unit, ""), validated]
    if corpus.window:
        words.append("seconds {:g} to {:g} of every video are read".format(*corpus.window))
    if len(captions) < len(SPLITS):
        words.append(f"imported: {', '.join(captions)} alone")
    if missing := len(items) - len(kept):
        words.append(f"{missing} of {len(items)} {MISSING}")
    return Imported(
        kept, annotations.left_out, annotations.notes,
        Protocol(f"{corpus.name} {protocol}", "; ".join(word for word in words if word)),
    )  # fmt: skip


def _read(splits: Splits, annotations: Annotations, choice: Choice) -> dict[str, list[Annotation]]:
    """The captions of each needed split; a split whose files are missing is noted as left out."""
    needed = set(choice.splits)
    if "val" in needed and (choice.val == PAPERS or "val" not in splits):
        needed = needed - {"val"} | {"test" if choice.val == PAPERS else "train"}
    out = {}
    for split in sorted(needed & splits.keys(), key=SPLITS.index):
        try:
            out[split] = splits[split]()
        except Absent as error:
            annotations.left_out.append(f"the split {split}: {error}")
    return out


def _validated(captions: dict[str, list[Annotation]], val: str) -> tuple[dict[str, list[Annotation]], str]:
    """The splits with a validation split added, and a phrase that describes it. Raises UserError for a wrong `val`."""
    if val == PAPERS and "test" not in captions:
        return captions, ""
    if val == PAPERS:
        again = [replace(caption, id=f"{caption.id}@val") for caption in captions["test"]]
        return captions | {"val": again}, f"{VALIDATED_ON_TEST}, as the papers do"
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
    """The training ids to hold out, those with the smallest digests: a tenth, at most `most`; or `val` of them.

    Raises UserError if `val` is neither empty nor a number of ids that leaves some for training. `what`: plural noun
    of the ids in the sentence.
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
    """The captions that a manifest can hold, each with a unique id: the one in the file, else a number."""
    own = {
        _name(annotation, annotation.id)
        for group in captions.values()
        for annotation in group
        if annotation.id
    }
    numbers: dict[str, Iterator[int]] = {}
    seen: dict[str, str] = {}

    def named(annotation: Annotation) -> Annotation:
        number = numbers.setdefault(annotation.video, itertools.count())
        free = (str(n) for n in number if _name(annotation, str(n)) not in own)
        return replace(annotation, id=annotation.id or next(free))

    def usable(annotation: Annotation) -> bool:
        name = _name(annotation, annotation.id)
        if not _is_text(name + annotation.text):
            annotations.left_out.append(f"{annotation.where}: it holds half a character")
            return False
        if name in seen:
            annotations.left_out.append(
                f"{annotation.where}: the id {annotation.id} stands already at {seen[name]}"
            )
            return False
        seen[name] = annotation.where
        return True

    return {
        split: [_in_order(annotation, annotations) for annotation in map(named, group) if usable(annotation)]
        for split, group in captions.items()
    }


def _name(annotation: Annotation, own: str) -> str:
    """The id of a caption in the manifest."""
    return f"{annotation.video}#{own}"


def _in_order(annotation: Annotation, annotations: Annotations) -> Annotation:
    """The annotation with start and end swapped if the end comes first, as in four lines of Charades-STA."""
    start, end = annotation.start, annotation.end
    if start is None or end is None or start <= end:
        return annotation
    annotations.notes.append(f"{annotation.where}: {start} s to {end} s is read as {end} s to {start} s")
    return replace(annotation, start=end, end=start)


def _items(captions: Mapping[str, Iterable[Annotation]], annotations: Annotations) -> list[Item]:
    """One item for each video, in the order of the splits; a caption states its split if it is not its item's."""
    by_video: dict[str, list[tuple[str, Annotation]]] = {}
    for split, annotated in captions.items():
        for annotation in annotated:
            by_video.setdefault(annotation.video, []).append((split, annotation))
    items = []
    shared: dict[str, list[str]] = {}
    for video, group in by_video.items():
        splits = {split for split, _ in group}
        home = next(split for split in HOME if split in splits)
        for other in splits - {home} if home == "train" else ():
            shared.setdefault(other, []).append(video)
        items.append(Item(video, home, tuple(
            Caption(
                _name(annotation, annotation.id), annotation.text, annotation.start, annotation.end,
                None if split == home else split,
            )
            for split, annotation in group
        )))  # fmt: skip
    for other, videos in sorted(shared.items()):
        annotations.notes.append(f"train and {other} share {len(videos)} videos, {videos[0]} is one")
    return items


def _is_text(value: str) -> bool:
    """Whether a text can be encoded; False for half a surrogate pair, which JSON can spell but no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_media(items: Iterable[Item], name: str) -> list[Item]:
    """Items without media, with a digest of the corpus's name and their id in place of a file's digest."""
    return [replace(item, digest=digest_of([name, item.id])) for item in items]


def _with_media(
    items: Sequence[Item], corpus: Published, folder: Path, relative_to: Path, annotations: Annotations
) -> list[Item]:
    """The items whose video is in or below a folder; the others are noted as left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of videos")
    files: dict[str, list[Path]] = {}
    for path in sorted(media_files(folder)):
        if path.is_file() and _is_text(str(path)):
            files.setdefault(stem(path.name), []).append(path)
    kept, used = [], set()
    for item in items:
        name = next((name for name in corpus.stems(item.id) if name in files), None)
        if name is None:
            annotations.left_out.append(f"{item.id}: no video of that name in {folder}")
            continue
        used.add(name)
        first, *others = files[name]
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
