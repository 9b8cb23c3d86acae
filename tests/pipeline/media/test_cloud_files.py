"""Point clouds in files: every format gives the same cloud back, and whatever is wrong is one sentence."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ItemError
from pipeline.media.clouds.cloud import parse_columns
from pipeline.media.clouds.pcd import expand
from pipeline.media.clouds.read import SUFFIXES, read

RANDOM = np.random.default_rng(0)
XYZ = RANDOM.normal(size=(50, 3)).astype(np.float32).astype(np.float64)
RGB = RANDOM.integers(0, 256, (50, 3)).astype(np.float64)
ROWS = np.concatenate([XYZ, RGB], axis=1)


def table(separator: str = " ", rows: np.ndarray = ROWS, end: str = "\n") -> bytes:
    return "".join(separator.join(map(repr, row)) + end for row in rows.tolist()).encode()


def ply(kind: str, names: tuple[str, ...] = ("red", "green", "blue"), colour: str = "uchar") -> bytes:
    order = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(kind, "<")
    properties = [*(f"property float {axis}" for axis in "xyz"), "property uchar alpha",
                  *(f"property {colour} {name}" for name in names)]  # fmt: skip
    head = [
        "ply",
        f"format {kind} 1.0",
        "comment made",
        f"element vertex {len(ROWS)}",
        *properties,
        "end_header\n",
    ]
    if kind == "ascii":
        body = b"".join(b"%r %r %r 255 %d %d %d\n" % tuple(row) for row in ROWS.tolist())
    else:
        kind = "B" if colour == "uchar" else "f"
        rows = [(*row[:3], 255, *(map(int, row[3:]) if kind == "B" else row[3:])) for row in ROWS.tolist()]
        body = b"".join(struct.pack(f"{order}3fB3{kind}", *row) for row in rows)
    return "\n".join(head).encode() + body


def packed() -> np.ndarray:
    r, g, b = RGB.T.astype(np.uint32)
    return (r << 16) | (g << 8) | b


def lzf(data: bytes) -> bytes:
    """LZF without any repetition."""
    parts = [data[start : start + 32] for start in range(0, len(data), 32)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def pcd(storage: str, kind: str = "F") -> bytes:
    head = (f"# .PCD v0.7\nVERSION 0.7\nFIELDS x y z _ rgb\nSIZE 4 4 4 1 4\nTYPE F F F U {kind}\nCOUNT 1 1 1 4 1\n"
            f"WIDTH {len(XYZ)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(XYZ)}\nDATA {storage}\n")  # fmt: skip
    colours = packed() if kind == "U" else packed().view(np.float32)
    if storage == "ascii":
        lines = [f"{x!r} {y!r} {z!r} 0 0 0 0 {c}" for (x, y, z), c in
                 zip(XYZ.tolist(), map(repr, colours.tolist()), strict=True)]  # fmt: skip
        return head.encode() + "\n".join(lines).encode()
    if storage == "binary":
        body = b"".join(struct.pack("<3f4x", *p) + c.tobytes() for p, c in zip(XYZ, colours, strict=True))
        return head.encode() + body
    body = b"".join(
        [*(XYZ[:, n].astype("<f4").tobytes() for n in range(3)), bytes(4 * len(XYZ)), colours.tobytes()]
    )
    small = lzf(body)
    return head.encode() + struct.pack("<II", len(small), len(body)) + small


def numpy_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def trimesh_cloud(suffix: str) -> bytes:
    made = trimesh.PointCloud(
        XYZ, colors=np.concatenate([RGB, np.full((50, 1), 255)], axis=1).astype(np.uint8)
    )
    out = made.export(file_type=suffix)
    return out.encode() if isinstance(out, str) else out


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "spaces": ("txt", table),
    "tabs": ("xyz", lambda: table("\t")),
    "commas": ("txt", lambda: table(", ", end="\r\n")),
    "semicolons": ("TXT", lambda: table(";")),
    "more columns": ("txt", lambda: table(rows=np.concatenate([ROWS, ROWS], axis=1))),
    "old line ends": ("txt", lambda: table(end="\r")),
    "count": ("pts", lambda: b"50\n" + table()),
    "header": ("xyz", lambda: b"\xef\xbb\xbf// made\nX Y Z R G B\n\n" + table()),
    "comments": ("txt", lambda: b"# x y z\n" + table(end=" # a point\n")),
    "odd byte": ("txt", lambda: table().replace(b" ", b"\x10", 3)),
    "ply ascii": ("ply", lambda: ply("ascii")),
    "ply little": ("ply", lambda: ply("binary_little_endian")),
    "ply big": ("ply", lambda: ply("binary_big_endian")),
    "ply diffuse": ("ply", lambda: ply("binary_big_endian", ("diffuse_red", "diffuse_green", "diffuse_blue"))),
    "ply float": ("ply", lambda: ply("binary_little_endian", ("r", "g", "b"), "float")),
    "pcd ascii": ("pcd", lambda: pcd("ascii")),
    "pcd ascii whole": ("pcd", lambda: pcd("ascii", "U")),
    "pcd binary": ("pcd", lambda: pcd("binary")),
    "pcd compressed": ("pcd", lambda: pcd("binary_compressed")),
    "npy": ("npy", lambda: numpy_file(ROWS)),
    "npy single": ("npy", lambda: numpy_file(np.asfortranarray(ROWS.astype(np.float32)))),
    "npz table": ("npz", lambda: archive(data=ROWS)),
    "npz parts": ("npz", lambda: archive(xyz=XYZ, rgb=RGB.astype(np.uint8), label=RGB[:, 0])),
    "trimesh ply": ("ply", lambda: trimesh_cloud("ply")),
    "trimesh xyz": ("xyz", lambda: trimesh_cloud("xyz")),
    "trimesh obj": ("obj", lambda: trimesh_cloud("obj")),
    "trimesh glb": ("glb", lambda: trimesh_cloud("glb")),
}  # fmt: skip


@pytest.fixture
def file(tmp_path) -> Callable[[str, bytes], Path]:
    """A file of this suffix with these bytes."""

    def write(suffix: str, data: bytes) -> Path:
        path = tmp_path / f"cloud.{suffix}"
        path.write_bytes(data)
        return path

    return write


def wrong(path: Path, **how: object) -> str:
    """Why a file is refused; the error names it."""
    with pytest.raises(ItemError) as raised:
        read(path, **how)
    assert raised.value.item == str(path)
    return raised.value.reason


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_cloud(name, file):
    suffix, make = FILES[name]
    cloud = read(file(suffix, make()))
    tolerance = 1e-7 if name.startswith("trimesh") else 0  # its writers round
    np.testing.assert_allclose(cloud.xyz, XYZ, rtol=0, atol=tolerance)
    assert cloud.rgb is not None
    np.testing.assert_array_equal(cloud.rgb, RGB)
    assert cloud.xyz.dtype == cloud.rgb.dtype == np.float64 and (cloud.points, cloud.dropped) == (50, 0)
    np.testing.assert_array_equal(cloud.rows, np.concatenate([cloud.xyz, RGB], axis=1))


def test_all_suffixes_are_tried_here():
    meshes, elsewhere = {".off", ".stl"}, {".las", ".laz"}  # test_las.py
    assert {f".{suffix.lower()}" for suffix, _ in FILES.values()} | meshes | elsewhere == SUFFIXES


@given(st.permutations(range(8)), st.booleans())
@settings(max_examples=15, deadline=None)
def test_columns_may_stand_in_any_order_by_name_or_position(tmp_path_factory, order, by_name):
    path = tmp_path_factory.mktemp("x") / "cloud.txt"
    wide = np.concatenate([ROWS, np.full((50, 2), 7.0)], axis=1)
    path.write_bytes(table(rows=wide[:, order]))
    names = ["x", "y", "z", "r", "g", "b", "label", "_"]
    columns = (
        " ".join(names[n] for n in order) if by_name else ", ".join(str(order.index(n)) for n in range(6))
    )
    np.testing.assert_array_equal(read(path, columns).rows, ROWS)


@pytest.mark.parametrize(
    "name", ["spaces", "ply ascii", "ply big", "pcd binary", "npy", "npz parts", "trimesh obj"]
)
def test_colours_are_left_aside_where_coordinates_alone_are_asked_for(name, file):
    suffix, make = FILES[name]
    cloud = read(file(suffix, make()), "x y z")
    assert cloud.rgb is None and np.allclose(cloud.xyz, XYZ)
    assert not cloud.rows[:, 3:].any()


@pytest.mark.parametrize(
    ("suffix", "data", "words"),
    [
        ("txt", table(rows=XYZ), "line 1 has 3 columns; x y z r g b needs 6"),
        ("npy", numpy_file(XYZ), "it has 3 columns; x y z r g b needs 6"),
        ("ply", ply("ascii", ()), "it has no colours; its columns: x y z alpha"),
        ("off", trimesh.creation.box().export(file_type="off").encode(), "it has no colours"),
    ],
)
def test_a_cloud_without_colours_is_black_unless_colours_are_needed(suffix, data, words, file):
    data = data if suffix != "ply" else data[: data.index(b"end_header")] + b"end_header\n1 2 3 0\n" * 1
    data = data.replace(b"vertex 50", b"vertex 1")
    path = file(suffix, data)
    assert read(path).rgb is None and not read(path).rows[:, 3:].any()
    assert words in wrong(path, columns="x y z r g b")


def test_colours_are_divided_only_where_that_is_asked_for(file):
    path = file("txt", table())
    np.testing.assert_array_equal(read(path, colour_scale="unit").rgb, RGB / 255)
    assert read(file("xyz", table(rows=XYZ)), colour_scale="unit").rgb is None


def test_points_that_are_not_finite_are_dropped_and_counted(file):
    rows = ROWS.copy()
    rows[3, 0], rows[7, 5], rows[9, 2], rows[11, 1] = np.nan, np.inf, -np.inf, 1e39  # the last is in float32
    for suffix, data in (("txt", table(rows=rows)), ("npy", numpy_file(rows))):
        cloud = read(file(suffix, data))
        assert (cloud.points, cloud.dropped, len(cloud.xyz)) == (50, 4, 46)
        np.testing.assert_array_equal(cloud.rows, np.delete(rows, [3, 7, 9, 11], axis=0))
    assert wrong(file("npy", numpy_file(np.full((5, 6), np.nan)))) == "none of its 5 points is finite"


def test_a_text_is_read_with_remarks_on_comments_header_and_count(file):
    remarks = read(file("pts", b"# made\nx y z r g b\n40\n" + table())).remarks
    assert remarks == (
        "comments were skipped", "a header line was skipped", "it announces 40 points and has 50",
    )  # fmt: skip
    assert read(file("txt", table())).remarks == ()


@pytest.mark.parametrize(
    ("suffix", "data", "words"),
    [
        ("txt", b"", "the file is empty (0 bytes)"),
        ("txt", b"\n \n", "it holds no points"),
        ("txt", b"x y z\n", "it has no line of numbers"),
        ("txt", b"a\n" * 99, "its first 32 lines are no numbers"),
        ("txt", b"1 2 3 4 5\n" * 9, "it has 5 columns; x y z r g b needs 6, x y z alone 3"),
        ("txt", b"1 2 3 4 5 6\n1 2 3 4 5", "line 2 has 5 columns; x y z r g b needs 6"),
        ("txt", b"h\n\n1 2 3 4 5 6\n1 2 3 chair 5 6\n", "line 4: 'chair' is not a number"),
        ("txt", table().decode().encode("utf-16"), "it holds null bytes"),
        ("xyz", RANDOM.bytes(5000).replace(b"\0", b"\1"), ""),
        ("pts", b"60\n" + table(), "it announces 60 points and has 50: truncated"),
        ("pts", b"5", "it has no line of numbers"),
        ("ply", b"no ply", "it is no .ply file"),
        ("ply", b"ply\nformat ascii 1.0\n", "its header does not end"),
        ("ply", b"ply\nelement vertex 1\nend_header\n1", "its header names no format"),
        ("ply", b"ply\nformat ascii 1.0\nproperty odd x\nend_header\n", "has the line 'property odd x'"),
        ("ply", b"ply\nformat ascii 1.0\nend_header\n", "it has no vertices"),
        ("ply", b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "it holds no points"),
        (
            "ply",
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1 ",
            "have no number 'y'",
        ),
        ("ply", ply("ascii").rsplit(b"\n", 9)[0], "it announces 50 points and has room for 42"),
        ("ply", ply("ascii")[:-9], "line 62 has 5 columns"),
        ("ply", ply("binary_big_endian")[:-9], "it announces 50 points and has room for 49: truncated"),
        ("pcd", b"no pcd", "its header has no line DATA"),
        ("pcd", b"FIELDS x y z\nDATA ascii\n1 2 3", "its header is not that of a .pcd file"),
        ("pcd", pcd("ascii").replace(b"FIELDS x", b"FIELDS u"), "it has no field 'x'; its fields: u y z"),
        ("pcd", pcd("ascii").replace(b"TYPE F", b"TYPE O"), "fields that are not possible"),
        ("pcd", pcd("ascii").replace(b"DATA ascii", b"DATA other"), "its data are 'other'; possible: ascii"),
        ("pcd", pcd("ascii")[:-900], "points and has room for"),
        ("pcd", pcd("ascii", "U").replace(b"SIZE 4 4 4 1 4", b"SIZE 4 4 4 1 2"), "its field cannot hold"),
        ("pcd", pcd("binary")[:-1], "it announces 50 points and has room for 49"),
        ("pcd", pcd("binary_compressed")[:-1], "its compressed points unpack to 999 bytes, not 1000"),
        ("npy", numpy_file(ROWS)[:-8], "it announces an array of shape (50, 6), which is more than it holds"),
        ("npy", b"no array", "it is no array of numpy's"),
        ("npy", numpy_file(ROWS[0]), "its array is of shape (6,)"),
        ("npy", numpy_file(ROWS.astype("U8")), "a table of numbers is needed"),
        ("npy", numpy_file(ROWS[:0]), "it holds no points"),
        ("npz", b"no archive", "it is no .npz file"),
        ("npz", archive(labels=ROWS), "it has no array xyz or points or"),
        ("npz", archive(xyz=XYZ, rgb=RGB[:9]), "its coordinates are of shape (50, 3), its colours of (9, 3)"),
        ("off", b"OFF\n", "it is no .off file that can be read"),
        ("obj", b"# nothing\n", "it holds neither faces nor points"),
        ("obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "its 1 faces have no area"),
        ("stl", RANDOM.bytes(300), ""),
        ("glb", b"glTF" + bytes(9), "it is no .glb file"),
        ("glb", RANDOM.bytes(300), "it is no .glb file"),
        ("ply", trimesh.creation.box().export(file_type="ply")[:-30], "it is no .ply file that can be read"),
    ],
)
def test_what_is_no_cloud_is_one_sentence(suffix, data, words, file):
    reason = wrong(file(suffix, data))
    assert words in reason and "\n" not in reason


def test_what_is_no_file_is_one_sentence(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "loop.ply").symlink_to("loop.ply")
    assert wrong(tmp_path / "none.ply") == "the file does not exist"
    assert wrong(tmp_path / "folder.txt") == "it is a folder, not a file"
    assert wrong(tmp_path / "a.jpg").startswith(
        ".jpg is no kind of point cloud; possible: .glb, .las, .laz, .npy"
    )
    assert wrong(tmp_path / "loop.ply").startswith("the file cannot be read")


HUGE = 10**12
BOASTS = {
    "ply": b"ply\nformat binary_little_endian 1.0\nelement vertex %d\nproperty float x\nproperty float y\n"
           b"property float z\nend_header\n" % HUGE,
    "ascii.ply": b"ply\nformat ascii 1.0\nelement vertex %d\nproperty float x\nend_header\n1 2 3\n" % HUGE,
    "faces.ply": b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nelement face %d\n"
                 b"property list uchar int i\nend_header\n1 2 3\n" % HUGE,
    "pcd": pcd("binary").replace(b"POINTS 50", b"POINTS %d" % HUGE),
    "ascii.pcd": pcd("ascii").replace(b"POINTS 50", b"POINTS %d" % HUGE),
    "small.pcd": pcd("binary_compressed").replace(b"POINTS 50", b"POINTS %d" % HUGE),
    "npy": numpy_file(ROWS).replace(b"(50, 6), }" + b" " * 11, b"(%d, 6), }" % HUGE),
    "pts": b"%d\n1 2 3\n" % HUGE,
    "off": b"OFF\n%d %d 0\n0 0 0\n" % (HUGE, HUGE),
    "stl": bytes(80) + struct.pack("<I", 2**32 - 1) + bytes(50),
}  # fmt: skip


@pytest.mark.parametrize("suffix", BOASTS)
def test_a_header_that_announces_a_billion_kilobytes_allocates_nothing(suffix, file):
    path = file(suffix, BOASTS[suffix])
    with pytest.raises(ItemError):
        read(path)  # once without counting, because it may import
    tracemalloc.start()
    try:
        with pytest.raises(ItemError):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


class Harm:
    """What would run if it were unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_nothing_is_ever_unpickled(file):
    objects = np.array([[Harm()] * 6], dtype=object)
    assert "Python objects, which are never unpickled" in wrong(file("npy", numpy_file(objects)))
    assert "Python objects, which are never unpickled" in wrong(file("npz", archive(xyz=objects)))
    packed_up = io.BytesIO()
    with zipfile.ZipFile(packed_up, "w") as made:
        made.writestr("xyz.npy", pickle.dumps(Harm()))
    assert "it is no array of numpy's" in wrong(file("npz", packed_up.getvalue()))


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused(file, monkeypatch):
    monkeypatch.setattr("pipeline.media.clouds.arrays.LARGEST_BYTES", 100_000)
    zeros = file("npz", archive(xyz=np.zeros((10_000, 6))))
    assert "xyz.npy unpacks to 480128 bytes; at most" in wrong(zeros)
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.media.clouds.arrays.SMALL_BYTES", 100_000)
    assert "unpacks to 480128; over 100000 bytes at most 100 times what is stored is read" in wrong(zeros)
    scan = np.random.default_rng(0).random((10_000, 6)).astype(np.float32)
    assert read(file("npz", archive(xyz=scan))).points == 10_000


