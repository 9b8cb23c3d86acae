"""What a few files of a corpus are like, so that a plan can say what all of them will take."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pipeline.child import Child, ChildDied, ChildError, Send
from pipeline.corpus.contents import Contents
from pipeline.corpus.manifest import Item
from pipeline.errors import ItemError

MOST_FILES = 8
MOST_SECONDS = 1.5  # for all of them together, the start of the process included
PATIENCE_SECONDS = 20.0  # for the first one: on a busy machine the process alone takes seconds to start
USUAL_FPS = 25.0  # of a video that names no frame rate
PROBE_BYTES = 4 << 30
PROBE = "flows.media_sample:serve"
BYTES_A_POINT = 30  # of the public corpora: 24 (binary .ply, six float32) to 45 (text)


@dataclass(frozen=True)
class Sample:
    """Means over the files that were looked at, and their number, `clouds` of which are point clouds.

    megapixels: decoded for each second of video, in millions of pixels; points: of a point cloud, by its file's size.
    """

    files: int = 0
    seconds: float = 0.0
    megapixels: float = 0.0
    short_side: float = 0.0
    points: float = 0.0
    clouds: int = 0


def sample_media(contents: Contents) -> Sample:
    """The means of files from all over a corpus; no files if none can be read in time, or there are none."""
    parts = [_of_kind(contents.of_kind(kind), kind) for kind in contents.corpus.kinds]
    return (
        Sample(*(sum(figures) for figures in zip(*map(astuple, parts), strict=True))) if parts else Sample()
    )


def _of_kind(contents: Contents, kind: str) -> Sample:
    """The means of one kind; those that have no meaning for it are 0."""
    items = [item for item in contents.items().values() if item.media]
    chosen = items[:: max(1, len(items) // MOST_FILES)][:MOST_FILES]
    if not chosen:
        return Sample()
    return _of_clouds(contents, chosen) if kind == "pointcloud" else _of_videos(contents, chosen)


def _of_clouds(contents: Contents, items: Sequence[Item]) -> Sample:
    sizes = [os.path.getsize(path) for item in items if (path := contents.corpus.media_path(item))]
    return Sample(len(sizes), points=sum(sizes) / len(sizes) / BYTES_A_POINT, clouds=len(sizes))


def _of_videos(contents: Contents, items: Sequence[Item]) -> Sample:
    """Videos are opened in a process that is killed when the time is up; one of them is waited for longer."""
    paths = [str(contents.corpus.media_path(item)) for item in items]
    child, began = Child(PROBE, PROBE_BYTES), time.monotonic()
    found: list[dict[str, Any]] = []
    try:
        with contextlib.suppress(ChildDied, ChildError):
            for path in paths:
                left = began + (MOST_SECONDS if found else PATIENCE_SECONDS) - time.monotonic()
                if left > 0:
                    found += [header for header, _ in child.call({"path": path}, left) if header]
    finally:
        child.kill()
    count = len(found)
    if not count:
        return Sample()
    means = {
        name: sum(one[name] for one in found) / count for name in ("seconds", "megapixels", "short_side")
    }
    return Sample(count, **means)


def serve(request: dict[str, Any], send: Send) -> None:
    """Entry of the process: answers `{"path"}` with a video's properties, or with {} if it has none."""
    from pipeline.media.video import probe

    try:
        found = probe(Path(request["path"]))
    except ItemError:  # the run will name it
        send({}, {})
        return
    pixels = found.width * found.height * (found.fps or USUAL_FPS)
    sizes = {"megapixels": pixels / 1e6, "short_side": min(found.width, found.height)}
    send({"seconds": found.seconds, **sizes} if found.seconds else {}, {})
