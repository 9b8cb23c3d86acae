"""T3DR-HIT v2: captions of 3D artefacts (elephant) and of rooms (s3dis), with their point clouds.

A caption file is `{"result": {name: [caption, ...]}}`; which object is in train or test is what the files say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpus.importers.annotations import Absent, Annotations
from pipeline.corpus.importers.published import HELD_OUT, PAPERS, Choice, held_out
from pipeline.corpus.importers.table import Imported, relative
from pipeline.corpus.manifest import SPLITS, Caption, Item, Protocol
from pipeline.errors import UserError, nearest
from pipeline.media.clouds.text import count_columns
from pipeline.store.fingerprint import digest_of

COLUMNS = 6  # x y z r g b; later ones are not used
PEEKED_BYTES = 1 << 16  # to count the columns of a point file
PAPERS_SENTENCE = "validated on the test split, as the papers do"
EMPTY = "a caption is empty"
AREA = re.compile(r"Area_(\d+)_")


@dataclass(frozen=True)
class Subset:
    """One of the two data sets: its folder, its caption file and its point file for a split and a name."""

    name: str
    folder: str
    captions: str
    clouds: str
    areas: bool = False  # whether a name says the area of S3DIS, which decides the published weights


SUBSETS = {
    "elephant": Subset(
        "elephant", "Elephant", "Elephant_caption_{split}.json", "pcd_normalize_{split}/{name}/model.txt"
    ),
    "s3dis": Subset("s3dis", "S3DIS", "S3DIS_{split}_captions.json", "S3DIS_{split}_pcds/{name}.txt", True),
}


@dataclass
class Count:
    """What is not in the manifest, for the protocol's sentence."""

    objects: int = 0
    skipped: int = 0
    empty: int = 0


def read_t3dr_hit(subset: str, source: Path, relative_to: Path, choice: Choice) -> Imported:
    """The items of one data set, in the order of its caption files; what cannot be used is left out and named.

    A cloud without captions stays, as one of the gallery. Validation objects are held out of the training
    ones by a digest of their names, or are the test split where `choice.val` is "papers". Raises UserError.
    """
    if subset not in SUBSETS:
        given = f"--subset {subset}" if subset else "t3dr-hit needs --subset"
        raise UserError(f"{given}; {nearest(subset, SUBSETS)}")
    for split in choice.splits:
        if split not in SPLITS:
            raise UserError(f"T3DR-HIT has no split {split!r}; {nearest(split, SPLITS)}")
    layout = SUBSETS[subset]
    annotations = Annotations(_inside(source, layout.folder))
    media = None if choice.no_media else _inside(choice.media or source, layout.folder)
    count, taken = Count(), dict[str, Item]()
    for split in _needed(choice):
        for item in _objects(annotations, layout, split, media, relative_to, count):
            name = item.id
            if name in taken:
                name = f"{item.id}@{split}"
                annotations.notes.append(f"{name}: an object of train is called {item.id} too")
            taken[name] = _called(item, name)
    items, validated = _validated(list(taken.values()), choice.val, annotations)
    items = list(_of_splits(items, choice.splits))
    if not any(item.captions for item in items):
        raise UserError(
            f"{annotations.folder} gives no captions of T3DR-HIT {subset}; {'; '.join(annotations.left_out[:3])}"
        )
    return Imported(
        items, annotations.left_out, annotations.notes,
        Protocol(f"T3DR-HIT v2 {subset}", "; ".join(_sentences(subset, choice, count, validated))),
    )  # fmt: skip


def _inside(source: Path, folder: str) -> Path:
    """The data set's own folder, which may be the one given."""
    return source / folder if (source / folder).is_dir() else source


def _needed(choice: Choice) -> list[str]:
    """The splits whose files are read; a validation split is made of one of them."""
    source = "test" if choice.val == PAPERS else "train"
    return [s for s in ("train", "test") if s in choice.splits or (s == source and "val" in choice.splits)]


def _objects(
    annotations: Annotations, layout: Subset, split: str, media: Path | None, relative_to: Path, count: Count
) -> Iterator[Item]:
    """The objects of a split whose points can be used; in `count`, how many cannot."""
    try:
        path = annotations.need(layout.captions.format(split=split))
    except Absent as error:
        annotations.left_out.append(f"the split {split}: {error}")
        return
    for name, texts in _results(path, annotations).items():
        count.objects += 1
        captions, wrong = _captions(name, texts)
        reason = _unusable(name, layout)
        file = None
        if not reason and media is not None:
            file = media / layout.clouds.format(split=split, name=name)
            reason = _unreadable(file, media)
        if reason:
            count.skipped += 1
            annotations.left_out.append(f"{name}: {reason}; it is skipped with its {len(captions)} captions")
            continue
        count.empty += wrong.count(EMPTY)
        annotations.left_out += [f"{path.name}, {name}: {why}" for why in wrong]
        area = AREA.search(name) if layout.areas else None
        yield Item(
            name, split, captions, relative(file, relative_to) if file else None, "pointcloud",
            {"area": int(area[1])} if area else {},
            "" if file else digest_of(["T3DR-HIT", layout.name, split, name]),
        )  # fmt: skip


