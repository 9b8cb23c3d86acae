"""Texts that users write with any editor: UTF-8 or marked UTF-16, any line ends, and what no text holds."""

from __future__ import annotations

import codecs
from pathlib import Path

from pipeline.errors import UserError
from pipeline.media.mistaken import HEAD_BYTES, mistaken_for

WIDE = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def decode_text(data: bytes) -> str:
    """The text of a file, with "\\n" for every line end and without a byte order mark.

    Bytes that are no UTF-8 stay as single surrogates, which `unreadable` names. Raises ValueError for what
    is no text at all, in a few words: a Git LFS pointer, an HTML page, UTF-16 that is cut or has no mark.
    """
    found = mistaken_for(data[:HEAD_BYTES])
    if found:
        raise ValueError(f"it is {found}")
    wide = next((name for mark, name in WIDE if data.startswith(mark)), None)
    if wide:
        try:
            text = data.decode(wide)
        except UnicodeDecodeError as error:
            raise ValueError(f"it begins like {wide.upper()} and is none ({error.reason})") from None
    else:
        text = data.decode("utf-8-sig", "surrogateescape")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    first = text.lstrip("\n").partition("\n")[0]
    if "\0" in first:
        raise ValueError("it holds NUL bytes, as UTF-16 without a byte order mark does; save it as UTF-8")
    return text


def read_text_file(path: Path, kind: str) -> str:
    """The same of a file. Raises UserError that says it cannot be read as `kind`, and why."""
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read as {kind}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as {kind}: {error}") from None


def unreadable(value: str) -> str:
    """Why a piece of a decoded text cannot be used, to follow the name of its line; "" where it can."""
    if "\0" in value:
        return "it holds a NUL byte"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        piece = value[error.start : error.end]
        if all("\udc80" <= sign <= "\udcff" for sign in piece):
            return f"it is not UTF-8 ({piece.encode('utf-8', 'surrogateescape')!r}); save the file as UTF-8"
        return f"it holds {piece!a}, half a character"
    return ""
