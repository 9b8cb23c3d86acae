"""A folder of media with captions beside them: `clip.mp4` with `clip.txt` (a caption a line) or `clip.json`.

Point clouds may be .txt files themselves; `media_files` decides which .txt files are clouds. Every file that
is neither media nor captions of a media file is reported or counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.corpus.importers.table import Imported, relative, with_splits
from pipeline.corpus.importers.texts import decode_text, unreadable
from pipeline.corpus.manifest import LONGEST_SECONDS, Caption, Item
from pipeline.corpus.splits import SPLITS, USUAL, Shares, split_named
from pipeline.errors import UserError
from pipeline.media.clouds.read import SUFFIXES as CLOUD_SUFFIXES

CONTAINERS = """
    mp4 m4v mp4v mpg4 mov qt 3gp 3g2 3gpp 3gp2 f4v ismv mj2 mjp2 mkv mk3d webm avi divx xvid
    mpg mpeg mpe m1v m2v mpv mp2v m2p ps vob evo vro mod tod ts mts m2ts m2t tp trp
    wmv asf wm wtv dvr-ms flv swf ogv ogm ogg ogx rm rmvb mxf gxf lxf dv dif nut nsv amv mtv
    gif apng y4m ivf obu fli flc roq smk bik
    h261 h263 h264 264 avc h265 265 hevc mjpg mjpeg vc1 cavs drc
"""  # suffixes that ffmpeg reads frames from: containers, moving pictures, and streams without a container
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS.split())
CAPTION_SUFFIXES = (".txt", ".json")
SUFFIXES: dict[str, frozenset[str]] = {"video": VIDEO_SUFFIXES, "pointcloud": CLOUD_SUFFIXES}
BOTH = "both"  # videos and point clouds, each recognised by its suffix
WORDS = {"video": "video", "pointcloud": "point cloud", BOTH: "video or point cloud"}
SPOKEN = ".captions.txt"  # ending of a caption file that is never taken for a point cloud
PARTS = "Annotations"
SHARED = "captions.json"  # file with the captions of many clouds, in the imported folder
NAMED = 3  # examples in a note

Said = list[tuple[str, float | None, float | None]]


def read_folder(folder: Path, relative_to: Path, kind: str = "video", shares: Shares = USUAL) -> Imported:
    """Items of the videos, or point clouds, in and below a folder, with their captions and splits.

    A first folder called train, val or test (or validation, dev, testing and the like) is the split. Other
    items are dealt to splits by the hash of their path without suffix. The captions of a cloud are in
    `name.captions.txt`, in `name.json`, in `name.txt` unless the cloud itself is a .txt file, or in the
    folder's `captions.json` under the cloud's name or its path without suffix. A cloud whose captions are an
    empty list is in the gallery alone. The kind "both" takes videos and clouds, and no .txt file for a cloud.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    shared = _shared(folder / SHARED) if kind != "video" else {}
    items, left_out = list[Item](), list[str]()
    media = _media(folder, kind)
    for path, of in media.items():
        inside = path.relative_to(folder)
        name = inside.with_suffix("").as_posix()
        try:
            texts = _captions(path) if of == "video" else _of_cloud(path, name, shared)
            str(inside).encode()
        except UnicodeEncodeError:
            left_out.append(f"{os.fsencode(inside)!r}: its name is not UTF-8")
            continue
        except (OSError, ValueError, RecursionError) as error:
            left_out.append(f"{inside}: {error}")
            continue
        if texts is None or (of == "video" and not texts):
            left_out.append(f"{inside}: no captions beside it ({_beside(path, of)})")
            continue
        captions = tuple(
            Caption(f"{name}#{n}", text, start, end) for n, (text, start, end) in enumerate(texts)
        )
        split = split_named(inside.parts[0]) if len(inside.parts) > 1 else None
        items.append(Item(name, split or "", captions, relative(path, relative_to), of))
    others = _Others(folder, kind, media)
    left_out += others.with_captions
    if not any(item.captions for item in items):
        reason = f"; {left_out[0]}" if left_out else ""
        raise UserError(f"{folder} holds no {WORDS[kind]} with captions{reason}")
    bare = [item.id for item in items if not item.split]
    notes = list(others.notes())
    if bare and len(bare) < len(items):
        notes.insert(
            0,
            f"{len(bare)} items are in no folder {', '.join(SPLITS)} and are dealt by a hash of their ids: "
            f"{_examples(bare)}",
        )
    return Imported(_distinct(with_splits(items, shares)), left_out, notes, dealt=len(bare))


