"""Compressed point records of laser scanners (LAZ), unpacked by lazrs, an extra.

How many records there are, a header says, which may be wrong: the number is held against the file before anything is
unpacked, and memory grows only with the records that the file really gives.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import LARGEST_BYTES, Refused, require_points

INSTALL = "pip install 'crossreel[laz]'"
HEADER_BYTES_AT, COUNT_AT = (
    94,
    100,
)  # of the file's header: its own size, and the number of variable length records
VARIABLE_HEADER = struct.Struct("<2x16sHH32x")  # owner, number and size of a variable length record
OWNER, NUMBER = b"laszip encoded", 22204
CHUNKED, CHUNK_SIZE_AT, ANY_SIZE = (
    (2, 3),
    12,
    0xFFFFFFFF,
)  # kinds of packing in chunks; of its settings: size of a chunk
AT_THE_END = -1  # a place that a writer could not go back to: it stands in the last 8 bytes
POINTS_A_BYTE = 1000  # 141 were measured, in a million equal points
BLOCK_RECORDS = 50_000


def unpack(data: bytes, start: int, count: int, size: int) -> NDArray[np.uint8]:
    """The records (count, size) that are packed from byte `start` on. Raises Refused."""
    try:
        import lazrs
    except ImportError:
        raise Refused(
            f"it is compressed (LAZ) and lazrs, which unpacks it, is not installed: {INSTALL}; or unpack it to .las, "
            "for instance with laszip"
        ) from None
    settings = _settings(data)
    require_points(count, min(_room(data, start, size, settings), LARGEST_BYTES // size))
    packed = io.BytesIO(data)
    packed.seek(start)
    records = bytearray()
    try:
        if lazrs.LazVlr(settings).item_size() != size:
            raise Refused(
                f"its compressed records do not have the {size} bytes that its header says: damaged"
            )
        decompressor = lazrs.LasZipDecompressor(packed, settings)
        for first in range(0, count, BLOCK_RECORDS):
            block = np.empty(min(BLOCK_RECORDS, count - first) * size, np.uint8)
            decompressor.decompress_many(block)
            records += block.data
    except lazrs.LazrsError as error:
        raise Refused(f"its compressed records cannot be unpacked ({error}): truncated or damaged") from None
    except BaseException as error:  # Rust's panics are no Exception, and their class cannot be imported
        if type(error).__name__ != "PanicException":
            raise
        raise Refused("its compressed records cannot be unpacked: damaged") from None
    return np.frombuffer(records, np.uint8).reshape(count, size)


def _room(data: bytes, start: int, size: int, settings: bytes) -> int:
    """The most records that the file can hold. Raises Refused for a table of chunks that cannot be right.

    lazrs allocates what this table announces, and ends the process where there is not so much memory. Each chunk begins
    with a record that is not packed.
    """
    if len(settings) < CHUNK_SIZE_AT + 4 or len(data) < start + 16:
        raise Refused("its compressed records are cut off: truncated or damaged")
    (kind,) = struct.unpack_from("<H", settings)
    (chunk,) = struct.unpack_from("<I", settings, CHUNK_SIZE_AT)
    if kind not in CHUNKED:
        raise Refused(
            f"its records are packed in a way {kind} that is not read; unpack it to .las, or pack it anew"
        )
    (table,) = struct.unpack_from("<q", data, start)
    if table == AT_THE_END:
        (table,) = struct.unpack_from("<q", data, len(data) - 8)
    if not start + 8 <= table <= len(data) - 8:
        raise Refused("its table of chunks is not in the file: truncated or damaged")
    (chunks,) = struct.unpack_from("<I", data, table + 4)
    if chunks > (table - start - 8) // size:
        raise Refused(
            f"its table announces {chunks} chunks and the file has no room for them: truncated or damaged"
        )
    packed = (table - start - 8) * POINTS_A_BYTE
    return packed if chunk == ANY_SIZE else min(packed, chunks * chunk)


def _settings(data: bytes) -> bytes:
    """The variable length record that says how the points are packed. Raises Refused if there is none."""
    (at,), (records,) = (
        struct.unpack_from("<H", data, HEADER_BYTES_AT),
        struct.unpack_from("<I", data, COUNT_AT),
    )
    for _ in range(records):
        if at + VARIABLE_HEADER.size > len(data):
            break
        owner, number, size = VARIABLE_HEADER.unpack_from(data, at)
        at += VARIABLE_HEADER.size
        if owner.rstrip(b"\0") == OWNER and number == NUMBER:
            return data[at : at + size]
        at += size
    raise Refused("it is compressed (LAZ) and does not say how: truncated or damaged")
