"""Frames resized and cropped to the square that a network reads, as by Pillow and the networks' own transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def squares(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames (n, H, W, 3) to (n, size, size, 3): the short side resized (bicubic, antialiased), the centre kept.

    The same pixels as torchvision's Resize and CenterCrop give on Pillow images.
    """
    from PIL import Image

    height, width = frames.shape[1:3]
    if height < width:
        to = (int(size * width / height), size)
    else:
        to = (size, int(size * height / width))
    left, top = round((to[0] - size) / 2), round((to[1] - size) / 2)
    box = (left, top, left + size, top + size)
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for square, frame in zip(out, frames, strict=True):
        picture = Image.fromarray(frame)
        if picture.size != to:
            picture = picture.resize(to, Image.Resampling.BICUBIC)
        square[:] = np.asarray(picture.crop(box))
    return out
