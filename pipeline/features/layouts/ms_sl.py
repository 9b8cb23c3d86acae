"""Reader of the public MS-SL feature sets (TVR, ActivityNet, Charades-STA): frame rows and token rows by id.

<folder>/FeatureData/<visual_feature>/{feature.bin, shape.txt, id.txt, video2frames.txt}
<folder>/TextData/<collection>{train,val,test}.caption.txt
<folder>/TextData/<any name>.hdf5            one dataset (tokens, Dq) per caption id
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ItemError, UserError, nearest
from pipeline.features.layouts.bounds import Foreign, open_hdf5, require_dataset

SPLITS = ("train", "val", "test")
ENCODING = "ISO-8859-1"  # the sets' encoding; in some of them the caption files alone are UTF-8

PLAIN_STRING = r"""(?:'[^'\\\n]*'|"[^"\\\n]*")"""
WORD, STRING = re.compile(r"\S+"), re.compile(PLAIN_STRING)
ENTRY = re.compile(
    rf"\s*({PLAIN_STRING})\s*:\s*\[(\s*(?:{PLAIN_STRING}\s*,\s*)*(?:{PLAIN_STRING}\s*)?)\]\s*(,|\}})"
)

Caption = tuple[str, str, str]
"""Caption id, text, video id."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Rows (n,) of a video in feature.bin, in temporal order; `missing` is the first name that id.txt lacks, or ""."""

    rows: NDArray[np.int32]
    missing: str = ""


class RowNumbers:
    """The row of each name in id.txt, as two sorted arrays of 12 bytes a name, where a dict holds the names.

    A name is known by Python's hash of 64 bits. Of two million names and a wrong one, two agree with a chance of 1e-13.
    """

    def __init__(self, hashes: NDArray[np.int64]) -> None:
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._sorted = hashes[self._order]

    @property
    def twice(self) -> int:
        """Number of names that occurred before."""
        return int((self._sorted[1:] == self._sorted[:-1]).sum())

    def of(self, names: Sequence[str]) -> Frames:
        """The rows of these names, which are a video's."""
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        at = np.searchsorted(self._sorted, hashes).clip(max=len(self._sorted) - 1)
        known = self._sorted[at] == hashes
        missing = "" if known.all() else names[int(np.argmin(known))]
        return Frames(self._order[at], missing)


class MsSl:
    """One collection of the MS-SL layout: its splits, the rows of a video, the token rows of a caption."""

    def __init__(
        self,
        features: NDArray[np.float32],
        videos: dict[str, Frames],
        splits: dict[str, tuple[list[str], list[Caption]]],
        text_file: Path,
        visual_name: str,
    ) -> None:
        self.splits = splits
        self.visual_name, self.text_name = visual_name, text_file.stem
        self._features, self._videos = features, videos
        self._text_file = text_file
        try:
            self._text = open_hdf5(text_file)
        except OSError as error:
            raise UserError(f"{text_file} cannot be read as HDF5 ({error})") from None

    @classmethod
    def open(cls, folder: Path, visual_feature: str | None = None, text_file: str | None = None) -> MsSl:
        """Open a collection's folder; the feature set and the text file must be named if there are several."""
        visual = _only(folder / "FeatureData", visual_feature, "visual feature", lambda p: p.is_dir())
        text = _only(folder / "TextData", text_file, "text feature file", _is_hdf5)
        features, rows = _open_rows(visual)
        videos = _read_videos(visual / "video2frames.txt", rows)
        return cls(features, videos, _read_splits(folder), text, visual.name)

    def __enter__(self) -> MsSl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the text file."""
        self._text.close()

    @property
    def visual_dim(self) -> int:
        """Width Dv of a frame row."""
        return int(self._features.shape[1])

    def video(self, video_id: str) -> NDArray[np.float32]:
        """The frame rows (n, Dv) of a video in temporal order, read in contiguous runs."""
        if video_id not in self._videos:
            raise UserError(f"video {video_id!r} is not in video2frames.txt")
        frames = self._videos[video_id]
        if frames.missing:
            raise UserError(f"row {frames.missing!r} of video {video_id!r} is not in id.txt")
        out = np.empty((len(frames.rows), self.visual_dim), np.float32)
        for place, first, count in _runs(frames.rows.tolist()):
            out[place : place + count] = self._features[first : first + count]
        return out

    def tokens(self, caption_id: str) -> NDArray:
        """The token rows (t, Dq) of a caption, in the precision they are stored in."""
        if caption_id not in self._text:
            raise UserError(f"caption {caption_id!r} has no features in {self._text_file}")
        dataset = self._text[caption_id]
        if not isinstance(dataset, h5py.Dataset):
            raise ItemError(caption_id, "it is a group of HDF5, not an array")
        try:
            require_dataset(dataset)
        except Foreign as error:
            raise ItemError(caption_id, str(error)) from None
        return np.asarray(dataset)


def _only(folder: Path, name: str | None, what: str, fits: Callable[[Path], bool]) -> Path:
    """Path of the named entry of a folder, or of the only entry for which `fits` is true."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; the MS-SL layout has FeatureData and TextData")
    entries = {path.name: path for path in sorted(folder.iterdir()) if fits(path)}
    if name is not None and name in entries:
        return entries[name]
    if name is not None:
        raise UserError(f"{folder} has no {what} {name!r}; {nearest(name, entries)}")
    if len(entries) != 1:
        raise UserError(f"{folder} has {len(entries)} of the kind {what}, name one; {nearest('', entries)}")
    return next(iter(entries.values()))


