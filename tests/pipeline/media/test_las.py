"""Clouds of laser scanners: files that laspy wrote, every kind of record, and files that cannot be used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ItemError
from pipeline.media.clouds.read import read

laspy = pytest.importorskip("laspy")
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
        (104, b"\x83", "it is compressed"),
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


def test_a_compressed_file_is_refused_with_a_way_out(tmp_path):
    path = written(tmp_path, 0)
    path.rename(tmp_path / "scan.laz")
    with pytest.raises(ItemError, match=r"\.laz is compressed; unpack it to \.las first"):
        read(tmp_path / "scan.laz")
