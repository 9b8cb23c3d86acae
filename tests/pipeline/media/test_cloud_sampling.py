"""Farthest-point sampling against its definition, its two paths against each other, and the nine columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.media.clouds import sampling
from pipeline.media.clouds.sampling import farthest_points, nine_columns

OWN = Path(__file__).parents[2] / "fixtures/h2arn/fps_a.safetensors"
GOLDEN = Path(__file__).parents[4] / "shared/golden/h2arn"


def defined(xyz, count, start=None):
    """The definition, a point at a time, in float32."""
    points = [tuple(map(np.float32, row)) for row in xyz]

    def squared(a, b):
        dx, dy, dz = (p - q for p, q in zip(a, b, strict=True))
        return dx * dx + dy * dy + dz * dz

    centre = tuple(np.float32(np.sum(axis, dtype=np.float32)) / np.float32(len(xyz)) for axis in
                   np.ascontiguousarray(np.asarray(xyz, np.float32).T))  # fmt: skip
    distances = [squared(point, centre) for point in points]
    index = distances.index(max(distances)) if start is None else start
    nearest, taken = [np.float32(1e10)] * len(points), []
    for _ in range(count):
        taken.append(index)
        nearest = [
            min(near, squared(point, points[index])) for near, point in zip(nearest, points, strict=True)
        ]
        index = nearest.index(max(nearest))
    return taken


@pytest.fixture(params=["plain", "pruned"])
def path(request, monkeypatch):
    """Both ways of sampling, whatever the number of points; small leaves, so that a few points fill several."""
    monkeypatch.setattr(sampling, "PRUNED_ABOVE", 0 if request.param == "pruned" else 10**9)
    monkeypatch.setattr(sampling, "LEAF_POINTS", 4)


clouds = st.lists(
    st.tuples(*[st.one_of(st.integers(-3, 3), st.floats(-1e6, 1e6, width=32))] * 3), min_size=1, max_size=30
)


@given(clouds, st.integers(0, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_both_paths_take_what_the_definition_takes_in_its_order(points, count, given_start):
    xyz = np.array(points, np.float32)
    start = len(xyz) - 1 if given_start else None
    expected = defined(xyz, count, start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "LEAF_POINTS", 4)
        for above in (10**9, 0):
            patch.setattr(sampling, "PRUNED_ABOVE", above)
            assert farthest_points(xyz, count, start).tolist() == expected


def test_the_golden_cases_are_taken_exactly(path):
    check_golden(OWN)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"the folder {GOLDEN} is not there")
def test_all_golden_cases_are_taken_exactly():
    assert check_golden(GOLDEN / "fps_a.safetensors") == 9


def check_golden(file: Path) -> int:
    """How many cases a file has, each of which was right."""
    tensors = load_file(file)
    tags = [name.removesuffix(".xyz") for name in tensors if name.endswith(".xyz")]
    for tag in tags:
        xyz, indices = tensors[f"{tag}.xyz"], tensors[f"{tag}.indices"]
        for one, expected in zip(*((xyz, indices) if xyz.ndim == 3 else ([xyz], [indices])), strict=True):
            np.testing.assert_array_equal(farthest_points(one, len(expected)), expected, err_msg=tag)
    return len(tags)


def test_large_clouds_are_pruned_and_lose_nothing_by_it():
    random = np.random.default_rng(0)
    xyz = random.normal(size=(sampling.PRUNED_ABOVE + 1, 3)).astype(np.float32)
    xyz[: len(xyz) // 2] = np.round(xyz[: len(xyz) // 2], 1)  # many points stand in one place
    axes = [np.ascontiguousarray(xyz[:, axis]) for axis in range(3)]
    found = farthest_points(xyz, 300, start=7)
    np.testing.assert_array_equal(found, sampling._plain(axes, 300, 7))


def test_a_start_is_taken_first_and_samples_repeat_where_there_are_too_few(path):
    xyz = np.array([[0, 0, 0], [1, 0, 0], [5, 0, 0]], np.float32)
    assert farthest_points(xyz, 6, start=1).tolist() == [1, 2, 0, 0, 0, 0]
    assert farthest_points(xyz, 0).tolist() == []
    with pytest.raises(ValueError, match="no point to start from"):
        farthest_points(xyz[:0], 3)


def test_moving_and_turning_a_cloud_changes_nothing(path):
    xyz = np.random.default_rng(1).integers(
        -500, 500, (200, 3)
    )  # exact in float32, so that nothing is rounded
    expected = farthest_points(xyz, 60, start=3)
    for other in (xyz + 1000, xyz[:, [2, 0, 1]], -xyz, xyz * 4):
        np.testing.assert_array_equal(farthest_points(other, 60, start=3), expected)


def test_values_whose_squares_are_infinite_in_float32_still_have_an_order(path):
    xyz = np.array([[0, 0, 0], [1e25, 0, 0], [-1e25, 0, 0], [1, 0, 0]], np.float32)
    assert farthest_points(xyz, 3, start=3).tolist() == [3, 1, 2]


def test_the_last_three_columns_run_from_nought_to_one_and_a_flat_axis_is_nought():
    rows = np.array([[1.0, 5, -1, 0.1, 0.2, 0.3, 9], [3, 5, 1, 0.4, 0.5, 0.6, 9], [2, 5, 0.5, 0, 0, 0, 9]])
    found = nine_columns(rows)
    assert found.dtype == np.float32 and found.shape == (3, 9)
    np.testing.assert_array_equal(found[:, :6], rows[:, :6].astype(np.float32))
    np.testing.assert_array_equal(found[:, 6:], np.float32([[0, 0, 0], [1, 0, 1], [0.5, 0, 0.75]]))


@given(st.lists(st.tuples(*[st.floats(-100, 100)] * 6), min_size=1, max_size=20))
def test_nine_columns_do_not_depend_on_the_order_of_the_points(points):
    rows = np.array(points)
    np.testing.assert_array_equal(nine_columns(rows[::-1]), nine_columns(rows)[::-1])
