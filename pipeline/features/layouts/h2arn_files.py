"""H2ARN's published feature files (its page, section 5): tokens of texts and clouds by row, and their links.

<folder>/feature/<subset>/<split>/txt_features_<CLIP|BERT>.pt           (texts, 77, D) float32
<folder>/feature/<subset>/<split>/pc_features_<DGCNN|pointnet|...>.pt   (clouds, 100, D) float32
<folder>/save/<subset>_link_<split>.json       [[[text file, text row], [cloud file, cloud row]], ...]

A subset is a separate data set (Elephant, S3DIS). The files hold neither the words of the texts nor the names
of the clouds, so a row is identified by its split and number. This floor does not import torch: the caller
passes the functions that read and write tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import SPLITS
from pipeline.errors import ItemError, UserError, nearest
from pipeline.features.exporting import Exported, Output
from pipeline.features.layouts.feature_files import UNREADABLE, OpenFile
from pipeline.store.imports import PREFIX
from pipeline.store.segments import Array
from pipeline.store.store import write_json

TEXTS, CLOUDS = "txt_features_", "pc_features_"
PUBLISHED = {"bert": "BERT", "clip": "CLIP", "clip_text": "CLIP", "dgcnn": "DGCNN", "pointnet2": "pointnet++"}
"""Names that the layout has for the features of our stages, where they differ from the stage's name."""

Link = tuple[int, int]
"""Text row, cloud row."""
SaveTensor = Callable[[Path, Array], None]
"""Writes an array as a plain .pt file."""


@dataclass(frozen=True)
class SplitFiles:
    """One split: tokens of its texts (n, L, D) and clouds (m, L, D), and its distinct links in file order."""

    texts: Array
    clouds: Array
    links: tuple[Link, ...]

    def clouds_of(self) -> dict[int, list[int]]:
        """Rows of the linked clouds by row of the text, in link order; texts without links are absent."""
        found: dict[int, list[int]] = {}
        for text, cloud in self.links:
            found.setdefault(text, []).append(cloud)
        return found


@dataclass(frozen=True)
class H2arnFiles:
    """The chosen features of a subset: their names, their splits, and the paths of their files."""

    folder: Path
    subset: str
    text_name: str
    cloud_name: str
    splits: Mapping[str, SplitFiles]
    text_files: tuple[Path, ...]
    cloud_files: tuple[Path, ...]

    @classmethod
    def open(
        cls, folder: Path, open_tensors: OpenFile, subset: str | None = None, texts: str | None = None,
        clouds: str | None = None,
    ) -> H2arnFiles:  # fmt: skip
        """Open a folder with feature/ and save/; subset and features must be named if there are several.

        The tensors are memory-mapped, not read. Raises UserError naming the file, and a wrong link's entry.
        """
        links = _links_of(folder, subset)
        subset = next(iter(links.values())).name.partition("_link_")[0]
        places = {split: _place(folder, subset, split) for split in links}
        text_name = _chosen(places, TEXTS, texts, "--text-file")
        cloud_name = _chosen(places, CLOUDS, clouds, "--visual-feature")
        text_files = {split: place / f"{TEXTS}{text_name}.pt" for split, place in places.items()}
        cloud_files = {split: place / f"{CLOUDS}{cloud_name}.pt" for split, place in places.items()}
        splits = {}
        for split, path in links.items():
            of_texts, of_clouds = (_tensor(files[split], open_tensors) for files in (text_files, cloud_files))
            splits[split] = SplitFiles(of_texts, of_clouds, _read_links(path, len(of_texts), len(of_clouds)))
        for side, files in (("texts", text_files), ("clouds", cloud_files)):
            _require_one_width({files[split]: getattr(found, side) for split, found in splits.items()})
        return cls(
            folder, subset, text_name, cloud_name, splits, tuple(text_files.values()), tuple(cloud_files.values())
        )  # fmt: skip


