"""Pictures of point clouds: what is near hides what is far, and every view shows the whole cloud."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from flows.results.report.pictures import Pictures
from flows.results.report.shapes import (
    AZIMUTHS,
    ELEVATION,
    OVERSAMPLING,
    PAPER,
    SIDE_PIXELS,
    render,
    shown_colours,
    views,
)
from pipeline.store.fields import Field
from pipeline.store.segments import SegmentWriter

CENTRE = SIDE_PIXELS * OVERSAMPLING // 2
RED, BLUE = (255.0, 0.0, 0.0), (0.0, 0.0, 255.0)


def ball(count: int = 800) -> np.ndarray:
    raw = np.random.default_rng(0).normal(size=(count, 3))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_every_view_is_a_picture_of_the_stated_size() -> None:
    pictures = list(views(np.concatenate([ball(), np.full((800, 6), 90.0)], axis=1)))
    assert [degrees for degrees, _ in pictures] == list(AZIMUTHS)
    for _, jpeg in pictures:
        image = Image.open(io.BytesIO(jpeg))
        assert image.size == (SIDE_PIXELS, SIDE_PIXELS)
        assert np.asarray(image).std() > 10


@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_what_is_nearer_to_the_eye_hides_what_is_behind_it(azimuth: float) -> None:
    turn, tilt = np.radians(azimuth), np.radians(ELEVATION)
    eye = np.array([np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt)])
    seen = render(np.stack([eye, -eye]), np.array([RED, BLUE]), azimuth)
    assert seen[CENTRE, CENTRE].tolist() == [255, 0, 0]
    other = render(np.stack([-eye, eye]), np.array([RED, BLUE]), azimuth)
    assert other[CENTRE, CENTRE].tolist() == [0, 0, 255]


def test_turning_the_cloud_with_the_eye_changes_nothing() -> None:
    points = ball() * (1, 0.5, 2)
    colours = np.full((800, 3), 80.0)
    quarter = np.stack([-points[:, 1], points[:, 0], points[:, 2]], axis=1)
    assert np.mean(render(points, colours, 30) != render(quarter, colours, 120)) < 0.01


def test_moving_or_scaling_the_cloud_changes_nothing() -> None:
    points, colours = ball(), np.full((800, 3), 80.0)
    assert np.mean(render(points, colours, 30) != render(7 * points + 100, colours, 30)) < 0.01


def test_one_point_alone_and_points_of_one_place_are_drawn() -> None:
    for points in (np.zeros((1, 3)), np.zeros((5, 3))):
        assert (render(points, np.zeros((len(points), 3)), 0) != PAPER).any()


def test_colours_are_shown_on_whatever_scale_they_are() -> None:
    whole = np.concatenate([ball(4), [[0, 128, 255]] * 4, ball(4)], axis=1)
    share = whole.copy()
    share[:, 3:6] /= 255
    np.testing.assert_allclose(shown_colours(share), shown_colours(whole))


def test_a_cloud_without_colours_is_shown_by_height() -> None:
    points = np.array([[0.0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    low, high = shown_colours(points)
    assert low.tolist() != high.tolist()


@pytest.fixture
def stored(tmp_path):
    """Where the prepared points of a ball lie."""
    fields = {"points": Field("float32", (None, 9))}
    with SegmentWriter(
        tmp_path / "segments/points/f", tmp_path / "work", "points", "f", {}, fields
    ) as writer:
        writer.append("key", "a ball", {"points": np.tile(ball(), 3).astype(np.float32)}, {})
        path = writer.finish()
    return [str(path), 0]


def test_a_cloud_is_shown_from_around_it_with_words_that_say_so(stored) -> None:
    strip = Pictures(10**6).strip({"key": "key", "points": stored})
    assert [frame.seconds for frame in strip.frames] == list(AZIMUTHS)
    assert strip.described("a ball") == "4 views of a ball, from 30, 120, 210, 300 degrees around it"
    assert strip.seconds == 0 and not strip.reason


def test_pictures_of_clouds_stop_where_the_page_is_full(stored) -> None:
    pictures = Pictures(10**4 // 2)
    assert pictures.strip({"key": "key", "points": stored}).reason == "left out to keep this page small"


def test_a_damaged_segment_costs_its_pictures_alone(stored) -> None:
    with open(stored[0], "r+b") as file:
        file.truncate(100)
    strip = Pictures(10**6).strip({"key": "key", "points": stored})
    assert not strip.frames and strip.reason
