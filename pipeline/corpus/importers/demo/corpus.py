"""Renders the demo corpus into a folder: H.264 videos and the manifest that describes them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pipeline.corpus.importers.demo.drawing import FPS, HEIGHT_PIXELS, WIDTH_PIXELS, frames
from pipeline.corpus.importers.demo.grammar import caption
from pipeline.corpus.importers.demo.scenes import MOST_SCENES, Moment, Scene, draw
from pipeline.errors import UserError
from pipeline.media.video import find_ffmpeg

DRAWING = 1  # raise it when the pixels of a scene change: files are named after scene and drawing
SPLITS = (
    ("train", 0.66),
    ("val", 0.12),
    ("test", 0.22),
)  # a test of some 30 videos and 300 queries
CAPTIONS_A_MOMENT = 2  # twice the words to learn from at no cost in rendering
FEWEST_ITEMS = 9  # with fewer a split would be empty

Progress = Callable[[int, int], None]
"""Called with the number of videos that are ready and the number of all."""


def render(folder: Path, items: int = 150, seed: int = 0, progress: Progress | None = None) -> Path:
    """The path of the manifest `corpus.jsonl`, written into `folder` after the videos under `media/`.

    The same seed and number give the same scenes, frames and captions; a video that is already there
    is not drawn again, and the manifest is written last, so that an interrupted call can be repeated.
    """
    if not FEWEST_ITEMS <= items <= MOST_SCENES:
        raise UserError(
            f"items = {items} is not possible: the demo has {FEWEST_ITEMS} to {MOST_SCENES} items"
        )
    scenes = draw(items, seed)
    rows = [_row(index, scene, items, seed) for index, scene in enumerate(scenes)]
    (folder / "media").mkdir(parents=True, exist_ok=True)
    _render_all([(scene, folder / row["media"]) for scene, row in zip(scenes, rows, strict=True)], progress)
    manifest = folder / "corpus.jsonl"
    write_aside(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return manifest


def _row(index: int, scene: Scene, items: int, seed: int) -> dict[str, Any]:
    """The line of the manifest about one scene."""
    item = f"demo-{index:04d}"
    rng = random.Random(f"captions {index} of seed {seed}")
    said = [(moment, text) for moment in scene.moments for text in _sentences(moment, scene, rng)]
    captions = [
        {"id": f"{item}#{n}", "text": text, "start": moment.start, "end": moment.end}
        for n, (moment, text) in enumerate(said)
    ]
    digest = hashlib.sha256(f"{DRAWING} {scene!r}".encode()).hexdigest()[:8]
    media = f"media/{item}-{digest}.mp4"
    return {
        "id": item,
        "media": media,
        "kind": "video",
        "split": split_of(index, items),
        "captions": captions,
    }


def _sentences(moment: Moment, scene: Scene, rng: random.Random) -> list[str]:
    """Different captions of one moment."""
    found: dict[str, None] = {}
    while len(found) < CAPTIONS_A_MOMENT:
        found[caption(moment, scene, rng)] = None
    return list(found)


def split_of(index: int, items: int) -> str:
    """The split of the index-th of so many items: consecutive runs, since scenes come in no order."""
    upto = 0.0
    for name, share in SPLITS:
        upto += share
        if index < round(upto * items):
            return name
    return SPLITS[-1][0]


def _render_all(work: list[tuple[Scene, Path]], progress: Progress | None) -> None:
    """Write the videos that are missing, on as many threads as there are cores."""
    missing = [(scene, path) for scene, path in work if not path.exists()]
    ffmpeg = find_ffmpeg() if missing else ""
    done = len(work) - len(missing)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in as_completed([pool.submit(_encode, scene, path, ffmpeg) for scene, path in missing]):
            future.result()
            done += 1
            if progress:
                progress(done, len(work))


def _encode(scene: Scene, path: Path, ffmpeg: str) -> None:
    """Write one scene as H.264, bit by bit the same for the same ffmpeg, aside first."""
    aside = path.with_suffix(".part.mp4")
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{WIDTH_PIXELS}x{HEIGHT_PIXELS}",
        "-r",
        str(FPS),
    ]
    target = [
        "-c:v",
        "libx264",
        "-preset",
        "veryfast",
        "-crf",
        "20",
        "-pix_fmt",
        "yuv420p",
        "-threads",
        "1",
    ]
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
    command = [
        ffmpeg,
        "-nostdin",
        "-loglevel",
        "error",
        "-y",
        *source,
        "-i",
        "pipe:0",
        *target,
        *exact,
        str(aside),
    ]
    done = subprocess.run(command, input=b"".join(frames(scene)), capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}")
    os.replace(aside, path)


def write_aside(path: Path, content: bytes) -> None:
    """Write a file so that a reader never sees half of it."""
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    os.replace(aside, path)
