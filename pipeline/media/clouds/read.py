"""A point cloud from a file of any supported format; a file that cannot be used raises one ItemError.

Nothing is unpickled, no file that another refers to is opened, and a header cannot make us allocate more memory than
its file can fill. Large or hostile files may still take long: callers read them in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.child import Send
from pipeline.errors import ItemError
from pipeline.media.clouds.arrays import read_npy, read_npz
from pipeline.media.clouds.cloud import (
    AUTO,
    LARGEST_BYTES,
    Cloud,
    Columns,
    Refused,
    parse_columns,
    unit_colours,
)
from pipeline.media.clouds.las import read_las
from pipeline.media.clouds.meshes import read_mesh
from pipeline.media.clouds.pcd import read_pcd
from pipeline.media.clouds.ply import read_header, read_ply, require_no_more
from pipeline.media.clouds.text import read_text
from pipeline.media.mistaken import mistaken_file

Scale = Literal["as-in-file", "unit"]
TABLES: dict[str, Callable[[bytes, Columns | None], Cloud]] = {
    ".txt": read_text, ".xyz": read_text, ".pts": read_text, ".npy": read_npy, ".npz": read_npz,
}  # fmt: skip
ZIP = b"PK\x03\x04"  # .npz is an archive
MESHES = (".off", ".obj", ".stl", ".glb")
SCANS = (".las", ".laz")
SUFFIXES = frozenset({*TABLES, ".ply", ".pcd", *SCANS, *MESHES})
MESH_POINTS = 20_000  # points sampled from a mesh; farthest-point sampling then takes 10,000 of them


def read(
    path: Path, columns: str = AUTO, colour_scale: Scale = "as-in-file", mesh_points: int = MESH_POINTS,
    seed: int = 0,
) -> Cloud:  # fmt: skip
    """A cloud from a file, whose suffix decides the format. Raises ItemError.

    `columns` gives the positions of coordinates and colours in a table (.txt, .xyz, .pts, .npy, .npz). Other formats
    name their columns; for them `columns` only decides whether colours are required ("x y z r g b"), left out
    ("x y z") or read if present ("auto"). `colour_scale` "unit" divides colours by 255. `mesh_points` points are
    sampled from a mesh with `seed`.
    """
    try:
        cloud = _read(path.suffix.lower(), _bytes(path), parse_columns(columns), mesh_points, seed)
    except Refused as error:
        raise ItemError(str(path), _mistaken(path) or str(error)) from None
    return unit_colours(cloud) if colour_scale == "unit" else cloud


def _read(suffix: str, data: bytes, columns: Columns | None, mesh_points: int, seed: int) -> Cloud:
    coloured = None if columns is None else columns.coloured
    if suffix in TABLES:
        return TABLES[suffix](data, columns)
    if suffix == ".pcd":
        return read_pcd(data, coloured)
    if suffix in SCANS:
        return read_las(data, coloured)
    if suffix == ".ply":
        header = read_header(data)
        require_no_more(data, header)
        if not header.faces:
            return read_ply(data, header, coloured)
    if suffix == ".ply" or suffix in MESHES:
        return read_mesh(data, suffix, mesh_points, seed, coloured)
    raise Refused(
        f"{suffix or 'a file without suffix'} is no kind of point cloud; possible: {', '.join(sorted(SUFFIXES))}"
    )


def _mistaken(path: Path) -> str:
    """The reason why a file is no cloud but another kind of file, such as an HTML page; "" if it may be a cloud."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    found = mistaken_file(path, expected=(ZIP,) if path.suffix.lower() == ".npz" else ())
    return f"it is {found}" if found else ""


def _bytes(path: Path) -> bytes:
    """The content of a file. Raises Refused."""
    try:
        if path.is_dir():
            raise Refused("it is a folder, not a file")
        size = path.stat().st_size
        if not path.is_file():
            raise Refused("it is not a file")
        if size == 0:
            raise Refused("the file is empty (0 bytes)")
        if size > LARGEST_BYTES:
            raise Refused(f"it is {size / 2**30:.1f} GB; at most {LARGEST_BYTES >> 30} GB are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise Refused("the file does not exist") from None
    except OSError as error:
        raise Refused(f"the file cannot be read: {error.strerror or error}") from None


def serve_probe(request: dict[str, Any], send: Send) -> None:
    """Entry of a probing child process: `{"path"}` and settings of `read` to a summary of the cloud.

    {"points", "dropped", "odd", "brightest": the largest colour value or None, "extent": length of the longest side,
    "farthest": the largest absolute coordinate, "doubts": sentences on what may be wrong with the file}.
    """
    path, settings = Path(request["path"]), {key: value for key, value in request.items() if key != "path"}
    cloud = read(path, **settings)
    summary = {
        "points": cloud.points,
        "dropped": cloud.dropped,
        "odd": cloud.odd,
        "brightest": None if cloud.rgb is None else float(cloud.rgb.max()),
        "extent": float(np.ptp(cloud.xyz, axis=0).max()),
        "farthest": float(np.abs(cloud.xyz).max()),
        "doubts": list(cloud.doubts),
    }
    send(summary, {})
