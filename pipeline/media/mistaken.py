"""Recognises files that are not the expected media or table: Git LFS pointers, error pages, archives, empty files."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

HEAD_BYTES = 1024  # enough for a doctype behind a comment, and for a pointer, which has about 130 bytes
TEXTS = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer and not the file itself; `git lfs pull` fetches the file",
    ),
    (b"<!doctype html", "an HTML page, as a download gives that was refused or needs a login"),
    (b"<html", "an HTML page, as a download gives that was refused or needs a login"),
    (b"<error>", "an error message in XML, as a download gives that was refused"),
    (b"http/1.", "the recorded answer of a web server, header and all"),
)  # in small letters, behind blanks
BEGINNINGS = (
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    *((b"BZh%d1AY&SY" % level, "a bzip2 archive; unpack it first") for level in range(1, 10)),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"!<arch>\n", "an ar archive; unpack it first"),
    (b"%PDF-", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"),
)
TAR_PLACE, TAR = 257, b"ustar"
ANNEX = b"/annex/objects/"
SHOWN = 40  # characters of a text in a message
MARK = b"\xef\xbb\xbf"


def mistaken_for(head: bytes) -> str | None:
    """Return what a file is by its first bytes, as the end of a sentence "it is ..."; None if it may be as expected.

    `head` is the first HEAD_BYTES of the file, or all bytes of a shorter file.
    """
    plain = head.removeprefix(MARK).lstrip().lower()
    if plain.startswith(b"<?xml"):
        plain = plain.partition(b"?>")[2].lstrip()
    while plain.startswith(b"<!--") and b"-->" in plain:
        plain = plain.partition(b"-->")[2].lstrip()
    for begun, beginnings in ((plain, TEXTS), (head, BEGINNINGS)):
        for beginning, words in beginnings:
            if begun.startswith(beginning):
                return words
    if head.startswith(TAR, TAR_PLACE):
        return "a tar archive; unpack it first"
    if head.startswith((b"/annex/objects/", b"../", b"./")) and ANNEX in head and b"\n" not in head.strip():
        return "a git-annex pointer and not the file itself; `git annex get` fetches the file"
    if len(head) >= HEAD_BYTES and not head.strip(b"\0"):
        return "filled with zero bytes at its beginning, as a download that was never finished"
    return None


def mistaken_file(path: Path, expected: Collection[bytes] = ()) -> str | None:
    """The same of a file; also that it is empty. None for a file that begins with one of the `expected` bytes.

    Raises OSError.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if not head and not os.fstat(file.fileno()).st_size:
            return "empty (0 bytes)"
    return None if head.startswith(tuple(expected)) else mistaken_for(head)


def text_of(head: bytes) -> str | None:
    """The first words of a file that begins as a text; None for any other file. `head` as above."""
    try:
        text = head.removeprefix(MARK).decode("ascii").strip()
    except UnicodeDecodeError:
        return None
    words = " ".join(text.split())
    return words[:SHOWN] if words and words.isprintable() else None
