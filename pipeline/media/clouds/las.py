"""Point clouds of laser scanners: .las, versions 1.0 to 1.4, in all its kinds of point records, and the same as .laz.

A record begins with x, y and z as whole numbers of a scale from an offset; red, green and blue stand in some kinds,
with 16 bits each. Whether records are compressed (`laz`) their kind says, whatever the file's suffix.
"""

from __future__ import annotations

import struct

import numpy as np

from pipeline.media.clouds.cloud import Cloud, Refused, finite, require_points
from pipeline.media.clouds.laz import unpack

SIGNATURE = b"LASF"
SMALLEST_HEADER = 227  # bytes, of versions 1.0 to 1.2
VERSION_OF_LONG_COUNTS, LONG_COUNT_AT = (1, 4), 247
COMPRESSED = 0xC0  # bits of the kind of record that LAZ sets
RECORD_BYTES = (20, 28, 26, 34, 57, 63, 30, 36, 38, 59, 67)  # least size of each kind of record
COLOURS_AT = {2: 20, 3: 28, 5: 28, 7: 30, 8: 30, 10: 30}
EIGHT_BITS, TO_EIGHT_BITS = 255, 257  # 65535 is 257 x 255
REMARK_COLOURS = "its colours have 16 bits and were divided by 257"


def read_las(data: bytes, coloured: bool | None) -> Cloud:
    """The cloud of a .las or .laz file, in the units of its coordinates, with colours from 0 to 255.

    `coloured`: required (True), left out (False), or read if present (None). Raises Refused.
    """
    if len(data) < SMALLEST_HEADER or data[:4] != SIGNATURE:
        raise Refused("it is no .las file")
    version = data[24], data[25]
    (start,) = struct.unpack_from("<I", data, 96)
    kind, size = struct.unpack_from("<BH", data, 104)
    compressed, kind = bool(kind & COMPRESSED), kind & ~COMPRESSED
    if kind >= len(RECORD_BYTES) or size < RECORD_BYTES[kind]:
        raise Refused(f"its records are of an unknown kind {kind} with {size} bytes")
    count = _count(data, version)
    if compressed:
        records = unpack(data, start, count, size)
    else:
        require_points(count, max(0, len(data) - start) // size)
        records = np.frombuffer(data, np.uint8, count * size, start).reshape(count, size)
    scale, offset = (np.array(struct.unpack_from("<3d", data, at)) for at in (131, 155))
    xyz = np.ascontiguousarray(records[:, :12]).view("<i4") * scale + offset
    colours_at = COLOURS_AT.get(kind)
    if coloured and colours_at is None:
        raise Refused(f"it has no colours: records of the kind {kind} hold none")
    if colours_at is None or coloured is False:
        return finite(xyz)
    rgb = np.ascontiguousarray(records[:, colours_at : colours_at + 6]).view("<u2").astype(np.float64)
    wide = bool(rgb.max() > EIGHT_BITS)
    return finite(
        np.concatenate([xyz, rgb / TO_EIGHT_BITS if wide else rgb], axis=1), [REMARK_COLOURS] if wide else ()
    )


def _count(data: bytes, version: tuple[int, int]) -> int:
    """The number of points; from 1.4 on a long one, which holds where it is not 0."""
    if version >= VERSION_OF_LONG_COUNTS and len(data) >= LONG_COUNT_AT + 8:
        (long,) = struct.unpack_from("<Q", data, LONG_COUNT_AT)
        if long:
            return int(long)
    (count,) = struct.unpack_from("<I", data, 107)
    return int(count)
