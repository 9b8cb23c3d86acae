"""Squares of frames: the pixels that torchvision's own steps give, and nothing stretched."""

from __future__ import annotations

import numpy as np
import pytest

from extractors.backbones import torchvision_ops
from extractors.backbones.pictures import squares


@pytest.mark.parametrize(
    "shape", [(240, 426), (398, 224), (224, 224), (3, 5), (100, 101), (1, 1), (225, 224)]
)
@pytest.mark.parametrize("size", [32, 224])
def test_squares_are_those_of_torchvision_on_pillow_images(shape, size):
    torchvision_ops.ensure()
    from PIL import Image
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    twin = Compose([Resize(size, interpolation=InterpolationMode.BICUBIC), CenterCrop(size)])
    expected = [np.asarray(twin(Image.fromarray(frame))) for frame in frames]
    np.testing.assert_array_equal(squares(frames, size), np.stack(expected))


def test_a_frame_of_the_wanted_size_is_left_as_it_is():
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(squares(frames, 64), frames)


def test_a_turned_frame_gives_the_turned_square():
    frames = np.random.default_rng(2).integers(0, 256, (1, 60, 90, 3), dtype=np.uint8)
    turned = squares(np.rot90(frames, axes=(1, 2)).copy(), 32)
    difference = np.abs(np.rot90(squares(frames, 32), axes=(1, 2)).astype(int) - turned)
    assert difference.max() <= 4 and difference.mean() < 0.5  # Pillow rounds between one axis and the other