def _links_of(folder: Path, subset: str | None) -> dict[str, Path]:
    """Path of the link list of every split of a subset, which must be named if there are several."""
    links: dict[str, dict[str, Path]] = {}
    for path in sorted((folder / "save").glob("*_link_*.json")):
        name, _, split = path.stem.partition("_link_")
        links.setdefault(name, {})[split] = path
    if not links:
        raise UserError(
            f"{folder} is no folder of H2ARN's: it holds no save/<subset>_link_<split>.json "
            "beside feature/<subset>/<split>"
        )
    name = _one_of(links, subset, folder, "subset", "--subset")
    usual = [split for split in SPLITS if split in links[name]]
    return {split: links[name][split] for split in (*usual, *sorted(set(links[name]) - set(usual)))}


def _place(folder: Path, subset: str, split: str) -> Path:
    """Folder of a split's features; the subset's name is compared with the link list's ignoring case."""
    for path in sorted((folder / "feature").glob(f"*/{split}")):
        if path.parent.name.lower() == subset.lower():
            return path
    raise UserError(
        f"there is no {folder / 'feature' / subset / split}, though {subset}_link_{split}.json is"
    )


def _chosen(places: Mapping[str, Path], kind: str, name: str | None, option: str) -> str:
    """NAME of the chosen features `<kind>NAME.pt`, which every split must have."""
    for place in places.values():
        files = {path.stem.removeprefix(kind): path for path in sorted(place.glob(f"{kind}*.pt"))}
        if not files:
            raise UserError(f"there is no {place / kind}<name>.pt")
        name = _one_of(files, name, place, f"{kind}NAME.pt", option)
    assert name is not None  # there is a split
    return name


def _one_of(candidates: Mapping[str, object], name: str | None, folder: Path, what: str, option: str) -> str:
    """Look up a name, ignoring case; may be omitted if there is only one."""
    if name is None and len(candidates) == 1:
        return next(iter(candidates))
    if name is None:
        raise UserError(f"{folder} has several of {what}, {' and '.join(candidates)}; name one with {option}")
    same = [known for known in candidates if known.lower() == name.lower()]
    if name not in candidates and len(same) != 1:
        raise UserError(f"{folder} has no {what} called {name!r}; {nearest(name, candidates)}")
    return name if name in candidates else same[0]


def _tensor(path: Path, open_tensors: OpenFile) -> Array:
    """The one tensor (rows, L, D) of a file."""
    try:
        with ExitStack() as stack:
            found = open_tensors(path, stack)
            if list(found) != [""]:
                raise UserError(
                    f"{path} holds several tensors by name; one of (rows, tokens, numbers) is needed"
                )
            array = found[""].read()
    except ItemError as error:
        raise UserError(f"{path}: {error.reason}") from None
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read ({(str(error).splitlines() or [''])[0]})") from None
    if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape:
        raise UserError(
            f"{path} holds {array.dtype} of the shape {array.shape}; numbers of (rows, tokens, numbers) are needed"
        )
    return array


def _require_one_width(arrays: Mapping[Path, Array]) -> None:
    (first, one), *others = arrays.items()
    for path, array in others:
        if array.shape[2] != one.shape[2]:
            raise UserError(f"{path} has tokens of {array.shape[2]} numbers, {first} of {one.shape[2]}")