# LZF -------------------------------------------------------------------------------------------------


def test_repetitions_in_lzf_may_overlap_what_they_write():
    assert expand(bytes([2]) + b"abc" + bytes([(7 << 5), 3, 2]), 15) == b"abcabcabcabcabc"
    assert expand(bytes([0]) + b"a" + bytes([(1 << 5), 0]), 4) == b"aaaa"


@given(st.binary(max_size=300))
def test_lzf_gives_back_what_was_packed_and_damage_is_named(data):
    assert expand(lzf(data), len(data)) == data
    for packed_up, size in ((lzf(data)[:-1], len(data)), (lzf(data), len(data) + 1)):
        if data:
            with pytest.raises(Exception, match="its compressed points"):
                expand(packed_up, size)


def test_lzf_that_repeats_what_was_never_there_is_damaged():
    with pytest.raises(Exception, match="its compressed points are damaged"):
        expand(bytes([(1 << 5), 9]), 3)


# meshes ----------------------------------------------------------------------------------------------


def ball(colours: bool = True) -> trimesh.Trimesh:
    made = trimesh.creation.icosphere(subdivisions=3)
    if colours:
        red = np.where(made.vertices[:, :1] > 0, 255, 0)
        made.visual.vertex_colors = np.concatenate([red, 0 * red, 0 * red, 0 * red + 255], axis=1).astype(
            np.uint8
        )
    return made


