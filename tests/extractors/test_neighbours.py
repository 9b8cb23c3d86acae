"""Neighbours of points: the nearest, and those within a radius, against all distances at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractors.backbones import neighbours
from extractors.backbones.neighbours import ball, nearest, slices


def points(count: int, channels: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(seed))


def sets(index: torch.Tensor) -> torch.Tensor:
    return index.sort(1).values


def all_distances(features: torch.Tensor, k: int) -> torch.Tensor:
    """The twin: every distance in float64."""
    return torch.cdist(
        features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).topk(k, largest=False)[1]


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(("count", "k"), [(300, 20), (50, 1), (20, 20)])
def test_neighbours_are_those_of_all_distances(channels, count, k):
    found = nearest(points(count, channels), k)
    assert found.shape == (count, k) and found.dtype == torch.int64
    assert torch.equal(sets(found), sets(all_distances(points(count, channels), k)))
    assert (found == torch.arange(count)[:, None]).any(1).all()  # a point is its own neighbour


@pytest.mark.parametrize("channels", [3, 64])
def test_neighbours_do_not_depend_on_where_the_cloud_is(channels):
    """By products of the coordinates as they are, nearly all of these rows change at this distance."""
    cloud = (points(400, channels) * 1024).round() / 1024
    assert torch.equal(sets(nearest(cloud + 1000, 12)), sets(nearest(cloud, 12)))


@pytest.mark.parametrize("channels", [3, 64])
def test_points_in_another_order_have_the_same_neighbours(channels):
    cloud, order = points(200, channels), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sets(order[nearest(cloud[order], 9)]), sets(nearest(cloud, 9))[order])


def test_rows_at_a_time_change_no_neighbour(monkeypatch):
    whole = nearest(points(333, 64), 7)
    monkeypatch.setattr(neighbours, "ON_CPU", 333 * 10)
    assert torch.equal(sets(nearest(points(333, 64), 7)), sets(whole))


def test_no_more_numbers_are_in_memory_than_there_is_room_for():
    found = list(slices(10_000, 10_000, torch.device("cpu")))
    assert all((rows.stop - rows.start) * 10_000 <= neighbours.ON_CPU for rows in found)
    assert [row for rows in found for row in range(rows.start, rows.stop)] == list(range(10_000))
    assert list(slices(2, 1 << 40, torch.device("cpu"))) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("channels", [3, 64])
def test_points_that_coincide_are_one_anothers_neighbours(channels):
    cloud = points(40, channels).repeat_interleave(6, 0)
    apart = (cloud[nearest(cloud, 6)] - cloud[:, None]).abs()
    assert apart.max() == 0


def all_within(points: np.ndarray, centres: np.ndarray, radius: float, count: int) -> np.ndarray:
    """The twin: of each centre all distances, in exact numbers."""
    rows = []
    for centre in centres:
        squares = ((points.astype(np.float64) - centre.astype(np.float64)) ** 2).sum(1)
        inside = np.flatnonzero(squares <= float(np.float32(radius**2)))[:count]
        rows.append([*inside, *[inside[0]] * (count - len(inside))])
    return np.array(rows)


@pytest.mark.parametrize("radius", [0.05, 0.2, 5.0])
@pytest.mark.parametrize("pairs", [1, 1000, 1 << 22])
def test_groups_are_the_first_points_within_the_radius(monkeypatch, radius, pairs):
    monkeypatch.setattr(neighbours, "PAIRS", pairs)
    cloud = np.random.default_rng(0).random((300, 3), dtype=np.float32)
    found = ball(cloud, cloud[::7], radius, 16)
    np.testing.assert_array_equal(found, all_within(cloud, cloud[::7], radius, 16))


def test_a_point_on_the_sphere_counts_and_one_behind_it_does_not():
    cloud = np.array([[0, 0, 0], [0.5, 0, 0], [np.nextafter(np.float32(0.5), 1), 0, 0]], np.float32)
    np.testing.assert_array_equal(ball(cloud, cloud[:1], 0.5, 4), [[0, 1, 0, 0]])
    # In float32 0.01 is a little less, and 0.1 a little more: that point lies outside, the one before it inside.
    cloud[1:, 0] = np.nextafter(np.float32(0.1), 0), 0.1
    np.testing.assert_array_equal(ball(cloud, cloud[:1], 0.1, 3), [[0, 1, 0]])
