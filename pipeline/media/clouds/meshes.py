"""Meshes (.off, .obj, .stl, .glb, .ply with faces) as clouds: points sampled from their faces, uniformly by area.

trimesh parses them from bytes in memory, without a resolver of file names, so that no file a mesh refers to is opened.
"""

from __future__ import annotations

import io
import json
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.media.clouds.cloud import Cloud, Doubles, Refused, finite

if TYPE_CHECKING:
    from trimesh import Trimesh

COMMENT = re.compile(rb"#[^\n]*")
# ModelNet40 has files that begin "OFF490 518 0", without a line end between.
OFF_HEADER = re.compile(rb"\s*[A-Za-z0-9]*?OFF\s*(\d+)\s+(\d+)[^\n]*(?:\n|\Z)")
JSON_CHUNK = 0x4E4F534A
UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NameError, OSError,
    RuntimeError, TypeError, ValueError, ImportError, StopIteration, SyntaxError, struct.error,
)  # fmt: skip
"""Exceptions that trimesh raises for damaged files: nearly all that Python has."""


def read_mesh(data: bytes, suffix: str, count: int, seed: int, coloured: bool | None) -> Cloud:
    """`count` points sampled from the faces of a mesh with a seed, or the vertices if it has no faces.

    Colours, if the mesh has any (of vertices, of faces or, in a .glb, a texture), range from 0 to 255 whatever the
    scale in the file. `coloured`: required (True), left out (False), or read if present (None). Raises Refused.
    """
    announced = _announced_faces(data) if suffix == ".off" else 0
    remarks = _reference_remarks(data, suffix)
    points, faces, rgb = _sample(data, suffix, count, seed, coloured is not False)
    if announced and not faces:  # so trimesh reads comments below a header in one line with OFF
        raise Refused(f"it announces {announced} faces and none of them can be read; remove its comments")
    if coloured and rgb is None:
        raise Refused("it has no colours")
    if faces:
        remarks.append(f"{len(points)} points were drawn from {faces} faces")
    return finite(points if rgb is None else np.concatenate([points, rgb], axis=1), remarks)


def _sample(
    data: bytes, suffix: str, count: int, seed: int, coloured: bool
) -> tuple[Doubles, int, Doubles | None]:
    """Points (count, 3), the number of faces, and colours (count, 3) or None. Raises Refused."""
    import trimesh

    try:
        options: dict[str, Any] = {"skip_materials": True, "maintain_order": True} if suffix == ".obj" else {}
        scene = trimesh.load_scene(
            io.BytesIO(data), file_type=suffix[1:], allow_remote=False, process=False, **options
        )
        parts: list[Any] = scene.dump()
        solid = [part for part in parts if isinstance(part, trimesh.Trimesh) and len(part.faces)]
        if not solid:
            return _vertices(parts, coloured)
        mesh: Any = solid[0] if len(solid) == 1 else trimesh.util.concatenate(solid)
        points, chosen, weights = trimesh.sample.sample_surface(
            mesh, count, _areas(mesh), return_barycentric=True, seed=seed
        )
        textured = suffix == ".glb" and b"baseColorTexture" in data
        rgb = _colours(mesh, chosen, weights, textured) if coloured else None
        return np.asarray(points, np.float64), len(mesh.faces), rgb
    except UNREADABLE as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(f"it is no {suffix} file that can be read ({words[0][:120]})") from None