def exported(mesh: trimesh.Trimesh | trimesh.Scene, suffix: str) -> bytes:
    out = mesh.export(file_type=suffix)
    return out.encode() if isinstance(out, str) else out


@pytest.mark.parametrize("suffix", ["off", "obj", "stl", "glb", "ply"])
def test_points_of_a_mesh_lie_on_it_everywhere_alike_and_are_the_same_for_a_seed(suffix, file):
    path = file(suffix, exported(ball(suffix in ("obj", "glb", "ply")), suffix))
    cloud = read(path, mesh_points=4000, seed=3)
    assert len(cloud.xyz) == 4000 and cloud.remarks[-1] == "4000 points were drawn from 1280 faces"
    assert np.abs(np.linalg.norm(cloud.xyz, axis=1) - 1).max() < 0.01
    octants = np.bincount((cloud.xyz > 0) @ [1, 2, 4], minlength=8)
    assert octants.min() > 400 and octants.max() < 600
    np.testing.assert_array_equal(read(path, mesh_points=4000, seed=3).rows, cloud.rows)
    assert not np.array_equal(read(path, mesh_points=4000, seed=4).xyz, cloud.xyz)
    if suffix in ("obj", "glb", "ply"):
        assert cloud.rgb is not None
        sides = np.abs(cloud.xyz[:, 0]) > 0.2
        np.testing.assert_array_equal((cloud.rgb[:, 0] > 127)[sides], (cloud.xyz[:, 0] > 0)[sides])
    else:
        assert cloud.rgb is None


