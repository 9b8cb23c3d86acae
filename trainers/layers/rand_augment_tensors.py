"""RandAugment of many clips at once, on the device of the training; the pixels are those of `rand_augment`.

What is drawn for a clip is drawn there, so that a training sees the same pictures on either road. Of geometric
operations about one value in 10,000 differs by one grey level, because interpolation is computed in float32.
Axes: N frames of all clips, C = 3 colours, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainers.layers.rand_augment import COEFFICIENTS, GREY, OPERATIONS, Coefficients

Draws = Sequence[Sequence[tuple[str, float]]]
Change = Callable[[Tensor, Sequence[float]], Tensor]
LUMA = (19595, 38470, 7471)  # weights of red, green and blue in Pillow's grey, in parts of 65,536
KINDS = list(OPERATIONS)


def encoded(draws: Draws, operations: int) -> Tensor:
    """The operations of V clips as numbers (V, operations, 2) float64: place in OPERATIONS (-1: none), and level."""
    rows = torch.full((len(draws), operations, 2), -1.0, dtype=torch.float64)
    for clip, drawn in enumerate(draws):
        for slot, (name, level) in enumerate(drawn):
            rows[clip, slot] = torch.tensor([KINDS.index(name), level], dtype=torch.float64)
    return rows


def augmented(frames: Tensor, frame_mask: Tensor, draws: Tensor) -> Tensor:
    """The frames (V, F, H, W, 3) uint8 of V clips after the operations that `encoded` describes.

    Slots that the mask (V, F) bool leaves out stay as they are.
    """
    clips, places = frame_mask.nonzero(as_tuple=True)
    pictures = frames[clips, places].permute(0, 3, 1, 2).contiguous()
    counts, drawn = frame_mask.sum(1).tolist(), draws.tolist()
    of_frame = np.repeat(np.arange(len(counts)), counts)
    for slot in range(draws.shape[1]):
        kinds = np.array([row[slot][0] for row in drawn], np.int64)[of_frame]
        levels = np.array([row[slot][1] for row in drawn])[of_frame]
        for kind in np.unique(kinds[kinds >= 0]):
            (chosen,) = np.nonzero(kinds == kind)
            rows = torch.from_numpy(chosen).to(frames.device)
            pictures[rows] = CHANGES[KINDS[kind]](pictures[rows], levels[chosen].tolist())
    out = frames.clone()
    out[clips, places] = pictures.permute(0, 2, 3, 1)
    return out


def _by_table(name: str) -> Change:
    """An operation that maps each grey level to another one whatever the picture: Pillow's, of a ramp of all levels."""
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))

    def change(frames: Tensor, levels: Sequence[float]) -> Tensor:
        tables = {level: np.asarray(OPERATIONS[name].apply(ramp, level))[0, :, 0] for level in set(levels)}
        table = torch.from_numpy(np.stack([tables[level] for level in levels])).to(frames.device)
        return _mapped(frames, table[:, None].expand(-1, frames.shape[1], -1))

    return change


def _mapped(frames: Tensor, table: Tensor) -> Tensor:
    """Each value through the table (N, C, 256) of its frame and colour."""
    return table.gather(2, frames.flatten(2).long()).view_as(frames)


def _histograms(frames: Tensor) -> Tensor:
    """How often each grey level occurs in each frame and colour, (N, C, 256) int64."""
    n, c = frames.shape[:2]
    first = 256 * torch.arange(n * c, device=frames.device).view(n, c, 1)
    counted = torch.bincount((frames.flatten(2).long() + first).flatten(), minlength=256 * n * c)
    return counted.view(n, c, 256)


def _auto_contrast(frames: Tensor, _: Sequence[float]) -> Tensor:
    """Stretch the levels that occur to 0..255."""
    grey = torch.arange(256, dtype=torch.float64, device=frames.device)
    there = _histograms(frames) > 0
    low = torch.where(there, grey, 256.0).amin(2, keepdim=True)
    high = torch.where(there, grey, -1.0).amax(2, keepdim=True)
    # a division, because `number / tensor` multiplies by a rounded reciprocal
    scale = torch.full_like(high, 255.0) / (high - low)
    table = torch.where(high > low, (grey * scale - low * scale).trunc(), grey)
    return _mapped(frames, table.clamp(0, 255).to(torch.uint8))


