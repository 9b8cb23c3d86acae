"""Two sources of one item's rows: what was done to the one is named, whatever the scale and order."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.features.comparing import compare, unit

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 24)).astype(np.float32)


def smooth(rows: int, dims: int = 64, seed: int = 0) -> np.ndarray:
    """Frames of a video: each a little different from the one before."""
    rng = np.random.default_rng(seed)
    steps = 0.15 * rng.normal(size=(rows, dims))
    return (rng.normal(size=dims) + np.cumsum(steps, axis=0)).astype(np.float32)


def test_rows_are_the_same_as_themselves_number_for_number():
    found = compare(ROWS, ROWS.copy())
    assert found.kind == "equal" and found.difference == 0 and found.cosine == pytest.approx(1)
    assert found.verdict == "the same features, number for number" and (found.stride, found.offset) == (1, 0)


def test_rounding_to_float16_is_distinguished_from_other_small_differences():
    found = compare(ROWS, ROWS.astype(np.float16))
    assert found.kind == "float16" and 0 < found.difference < 4e-3
    other = compare(ROWS, ROWS + RNG.normal(scale=0.01, size=ROWS.shape).astype(np.float32))
    assert other.kind == "close" and "small differences" in other.verdict


@pytest.mark.parametrize("factor", [1e-6, 0.5, 3.0, 1e5])
def test_scaling_changes_no_cosine_and_is_named(factor):
    found = compare(ROWS, ROWS * np.float32(factor))
    assert found.kind == "scaled" and found.cosine == pytest.approx(1)
    assert f"{max(factor, 1 / factor):.4g} times as long" in found.verdict


def test_a_normalised_copy_is_the_same_features():
    assert compare(ROWS, unit(ROWS)).kind == "scaled"


@pytest.mark.parametrize("stride", [2, 3, 5, 7])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_few_rows_are_found_with_stride_and_offset(stride, offset):
    found = compare(ROWS, ROWS[offset::stride])
    assert (found.kind, found.stride, found.offset) == ("frames", stride, offset)
    assert found.verdict == f"the same frames at a stride of {stride}" + (", from row 1" if offset else "")


@pytest.mark.parametrize("change", [lambda r: r[::3], lambda r: r * 2, lambda r: r[::-1], lambda r: r[:7]])
def test_sides_may_be_changed(change):
    one, other = compare(ROWS, change(ROWS)), compare(change(ROWS), ROWS)
    assert (one.kind, one.stride, one.offset) == (other.kind, other.stride, other.offset)
    assert one.cosine == pytest.approx(other.cosine) and (one.rows_a, one.rows_b) == (
        other.rows_b,
        other.rows_a,
    )


def test_a_rate_that_is_no_whole_stride_is_found():
    assert compare(ROWS, ROWS[np.floor(np.arange(40) * 1.5).astype(int)]).stride == pytest.approx(1.5)
    spread = np.floor(np.arange(9) * 59 / 8 + 1e-9).astype(int)
    assert compare(ROWS, ROWS[spread]).stride == pytest.approx(59 / 8)


def test_a_cut_or_shifted_copy_is_the_same_frames():
    cut = compare(ROWS, ROWS[:32])
    assert (cut.kind, cut.stride) == ("frames", 1) and "B is 28 rows shorter" in cut.verdict
    shifted = compare(ROWS[:-1], ROWS[1:])
    assert (shifted.kind, shifted.stride, abs(shifted.offset)) == ("frames", 1, 1)


def test_shuffled_rows_are_not_the_same_frames_but_the_same_in_another_order():
    found = compare(ROWS, ROWS[RNG.permutation(len(ROWS))])
    assert found.kind == "reordered" and found.verdict == "the same frames in another order"


def test_shuffled_numbers_are_not_the_same_thing():
    found = compare(ROWS, ROWS[:, RNG.permutation(24)])
    assert found.kind == "different" and found.verdict.startswith("not the same thing (cosine")


def test_other_frames_of_one_video_are_distinguished_from_another_network():
    video = smooth(90)
    noisy = video[:60] + RNG.normal(scale=0.4, size=(60, 64)).astype(np.float32)
    assert compare(video, noisy).kind == "network"
    assert compare(video, smooth(90, seed=1)).kind == "different"


def test_features_after_a_relu_are_alike_by_chance_and_are_still_distinguished():
    one, other = (np.abs(smooth(50, 256, seed)) for seed in (0, 1))
    found = compare(one, other)
    assert found.cosine > 0.5 and found.kind == "different"


def test_rows_of_other_widths_have_no_cosine():
    found = compare(ROWS, ROWS[:, :20])
    assert found.kind == "incomparable" and found.cosine is None and found.difference is None
    assert found.verdict == "not comparable: rows of 24 and of 20 numbers"


def test_one_row_and_a_still_video_are_compared_too():
    assert compare(ROWS[:1], ROWS[:1]).kind == "equal"
    found = compare(ROWS, ROWS[17:18])
    assert (found.kind, found.offset) == ("frames", 17)
    still = np.repeat(ROWS[:1], 30, axis=0)
    assert (compare(still, still[:10]).stride, compare(still, still).kind) == (3, "equal")


def test_rows_of_zeros_are_like_each_other_alone():
    zeros = np.zeros((5, 8), np.float32)
    assert compare(zeros, zeros).kind == "equal"
    assert compare(zeros, RNG.normal(size=(5, 8)).astype(np.float32)).kind == "different"


def test_the_alignment_is_that_of_a_slow_twin():
    def slow(longer, shorter, stride, offset):
        found = []
        for i, row in enumerate(shorter):
            j = int(np.floor(offset + i * stride))
            if 0 <= j < len(longer):
                found.append(longer[j] @ row / np.linalg.norm(longer[j]) / np.linalg.norm(row))
        return float(np.mean(found))

    part = ROWS[2::4] + RNG.normal(scale=0.3, size=ROWS[2::4].shape).astype(np.float32)
    found = compare(ROWS, part)
    tried = {(s, o): slow(ROWS, part, s, o) for s in (1, 2, 3, 4, 5) for o in range(-2, s + 1)}
    assert (found.stride, found.offset) == max(tried, key=tried.__getitem__)
    assert found.cosine == pytest.approx(max(tried.values()), abs=1e-6)
