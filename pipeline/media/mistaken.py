"""Recognises files that are not the expected media or table: Git LFS pointers, error pages, archives, empty files."""

from __future__ import annotations

HEAD_BYTES = 1024  # enough for a doctype behind a comment, and for a pointer, which has about 130 bytes
BEGINNINGS = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer and not the file itself; "
     "`git lfs pull` fetches the file"),
    (b"<!doctype html", "an HTML page, as a download gives that was refused or needs a login"),
    (b"<html", "an HTML page, as a download gives that was refused or needs a login"),
    (b"<error>", "an error message in XML, as a download gives that was refused"),
    (b"pk\x03\x04", "a ZIP archive; unpack it first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"rar!\x1a\x07", "a RAR archive; unpack it first"),
)  # fmt: skip
ANNEX = b"/annex/objects/"
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
    for beginning, words in BEGINNINGS:
        if plain.startswith(beginning):
            return words
    if head.startswith((b"/annex/objects/", b"../", b"./")) and ANNEX in head and b"\n" not in head.strip():
        return "a git-annex pointer and not the file itself; `git annex get` fetches the file"
    if len(head) >= HEAD_BYTES and not head.strip(b"\0"):
        return "filled with zero bytes at its beginning, as a download that was never finished"
    return None
