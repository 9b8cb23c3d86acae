"""RandAugment on tensors: Pillow's pixels, for frames of different levels at once, on whatever device there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from trainers.layers.rand_augment import OPERATIONS, RandAugment
from trainers.layers.rand_augment_tensors import CHANGES, augmented, encoded

INTERPOLATED = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def pictures() -> list[NDArray[np.uint8]]:
    """Noise, a smooth picture, few levels, one level, a dark one."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((40, 24), Image.Resampling.BICUBIC))
    return [noise, smooth, noise // 128 * 100, np.full_like(noise, 7), noise // 9]


def differences(name: str, device: torch.device) -> NDArray[np.int64]:
    """By how many grey levels Pillow's pictures and those of one call on all of them differ."""
    draw = np.random.default_rng(1)
    frames = [picture for picture in pictures() for _ in range(12)]
    levels = [OPERATIONS[name].level(draw.uniform(0, 10), draw.choice([-1, 1])) for _ in frames]
    pairs = zip(frames, levels, strict=True)
    expected = [np.asarray(OPERATIONS[name].apply(Image.fromarray(frame), level)) for frame, level in pairs]
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).to(device)
    computed = CHANGES[name](stacked, levels).permute(0, 2, 3, 1).cpu().numpy()
    return np.abs(computed.astype(np.int64) - np.stack(expected))


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_gives_pillow_s_pictures(name: str) -> None:
    off = differences(name, torch.device("cpu"))
    assert off.max() <= 1 and (off > 0).mean() <= (1e-3 if name in INTERPOLATED else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_gives_pillow_s_pictures(name: str) -> None:
    off = differences(name, torch.device("cuda"))
    assert off.max() <= 1 and (off > 0).mean() <= 0.01


def test_clips_of_different_lengths_get_what_was_drawn_for_each_and_empty_slots_nothing() -> None:
    draw = np.random.default_rng(2)
    frames = draw.integers(0, 256, (40, 4, 16, 20, 3), dtype=np.uint8)
    lengths = draw.integers(0, 5, 40)
    mask = np.arange(4) < lengths[:, None]
    augment = RandAugment()
    draws = [augment.draw(np.random.default_rng(clip)) for clip in range(40)]
    assert {len(drawn) for drawn in draws} == {0, 1, 2, 3, 4}
    found = augmented(torch.from_numpy(frames), torch.from_numpy(mask), encoded(draws, 4)).numpy()
    assert found.dtype == np.uint8
    for clip, length in enumerate(lengths):
        expected = augment(frames[clip, :length], np.random.default_rng(clip))
        off = np.abs(found[clip, :length].astype(int) - expected)
        assert (off > 0).mean() < 0.02 if length else off.size == 0  # a level may tip over a later operation
        assert np.array_equal(found[clip, length:], frames[clip, length:])