def _equalize(frames: Tensor, _: Sequence[float]) -> Tensor:
    """Make the levels about equally frequent, with Pillow's rounding."""
    counts = _histograms(frames)
    grey = torch.arange(256, device=frames.device)
    last = torch.where(counts > 0, grey, -1).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255
    below = counts.cumsum(2) - counts
    table = torch.where(step > 0, (step // 2 + below) // step.clamp(min=1), grey)
    return _mapped(frames, table.clamp(0, 255).to(torch.uint8))


def _grey(frames: Tensor) -> Tensor:
    """Luma, (N, 1, H, W) int32 of 0..255."""
    red, green, blue = frames.int().unbind(1)
    return ((red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16)[:, None]


def _blended(other: Tensor, frames: Tensor, factors: Sequence[float]) -> Tensor:
    """`other` at factor 0, the frames at factor 1, and beyond; the fraction is cut off, as Pillow does."""
    factor = torch.tensor(factors, dtype=torch.float32, device=frames.device).view(-1, 1, 1, 1)
    start = other.float()
    return (start + factor * (frames.float() - start)).clamp(0, 255).to(torch.uint8)


def _color(frames: Tensor, factors: Sequence[float]) -> Tensor:
    return _blended(_grey(frames), frames, factors)


def _contrast(frames: Tensor, factors: Sequence[float]) -> Tensor:
    mean = (_grey(frames).double().mean((1, 2, 3), keepdim=True) + 0.5).trunc()
    return _blended(mean, frames, factors)


def _sharpness(frames: Tensor, factors: Sequence[float]) -> Tensor:
    """Away from Pillow's smoothed frame: the mean over 3 x 3 pixels, the middle one five times; borders stay."""
    wide = frames.int()
    height, width = wide.shape[2:]
    smooth = wide.clone()
    if height > 2 and width > 2:
        total = 4 * wide[:, :, 1:-1, 1:-1]
        for row in range(3):
            for column in range(3):
                total = total + wide[:, :, row : row + height - 2, column : column + width - 2]
        smooth[:, :, 1:-1, 1:-1] = (2 * total + 13) // 26  # thirteenths, rounded
    return _blended(smooth, frames, factors)


def _geometric(coefficients: Coefficients) -> Change:
    """An affine operation; `coefficients` of a level, width and height as in `rand_augment`."""

    def change(frames: Tensor, levels: Sequence[float]) -> Tensor:
        height, width = frames.shape[2:]
        matrix = [coefficients(level, width, height) for level in levels]
        return _affine(frames, torch.tensor(matrix, dtype=torch.float64, device=frames.device))

    return change


def _affine(frames: Tensor, matrix: Tensor) -> Tensor:
    """Pixel (x, y) is pixel (a x + b y + c, d x + e y + f) of the input, by cubic interpolation with a = -1."""
    n, colours, height, width = frames.shape
    x = torch.arange(width, dtype=torch.float64, device=frames.device) + 0.5
    y = (torch.arange(height, dtype=torch.float64, device=frames.device) + 0.5)[:, None]
    a, b, c, d, e, f = matrix.T[:, :, None, None]
    across, down = a * x + b * y + c, d * x + e * y + f  # (N, H, W)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    left, top = (across - 0.5).floor(), (down - 0.5).floor()
    dx, dy = (across - 0.5 - left).float()[:, None], (down - 0.5 - top).float()[:, None]
    columns = [(left.long() + step).clamp(0, width - 1) for step in (-1, 0, 1, 2)]
    flat = frames.flatten(2)
    rows = []
    for step in (-1, 0, 1, 2):
        start = (top.long() + step).clamp(0, height - 1) * width
        taps = [
            flat.gather(2, (start + column).flatten(1)[:, None].expand(-1, colours, -1)).float()
            for column in columns
        ]
        rows.append(_cubic(taps, dx.flatten(2)))
    values = _cubic(rows, dy.flatten(2)).view(n, colours, height, width).clamp(0, 255).to(torch.uint8)
    grey = torch.tensor(GREY, dtype=torch.uint8, device=frames.device).view(1, -1, 1, 1)
    return torch.where(inside[:, None], values, grey)


def _cubic(values: Sequence[Tensor], d: Tensor) -> Tensor:
    """The value between the second and the third of four values in a row, at 0 <= d < 1 from the second."""
    v1, v2, v3, v4 = values
    return v2 + d * ((v3 - v1) + d * ((2 * (v1 - v2) + v3 - v4) + d * (v2 - v1 + v4 - v3)))


def _rotation(degrees: float, width: int, height: int) -> tuple[float, ...]:
    """Around the middle, against the clock."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y)


CHANGES: dict[str, Change] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Rotate": _geometric(_rotation),
    "ColorIncreasing": _color,
    "ContrastIncreasing": _contrast,
    "SharpnessIncreasing": _sharpness,
}
CHANGES |= {name: _geometric(found) for name, found in COEFFICIENTS.items()}
CHANGES |= {name: _by_table(name) for name in KINDS if name not in CHANGES}
"""The operations of `rand_augment`, of frames (N, 3, H, W) uint8 and a level of each."""
