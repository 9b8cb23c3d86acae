"""Reasons to refuse a file that is no video although ffmpeg may find frames in it: playlists, archives, pages, texts.

ffmpeg looks for pictures in anything: it follows the names in a text, and it finds the packets of a stream without a
container behind kilobytes of something else, such as the header of an archive that stores a video uncompressed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.media.mistaken import HEAD_BYTES, mistaken_for, text_of

PLAYLISTS = {
    "a playlist (M3U, HLS)": (b"#extm3u",), "a concatenation": (b"ffconcat",),
    "a playlist (XML, DASH)": (b"<?xml", b"<mpd"), "a session description": (b"v=0",),
    "a playlist (PLS)": (b"[playlist]",),
}  # fmt: skip
PICTURES = {
    "a PNG picture": rb"\x89PNG\r\n\x1a\n", "a JPEG picture": rb"\xff\xd8\xff", "a BMP picture": rb"BM",
    "a TIFF picture": rb"II\*\0|MM\0\*", "a WebP picture": rb"RIFF.{4}WEBP",
}  # fmt: skip
SOUNDS = {"a WAV sound": rb"RIFF.{4}WAVE", "a FLAC sound": rb"fLaC", "an MP3 sound": rb"ID3"}
START = b"\0\0\1"  # of every packet of MPEG's streams
STREAMS = frozenset(
    ("h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "cavsvideo", "avs2", "avs3", "dirac", "mjpeg")
)
BEFORE_START = {
    "mpeg": 4096
}  # bytes before the first START: recordings may begin inside a packet of 2,048 bytes
TRANSPORT = re.compile(
    rb"(?s)\A.{0,203}?\x47(?:.{187}\x47.{187}\x47|.{191}\x47.{191}\x47|.{203}\x47.{203}\x47)"
)  # packets of 188, 192 or 204 bytes; a recording may begin inside one
WORDS = 16  # printable bytes at the beginning of a file that are no chance
JPEG, DIRAC = b"\xff\xd8", b"BBCD"


def unsuited(path: Path) -> str:
    """The reason why a file is no video by its first bytes, whatever ffmpeg finds in it; "" if it may be one."""
    head = _head(path)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if found := mistaken_for(head):
        return f"it is {found}"
    for kind, beginnings in PLAYLISTS.items():
        if start.startswith(beginnings):
            return f"it is {kind}, a text that names other files, not a video"
    return ""


def unread(path: Path) -> str:
    """The reason why ffmpeg cannot read a file, by its first bytes; "" if they do not tell."""
    head = _head(path)
    if words := text_of(head):
        return f"it is a text ({words!r}), not a video"
    kind = _of_kind(head, PICTURES | SOUNDS)
    return f"it is {kind}, not a video" if kind else ""


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does."""
    return bool(_of_kind(_head(path), PICTURES))


def _of_kind(head: bytes, marks: Mapping[str, bytes]) -> str:
    """What a file with these first bytes is; "" where no mark fits."""
    return next((kind for kind, mark in marks.items() if re.match(mark, head, re.DOTALL)), "")


def stray_beginning(path: Path, container: str) -> str:
    """The reason why a stream without a container was only found behind something else; "" if it begins the file.

    `container` is ffmpeg's name of the format.
    """
    with path.open("rb") as file:
        head = file.read(max(BEFORE_START.values()))
    if container in {"mpegts", *BEFORE_START} and text_of(head[:WORDS]):
        fits = False
    elif container == "mpegts":
        fits = len(head) < 3 * 204 or TRANSPORT.match(head) is not None
    elif container in BEFORE_START:
        fits = START in head
    elif container in STREAMS:
        fits = head.lstrip(b"\0").startswith((b"\1", JPEG, DIRAC))
    else:
        fits = True
    return (
        "" if fits else f"something else comes before its first packet of {container}: it is no video itself"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
