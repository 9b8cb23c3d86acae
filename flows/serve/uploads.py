"""A file that a browser sends to search with: bounded, written to a temporary folder, removed after the search.

Nothing in it is executed or unpickled. It is decoded by the processes that decode a file of `crossreel search --media`,
which have a time limit and can be killed; a picture becomes a short still video first, by ffmpeg under a time limit.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath

from starlette.requests import Request

from pipeline.errors import ItemError, UserError
from pipeline.media.unsuited import is_picture
from pipeline.media.video import find_ffmpeg

MOST_BYTES = 64 << 20
SEND_SECONDS = 120.0  # limit for sending the file
STILL_SECONDS = 2.0  # length of the video that is made of a picture
LIMIT_SECONDS = 20.0  # limit for making it
MOST_SIDE_PIXELS = 1280
AT_ONCE = 2  # files that are received or searched with at a time
SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")  # by which readers of point clouds know the format


class TooLarge(Exception):
    """More bytes came than a file may have."""


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Path]:
    """Yield the path of the file in the body of a request; it is removed at the end.

    Raises UserError for an empty file or one that takes too long to come, TooLarge, and ItemError for a picture that
    cannot be read.
    """
    folder = Path(tempfile.mkdtemp(prefix="crossreel-upload-"))
    try:
        path = folder / f"upload{_suffix(request.query_params.get('name', ''))}"
        try:
            size = await asyncio.wait_for(_written(request, path), SEND_SECONDS)
        except TimeoutError:
            raise UserError(f"the file was not sent within {SEND_SECONDS:.0f} s") from None
        if not size:
            raise UserError("the file is empty; choose a video, a picture or a point cloud")
        yield await asyncio.to_thread(_as_media, path)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)


async def _written(request: Request, path: Path) -> int:
    """The number of bytes that were written."""
    size = 0
    with path.open("xb") as file:
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise TooLarge
            await asyncio.to_thread(file.write, part)
    return size


def _suffix(name: str) -> str:
    """The suffix of a file's name, "" if it is not a plain one: no other part of a name reaches the disk."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if SUFFIX.fullmatch(suffix) else ""


def _as_media(path: Path) -> Path:
    """The file itself, or the still video that was made of it if it is a picture."""
    if not is_picture(path):
        return path
    target = path.with_name("still.mp4")
    scale = f"scale='min({MOST_SIDE_PIXELS},iw)':'min({MOST_SIDE_PIXELS},ih)':force_original_aspect_ratio=decrease"
    command = [  # -xerror: a broken picture would be looped until the limit
        find_ffmpeg(), "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file", "-loop", "1",
        "-f", "image2", "-pattern_type", "none", "-t", str(STILL_SECONDS), "-i", str(path), "-r", "6", "-vf",
        f"{scale},pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast",
        str(target),
    ]  # fmt: skip
    try:
        subprocess.run(
            command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_SECONDS
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise ItemError("the picture", "it cannot be read as a picture") from None
    return target
