"""The stage `points`: the golden columns, in the order of selection, and one error a cloud that has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from extractors.base import Output, Unit, WorkOptions
from extractors.points import Points, PointsParams
from pipeline.corpus.contents import RememberedDigests
from pipeline.errors import ItemError, UserError
from pipeline.media.clouds.sampling import farthest_points
from pipeline.settings import fill
from pipeline.store.index import Index

GOLDEN = Path(__file__).parents[3] / "shared/golden/h2arn/pipeline_a"
ROWS = np.random.default_rng(0).integers(-500, 500, (80, 6)) / 8  # exact in float32


def stage(**params: object) -> Points:
    made = Points(PointsParams(**params))
    made.load(WorkOptions())
    return made


def points(path: Path, **params: object) -> np.ndarray:
    output = stage(**params).extract(Unit("key", "name", path), path.parent)
    array: np.ndarray = output.arrays["points"]
    assert Points.fields["points"].fits(array.shape) and array.dtype == np.float32
    return array


@pytest.fixture
def cloud(tmp_path) -> Path:
    np.savetxt(tmp_path / "cloud.txt", ROWS)
    return tmp_path / "cloud.txt"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the folder {GOLDEN} is not there")
@pytest.mark.parametrize("name", ["test.dish_2", "train.cup_01", "train.vase_07"])
def test_the_golden_columns_are_made_exactly(name):
    split, item = name.split(".")
    expected = load_file(GOLDEN / "expected.safetensors")
    path = GOLDEN / f"data/Elephant/pcd_normalize_{split}/{item}/model.txt"
    found = points(path, sample=128)
    np.testing.assert_array_equal(found, expected[f"elephant.{name}.points9"])
    rows = np.loadtxt(path, usecols=range(6))[expected[f"elephant.{name}.fps"]]
    np.testing.assert_array_equal(found[:, :6], rows.astype(np.float32))


def test_farthest_points_come_in_their_order_and_a_small_cloud_whole_in_its_own(cloud):
    np.testing.assert_array_equal(points(cloud, sample=30)[:, :6], ROWS[farthest_points(ROWS[:, :3], 30)])
    for sample in (0, 80, 10_000):
        np.testing.assert_array_equal(points(cloud, sample=sample)[:, :6], ROWS)
    small = points(cloud, sample=2)[:, 6:]  # from 0 to 1 over the points that are kept
    assert small.min() == 0 and small.max() == 1 and set(small.ravel()) == {0, 1}


def test_settings_say_how_a_file_is_read(cloud, tmp_path):
    np.savetxt(tmp_path / "other.txt", ROWS[:, [5, 4, 3, 2, 1, 0]])
    np.testing.assert_array_equal(points(tmp_path / "other.txt", columns="b g r z y x"), points(cloud))
    np.testing.assert_array_equal(
        points(cloud, colour_scale="unit")[:, 3:6], np.float32(points(cloud)[:, 3:6] / 255.0)
    )
    assert not points(cloud, columns="x y z")[:, 3:6].any()
    (tmp_path / "mesh.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    assert len(points(tmp_path / "mesh.obj", mesh_points=50)) == 50
    assert not np.array_equal(points(tmp_path / "mesh.obj", seed=1), points(tmp_path / "mesh.obj", seed=2))


def test_the_note_says_how_many_points_there_were_and_what_was_left_out(tmp_path):
    (tmp_path / "cloud.xyz").write_text("x y z r g b\n1 2 3 4 5 6\nnan 2 3 4 5 6\n7 8 9 4 5 6\n")
    note = stage().extract(Unit("key", "name", tmp_path / "cloud.xyz"), tmp_path).note
    assert note == {"points": 3, "dropped": 1, "coloured": True, "said": ["a header line was skipped"]}


def test_a_cloud_that_cannot_be_used_is_reported_by_its_name_and_the_others_are_made(cloud, tmp_path):
    (tmp_path / "narrow.txt").write_text("1 2 3 4 5\n")
    units = [
        Unit("a", "good", cloud),
        Unit("b", "narrow", tmp_path / "narrow.txt"),
        Unit("c", "also good", cloud),
    ]
    made = {unit.name: result for unit, result in stage().results(units, tmp_path)}
    assert isinstance(made["good"], Output) and isinstance(made["also good"], Output)
    assert isinstance(made["narrow"], ItemError)
    assert str(made["narrow"]).startswith("narrow: it has 5 columns; x y z r g b needs 6")


def test_a_wrong_setting_is_one_sentence():
    with pytest.raises(
        UserError, match=r"points\.columns = 'x y' is not possible: columns are 'auto', the names"
    ):
        fill(PointsParams, {"columns": "x y"}, "points")
    with pytest.raises(UserError, match=r"points\.sample = -1 is not possible"):
        fill(PointsParams, {"sample": -1}, "points")


def test_a_larger_release_of_trimesh_is_another_identity_a_smaller_one_is_not(tmp_path, monkeypatch):
    known = RememberedDigests(Index(tmp_path / "index.sqlite"))
    found = []
    for release in ("5.2.0", "5.9.1", "6.0.0"):
        monkeypatch.setattr("extractors.points.version", lambda name, release=release: release)
        found.append(stage().identity(known))
    assert found[0] == found[1] != found[2]
