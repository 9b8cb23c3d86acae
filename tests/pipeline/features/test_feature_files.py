"""Arrays by name: every layout gives the same rows, and what is not rows of numbers is said by name."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.errors import ItemError, UserError
from pipeline.features.layouts.feature_files import FeatureFiles, as_rows, layout_of, match

ROWS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/c": np.ones((4, 3), np.float32),
    "d.1": np.zeros((1, 3), np.float32),
}


def write_folder(folder: Path, layout: str, arrays: dict[str, np.ndarray]) -> Path:
    for name, array in arrays.items():
        path = folder / f"{name}.{layout}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if layout == "npy":
            np.save(path, array)
        elif layout == "npz":
            np.savez_compressed(path, frame=array)
        else:
            save_file({"frame": array}, path)
    return folder


def write_file(path: Path, arrays: dict[str, np.ndarray], dataset: str = "") -> Path:
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name + dataset] = array
    elif path.suffix == ".npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        save_file(arrays, path)
    return path


def require_rows(files: FeatureFiles) -> None:
    assert set(files.names) == set(ROWS) and files.dims(files.names) == 3
    for name, rows in ROWS.items():
        np.testing.assert_array_equal(files.rows(name), rows)


@pytest.mark.parametrize("layout", ["npy", "npz", "safetensors"])
def test_a_folder_is_searched_to_its_depth_and_names_are_paths_without_suffix(tmp_path, layout):
    write_folder(tmp_path, layout, ROWS)
    (tmp_path / f"._a.{layout}").write_bytes(b"what archives of other systems leave")
    with FeatureFiles.open(tmp_path, layout) as files:
        require_rows(files)
    assert layout_of(tmp_path) == layout


@pytest.mark.parametrize("name", ["all.h5", "all.npz", "all.safetensors"])
def test_one_file_holds_an_array_an_item(tmp_path, name):
    path = write_file(tmp_path / name, ROWS)
    with FeatureFiles.open(path, layout_of(path)) as files:
        require_rows(files)


def test_hdf5_groups_give_the_dataset_that_is_named(tmp_path):
    path = write_file(tmp_path / "all.h5", ROWS, "/features")
    with h5py.File(path, "a") as file:
        for name in ROWS:
            file[f"{name}/times"] = np.zeros(9)
    with FeatureFiles.open(path, "hdf5", "features") as files:
        require_rows(files)
    with FeatureFiles.open(path, "hdf5") as files:
        assert "a/features" in files.names and "a/times" in files.names
    with pytest.raises(UserError, match="holds no arrays called 'feature'"):
        FeatureFiles.open(path, "hdf5", "feature")


def test_one_of_several_arrays_of_a_file_is_named_unless_one_alone_has_rows(tmp_path):
    np.savez(tmp_path / "a.npz", frame=ROWS["a"], time=np.zeros(2))
    np.savez(tmp_path / "b.npz", token=ROWS["a"], pooled=ROWS["a"][:1])
    with FeatureFiles.open(tmp_path, "npz") as files:
        np.testing.assert_array_equal(files.rows("a"), ROWS["a"])
        with pytest.raises(ItemError, match="it has 2 arrays, name one; possible: pooled, token"):
            files.rows("b")
    with FeatureFiles.open(tmp_path, "npz", "token") as files:
        np.testing.assert_array_equal(files.rows("b"), ROWS["a"])
        with pytest.raises(ItemError, match="it has no array 'token'; possible: frame, time"):
            files.rows("a")


def test_an_export_is_read_by_the_names_of_its_index(tmp_path):
    write_folder(tmp_path, "npz", {"0f": ROWS["a"]})
    (tmp_path / "index.json").write_text(json.dumps({"files": {"a clip": "0f.npz", "its copy": "0f.npz"}}))
    with FeatureFiles.open(tmp_path, "npz") as files:
        assert set(files.names) == {"a clip", "its copy"}
        np.testing.assert_array_equal(files.rows("its copy"), ROWS["a"])
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is not the index that"):
        FeatureFiles.open(tmp_path, "npz")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 3)), r"shape \(2, 3, 3\), rows of numbers \(T, D\) are needed"),
        (np.zeros((0, 3)), r"it is empty, of shape \(0, 3\)"),
        (np.float32(1), r"the shape \(\)"),
        (np.array([[1, np.nan]]), "it holds NaN or infinity"),
        (np.array([["a"]]), "it holds <U1, numbers are needed"),
        (np.ones((2, 2), bool), "it holds bool"),
    ],
)
def test_what_are_not_rows_of_finite_numbers_is_an_item_s_failure(array, words):
    with pytest.raises(ItemError, match=words):
        as_rows("a", np.asarray(array))


def test_a_vector_is_one_row_and_a_leading_axis_of_one_goes():
    assert as_rows("a", np.zeros(5)).shape == (1, 5)
    assert as_rows("a", np.zeros((1, 4, 5))).shape == (4, 5)
    assert as_rows("a", np.zeros((1, 1, 5))).shape == (1, 5)
    assert as_rows("a", np.zeros((1, 5))).shape == (1, 5)


class Trap:
    """What would happen if it were unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was unpickled",))


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([Trap()], dtype=object)
    np.save(tmp_path / "a.npy", trap)
    np.savez(tmp_path / "b.npz", frame=trap)
    for layout, name in (("npy", "a"), ("npz", "b")):
        with FeatureFiles.open(tmp_path, layout) as files, pytest.raises(ItemError, match="cannot be read"):
            files.rows(name)