def _is_hdf5(path: Path) -> bool:
    return path.suffix in (".hdf5", ".h5")


def _open_rows(folder: Path) -> tuple[NDArray[np.float32], RowNumbers]:
    """The memory-mapped feature.bin (n, Dv), and the row number of each name."""
    count, width = _read_shape(folder / "shape.txt")
    text = _read(folder / "id.txt")
    hashes = np.fromiter((hash(found[0]) for found in WORD.finditer(text)), np.int64)
    if len(hashes) != count:
        raise UserError(f"{folder / 'id.txt'} has {len(hashes)} names, shape.txt says {count} rows")
    rows = RowNumbers(hashes)
    if rows.twice:
        raise UserError(f"{folder / 'id.txt'} has {rows.twice} names twice, {_twice(text.split())!r} is one")
    path = folder / "feature.bin"
    if not path.is_file():
        raise UserError(f"there is no {path}")
    if path.stat().st_size != 4 * count * width:
        raise UserError(
            f"{path} has {path.stat().st_size} bytes, {count} rows of {width} float32 are {4 * count * width}"
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(count, width)), rows


def _read_shape(path: Path) -> tuple[int, int]:
    words = _read(path).split("\n")[0].split()
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"{path} begins with {' '.join(words)!r}, two whole numbers 'rows width' are needed")
    return int(words[0]), int(words[1])


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _read_videos(path: Path, rows: RowNumbers) -> dict[str, Frames]:
    """Rows of each video. The file is a Python literal, which is parsed and never executed."""
    text = _read(path).strip()
    videos: dict[str, Frames] = {}
    for video, names in _entries(text) or _literal(path, text):
        if not names:
            raise UserError(f"{path}: video {video!r} has no rows")
        videos[video] = rows.of(names)
    return videos


def _entries(text: str) -> Iterator[tuple[str, list[str]]] | None:
    """Videos and their row names, one after the other, if the text is as `str` writes a dict of lists of plain strings.

    Python's parser takes 610 MB for the 480,000 names of 15,000 videos. It is left to texts of any other form (None).
    """
    if not text.startswith("{"):
        return None
    end = 1
    for entry in ENTRY.finditer(text, 1):
        if entry.start() != end:
            return None
        end = entry.end()
        if entry[3] == "}":
            break
    if end != len(text) or not text.endswith("}"):
        return None
    return (
        (entry[1][1:-1], [name[1:-1] for name in STRING.findall(entry[2])])
        for entry in ENTRY.finditer(text, 1)
    )


def _literal(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """The same of any literal. Raises UserError if it is not one of a dict of lists of strings."""
    try:
        videos = ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
    ) as error:  # the last two come from deeply nested brackets
        raise UserError(
            f"{path} is not the literal of a dict: {str(error) or type(error).__name__}"
        ) from None
    if not isinstance(videos, dict):
        raise UserError(f"{path} holds a {type(videos).__name__}, a dict of row names is needed")
    for video, names in videos.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {video!r} has no list of row names")
    yield from videos.items()


def _read_splits(folder: Path) -> dict[str, tuple[list[str], list[Caption]]]:
    """Videos in order of first appearance and captions in file order, of each split."""
    splits = {}
    for split in SPLITS:
        path = _only(folder / "TextData", None, f"{split} caption file", _ends(f"{split}.caption.txt"))
        captions = list(_read_captions(path))
        splits[split] = (list(dict.fromkeys(video for _, _, video in captions)), captions)
    return splits


def _ends(suffix: str) -> Callable[[Path], bool]:
    return lambda path: path.name.endswith(suffix)


def _read_captions(path: Path) -> Iterator[Caption]:
    """Lines `<video>#enc#<k> <text>`."""
    seen: set[str] = set()
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        caption, _, text = line.strip().partition(" ")
        if not caption:
            continue
        if "#" not in caption:
            raise UserError(f"{path}, line {number}: {caption!r} is not a caption id of the form video#enc#0")
        if caption in seen:
            raise UserError(f"{path}, line {number}: caption {caption!r} is there twice")
        seen.add(caption)
        yield caption, text.strip(), caption.partition("#")[0]


def _decoded(path: Path) -> str:
    """Text of a caption file, decoded as UTF-8 if that is possible, else as ISO-8859-1."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode(ENCODING)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding=ENCODING)
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(place, first row, count) of each run of consecutive rows, so that each run is read at once."""
    start = 0
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[place - 1] + 1:
            yield start, rows[start], place - start
            start = place