def test_a_large_face_gets_more_points_than_a_small_one(file):
    text = b"v 0 0 0\nv 3 0 0\nv 0 3 0\nv 0 0 9\nv 1 0 9\nv 0 1 9\nf 1 2 3\nf 4 5 6\n"
    high = read(file("obj", text), mesh_points=10_000).xyz[:, 2] > 5
    assert abs(high.mean() - 0.1) < 0.015


def test_a_scene_of_several_parts_is_one_cloud_with_each_in_its_place(file):
    there = trimesh.transformations.translation_matrix([5, 0, 0])
    scene = trimesh.Scene([trimesh.creation.box(), trimesh.creation.box(transform=there)])
    cloud = read(file("glb", exported(scene, "glb")), mesh_points=1000)
    assert cloud.xyz[:, 0].min() < 0 and cloud.xyz[:, 0].max() > 5


def test_a_face_with_a_corner_that_is_not_finite_gets_no_points(file):
    text = b"OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\nnan 0 0\n3 0 1 2\n3 0 1 3\n"
    cloud = read(file("off", text), mesh_points=100)
    assert (len(cloud.xyz), cloud.dropped) == (100, 0)


def test_materials_that_an_obj_refers_to_are_not_read(file, tmp_path):
    (tmp_path / "secret.mtl").write_text("newmtl a\nKd 1 0 0\n")
    text = b"mtllib secret.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl a\nf 1 2 3\n"
    cloud = read(file("obj", text), mesh_points=10)
    assert cloud.rgb is None and cloud.remarks[0] == "the materials it refers to are not read"


