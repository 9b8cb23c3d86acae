"""Feature files that read other files, or unpack to far more than they are, are refused before a value is read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import ItemError, UserError
from pipeline.features.layouts import bounds
from pipeline.features.layouts.feature_files import FeatureFiles
from pipeline.features.layouts.ms_sl import MsSl

ROWS = np.ones((5, 8), np.float32)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the machine that no import may read, as bytes and as HDF5."""
    (tmp_path / "secret.bin").write_bytes(np.arange(40, dtype="<f4").tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = ROWS
    return tmp_path


def external(group: h5py.Group, folder: Path) -> None:
    group.create_dataset("a", (5, 8), "f4", external=[(str(folder / "secret.bin"), 0, 160)])


def virtual(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((5, 8), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (5, 8))
    group.create_virtual_dataset("a", layout)


def external_link(group: h5py.Group, folder: Path) -> None:
    group["a"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def soft_link(group: h5py.Group, folder: Path) -> None:
    group["a"] = h5py.SoftLink("/good")


def linked_group(group: h5py.Group, folder: Path) -> None:
    group["a"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (external, "keeps its values in another file"),
        (virtual, "is a virtual dataset"),
        (external_link, "is a link to another file"),
        (linked_group, "is a link to another file"),
        (soft_link, "is a link to another name"),
    ],
)
@pytest.mark.parametrize("inside", ["", "group/of/groups"])
def test_hdf5_that_reads_elsewhere_is_refused_in_any_group(secret, make, reason, inside):
    path = secret / "features.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["good"] = ROWS
        make(file.require_group(inside) if inside else file, secret)
    name = f"{inside}/a" if inside else "a"
    with pytest.raises(UserError, match=f"features.h5: '{name}' {reason}.*; only features that lie in"):
        FeatureFiles.open(path, "hdf5")


def test_hdf5_groups_that_hold_each_other_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["one/rows"] = ROWS
        file["one/back"] = file["/"]  # a hard link to what it stands in
    with FeatureFiles.open(tmp_path / "a.h5", "hdf5") as files:
        np.testing.assert_array_equal(files.rows("one/rows"), ROWS)


def test_ms_sl_texts_that_read_elsewhere_are_refused(secret):
    folder = secret / "set"
    visual = folder / "FeatureData" / "clip"
    visual.mkdir(parents=True)
    (folder / "TextData").mkdir()
    ROWS.tofile(visual / "feature.bin")
    (visual / "shape.txt").write_text("5 8")
    (visual / "id.txt").write_text("r0 r1 r2 r3 r4")
    (visual / "video2frames.txt").write_text("{'v': ['r0', 'r1']}")
    for split in ("train", "val", "test"):
        (folder / "TextData" / f"set{split}.caption.txt").write_text("v#enc#0 a dog\n")
    with h5py.File(folder / "TextData" / "texts.hdf5", "w") as file:
        file.create_dataset("v#enc#0", (5, 8), "f4", external=[(str(secret / "secret.bin"), 0, 160)])
    with pytest.raises(UserError, match=r"texts\.hdf5: 'v#enc#0' keeps its values in another file"):
        MsSl.open(folder)
    (folder / "TextData" / "texts.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match=r"texts\.hdf5 cannot be read as HDF5"):
        MsSl.open(folder)


def npy_header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path: Path, head: bytes, megabytes: int) -> Path:
    """An archive of two arrays, a plain one and one of zeros that is packed to a thousandth."""
    np.savez(path, good=ROWS)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=9) as out,
        out.open("bad.npy", "w", force_zip64=True) as file,
    ):
        file.write(head)
        for _ in range(megabytes):
            file.write(bytes(2**20))
    return path


@pytest.mark.parametrize(
    ("shape", "megabytes", "reason"),
    [
        ("(1048576, 512)", 1, r"unpacks to 2,048\.0 MiB; at most|at most 100 times the stored size"),
        ("(163840, 128)", 80, "at most 100 times the stored size is read"),
        ("(5, 8)", 70, r"where an array of shape \(5, 8\) takes"),
        ("(2097152, 512)", 1, r"unpacks to 4,096\.0 MiB; at most 2,048\.0 MiB"),
    ],
)
def test_an_archive_s_array_that_unpacks_to_too_much_is_refused_unread(
    tmp_path, monkeypatch, shape, megabytes, reason
):
    path = archive(tmp_path / "features.npz", npy_header(shape), megabytes)
    with FeatureFiles.open(path, "npz") as files:
        np.testing.assert_array_equal(files.rows("good"), ROWS)
        unpacked = []
        monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda self, key: unpacked.append(key))
        with pytest.raises(ItemError, match=reason):
            files.rows("bad")
    assert not unpacked