@pytest.mark.parametrize("layout", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 60])
def test_a_file_cut_short_is_that_item_s_failure_alone(tmp_path, layout, kept):
    write_folder(tmp_path, layout, ROWS)
    path = tmp_path / f"a.{layout}"
    path.write_bytes(path.read_bytes()[:kept])
    with FeatureFiles.open(tmp_path, layout) as files:
        with pytest.raises(ItemError, match="a: it cannot be read"):
            files.rows("a")
        np.testing.assert_array_equal(files.rows("b/c"), ROWS["b/c"])


@pytest.mark.parametrize("name", ["all.h5", "all.npz", "all.safetensors", "all.npy"])
def test_a_whole_file_that_is_something_else_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"not what the name says, and long enough to have had a head")
    with pytest.raises(UserError, match=f"{name} cannot be read as {layout_of(path)}"):
        FeatureFiles.open(path, layout_of(path))


def test_what_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.npy files"):
        FeatureFiles.open(tmp_path, "npy")
    with pytest.raises(UserError, match="the layout hdf5 is one file"):
        FeatureFiles.open(tmp_path, "hdf5")
    with pytest.raises(UserError, match="does not exist"):
        FeatureFiles.open(tmp_path / "nowhere", "npy")
    path = write_file(tmp_path / "all.npz", ROWS)
    with pytest.raises(UserError, match="there is none to choose with 'frame'"):
        FeatureFiles.open(path, "npz", "frame")
    with pytest.raises(UserError, match="holds no features; files of one kind are needed"):
        (tmp_path / "empty").mkdir()
        layout_of(tmp_path / "empty")
    np.save(tmp_path / "one.npy", ROWS["a"])
    with pytest.raises(UserError, match="holds npy and npz features"):
        layout_of(tmp_path)


def test_most_arrays_say_what_the_width_is_and_all_whether_it_is_half(tmp_path):
    write_folder(tmp_path, "npy", {k: v.astype(np.float16) for k, v in ROWS.items()})
    np.save(tmp_path / "odd.npy", np.ones((2, 7), np.float16))
    with FeatureFiles.open(tmp_path, "npy") as files:
        assert files.dims(files.names) == 3 and files.dims(["odd"]) == 7 and files.dims([]) == 0
        assert files.half(files.names)
    np.save(tmp_path / "wide.npy", np.ones((2, 3), np.float32))
    with FeatureFiles.open(tmp_path, "npy") as files:
        assert not files.half(files.names) and files.half(["odd", "a"])


def test_an_id_is_matched_by_its_equal_then_by_its_stem_if_both_have_it_alone():
    assert match(["a", "x/b.mp4", "c"], ["a", "b", "y/c"]) == {"a": "a", "x/b.mp4": "b", "c": "y/c"}
    assert match(["x/a.mp4", "y/a.mp4"], ["a"]) == {}
    assert match(["a.mp4"], ["x/a", "y/a"]) == {}
    assert match(["a", "x/a"], ["a"]) == {"a": "a"}
    assert match(["take_0.5"], ["take_0.7"]) == {}
    assert match(["a#enc#0"], ["a#enc#0", "a#enc#1"]) == {"a#enc#0": "a#enc#0"}
