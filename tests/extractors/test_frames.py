"""The stages `frames` and `keyframes`: the right pictures of each video, kept while its frames go by."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from extractors.backbones.pictures import squares
from extractors.base import FrameReader, Unit, WorkOptions
from extractors.frames import Frames, FramesParams
from extractors.keyframes import Keyframes, KeyframesParams, histogram


def film(total: int, seed: int = 0, height: int = 30, width: int = 40) -> np.ndarray:
    """Frames of plain colours, each with noise of its own."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 200, (total, 1, 1, 3))
    return (colours + rng.integers(0, 30, (total, height, width, 3))).astype(np.uint8)


class Clip(Unit):
    """A unit whose compression says the times of its frames."""

    def inputs(self, stage: str) -> dict[str, np.ndarray]:
        assert stage == "compress"
        return {"time": np.arange(int(self.name)) / 3}


def shown(reader: FrameReader, frames: np.ndarray, chunk: int) -> dict[str, np.ndarray]:
    """What a reader makes of a film that is given it in chunks."""
    reader.load(WorkOptions())
    reader.begin(Clip("key", str(len(frames)), Path("none")), "decord")
    for start in range(0, len(frames), chunk):
        part = frames[start : start + chunk]
        assert list(reader.take(part, (start + np.arange(len(part))) / 3)) == []
    ((unit, output),) = reader.end()
    assert unit.key == "key" and output.note == {"decoder": "decord"}
    assert all(reader.fields[name].fits(array.shape) for name, array in output.arrays.items())
    return dict(output.arrays)


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_frames_are_those_at_the_positions_whatever_the_chunks(chunk):
    frames = film(50)
    found = shown(Frames(FramesParams(count=6, size=24)), frames, chunk)
    positions = np.arange(0, 50, 3)[[0, 3, 6, 9, 12, 16]]  # one a second, six of seventeen
    assert found["index"].tolist() == positions.tolist()
    np.testing.assert_array_equal(found["rgb"], squares(frames[positions], 24))
    np.testing.assert_allclose(found["time"], positions / 3, rtol=1e-6)


def test_the_rules_of_the_methods_are_settings():
    def taken(total: int, **settings: object) -> list[int]:
        return Frames(FramesParams(**settings)).positions(np.arange(total) / 3).tolist()

    assert taken(60, count=4, select="head", candidates="neighborretr") == [0, 3, 6, 9]
    assert taken(60, count=4, candidates="neighborretr") == [0, 18, 36, 57]
    assert taken(60, count=4, candidates="all") == [0, 19, 39, 59]
    assert taken(4, count=12) == [0, 3]  # a short video has fewer
    assert taken(1) == [0]


@pytest.mark.parametrize(
    ("total", "count"), [(40, 10), (11, 10), (10, 10), (9, 10), (3, 10), (1, 10), (7, 1)]
)
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_key_frames_are_the_first_and_the_most_salient_in_their_order(total, count, chunk):
    frames = film(total, seed=total)
    found = shown(Keyframes(KeyframesParams(count=count, size=24)), frames, chunk)
    colours = [
        np.stack([np.histogram(frame[..., c], 32, (0, 256))[0] for c in range(3)]) / (30 * 40)
        for frame in frames
    ]
    saliency = [0.0] + [float(np.abs(b - a).sum()) for a, b in itertools.pairwise(colours)]
    best = sorted(range(1, total), key=lambda n: (-saliency[n], n))[: count - 1]
    wanted = sorted([0, *best])
    wanted += [wanted[-1]] * (count - len(wanted))
    assert found["index"].tolist() == wanted
    np.testing.assert_array_equal(found["rgb"], squares(frames[wanted], 24))
    real = min(total, count)
    np.testing.assert_allclose(found["saliency"][:real], [saliency[n] for n in wanted[:real]], atol=1e-6)
    assert (found["saliency"][real:] == 0).all()  # a frame does not differ from itself
    top = sorted(sorted(range(count), key=lambda n: (-found["saliency"][n], n))[:3])
    assert found["top"].tolist() == top


def test_of_equally_salient_frames_the_earlier_ones_are_kept():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    frames = np.stack([black, white] * 10)
    found = shown(Keyframes(KeyframesParams(count=4, size=16)), frames, 5)
    assert found["index"].tolist() == [0, 1, 2, 3] and found["saliency"].tolist() == [0, 6, 6, 6]


def test_key_frames_do_not_depend_on_brightness_order_but_on_change():
    still = np.repeat(film(1), 20, axis=0)
    still[13] = 255 - still[13]
    found = shown(Keyframes(KeyframesParams(count=3, size=16)), still, 6)
    assert found["index"].tolist() == [0, 13, 14] and found["top"].tolist() == [0, 1, 2]


def test_a_histogram_is_of_shares():
    found = histogram(film(1)[0])
    assert found.shape == (3, 32)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_a_long_video_leaves_only_the_frames_that_are_kept_in_memory():
    reader = Keyframes(KeyframesParams(count=3))
    reader.load(WorkOptions())
    reader.begin(Clip("key", "400", Path("none")), "decord")
    for start in range(0, 400, 50):
        list(reader.take(film(50, seed=start), np.arange(50) / 3))
    assert len(reader._best) == 2 and all(c.frame.base is None for c in (reader._first, *reader._best))