def _results(path: Path, annotations: Annotations) -> Mapping[str, Any]:
    """Captions by name. Raises UserError."""
    raw = annotations.json(path)
    found = raw.get("result") if isinstance(raw, dict) else None
    if not isinstance(found, dict):
        raise UserError(f'{path} is not of the form {{"result": {{name: [caption, ...]}}}}')
    return found


def _captions(name: str, texts: Any) -> tuple[tuple[Caption, ...], list[str]]:
    """The captions of an object, and why some are none."""
    if not isinstance(texts, list):
        return (), ["its captions are no list"]
    found, wrong = [], []
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            wrong.append(f"a caption is no text but {type(text).__name__}")
        elif not text.strip():
            wrong.append(EMPTY)
        elif not _is_text(text):
            wrong.append("a caption holds half a character")
        else:
            found.append(Caption(f"{name}#{number}", text.strip()))
    return tuple(found), wrong


def _unusable(name: str, layout: Subset) -> str:
    """Why an object cannot be used by its name alone; "" if it can."""
    path = PurePosixPath(name)
    if not name.strip() or "\0" in name or path.is_absolute() or ".." in path.parts or not _is_text(name):
        return "that is not the name of an object"
    if layout.areas and not AREA.search(name):
        return "its name has no area number (Area_1_office_1), which decides the encoder's weights"
    return ""


def _unreadable(file: Path, media: Path) -> str:
    """Why a point file cannot be used, by its first lines; "" if it can."""
    try:
        with file.open("rb") as opened:
            columns = count_columns(opened.read(PEEKED_BYTES))
    except FileNotFoundError:
        return f"there is no {file.relative_to(media)} in {media}"
    except OSError as error:
        return f"{file.relative_to(media)} cannot be read ({error.strerror or error})"
    if columns >= COLUMNS:
        return ""
    return f"{file.relative_to(media)} has {columns} columns, x y z r g b needs {COLUMNS}"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _called(item: Item, name: str) -> Item:
    """The item under another name, its captions too."""
    captions = (replace(c, id=f"{name}{c.id.removeprefix(item.id)}") for c in item.captions)
    return item if item.id == name else replace(item, id=name, captions=tuple(captions))


def _validated(items: list[Item], val: str, annotations: Annotations) -> tuple[list[Item], str]:
    """The items with some for validation, and in words which. Raises UserError for a wrong `val`."""
    if val == PAPERS:
        if mute := sum(item.split == "test" and not item.captions for item in items):
            annotations.notes.append(
                f"{mute} objects without captions are in the gallery of test, not of val"
            )
        return [_twice(item) if item.split == "test" else item for item in items], PAPERS_SENTENCE
    queried = [item.id for item in items if item.split == "train" and item.captions]
    if not val and 1 < len(queried) < 10:
        val = "1"  # a tenth would be none, and a run without validation cannot choose its best epoch
    held = held_out(queried, val, HELD_OUT, "objects")
    chosen = [replace(item, split="val") if item.id in held else item for item in items]
    words = f"validated on {len(held)} training objects held out by a digest of their names"
    return chosen, words if held else ""


def _twice(item: Item) -> Item:
    """An item of the test split that lends its captions to validation."""
    again = tuple(replace(c, id=f"{c.id}@val", split="val") for c in item.captions)
    return replace(item, captions=item.captions + again)


def _of_splits(items: Iterable[Item], splits: tuple[str, ...]) -> Iterator[Item]:
    """The items of the splits that are imported, with the captions of these."""
    for item in items:
        captions = tuple(c for c in item.captions if (c.split or item.split) in splits)
        if captions or item.split in splits:
            yield replace(item, captions=captions)


def _sentences(subset: str, choice: Choice, count: Count, validated: str) -> Iterator[str]:
    yield f"T3DR-HIT v2 {subset}: train and test as its caption files give them, a caption is one sentence"
    if validated and "val" in choice.splits:
        yield validated
    if len(choice.splits) < len(SPLITS):
        yield f"imported: {', '.join(split for split in SPLITS if split in choice.splits)} alone"
    if count.skipped:
        yield f"{count.skipped} of {count.objects} objects are skipped"
    if count.empty:
        yield f"{count.empty} empty captions are dropped"
