"""Media of the demo with their captions beside them, as somebody's own folder would hold them: to try an import on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pipeline.corpus.importers.demo.clouds import scan
from pipeline.corpus.importers.demo.corpus import Progress, render
from pipeline.corpus.importers.folder import BOTH
from pipeline.errors import UserError, nearest

MAKERS = {"video": render, "pointcloud": scan}


def draw_beside(
    folder: Path, items: int, kind: str = "video", progress: Progress | None = None
) -> list[Path]:
    """The media files, written into folders train, val and test of `folder`, each with a text of its captions.

    The kind "both" draws so many of each. Captions of videos lose the seconds of their moments. A file that is there
    already is replaced by the same one. Raises UserError for a number that is not possible, and for an unknown kind.
    """
    if kind == BOTH:
        return [path for one in MAKERS for path in draw_beside(folder, items, one, progress)]
    if kind not in MAKERS:
        raise UserError(f"unknown --kind {kind!r}; {nearest(kind, (*MAKERS, BOTH))}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as aside:
        manifest = MAKERS[kind](Path(aside), items, progress=progress)
        for line in manifest.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            source = manifest.parent / item["media"]
            target = folder / item["split"] / f"{item['id']}{source.suffix}"
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
            texts = dict.fromkeys(caption["text"] for caption in item["captions"])
            target.with_suffix(".txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
            written.append(target)
    return written