def _examples(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")


class _Others:
    """The files of a folder that are neither media of the kind nor captions of a media file.

    A file with captions beside it may be media of an unknown suffix, and is listed in `with_captions`. The
    others are counted by suffix.
    """

    def __init__(self, folder: Path, kind: str, media: Collection[Path]) -> None:
        taken, stems = set(media), {path.with_suffix("") for path in media}
        files = dict.fromkeys(
            Path(parent) / name for parent, _, names in os.walk(folder) for name in sorted(names)
        )
        captioned = {_caption_stem(path) for path in files if path not in taken and _is_captions(path)}
        missed = {
            path.with_suffix("") for path in files if path not in taken and not _is_captions(path)
        } & captioned
        self.with_captions: list[str] = []
        self._orphans, self._rest = list[str](), dict[str, list[str]]()
        for path in sorted(files):
            inside = _printable(path.relative_to(folder))
            if path in taken or inside == SHARED:
                continue
            if _is_captions(path):
                unread = kind != "pointcloud" and path.suffix == ".txt" and path.with_suffix(".json") in files
                if unread or _caption_stem(path) not in stems | missed:
                    self._orphans.append(inside)
            elif path.with_suffix("") in captioned - stems:
                self.with_captions.append(
                    f"{inside}: {path.suffix or 'a name without suffix'} is no {WORDS[kind]}'s suffix, though captions "
                    f"are beside it{_remedy(path)}"
                )
            else:
                self._rest.setdefault(path.suffix.lower() or "no suffix", []).append(inside)

    def notes(self) -> Iterator[str]:
        """One sentence for each group of files that were not imported."""
        if self._orphans:
            yield f"{len(self._orphans)} texts are not read as captions: {_examples(self._orphans)}"
        for suffix, names in sorted(self._rest.items()):
            yield f"not imported: {len(names)} files of {suffix}: {_examples(names)}"


def _remedy(path: Path) -> str:
    """The end of a sentence about a file that was not imported: the option that imports it, if there is one."""
    return f"; --kind {BOTH} imports videos and point clouds" if kind_of(path.name) else ""


def kind_of(name: str) -> str:
    """The kind of the media file of this name, by its suffix; "" if it is none."""
    return next((kind for kind, suffixes in SUFFIXES.items() if Path(name).suffix.lower() in suffixes), "")


def _is_captions(path: Path) -> bool:
    return path.suffix.lower() in CAPTION_SUFFIXES


def _caption_stem(path: Path) -> Path:
    """Path without suffix of the media file to which a caption file would belong."""
    spoken = path.name.lower().endswith(SPOKEN)
    return (
        path.with_name(path.name[: -len(SPOKEN)])
        if spoken and path.name[: -len(SPOKEN)]
        else path.with_suffix("")
    )


def _printable(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _media(folder: Path, kind: str) -> dict[Path, str]:
    """The media files of a kind, or of both, in and below a folder, each with its kind."""
    if kind != BOTH:
        return dict.fromkeys(media_files(folder, kind), kind)
    files = {path: one for one in SUFFIXES for path in media_files(folder, one)}
    return {path: one for path, one in files.items() if path.suffix.lower() != ".txt"}


def media_files(folder: Path, kind: str = "video") -> Iterator[Path]:
    """Files in and below a folder whose suffix is that of a kind, in the order of their names.

    A .txt file is not a point cloud if it is called `name.captions.txt`, or if a cloud of another suffix has
    its name. The objects of a room of S3DIS (folder `Annotations` beside `room/room.txt`) are skipped,
    because the room's file contains them all.
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
    """Names of the files that could hold the captions of a media file, as part of a sentence."""
    if kind == "video":
        return f"{media.stem}.txt or {media.stem}.json"
    plain = "" if media.suffix.lower() == ".txt" else f", {media.stem}.txt"
    return f"{media.stem}{SPOKEN}{plain} or {media.stem}.json; or {SHARED} of the folder"


def _captions(media: Path) -> Said:
    """Captions of a video with start and end in seconds. Raises ValueError with the reason."""
    described, plain = media.with_suffix(".json"), media.with_suffix(".txt")
    if described.is_file():
        return _described(described)
    return _lines(plain) if plain.is_file() else []


def _of_cloud(media: Path, name: str, shared: Mapping[str, Any]) -> Said | None:
    """Captions of a point cloud; None if no file has any. Raises ValueError with the reason."""
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
    """Captions by name of the cloud; T3DR-HIT has them under `result`. Raises UserError for anything else."""
    if not path.is_file():
        return {}
    try:
        raw = json.loads(_decoded(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if isinstance(raw, dict) and isinstance(raw.get("result"), dict):
        raw = raw["result"]
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no object of captions by the names of point clouds")
    return raw


def _described(path: Path) -> Said:
    """Captions of a .json file. Raises ValueError for an invalid file or entry."""
    raw = json.loads(_decoded(path))
    entries = raw.get("captions", []) if isinstance(raw, dict) else raw
    return [_entry(entry) for entry in _listed(entries, path.name)]


def _listed(entries: Any, where: str) -> list[Any]:
    if not isinstance(entries, list):
        raise ValueError(f"{where} holds no list of captions")
    return entries


def _lines(path: Path) -> Said:
    """One caption for each line that is not blank. Raises ValueError for a file that is not text."""
    return [(line.strip(), None, None) for line in _decoded(path).split("\n") if line.strip()]


def _decoded(path: Path) -> str:
    """Text of a caption file. Raises ValueError naming the file."""
    try:
        text = decode_text(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if bad := unreadable(line):
            raise ValueError(f"{path.name}, line {number}: {bad}")
    return text


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
    if start is not None and end is not None and end < start:
        raise ValueError(f"the caption {text!r} ends at {end} s, before its start at {start} s")
    if bad := unreadable(text):
        raise ValueError(f"a caption cannot be used: {bad}")
    return text.strip(), start, end


def _distinct(items: list[Item]) -> list[Item]:
    """Items with distinct ids: files that differ only by suffix (a.mp4, a.mkv) keep it in their ids."""
    counts = Counter(item.id for item in items)
    return [item if counts[item.id] == 1 else _with_suffix(item) for item in items]


def _with_suffix(item: Item) -> Item:
    name = f"{item.id}{Path(item.media or '').suffix}"
    captions = (Caption(f"{name}#{n}", c.text, c.start, c.end) for n, c in enumerate(item.captions))
    return Item(name, item.split, tuple(captions), item.media, item.kind)