def _read_links(path: Path, texts: int, clouds: int) -> tuple[Link, ...]:
    """Distinct links of a split in file order. Raises UserError naming the first wrong entry."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a link list in JSON: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} is not a link list: it holds a {type(entries).__name__}")
    links: dict[Link, None] = {}
    for number, entry in enumerate(entries):
        try:
            (_, text), (_, cloud) = entry
        except (TypeError, ValueError):
            raise _wrong(path, number, entry, "it is not [[file, text row], [file, cloud row]]") from None
        for what, row, count in (("text", text, texts), ("cloud", cloud, clouds)):
            if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < count:
                raise _wrong(
                    path, number, entry, f"there is no {what} {row!r}, the rows are 0 to {count - 1}"
                )
        links[text, cloud] = None
    if not links:
        raise UserError(f"{path} holds no links, so no text belongs to any cloud")
    return tuple(links)


def _wrong(path: Path, number: int, entry: Any, why: str) -> UserError:
    return UserError(f"{path}, entry {number} ({json.dumps(entry)[:80]}): {why}")


def export_h2arn(
    target: Path, contents: Contents, subset: str, clouds: Output, texts: Output, save: SaveTensor
) -> Exported:
    """Write a corpus with the tokens of its items and captions as a subset, and return counts.

    Rows are in the manifest's order. Items without features are left out, and so are captions without
    features or whose items have none. An item without captions keeps its row, as in the authors' files. A
    split that only borrows items, such as a validation on the test items, is not written. Raises UserError if
    items or captions differ in their number of tokens.
    """
    report = Exported(left_out=dict(contents.unreadable))
    for split in dict.fromkeys(item.split for item in contents.corpus.items):
        _export_split(target, contents, subset, split, clouds, texts, save, report)
    if not report.captions:
        name, reason = next(iter(report.left_out.items()), (str(contents.corpus.path), "it has no captions"))
        raise UserError(
            f"no caption has features of {texts.stage} and its item of {clouds.stage}; {name}: {reason}"
        )
    return report


def _export_split(
    target: Path, contents: Contents, subset: str, split: str, clouds: Output, texts: Output, save: SaveTensor,
    report: Exported,
) -> None:  # fmt: skip
    """Write the two tensors and the link list of a split that has captions."""
    items = {item.id: key for key, item in contents.gallery(split)}
    kept = [name for name, key in items.items() if key in clouds.reader]
    report.left_out |= {name: f"it has no features of {clouds.stage}" for name in items if name not in kept}
    row_of = {name: row for row, name in enumerate(kept)}
    captions: dict[str, str] = {}  # id -> digest
    links = []
    for _, item, caption in contents.queries(split):
        rows = [row_of[name] for name in (item.id, *caption.also) if name in row_of]
        if caption.digest not in texts.reader:
            report.left_out[caption.id] = f"it has no features of {texts.stage}"
        elif rows:
            links += [(len(captions), row) for row in rows]
            captions[caption.id] = caption.digest
    if not captions:
        return
    folder = Path("feature", subset, split)
    (target / folder).mkdir(parents=True, exist_ok=True)
    (target / "save").mkdir(exist_ok=True)
    paths = [folder / f"{kind}{published_name(output.stage, subset)}.pt" for kind, output in
             ((TEXTS, texts), (CLOUDS, clouds))]  # fmt: skip
    _write_rows(target / paths[0], captions, texts, save)
    report.rows += _write_rows(target / paths[1], {name: items[name] for name in kept}, clouds, save)
    text_file, cloud_file = (path.as_posix() for path in paths)
    entries = [[[text_file, text], [cloud_file, cloud]] for text, cloud in links]
    write_json(target / "save" / f"{subset}_link_{split}.json", entries)
    report.videos += len(kept)
    report.captions += len(captions)


def _write_rows(path: Path, keys: Mapping[str, str], output: Output, save: SaveTensor) -> int:
    """Write the tokens (n, L, D) through a memory-mapped file, so that memory stays flat; returns n L."""
    first = _tokens(output, *next(iter(keys.items())), None)
    spool = path.with_name(f".{path.name}.tmp")
    try:
        rows = np.memmap(spool, np.float32, "w+", shape=(len(keys), *first.shape))
        for row, (name, key) in zip(rows, keys.items(), strict=True):
            row[:] = _tokens(output, name, key, first.shape)
        save(path, rows)
    finally:
        spool.unlink(missing_ok=True)
    return len(keys) * len(first)


def _tokens(output: Output, name: str, key: str, shape: tuple[int, ...] | None) -> Array:
    rows = output.reader.rows(key, output.field, check=True)
    if rows.ndim != 2 or (shape is not None and rows.shape != shape):
        raise UserError(
            f"the output {output.field!r} of {output.stage} has the shape {rows.shape} for {name}"
            f"{f', {shape} for the first' if shape else ''}; h2arn holds as many tokens for all, of texts those "
            "with pad = true"
        )
    return rows


def published_name(stage: str, subset: str) -> str:
    """Name of a stage's features in the layout: imported ones keep their name, ours get their network's."""
    name = stage.removeprefix(PREFIX).removeprefix(f"{_word(subset)}-")
    return PUBLISHED.get(name, name)


def stage_words(subset: str, name: str) -> str:
    """NAME of the stage import-NAME that holds the imported features of a subset."""
    return f"{_word(subset)}-{_word(name.replace('++', '2'))}"


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-")