def _announced_faces(data: bytes) -> int:
    """Number of faces in the header of an OFF file; 0 for a header that cannot be read.

    Raises Refused for another number of lines than it announces: trimesh takes vertices beyond it for faces.
    """
    text = COMMENT.sub(b"", data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    header = OFF_HEADER.match(text)
    if not header:
        return 0  # trimesh says what is wrong
    vertices, faces = (int(number[:18]) for number in header.groups())
    there = sum(1 for line in text[header.end() :].split(b"\n") if line.strip())
    if there != vertices + faces:
        raise Refused(
            f"it announces {vertices} vertices and {faces} faces, and has {there} lines: its header is wrong or "
            "it is truncated"
        )
    return faces


def _areas(mesh: Trimesh) -> Doubles:
    """Area of every face (F,), 0 for a face with a corner that is not finite. Raises Refused if all areas are 0."""
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise Refused("a face has a corner that is none of its vertices")
    areas = np.nan_to_num(np.asarray(mesh.area_faces, np.float64), nan=0.0, posinf=0.0)
    if not 0 < areas.sum() < np.inf:
        raise Refused(f"its {len(mesh.faces)} faces have no area from which points can be drawn")
    return areas


def _vertices(parts: list[Any], coloured: bool) -> tuple[Doubles, int, Doubles | None]:
    """Vertices (V, 3) of a scene without faces, 0 faces, and colours (V, 3) if every vertex has one."""
    points = [np.asarray(part.vertices, np.float64) for part in parts if len(getattr(part, "vertices", ()))]
    if not points:
        raise Refused("it holds neither faces nor points that can be read")
    colours = [
        np.asarray(getattr(part, "colors", ()))[:, :3] for part in parts if len(getattr(part, "colors", ()))
    ]
    rgb = np.concatenate(colours).astype(np.float64) if coloured and colours else None
    whole = np.concatenate(points)
    return whole, 0, rgb if rgb is not None and len(rgb) == len(whole) else None


def _colours(mesh: Trimesh, chosen: NDArray[np.int64], weights: Doubles, textured: bool) -> Doubles | None:
    """Colours (count, 3) from 0 to 255 of points on the faces `chosen`, by barycentric weights (count, 3).

    Raises Refused if a texture defines the colours and cannot be read: trimesh silently drops such a texture.
    """
    visual: Any = mesh.visual

    def interpolated(values: Any) -> Doubles:
        """Values (count, D) at the points, from values (V, D) at the vertices."""
        corners = np.asarray(values, np.float64)[mesh.faces[chosen]]  # (count, 3, D)
        return np.einsum("nc,ncd->nd", weights, corners)

    if visual.kind == "vertex":
        return interpolated(visual.vertex_colors)[:, :3]
    if visual.kind == "face":
        return np.asarray(visual.face_colors, np.float64)[chosen, :3]
    if visual.kind != "texture":
        return None
    textures = [getattr(visual.material, name, None) for name in ("baseColorTexture", "image")]
    texture = next((texture for texture in textures if texture is not None), None)
    if texture is None and textured:
        raise Refused("the picture of its colours cannot be read")
    if texture is None or visual.uv is None:
        return np.tile(np.asarray(visual.material.main_color, np.float64)[:3], (len(chosen), 1))
    from trimesh.visual.color import uv_to_interpolated_color

    return np.asarray(uv_to_interpolated_color(interpolated(visual.uv), texture), np.float64)[:, :3]


def _reference_remarks(data: bytes, suffix: str) -> list[str]:
    """Remarks on other files that a mesh refers to. Raises Refused if one of them holds its geometry."""
    if suffix == ".obj" and b"mtllib" in data:
        return ["the materials it refers to are not read"]
    if suffix == ".glb":
        _require_whole(_glb_tree(data))
    return []


def _glb_tree(data: bytes) -> dict[str, Any]:
    """The JSON description in a .glb file. Raises Refused."""
    if len(data) < 20 or data[:4] != b"glTF":
        raise Refused("it is no .glb file")
    length, kind = struct.unpack("<II", data[12:20])
    if kind != JSON_CHUNK or length > len(data) - 20:
        raise Refused("it is a truncated .glb file")
    try:
        tree = json.loads(data[20 : 20 + length])
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise Refused("its description is not JSON")
    return tree


def _require_whole(tree: dict[str, Any]) -> None:
    """Raise Refused if a .glb file refers to other files, or announces values that it does not hold."""
    for key in ("buffers", "images"):
        for entry in _objects(tree, key):
            if not str(entry.get("uri", "data:")).startswith("data:"):
                raise Refused(
                    f"it refers to another file, {str(entry['uri'])[:60]!r}; one that stands alone is needed"
                )
    for accessor in _objects(tree, "accessors"):
        if "bufferView" not in accessor and "KHR_draco_mesh_compression" not in tree.get(
            "extensionsUsed", []
        ):
            raise Refused(f"it announces {accessor.get('count')} values that it does not hold")


def _objects(tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = tree.get(key, [])
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