def test_faces_materials_and_pictures_give_points_their_colours(file):
    box = trimesh.creation.box()
    box.visual.face_colors = (
        np.where(box.triangles_center[:, 2:] > 0.4, 200, 10).repeat(4, axis=1).astype(np.uint8)
    )
    cloud = read(file("ply", exported(box, "ply")), mesh_points=500)
    np.testing.assert_array_equal(cloud.rgb, np.where(cloud.xyz[:, 2:] > 0.4999, 200, 10).repeat(3, axis=1))
    quad = {
        "vertices": [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]],
        "faces": [[0, 1, 2], [0, 2, 3]],
        "process": False,
    }
    plain = trimesh.visual.material.PBRMaterial(baseColorFactor=[10, 20, 30, 255])
    visual = trimesh.visual.TextureVisuals(material=plain)
    cloud = read(file("glb", exported(trimesh.Trimesh(**quad, visual=visual), "glb")), mesh_points=9)
    np.testing.assert_array_equal(cloud.rgb, np.tile([10, 20, 30], (9, 1)))
    picture = Image.new("RGB", (64, 64), (255, 0, 0))
    picture.paste((0, 255, 0), (32, 0, 64, 64))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
    visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material)
    data = exported(trimesh.Trimesh(**quad, visual=visual), "glb")
    cloud = read(file("glb", data), mesh_points=500)
    left = cloud.xyz[:, 0] < 0.45
    assert cloud.rgb is not None and (cloud.rgb[left] == [255, 0, 0]).all() and left.any()
    assert (cloud.rgb[cloud.xyz[:, 0] > 0.55] == [0, 255, 0]).all()
    bomb = data.replace(
        struct.pack(">II", 64, 64), struct.pack(">II", 60_000, 60_000)
    )  # the picture's own header
    assert bomb != data
    assert wrong(file("glb", bomb), mesh_points=5) == "the picture of its colours cannot be read"


