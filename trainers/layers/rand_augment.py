"""RandAugment of whole clips: every frame of a clip goes through the same operations (rand-m7-n4-mstd0.5-inc1).

The operations are Pillow's, as in the published training; grey levels may differ slightly between versions of Pillow.
Axes: T frames, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Frames = NDArray[np.uint8]
Apply = Callable[[Image.Image, float], Image.Image]
Level = Callable[[float, int], float]
Coefficients = Callable[[float, int, int], tuple[float, ...]]
GREY = (128, 128, 128)  # colour of the areas that a geometric operation leaves empty
MAX_MAGNITUDE = 10.0


@dataclass(frozen=True)
class Operation:
    """A change of a frame at a level, and the level for a magnitude in 0..10 and a sign of 1 or -1."""

    apply: Apply
    level: Level


@dataclass(frozen=True)
class RandAugment:
    """Draws operations for a clip and applies them to all its frames.

    `operations` are drawn with replacement, and each is skipped with probability 1/2. The magnitude is drawn from
    N(magnitude, std) and limited to 0..10; the sign, if the operation has one, is positive with probability 1/2.
    """

    magnitude: float = 7.0
    std: float = 0.5
    operations: int = 4

    def __call__(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """The frames (T, H, W, 3) after the same operations on each."""
        images = [Image.fromarray(frame) for frame in frames]
        for name, level in self.draw(rng):
            images = [OPERATIONS[name].apply(image, level) for image in images]
        return np.stack([np.asarray(image) for image in images]) if images else frames

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Names and levels of the operations of one clip, in order."""
        names = list(OPERATIONS)
        drawn = []
        for index in rng.integers(len(names), size=self.operations):
            used, magnitude, sign = (
                rng.random() < 0.5,
                rng.normal(self.magnitude, self.std),
                rng.random() < 0.5,
            )
            name = names[index]
            if used:
                level = OPERATIONS[name].level(float(np.clip(magnitude, 0, MAX_MAGNITUDE)), 1 if sign else -1)
                drawn.append((name, level))
        return drawn


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=GREY)


def _affine(coefficients: Coefficients) -> Apply:
    """The image whose pixel (x, y) is pixel (a x + b y + c, d x + e y + f) of the input."""
    return lambda image, level: image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients(level, image.width, image.height),
        resample=Image.Resampling.BICUBIC,
        fillcolor=GREY,
    )


def _solarize_add(image: Image.Image, added: float) -> Image.Image:
    table = [min(255, i + int(added)) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


def _enhanced(enhance: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """An enhancement whose factor is 1 at magnitude 0 and moves away from 1 as the magnitude grows."""
    return Operation(
        lambda image, factor: enhance(image).enhance(factor), lambda m, sign: 1 + sign * 0.09 * m
    )


def _unleveled(apply: Callable[[Image.Image], Image.Image]) -> Operation:
    return Operation(lambda image, _level: apply(image), lambda _m, _sign: 0.0)


def _signed(apply: Apply, step: float) -> Operation:
    return Operation(apply, lambda m, sign: sign * step * m)


COEFFICIENTS: dict[str, Coefficients] = {
    "ShearX": lambda by, _width, _height: (1, by, 0, 0, 1, 0),
    "ShearY": lambda by, _width, _height: (1, 0, 0, by, 1, 0),
    "TranslateXRel": lambda share, width, _height: (1, 0, share * width, 0, 1, 0),
    "TranslateYRel": lambda share, _width, height: (1, 0, 0, 0, 1, share * height),
}
"""Of the affine operations: a, b, c, d, e and f of a level, for pictures of a width and a height."""

OPERATIONS: dict[str, Operation] = {
    "AutoContrast": _unleveled(ImageOps.autocontrast),
    "Equalize": _unleveled(ImageOps.equalize),
    "Invert": _unleveled(ImageOps.invert),
    "Rotate": _signed(_rotate, 3.0),  # degrees
    "PosterizeIncreasing": Operation(
        lambda image, bits: ImageOps.posterize(image, int(bits)), lambda m, _sign: 4 - int(0.4 * m)
    ),
    "SolarizeIncreasing": Operation(
        lambda image, threshold: ImageOps.solarize(image, int(threshold)),
        lambda m, _sign: 256 - int(25.6 * m),
    ),
    "SolarizeAdd": Operation(_solarize_add, lambda m, _sign: int(11 * m)),
    "ColorIncreasing": _enhanced(ImageEnhance.Color),
    "ContrastIncreasing": _enhanced(ImageEnhance.Contrast),
    "BrightnessIncreasing": _enhanced(ImageEnhance.Brightness),
    "SharpnessIncreasing": _enhanced(ImageEnhance.Sharpness),
    "ShearX": _signed(_affine(COEFFICIENTS["ShearX"]), 0.03),
    "ShearY": _signed(_affine(COEFFICIENTS["ShearY"]), 0.03),
    "TranslateXRel": _signed(_affine(COEFFICIENTS["TranslateXRel"]), 0.045),  # share of the width
    "TranslateYRel": _signed(_affine(COEFFICIENTS["TranslateYRel"]), 0.045),  # share of the height
}
"""The 15 operations of the "increasing" set: the greater the magnitude, the stronger each of them."""
