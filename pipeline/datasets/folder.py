"""A folder of media with captions beside them: `clip.mp4` with `clip.txt` (a caption a line) or `clip.json`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpus import LONGEST_SECONDS, SPLITS, Caption, Item
from pipeline.datasets.table import Imported, relative, with_splits
from pipeline.errors import UserError

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


def read_folder(folder: Path, relative_to: Path) -> Imported:
    """The videos in and below a folder; a first folder called train, val or test is the split."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    items, left_out = [], []
    for media in media_files(folder):
        inside = media.relative_to(folder)
        try:
            texts = _captions(media)
            str(inside).encode()
        except UnicodeEncodeError:
            left_out.append(f"{os.fsencode(inside)!r}: its name is not UTF-8")
            continue
        except (OSError, ValueError) as error:
            left_out.append(f"{inside}: {error}")
            continue
        name = inside.with_suffix("").as_posix()
        if not texts:
            left_out.append(f"{inside}: no captions beside it ({media.stem}.txt or {media.stem}.json)")
            continue
        captions = tuple(
            Caption(f"{name}#{n}", text, start, end) for n, (text, start, end) in enumerate(texts)
        )
        split = inside.parts[0] if inside.parts[0] in SPLITS else ""
        items.append(Item(name, split, captions, relative(media, relative_to)))
    if not items:
        reason = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"{folder} holds no video with captions{reason}")
    return Imported(with_splits(_distinct(items)), left_out)


def media_files(folder: Path) -> Iterator[Path]:
    """The files in and below a folder that are videos by their suffix, in the order of their names."""
    for parent, folders, files in os.walk(folder):  # does not follow links to folders, so it cannot loop
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(parent) / name


def _captions(media: Path) -> list[tuple[str, float | None, float | None]]:
    """Texts with start and end seconds. Raises ValueError with the reason."""
    described, plain = media.with_suffix(".json"), media.with_suffix(".txt")
    if described.is_file():
        raw = json.loads(described.read_text(encoding="utf-8-sig"))
        entries = raw.get("captions", []) if isinstance(raw, dict) else raw
        if not isinstance(entries, list):
            raise ValueError(f"{described.name} holds no list of captions")
        return [_entry(entry) for entry in entries]
    if plain.is_file():
        lines = plain.read_text(encoding="utf-8-sig").splitlines()
        return [(line.strip(), None, None) for line in lines if line.strip()]
    return []


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
    return Item(name, item.split, tuple(captions), item.media)
