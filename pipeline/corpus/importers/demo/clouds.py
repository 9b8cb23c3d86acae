"""Writes the demo's point clouds into a folder: PLY files and the manifest that describes them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.importers.demo.corpus import FEWEST_ITEMS, Progress, split_of, write_aside
from pipeline.corpus.importers.demo.objects import MOST_OBJECTS, Object, caption, cloud, draw
from pipeline.errors import UserError

SCANNING = 1  # raise it when the points of an object change: files are named after object and scanning
CAPTIONS_AN_OBJECT = 4
PLY = """ply
format binary_little_endian 1.0
element vertex {count}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
end_header
"""


def scan(folder: Path, items: int = 160, seed: int = 0, progress: Progress | None = None) -> Path:
    """The path of the manifest `clouds.jsonl`, written into `folder` after the clouds under `clouds/`.

    The same seed and number give the same bytes; a cloud that is already there is not written again.
    """
    if not FEWEST_ITEMS <= items <= MOST_OBJECTS:
        raise UserError(
            f"items = {items} is not possible: the demo has {FEWEST_ITEMS} to {MOST_OBJECTS} point clouds"
        )
    (folder / "clouds").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, found in enumerate(draw(items, seed)):
        rows.append(_row(index, found, items, seed))
        path = folder / rows[-1]["media"]
        if not path.exists():
            write_aside(path, ply(*cloud(found, seed=_seed(found))))
        if progress:
            progress(index + 1, items)
    manifest = folder / "clouds.jsonl"
    write_aside(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest


def ply(xyz: NDArray[np.float32], rgb: NDArray[np.uint8]) -> bytes:
    """A binary PLY file of points with colours."""
    kind = [("xyz", "<f4", 3), ("rgb", "u1", 3)]
    rows = np.empty(len(xyz), dtype=kind)
    rows["xyz"], rows["rgb"] = xyz, rgb
    return PLY.format(count=len(xyz)).encode() + rows.tobytes()


def _row(index: int, found: Object, items: int, seed: int) -> dict[str, Any]:
    """The line of the manifest about one object."""
    item = f"cloud-{index:04d}"
    rng = random.Random(f"cloud captions {index} of seed {seed}")
    said: dict[str, None] = {}
    while len(said) < CAPTIONS_AN_OBJECT:
        said[caption(found, rng)] = None
    return {
        "id": item,
        "media": f"clouds/{item}-{_digest(found)}.ply",
        "kind": "pointcloud",
        "split": split_of(index, items),
        "captions": [{"id": f"{item}#{n}", "text": text} for n, text in enumerate(said)],
    }


def _digest(found: Object) -> str:
    return hashlib.sha256(f"{SCANNING} {found!r}".encode()).hexdigest()[:8]


def _seed(found: Object) -> int:
    return int(_digest(found), 16)
