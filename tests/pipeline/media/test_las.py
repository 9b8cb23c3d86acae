"""Clouds of laser scanners: files that laspy and lazrs wrote, every kind of record, and files that cannot be used."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from extractors.base import Unit, WorkOptions
from extractors.points import Points, PointsParams
from pipeline.errors import ItemError
from pipeline.media.clouds.read import read

laspy = pytest.importorskip("laspy")
needs_lazrs = pytest.mark.skipif(importlib.util.find_spec("lazrs") is None, reason="needs crossreel[laz]")
WITH_COLOURS = {2, 3, 5, 7, 8, 10}
XYZ = np.array([[500000.25, 4000000.5, 12.75], [500001.0, 4000002.0, -3.5], [500002.5, 4000001.25, 0.0]])
RGB = np.array([[65535, 0, 257], [0, 32896, 65535], [257, 514, 771]], np.uint16)


def written(folder: Path, kind: int, rgb: np.ndarray = RGB, name: str = "scan.las") -> Path:
    header = laspy.LasHeader(point_format=kind, version="1.4" if kind > 5 else "1.3" if kind > 3 else "1.2")
    header.offsets, header.scales = XYZ.min(axis=0), [0.001, 0.001, 0.001]
    las = laspy.LasData(header)
    las.x, las.y, las.z = XYZ.T
    if kind in WITH_COLOURS:
        las.red, las.green, las.blue = rgb.T
    las.write(str(folder / name))
    return folder / name


@pytest.mark.parametrize("kind", range(11))
def test_points_and_colours_of_every_kind_of_record_are_those_that_were_written(tmp_path, kind):
    cloud = read(written(tmp_path, kind))
    np.testing.assert_allclose(cloud.xyz, XYZ, atol=0.0006)
    assert cloud.points == 3 and cloud.dropped == 0
    if kind in WITH_COLOURS:
        np.testing.assert_allclose(cloud.rgb, RGB / 257)
        assert cloud.remarks == ("its colours have 16 bits and were divided by 257",)
    else:
        assert cloud.rgb is None


def test_colours_of_eight_bits_stay_as_they_are_and_may_be_left_out_or_required(tmp_path):
    path = written(tmp_path, 2, np.array([[255, 0, 1]] * 3, np.uint16))
    np.testing.assert_array_equal(read(path).rgb, [[255, 0, 1]] * 3)
    assert read(path, "x y z").rgb is None
    with pytest.raises(ItemError, match="it has no colours: records of the kind 0 hold none"):
        read(written(tmp_path, 0), "x y z r g b")


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, b"LASX", "it is no .las file"),
        (104, b"\x83", "records are of an unknown kind 3 with 20 bytes"),
        (104, b"\x0b", "records are of an unknown kind 11"),
        (105, struct.pack("<H", 3), "records are of an unknown kind 0 with 3 bytes"),
        (107, struct.pack("<I", 2**31), "it announces 2147483648 points and has room for 3"),
        (107, struct.pack("<I", 0), "it holds no points"),
        (96, struct.pack("<I", 2**31), "has room for 0"),
        (131, struct.pack("<d", float("nan")), "none of its 3 points is finite"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_reason(tmp_path, at, value, reason):
    data = bytearray(written(tmp_path, 0).read_bytes())
    data[at : at + len(value)] = value
    (tmp_path / "broken.las").write_bytes(bytes(data))
    with pytest.raises(ItemError, match=reason):
        read(tmp_path / "broken.las")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    data = written(tmp_path, 3).read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.las").write_bytes(data[:length])
        with pytest.raises(ItemError):
            read(tmp_path / "cut.las")


# ---- compressed


def packed(folder: Path, kind: int, points: int = 0, name: str = "scan.laz") -> tuple[Path, Path]:
    """The same cloud as .laz, written by lazrs, and as .las; of `points` random points, or of the three above."""
    path = written(folder, kind)
    if points:
        draw = np.random.default_rng(kind)
        with laspy.open(path) as file:
            las = laspy.LasData(file.header)
        las.x, las.y, las.z = XYZ[:1].T + draw.random((3, points)).round(3) * 50
        if kind in WITH_COLOURS:
            las.red, las.green, las.blue = draw.integers(0, 65536, (3, points), np.uint16)
        las.write(str(path))
    laspy.read(path).write(str(folder / name), laz_backend=laspy.LazBackend.Lazrs)
    return folder / name, path


@needs_lazrs
@pytest.mark.parametrize("kind", range(11))
def test_a_compressed_file_gives_the_cloud_of_the_same_file_uncompressed(tmp_path, kind):
    laz, las = packed(tmp_path, kind, points=60_000)  # more than a chunk of the format, and a block of ours
    assert laz.read_bytes()[104] == 0x80 | kind and laz.stat().st_size < las.stat().st_size
    one, other = read(laz), read(las)
    np.testing.assert_array_equal(one.xyz, other.xyz)
    assert (one.rgb is None) == (kind not in WITH_COLOURS) == (other.rgb is None)
    if one.rgb is not None:
        np.testing.assert_array_equal(one.rgb, other.rgb)
    assert (one.points, one.dropped, one.remarks) == (other.points, other.dropped, other.remarks)
    assert one.points == 60_000


@needs_lazrs
def test_records_are_compressed_or_not_whatever_the_suffix_says(tmp_path):
    laz, las = packed(tmp_path, 3)
    (laz.rename(tmp_path / "packed.las"), las.rename(tmp_path / "plain.laz"))
    for name in ("packed.las", "plain.laz"):
        np.testing.assert_allclose(read(tmp_path / name).xyz, XYZ, atol=0.0006)


@needs_lazrs
def test_colours_of_a_compressed_file_may_be_left_out_or_required(tmp_path):
    assert read(packed(tmp_path, 2)[0], "x y z").rgb is None
    with pytest.raises(ItemError, match="it has no colours: records of the kind 0 hold none"):
        read(packed(tmp_path, 0)[0], "x y z r g b")


@needs_lazrs
def test_a_writer_that_could_not_go_back_put_the_place_of_the_chunks_at_the_end(tmp_path):
    data = bytearray(packed(tmp_path, 0)[0].read_bytes())
    (start,) = struct.unpack_from("<I", data, 96)
    place = bytes(data[start : start + 8])
    data[start : start + 8] = struct.pack("<q", -1)
    (tmp_path / "stream.laz").write_bytes(bytes(data) + place)
    np.testing.assert_allclose(read(tmp_path / "stream.laz").xyz, XYZ, atol=0.0006)


def settings_at(data: bytes) -> int:
    """The place of the record that says how points are packed."""
    return data.index(b"laszip encoded") + 52


@needs_lazrs
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d, start: d.__setitem__(slice(107, 111), struct.pack("<I", 2**31)), "2147483648 points and has room"),
        (lambda d, start: d.__setitem__(slice(107, 111), struct.pack("<I", 30_000)), "records cannot be unpacked"),
        (lambda d, start: d.__setitem__(slice(107, 111), struct.pack("<I", 0)), "it holds no points"),
        (lambda d, start: d.__setitem__(slice(105, 107), struct.pack("<H", 24)), "do not have the 24 bytes"),
        (lambda d, start: d.__setitem__(slice(start, start + 8), struct.pack("<q", 2**40)), "is not in the file"),
        (lambda d, start: d.__setitem__(slice(-4, None), b""), "table of chunks is not in the file|cannot be unpacked"),
        (lambda d, start: d.__setitem__(slice(start + 8, None), b""), "are cut off"),
        (lambda d, start: d.__setitem__(slice(settings_at(d), settings_at(d) + 2), b"\x07\0"), "in a way 7 that"),
        (lambda d, start: d.__setitem__(slice(100, 104), struct.pack("<I", 0)), "does not say how"),
    ],
)  # fmt: skip
def test_a_compressed_file_that_cannot_be_used_is_refused_with_its_reason(tmp_path, damage, reason):
    data = bytearray(packed(tmp_path, 0)[0].read_bytes())
    damage(data, struct.unpack_from("<I", data, 96)[0])
    (tmp_path / "broken.laz").write_bytes(bytes(data))
    with pytest.raises(ItemError, match=reason):
        read(tmp_path / "broken.laz")


@needs_lazrs
def test_records_of_the_header_are_not_looked_for_behind_the_one_that_is_needed(tmp_path):
    data = bytearray(packed(tmp_path, 0)[0].read_bytes())
    data[100:104] = struct.pack("<I", 2**32 - 1)  # their number
    (tmp_path / "scan.laz").write_bytes(bytes(data))
    assert read(tmp_path / "scan.laz").points == 3


@needs_lazrs
def test_damage_on_which_lazrs_panics_is_refused_like_any_other(tmp_path):
    data = bytearray(packed(tmp_path, 7)[0].read_bytes())
    kinds = settings_at(data) + 34 + 6  # of the second part of a record: 11, colours of 6 bytes
    assert data[kinds : kinds + 4] == struct.pack("<HH", 11, 6)
    data[kinds] = 12  # colours and infrared, of 8 bytes
    (tmp_path / "broken.laz").write_bytes(bytes(data))
    with pytest.raises(ItemError, match="its compressed records cannot be unpacked: damaged"):
        read(tmp_path / "broken.laz")


@needs_lazrs
def test_a_table_of_chunks_that_announces_too_many_never_reaches_lazrs(tmp_path):
    """It allocates what the table announces, and aborts the process where there is not so much memory."""
    data = bytearray(packed(tmp_path, 0)[0].read_bytes())
    (start,) = struct.unpack_from("<I", data, 96)
    (table,) = struct.unpack_from("<q", data, start)
    data[table + 4 : table + 8] = struct.pack("<I", 2**32 - 1)
    (tmp_path / "broken.laz").write_bytes(bytes(data))
    with pytest.raises(ItemError, match="announces 4294967295 chunks and the file has no room for them"):
        read(tmp_path / "broken.laz")


@needs_lazrs
def test_a_million_equal_points_are_not_taken_for_a_damaged_header(tmp_path):
    header = laspy.LasHeader(point_format=0, version="1.2")
    las = laspy.LasData(header)
    las.x = las.y = las.z = np.zeros(1_000_000)
    las.write(str(tmp_path / "flat.laz"))
    assert (tmp_path / "flat.laz").stat().st_size < 10_000
    assert read(tmp_path / "flat.laz").points == 1_000_000


@needs_lazrs
def test_a_compressed_file_that_is_cut_is_refused_or_complete_wherever_it_ends(tmp_path):
    data = packed(tmp_path, 3, points=200)[0].read_bytes()
    for length in range(0, len(data), 13):
        (tmp_path / "cut.laz").write_bytes(data[:length])
        with pytest.raises(ItemError):
            read(tmp_path / "cut.laz")


def test_without_lazrs_the_sentence_names_the_extra_and_another_way(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lazrs", None)  # as if it were not installed
    data = bytearray(written(tmp_path, 0).read_bytes())
    data[104] |= 0x80
    (tmp_path / "scan.laz").write_bytes(bytes(data))
    with pytest.raises(ItemError) as error:
        read(tmp_path / "scan.laz")
    assert "it is compressed (LAZ) and lazrs, which unpacks it, is not installed" in str(error.value)
    assert "pip install 'crossreel[laz]'; or unpack it to .las" in str(error.value)


@needs_lazrs
def test_compressed_clouds_are_imported_from_a_folder_checked_and_sampled(tmp_path, crossreel):
    (tmp_path / "clouds").mkdir()
    for kind, name in ((2, "room"), (3, "hall"), (7, "yard")):
        laz, las = packed(tmp_path, kind, points=3000)
        (tmp_path / "clouds" / f"{name}.laz").write_bytes(laz.read_bytes())
        (tmp_path / "clouds" / f"{name}.txt").write_text(f"a {name} with a table\n")
    manifest = tmp_path / "corpus.jsonl"
    ended = crossreel(
        "corpus", "import", "folder", tmp_path / "clouds", "--kind", "pointcloud", "-o", manifest
    )
    assert ended.code == 0, ended.err
    media = [json.loads(line)["media"] for line in manifest.read_text().splitlines()]
    assert sorted(Path(path).name for path in media) == ["hall.laz", "room.laz", "yard.laz"]
    ended = crossreel("corpus", "check", manifest, "--json")
    assert ended.code == 0 and not any(each["level"] == "error" for each in json.loads(ended.out)), ended.out
    (tmp_path / "clouds/hall.laz").write_bytes(laz.read_bytes()[:-9])
    assert "truncated or damaged" in crossreel("corpus", "check", manifest).out
    stage = Points(PointsParams(sample=500))
    stage.load(WorkOptions())
    one, other = (stage.extract(Unit("key", "name", path), tmp_path).arrays["points"] for path in (laz, las))
    assert one.shape == (500, 9)
    np.testing.assert_array_equal(one, other)
