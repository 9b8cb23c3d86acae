"""RandAugment of clips: what each operation does to pixels, that frames are changed alike, what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from trainers.layers.rand_augment import OPERATIONS, RandAugment

SHARED = Path(__file__).parents[4] / "shared" / "golden" / "gare"
SIGNED = ("Rotate", "Color", "Contrast", "Brightness", "Sharpness", "Shear", "Translate")


def picture(seed: int = 0, height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def applied(name: str, level: float, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(OPERATIONS[name].apply(Image.fromarray(frame), level))


def test_all_frames_of_a_clip_are_changed_alike() -> None:
    clip = np.stack([picture(seed) for seed in range(3)])
    whole = RandAugment()(clip, np.random.default_rng(5))
    single = [RandAugment()(frame[None], np.random.default_rng(5))[0] for frame in clip]
    assert whole.shape == clip.shape and whole.dtype == np.uint8
    assert np.array_equal(whole, np.stack(single)) and not np.array_equal(whole, clip)


def test_clip_without_frames_stays_empty() -> None:
    empty = np.zeros((0, 8, 8, 3), np.uint8)
    assert RandAugment()(empty, np.random.default_rng(0)).shape == empty.shape


def test_draws_repeat_with_their_seed_and_have_the_published_distribution() -> None:
    augment = RandAugment()
    assert augment.draw(np.random.default_rng(3)) == augment.draw(np.random.default_rng(3))
    rng = np.random.default_rng(0)
    clips = [augment.draw(rng) for _ in range(4000)]
    numbers = np.array([len(clip) for clip in clips])
    assert numbers.max() == 4 and numbers.mean() == pytest.approx(2.0, abs=0.06)
    names = [name for clip in clips for name, _ in clip]
    shares = np.array([names.count(name) for name in OPERATIONS]) / len(names)
    assert shares == pytest.approx(np.full(15, 1 / 15), abs=0.012)
    rotations = np.array([level for clip in clips for name, level in clip if name == "Rotate"])
    assert np.abs(rotations).mean() == pytest.approx(21, abs=0.3)
    assert np.abs(rotations).std() == pytest.approx(1.5, abs=0.3) and abs((rotations > 0).mean() - 0.5) < 0.1


def test_magnitude_stays_within_0_and_10() -> None:
    levels = [
        level
        for seed in range(300)
        for name, level in RandAugment(magnitude=9.9, std=5.0).draw(np.random.default_rng(seed))
        if name == "Rotate"
    ]
    assert max(map(abs, levels)) == 30.0


def test_greater_magnitudes_are_stronger_and_signs_turn_what_has_one() -> None:
    levels = {"PosterizeIncreasing": 2, "SolarizeIncreasing": 77, "SolarizeAdd": 77, "ShearX": 0.21}
    levels |= {"Rotate": 21, "ColorIncreasing": 1.63, "TranslateYRel": 0.315}
    for name, level in levels.items():
        assert OPERATIONS[name].level(7.0, 1) == pytest.approx(level)
    for name, operation in OPERATIONS.items():
        assert (operation.level(7.0, 1) != operation.level(7.0, -1)) == name.startswith(SIGNED)
    assert OPERATIONS["BrightnessIncreasing"].level(7.0, -1) == pytest.approx(0.37)


def test_operations_on_grey_levels_are_those_of_a_table() -> None:
    frame = picture()
    wide = frame.astype(int)
    assert np.array_equal(applied("Invert", 0, frame), 255 - frame)
    assert np.array_equal(applied("PosterizeIncreasing", 2, frame), frame & 0b11000000)
    assert np.array_equal(applied("SolarizeIncreasing", 77, frame), np.where(wide < 77, wide, 255 - wide))
    added = np.where(wide < 128, np.minimum(wide + 77, 255), wide)
    assert np.array_equal(applied("SolarizeAdd", 77, frame), added)
    brighter = np.clip(np.floor(wide * 1.5), 0, 255)
    assert np.abs(applied("BrightnessIncreasing", 1.5, frame) - brighter).max() <= 1


def test_translation_moves_the_picture_and_uncovers_grey() -> None:
    frame = picture()
    for name, axis in (("TranslateXRel", 1), ("TranslateYRel", 0)):
        moved = applied(name, 0.25, frame)
        by = frame.shape[axis] // 4
        kept = np.moveaxis(moved, axis, 0)[:-by], np.moveaxis(frame, axis, 0)[by:]
        assert np.array_equal(*kept)
        assert np.all(np.moveaxis(moved, axis, 0)[-by:] == 128)


def test_strength_of_nothing_changes_nothing() -> None:
    frame = picture()
    for name in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"):
        assert np.array_equal(applied(name, 0.0, frame), frame)
    for name in ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"):
        assert np.array_equal(applied(name, 1.0, frame), frame)


def test_shear_keeps_the_first_row_and_rotation_by_half_a_turn_turns() -> None:
    frame = picture()
    assert np.abs(applied("ShearX", 0.2, frame)[0].astype(int) - frame[0]).mean() < 20
    assert np.array_equal(applied("Rotate", 180.0, frame), frame[::-1, ::-1])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the recorded pictures are not beside this checkout")
def test_every_operation_gives_the_recorded_pictures() -> None:
    case = json.loads((SHARED / "preproc_a.json").read_text())["augment"]
    recorded = load_file(SHARED / "preproc_a.tensors.safetensors")
    allowed = 0 if PIL.__version__.startswith("13.") else 8
    for name in case["ops"]:
        for side, sign in (("pos", 1), ("neg", -1)):
            level = OPERATIONS[name].level(float(case["magnitude"]), sign)
            found = applied(name, level, recorded["augment/in"]).astype(int)
            assert np.abs(found - recorded[f"augment/{side}/{name}"]).max() <= allowed, (name, side)
