"""Export of features in the layout of the public MS-SL feature sets (`pipeline.features.layouts.ms_sl`).

The rows of a video are appended to feature.bin and the tokens of a caption are written to HDF5, so that
memory holds one of them at a time. Ids of this layout have neither white space nor '#', and a corpus with
such ids is refused rather than renamed here: an item can be renamed in the manifest without extracting
anything again, while an id that differs between the store and the export would cause confusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import SPLITS, Caption, Item
from pipeline.errors import UserError
from pipeline.store.segments import Array
from pipeline.store.store import FeatureReader


@dataclass(frozen=True)
class Output:
    """One output of a stage and a reader that returns its arrays by digest."""

    stage: str
    field: str
    reader: FeatureReader

    def rows(self, key: str, name: str) -> Array:
        """Rows (T, D) of an item or caption in little-endian float32, verified by their checksum."""
        rows = self.reader.rows(key, self.field, check=True)
        if rows.ndim != 2:
            raise UserError(
                f"the output {self.field!r} of {self.stage} has the shape {rows.shape} for {name}; "
                "ms-sl holds rows of numbers"
            )
        return rows.astype("<f4")


@dataclass
class Exported:
    """Result of an export: counts of what was written, and the reason for each item or caption left out."""

    videos: int = 0
    rows: int = 0
    captions: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def export_ms_sl(target: Path, contents: Contents, video: Output, text: Output) -> Exported:
    """Write a corpus with the rows of its videos and the tokens of its captions, and return counts.

    Videos without features are left out, and so are videos none of whose captions has features, because the
    layout lists videos only through their captions. Raises UserError for ids and splits that it cannot
    express.
    """
    _require_expressible(contents)
    report = Exported()
    names = _caption_names(contents, video, text, report)
    if not names:
        name, reason = next(iter(report.left_out.items()), (str(contents.corpus.path), "it has no items"))
        raise UserError(f"no video has features of both {video.stage} and {text.stage}; {name}: {reason}")
    visual, texts = target / "FeatureData" / video.stage, target / "TextData"
    for folder in (visual, texts):
        folder.mkdir(parents=True, exist_ok=True)
    _write_videos(visual, contents, video, {item for item, _ in names}, report)
    _write_captions(texts, target.absolute().name, contents, names, report)
    with h5py.File(texts / f"{text.stage}_{target.absolute().name}_query_feat.hdf5", "w") as out:
        for (_, caption), name in names.items():
            out[name] = text.rows(caption.digest, name)
    return report


def _require_expressible(contents: Contents) -> None:
    other = [split for split in contents.corpus.splits if split not in SPLITS]
    if other:
        raise UserError(
            f"{contents.corpus.path} has the split {other[0]!r}; ms-sl knows {', '.join(SPLITS)} alone"
        )
    for item in contents.corpus.items:
        if "#" in item.id or any(letter.isspace() for letter in item.id):
            raise UserError(
                f"the item id {item.id!r} cannot be written as ms-sl, whose ids have neither white space nor '#'; "
                "rename it in the manifest, which makes nothing again"
            )


def _caption_names(
    contents: Contents, video: Output, text: Output, report: Exported
) -> dict[tuple[str, Caption], str]:
    """Exported name `<item>#enc#<k>` of each exported caption, by item id and caption."""
    names = {}
    for item in contents.corpus.items:
        if item.id in contents.unreadable:
            report.left_out[item.id] = contents.unreadable[item.id]
        elif contents.digests[item.id] not in video.reader:
            report.left_out[item.id] = f"it has no features of {video.stage}"
        elif not item.captions:
            report.left_out[item.id] = "it has no captions, by which alone ms-sl knows a video"
        else:
            for caption, name in zip(item.captions, _published_names(item), strict=True):
                if caption.digest in text.reader:
                    names[item.id, caption] = name
                else:
                    report.left_out[caption.id] = f"it has no features of {text.stage}"
    return names


def _published_names(item: Item) -> list[str]:
    """Names of an item's captions: their ids if all have the layout's form, else numbers in their order."""
    form = re.compile(re.escape(item.id) + r"#enc#\S+")
    if all(form.fullmatch(caption.id) for caption in item.captions):
        return [caption.id for caption in item.captions]
    return [f"{item.id}#enc#{number}" for number in range(len(item.captions))]


def _write_videos(
    folder: Path, contents: Contents, video: Output, exported: set[str], report: Exported
) -> None:
    """Write feature.bin, the names of its rows and the rows of each video, and last the shape."""
    dims = 0
    with (
        (folder / "feature.bin").open("wb") as values,
        (folder / "id.txt").open("w", encoding="ascii") as ids,
        (folder / "video2frames.txt").open("w", encoding="ascii") as videos,
    ):
        videos.write("{")
        for item in contents.corpus.items:
            if item.id not in exported:
                continue
            rows = video.rows(contents.digests[item.id], item.id)
            dims = dims or rows.shape[1]
            values.write(np.ascontiguousarray(rows).data)
            names = [f"{_ascii(item.id)}_{number}" for number in range(len(rows))]
            ids.write(" ".join(names) + "\n")
            videos.write(f"{item.id!a}: {names!a},\n")
            report.videos, report.rows = report.videos + 1, report.rows + len(rows)
        videos.write("}\n")
    (folder / "shape.txt").write_text(f"{report.rows} {dims}\n", encoding="ascii")


def _ascii(name: str) -> str:
    """An id in ASCII for id.txt, which is read as ISO-8859-1, where more characters count as white space."""
    return name.encode("ascii", "backslashreplace").decode("ascii")


def _write_captions(
    folder: Path,
    collection: str,
    contents: Contents,
    names: Mapping[tuple[str, Caption], str],
    report: Exported,
) -> None:
    """Write one caption file for each split in the manifest's order; readers need all three, even empty."""
    for split in SPLITS:
        with (folder / f"{collection}{split}.caption.txt").open("w", encoding="utf-8") as out:
            for name, caption in _of_split(contents, split, names):
                line = re.sub(r"\s*[\r\n]+\s*", " ", caption.text.strip())
                out.write(f"{name} {line}\n")
                report.captions += 1


def _of_split(
    contents: Contents, split: str, names: Mapping[tuple[str, Caption], str]
) -> Iterator[tuple[str, Caption]]:
    for item, caption in contents.corpus.captions(split):
        if (item.id, caption) in names:
            yield names[item.id, caption], caption