def glb(tree: dict) -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    return b"glTF" + struct.pack("<III", 2, 20 + len(text), len(text)) + b"JSON" + text


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            {"buffers": [{"uri": "../../etc/passwd", "byteLength": 9}]},
            "it refers to another file, '../../etc/passwd'",
        ),
        (
            {"images": [{"uri": "http://example.org/a.png"}]},
            "it refers to another file, 'http://example.org/a.png'",
        ),
        ({"accessors": [{"count": HUGE}]}, f"it announces {HUGE} values that it does not hold"),
        ({}, "it holds neither faces nor points"),
        (
            {"meshes": 5, "nodes": [{"mesh": 0}], "scenes": [{"nodes": [0]}]},
            "it is no .glb file that can be read",
        ),
    ],
)
def test_a_glb_that_does_not_stand_alone_is_refused(tree, words, file):
    assert words in wrong(file("glb", glb({"asset": {"version": "2.0"}} | tree)))


@pytest.mark.parametrize("suffix", ["ply", "off", "obj", "stl", "glb", "pcd", "npy", "npz", "txt"])
def test_damage_anywhere_is_either_read_or_one_sentence(suffix, file):
    good = exported(ball(False), suffix) if suffix in ("off", "obj", "stl", "glb") else {
        "ply": ply("binary_little_endian"), "pcd": pcd("binary_compressed"), "npy": numpy_file(ROWS),
        "npz": archive(xyz=XYZ, rgb=RGB), "txt": table()}[suffix]  # fmt: skip
    random = np.random.default_rng(5)
    for turn in range(24):
        data = bytearray(good)
        reach = len(data) if turn % 2 else min(len(data), 400)
        for place in random.integers(0, reach, 8):
            data[place] = random.integers(0, 256)
        path = file(suffix, bytes(data[: random.integers(1, len(data))] if turn % 4 == 0 else data))
        try:
            assert len(read(path, mesh_points=10).xyz) > 0
        except ItemError as error:
            assert error.reason and "\n" not in error.reason


