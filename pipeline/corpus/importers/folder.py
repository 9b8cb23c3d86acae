"""A folder of media with captions beside them: `clip.mp4` with `clip.txt` (a caption a line) or `clip.json`.

Point clouds may be .txt files themselves; which text is which is told by `media_files`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.importers.table import Imported, relative, with_splits
from pipeline.corpus.manifest import LONGEST_SECONDS, SPLITS, Caption, Item
from pipeline.errors import UserError
from pipeline.media.clouds.read import SUFFIXES as CLOUD_SUFFIXES

VIDEO_SUFFIXES = {
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".wmv",
    ".flv",
    ".ogv",
    ".3gp",
}


SUFFIXES: dict[str, frozenset[str]] = {"video": frozenset(VIDEO_SUFFIXES), "pointcloud": CLOUD_SUFFIXES}
WORDS = {"video": "video", "pointcloud": "point cloud"}
SPOKEN = ".captions.txt"  # ends the name of a text that is never a point cloud
PARTS = "Annotations"
SHARED = "captions.json"  # captions of many clouds, in the folder that is imported

Said = list[tuple[str, float | None, float | None]]


def read_folder(folder: Path, relative_to: Path, kind: str = "video") -> Imported:
    """The videos, or point clouds, in and below a folder; a first folder called train, val or test is the split.

    A cloud's captions stand in `name.captions.txt`, `name.json`, `name.txt` where the cloud itself is no
    .txt, or by its name or path without suffix in `captions.json` of the folder. One whose captions are an
    empty list is an item of the gallery alone.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    shared = _shared(folder / SHARED) if kind == "pointcloud" else {}
    items, left_out = [], []
    for media in media_files(folder, kind):
        inside = media.relative_to(folder)
        name = inside.with_suffix("").as_posix()
        try:
            texts = _captions(media) if kind == "video" else _of_cloud(media, name, shared)
            str(inside).encode()
        except UnicodeEncodeError:
            left_out.append(f"{os.fsencode(inside)!r}: its name is not UTF-8")
            continue
        except (OSError, ValueError, RecursionError) as error:
            left_out.append(f"{inside}: {error}")
            continue
        if texts is None or (kind == "video" and not texts):
            left_out.append(f"{inside}: no captions beside it ({_beside(media, kind)})")
            continue
        captions = tuple(
            Caption(f"{name}#{n}", text, start, end) for n, (text, start, end) in enumerate(texts)
        )
        split = inside.parts[0] if inside.parts[0] in SPLITS else ""
        items.append(Item(name, split, captions, relative(media, relative_to), kind))
    if not any(item.captions for item in items):
        reason = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"{folder} holds no {WORDS[kind]} with captions{reason}")
    return Imported(with_splits(_distinct(items)), left_out)


def media_files(folder: Path, kind: str = "video") -> Iterator[Path]:
    """The files in and below a folder that are of a kind by their suffix, in the order of their names.

    A .txt is no point cloud where it is called `name.captions.txt`, or a cloud of another suffix has its name; nor
    are the objects of a room of S3DIS, in the folder `Annotations` beside `room/room.txt`, which holds them all.
    """
    for parent, folders, files in os.walk(folder):  # does not follow links to folders, so it cannot loop
        folders.sort()
        if kind == "pointcloud" and f"{Path(parent).name}.txt" in files and PARTS in folders:
            folders.remove(PARTS)
        fitting = [name for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES[kind]]
        clouds = {Path(name).stem for name in fitting if Path(name).suffix.lower() != ".txt"}
        for name in fitting:
            text = Path(name).suffix.lower() == ".txt"
            if not (text and (name.lower().endswith(SPOKEN) or Path(name).stem in clouds)):
                yield Path(parent) / name


def _beside(media: Path, kind: str) -> str:
    """The files that would hold the captions of one, for a sentence."""
    if kind == "video":
        return f"{media.stem}.txt or {media.stem}.json"
    plain = "" if media.suffix.lower() == ".txt" else f", {media.stem}.txt"
    return f"{media.stem}{SPOKEN}{plain} or {media.stem}.json; or {SHARED} of the folder"


def _captions(media: Path) -> Said:
    """Texts with start and end seconds of a video. Raises ValueError with the reason."""
    described, plain = media.with_suffix(".json"), media.with_suffix(".txt")
    if described.is_file():
        return _described(described)
    return _lines(plain) if plain.is_file() else []


def _of_cloud(media: Path, name: str, shared: Mapping[str, Any]) -> Said | None:
    """The captions of a point cloud; None where nothing says any. Raises ValueError with the reason."""
    described, spoken = media.with_suffix(".json"), media.with_name(media.stem + SPOKEN)
    plain = media.with_suffix(".txt")
    if described.is_file() and described.name != SHARED:
        return _described(described)
    if spoken.is_file():
        return _lines(spoken)
    if media.suffix.lower() != ".txt" and plain.is_file():
        return _lines(plain)
    found = shared.get(name, shared.get(media.stem))
    return None if found is None else [_entry(entry) for entry in _listed(found, SHARED)]


def _shared(path: Path) -> Mapping[str, Any]:
    """Captions by the names of clouds, which may stand under `result` as in T3DR-HIT. Raises UserError."""
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(raw, dict) and isinstance(raw.get("result"), dict):
        raw = raw["result"]
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no object of captions by the names of point clouds")
    return raw


def _described(path: Path) -> Said:
    """The captions of a .json file. Raises ValueError."""
    raw = json.loads(path.read_text(encoding="utf-8-sig"))
    entries = raw.get("captions", []) if isinstance(raw, dict) else raw
    return [_entry(entry) for entry in _listed(entries, path.name)]


def _listed(entries: Any, where: str) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f"{where} holds no list of captions")
    return entries


def _lines(path: Path) -> Said:
    """The lines of a text that are not blank, each a caption. Raises ValueError for what is not UTF-8."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [(line.strip(), None, None) for line in lines if line.strip()]


def _entry(entry: Any) -> tuple[str, float | None, float | None]:
    given = entry if isinstance(entry, dict) else {"text": entry}
    text, start, end = given.get("text"), given.get("start"), given.get("end")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"a caption is a text, or an object with text, start and end, not {entry!r}")
    for seconds in (start, end):
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if seconds is not None and not (number and 0 <= seconds <= LONGEST_SECONDS):
            raise ValueError(
                f"the caption {text!r} has the time {seconds!r}, which is not a number of seconds"
            )
    return text.strip(), start, end


def _distinct(items: list[Item]) -> list[Item]:
    """Files of one name and different kinds (a.mp4, a.mkv) keep their suffix in the id."""
    counts = Counter(item.id for item in items)
    return [item if counts[item.id] == 1 else _with_suffix(item) for item in items]


def _with_suffix(item: Item) -> Item:
    name = f"{item.id}{Path(item.media or '').suffix}"
    captions = (Caption(f"{name}#{n}", c.text, c.start, c.end) for n, c in enumerate(item.captions))
    return Item(name, item.split, tuple(captions), item.media, item.kind)