def test_a_header_that_announces_gigabytes_of_itself_is_not_read(tmp_path):
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"
    path = archive(tmp_path / "features.npz", head, 20)
    with FeatureFiles.open(path, "npz") as files, pytest.raises(ItemError, match="EOF: reading array header"):
        files.rows("bad")


def test_padding_may_be_as_compressible_as_it_likes_in_arrays_of_usual_size(tmp_path):
    padded = np.zeros((3000, 512), np.float32)  # 6 MB in 6 kB
    padded[:5] = 1
    np.savez_compressed(tmp_path / "a.npz", a=padded)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=padded, compression="gzip", compression_opts=9)
    for layout, name in (("npz", "a.npz"), ("hdf5", "a.h5")):
        with FeatureFiles.open(tmp_path / name, layout) as files:
            np.testing.assert_array_equal(files.rows("a"), padded)


def test_npy_that_announces_more_than_it_holds_takes_no_memory(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy_header("(2147483648, 512)") + bytes(64))
    np.save(tmp_path / "b.npy", ROWS)
    with (
        FeatureFiles.open(tmp_path, "npy") as files,
        pytest.raises(ItemError, match=r"at most 2,048\.0 MiB an array"),
    ):
        files.rows("a")


def test_compressed_hdf5_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "SMALL_BYTES", 2**20)  # else the files would have to be large
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = ROWS
        file.create_dataset("huge", (2**21, 512), "f4", chunks=(1024, 512), compression="gzip")
        file["huge"][:1] = 1
        file.create_dataset("never", (5, 8), "f4")
        zeros = file.create_dataset("zeros", (2**14, 128), "f4", chunks=(2**12, 128), compression="gzip")
        zeros[:] = 0
        # one row asked for, and a chunk of 4 MiB behind it
        file.create_dataset(
            "chunk", (1, 512), "f4", maxshape=(None, 512), chunks=(2**11, 512), compression="gzip"
        )
        file["chunk"][:] = 1
        small = file.create_dataset("deflated", (5, 8), "f4", chunks=(5, 8), compression="gzip")
        small.id.write_direct_chunk((0, 0), zlib_bomb(100))
    with FeatureFiles.open(tmp_path / "a.h5", "hdf5") as files:
        np.testing.assert_array_equal(files.rows("good"), ROWS)
        for name, reason in {
            "huge": "at most 2,048.0 MiB an array", "never": "were never written",
            "zeros": "at most 100 times the stored size", "chunk": "at most 100 times the stored size",
            "deflated": "its chunks of 0.0 MiB are stored in 0.1 MiB",
        }.items():  # fmt: skip
            with pytest.raises(ItemError, match=reason):
                files.rows(name)


def zlib_bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(megabytes)) + packer.flush()


def test_an_array_of_which_chunks_were_never_written_is_no_zeros(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, rows in (("begun", 10), ("whole", 95)):
            file.create_dataset(name, (95, 8), "f4", chunks=(10, 8), compression="gzip")[:rows] = 1
    with FeatureFiles.open(tmp_path / "a.h5", "hdf5") as files:
        assert files.rows("whole").sum() == 95 * 8
        with pytest.raises(
            ItemError, match=r"only 1 of the 10 chunks of its shape \(95, 8\) were ever written"
        ):
            files.rows("begun")


def test_an_array_of_two_names_is_under_both(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = ROWS
        file["b"] = file["a"]
    with FeatureFiles.open(tmp_path / "a.h5", "hdf5") as files:
        assert files.rows("b").shape == files.rows("a").shape == (5, 8)


def test_one_bad_member_of_an_archive_leaves_the_others(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, good=ROWS.astype(np.float16), twice=ROWS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("twice", "another of that name")
    with FeatureFiles.open(path, "npz") as files:
        assert files.rows("good").shape == (5, 8) and files.half(files.names)
        for name, reason in (("readme.txt", "magic string"), ("twice", "2 arrays of this name")):
            with pytest.raises(ItemError, match=reason):
                files.rows(name)


def test_npy_that_holds_more_than_its_header_announces_is_refused(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, ROWS)
        np.save(file, ROWS)
    with (
        FeatureFiles.open(tmp_path / "a.npy", "npy") as files,
        pytest.raises(ItemError, match="damaged or made up"),
    ):
        files.rows("a")


@pytest.mark.parametrize("layout", ["hdf5", "npy", "npz", "safetensors"])
def test_a_file_that_is_something_else_is_named(tmp_path, layout):
    path = tmp_path / f"a.{layout}"
    for content, name in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", r"empty \(0 bytes\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"cannot be read as {layout} \\(it is {name}"):
            FeatureFiles.open(path, layout)
