"""Which frames are taken: the pages' rules, against loops that state them one position at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media.sampling import (
    average_fps,
    gare_candidates,
    neighborretr_candidates,
    select,
    uniform_positions,
)


@pytest.mark.parametrize(("total", "wanted"), [(1, 3), (5, 5), (7, 3), (100, 12)])
def test_uniform_positions_are_sorted_inside_and_symmetric(total, wanted):
    found = uniform_positions(total, wanted)
    assert found.shape == (wanted,) and (np.diff(found) >= 0).all() and found[0] >= 0 and found[-1] < total
    if total == wanted:
        np.testing.assert_array_equal(found, np.arange(total))


def test_the_rate_of_a_compressed_video_is_what_it_was_compressed_to():
    for fps in (1, 3, 25, 29.97):
        assert average_fps(np.arange(7) / fps) == pytest.approx(fps, abs=1e-3)
    assert average_fps(np.arange(100) / 3) == 3.0  # not 2.9999..., whose floor is 2
    assert average_fps(np.array([0.0])) == 1.0


def neighborretr_by_the_page(total: int, fps: float, rate: int) -> list[int]:
    """Second by second, as the page's section 2.3 says it."""
    f = int(fps) or 30
    out = []
    for second in range(max(1, math.ceil(total / f))):
        offsets = list(range(0, f, max(1, f // rate)))[:rate]
        out += [second * f + offset for offset in offsets if second * f + offset < total]
    return out


@given(st.integers(1, 300), st.sampled_from([0.5, 1.0, 2.5, 3.0, 10.0, 23.976, 30.0]), st.integers(1, 5))
def test_neighborretr_candidates_are_those_of_the_page(total, fps, rate):
    assert neighborretr_candidates(total, fps, rate).tolist() == neighborretr_by_the_page(total, fps, rate)


@given(st.integers(1, 300), st.sampled_from([0.2, 1.0, 2.5, 3.0, 23.976, 25.0]), st.integers(1, 5))
def test_gare_candidates_begin_with_the_first_frame_and_keep_one_stride(total, fps, rate):
    found = gare_candidates(total, fps, rate).tolist()
    stride = max(1, round(fps / rate))
    assert found == [n for n in range(total) if n % stride == 0]


def test_strides_are_rounded_half_to_even_as_published():
    assert gare_candidates(10, 2.5, 1).tolist() == [0, 2, 4, 6, 8]
    assert gare_candidates(10, 3.5, 1).tolist() == [0, 4, 8]


@pytest.mark.parametrize("how", ["uniform", "head", "slice"])
@given(st.integers(1, 200), st.integers(1, 40))
def test_a_selection_is_sorted_distinct_and_as_many_as_can_be(how, total, count):
    candidates = np.arange(total) * 3 + 1
    found = select(candidates, count, how)
    assert len(found) == min(count, total) and set(found) <= set(candidates)
    assert (np.diff(found) > 0).all()


def test_each_way_of_selecting_takes_its_own():
    candidates = np.arange(10) * 10
    assert select(candidates, 4, "head").tolist() == [0, 10, 20, 30]
    assert select(candidates, 4, "uniform").tolist() == [0, 30, 60, 90]  # both ends
    assert select(candidates, 4, "slice").tolist() == [10, 30, 60, 80]  # the middles of four parts
    with pytest.raises(ValueError, match="no way of selecting frames is called 'tail'"):
        select(candidates, 4, "tail")


def test_a_video_without_frames_has_no_candidates():
    for rule in (gare_candidates, neighborretr_candidates):
        with pytest.raises(ValueError, match="without frames"):
            rule(0, 3.0)