@pytest.mark.parametrize(
    "text", ["", "x y", "x y z r", "x x y z", "0 1", "0 1 1", "0 1 2 3", "red green blue"]
)
def test_columns_that_name_nothing_are_one_sentence(text):
    with pytest.raises(ValueError, match="columns are 'auto', the names of a file's columns"):
        parse_columns(text)


# lines and headers that would be read as other numbers ------------------------------------------------

ODD = Path(__file__).parent / "odd_clouds"


def test_a_line_with_a_byte_inside_a_number_is_left_out_and_named():
    path = ODD / "byte_inside_a_number.xyz"
    cloud = read(path)
    assert (len(cloud.xyz), cloud.points, cloud.dropped, cloud.odd) == (159, 160, 1, 1)
    assert cloud.doubts == ("line 151 has 7 columns, the file has 6; it is left out",) == cloud.remarks
    lines = [line for n, line in enumerate(path.read_bytes().split(b"\n")[:160], start=1) if n != 151]
    right = np.array([[float(word) for word in line.split()] for line in lines])
    np.testing.assert_array_equal(cloud.rows, right)


DECIMALS = {
    "spaces": b"-0,458 0,877 0,699 104 13 107", "tabs": b"-0,458\t0,877\t0,699", "semicolons": b"0,5;1,5;2,5",
    "a comma and a space": b"0,5, 1,5, 2,5", "whole ones among them": b"1 2 0,5", "an exponent": b"1,5e-3 2 3",
}  # fmt: skip


@pytest.mark.parametrize("kind", DECIMALS)
@pytest.mark.parametrize("before", [b"", b"# x,y,z 1,5 2\n\nx y z\n", b"1 2 3\n\r\n"])
def test_decimal_commas_are_refused_with_their_line(file, kind, before):
    number = before.count(b"\n") + 1
    assert wrong(file("txt", before + DECIMALS[kind] + b"\n")).startswith(f"line {number}: ")
    assert "has a decimal comma; numbers need decimal points" in wrong(
        file("txt", before + DECIMALS[kind] + b"\n")
    )


@pytest.mark.parametrize(
    "row",
    [
        b"1,2,3",
        b"1,2,3,4,5,6",
        b"1.5,2.5,3.5 255 0 0",
        b"1, 2, 3",
        b"1 , 2 , 3",
        b"1,2,3 4,5,6",
        b"0.5,-1,2",
        b"1;2;3",
    ],
)
def test_commas_between_numbers_are_none_inside_them(file, row):
    cloud = read(file("txt", row + b"\n" + row + b"\n"))
    assert cloud.points == 2 and cloud.doubts == ()


def test_german_numbers_of_a_scanner_are_refused():
    assert (
        wrong(ODD / "decimal_commas.xyz")
        == "line 1: '0,458' has a decimal comma; numbers need decimal points"
    )


def test_lines_of_other_widths_are_left_out_or_the_file_is_refused(file):
    good = b"1 2 3 4 5 6 7\n" * 200
    cloud = read(file("txt", good + b"1 2 3 4 5 6\n" + b"8 8 8 8 8 8 8 8\n" + good))
    assert (cloud.points, cloud.odd) == (402, 2) and not (cloud.xyz == 8).any()
    assert cloud.doubts[0] == "line 201 has 6 columns, the file has 7; it is left out"
    assert wrong(file("txt", good + b"1 2 3 4 5 6 7 8\n" * 5)).startswith(
        "line 201 has 8 columns, the file has 7; 5 of 205 lines"
    )
    assert wrong(file("txt", good + b"1 2 3\n")) == "line 201 has 3 columns; x y z r g b needs 6"
    first = read(file("txt", b"9 9 9 9 9 9 9 9\n" + good))
    assert first.odd == 1 and first.doubts[0].startswith("line 1 has 8 columns, the file has 7")


def test_a_header_that_announces_fewer_points_than_there_are_is_refused(file):
    text = ply("ascii")
    assert "it announces 10 points, and has 50 rows" in wrong(
        file("ply", text.replace(b"vertex 50", b"vertex 10"))
    )
    for order in ("binary_little_endian", "binary_big_endian"):
        assert "it announces 10 points, " in wrong(
            file("ply", ply(order).replace(b"vertex 50", b"vertex 10"))
        )
    for storage in ("ascii", "binary"):
        found = re.sub(rb"(WIDTH|POINTS) 50", rb"\1 10", pcd(storage))
        assert re.search(r"it announces 10 points and has (room for )?50", wrong(file("pcd", found)))
    data = numpy_file(ROWS)
    assert b"(50, 6), }" in data
    assert "and holds 1920 bytes more" in wrong(file("npy", data.replace(b"(50, 6), }", b"(10, 6), }")))
    assert read(file("ply", ply("binary_little_endian") + b"\n\0\0")).points == 50  # what fills a file up


def test_a_line_of_a_ply_with_more_columns_than_its_header_names_is_refused(file):
    lines = ply("ascii").split(b"\n")
    place = lines.index(b"end_header") + 3
    lines[place] = lines[place].replace(b" ", b" 1 ", 1)
    assert re.search(
        rf"line {place + 1} has \d columns, its header names \d", wrong(file("ply", b"\n".join(lines)))
    )


@pytest.mark.parametrize("head", [b"OFF\n# made by hand\n", b"OFF ", b"OFF"])
def test_an_off_file_has_as_many_lines_as_its_header_announces(file, head):
    body = b"0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    assert read(file("off", head + b"3 1 0\n" + body)).points == 20_000
    for counts in (
        b"2 1 0\n",
        b"4 1 0\n",
        b"3 2 0\n",
    ):  # with two vertices trimesh takes the third for a face
        with pytest.raises(ItemError, match="and has 4 lines: its header is wrong or it is truncated"):
            read(file("off", head + counts + body))
    commented = file("off", b"OFF 3 1 0\n0 0 0 # a corner\n\n" + body.partition(b"\n")[2])
    with pytest.raises(ItemError, match="it announces 1 faces and none of them can be read; remove its comm"):
        read(commented)


@pytest.mark.parametrize(
    ("line", "lost"), [(b"\xff2.5 1 2", "\\xff"), (b"1 2.5\x10 2", "\\x10"), (b"1 \x952.5 2", "\\x95")]
)
def test_a_byte_that_may_have_replaced_a_digit_is_named_by_line(file, line, lost):
    rows = [b"0.5 1 2"] * 200
    rows[50] = line
    with pytest.raises(ItemError, match=rf"line 51: the byte b'\{lost}' stands at the end of a number"):
        read(file("txt", b"\n".join(rows)))
    rows[50] = b"0.5\x101 2"  # between two numbers it is a separator, as in S3DIS
    assert read(file("txt", b"\n".join(rows))).points == 200


@pytest.mark.parametrize("suffix", ["npy", "npz", "ply", "txt"])
def test_a_pointer_under_any_suffix_is_named(file, suffix):
    with pytest.raises(ItemError, match="it is a Git LFS pointer"):
        read(file(suffix, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"))


@pytest.mark.parametrize("line", [0, 3])
@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("0..5", "'0..5' is not a number"),
        ("0.5-0.25", "'0.5-0.25' is not a number"),
        ("0.1D+05", "'0.1D+05' is not a number"),
        ("\N{MINUS SIGN}0.5", "'\N{MINUS SIGN}' (minus sign) is part of no number"),
        ("\N{EN DASH}0.5", "'\N{EN DASH}' (en dash) is part of no number"),
        ("0.\u0665", "'\u0665' (arabic-indic digit five) is part of no number"),
        ("\uff10.5", "'\uff10' (fullwidth digit zero) is part of no number"),
    ],
)
def test_a_number_that_no_program_writes_is_named_by_line_in_the_first_line_too(tmp_path, word, named, line):
    """The first line was taken for a header, and a minus of word processors for a separator: -0.5 became 0.5."""
    rows = [f"{n}.5 0.25 0.75 1 2 3" for n in range(10)]
    rows[line] = f"{word} 0.25 0.75 1 2 3"
    path = tmp_path / "a.txt"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    with pytest.raises(ItemError) as refused:
        read(path)
    assert f"line {line + 1}: {named}" in str(refused.value)


def test_characters_that_are_no_part_of_a_number_still_separate_and_name_columns(tmp_path):
    path = tmp_path / "a.txt"
    rows = [f"{n}.5\u00a00.25 \u00a00.75" for n in range(10)]
    text = "\n".join(["H\u00f6he \N{EN DASH} x y z, gemessen", *rows, "# gr\u00f6\u00dfe \N{MINUS SIGN}5"])
    path.write_text(text, encoding="utf-8")
    assert read(path).xyz[9].tolist() == [9.5, 0.25, 0.75]
