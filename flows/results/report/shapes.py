"""Small pictures of a point cloud from several sides, in plain NumPy. Reads no store.

Axes: N points, H and W pixels. The picture is orthographic: z up, the nearest point of a pixel is seen.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PIXELS = 120
OVERSAMPLING = 2  # pictures are drawn this much larger, then averaged down, which smooths edges
AZIMUTHS = (30, 120, 210, 300)  # degrees about the vertical, one picture each
ELEVATION = 25  # degrees above the horizon
COVER = 2.6  # area of all dots together, in areas of the picture: dense clouds get small dots
FOG = 0.45  # share of its colour that the farthest point loses
JPEG_QUALITY = 70
PAPER = 229  # grey of the background, and what far points fade to
LOW, HIGH = (
    np.array([46, 80, 150.0]),
    np.array([245, 175, 60.0]),
)  # colours by height, for a cloud without colours

Points = NDArray[np.floating]
Picture = NDArray[np.uint8]


def views(points: Points) -> Iterator[tuple[int, bytes]]:
    """Yield the azimuth in degrees and the JPEG of each view of a cloud (N, 6 or more) of x y z r g b."""
    colours = shown_colours(points)
    for azimuth in AZIMUTHS:
        picture = Image.fromarray(render(points[:, :3], colours, azimuth))
        out = io.BytesIO()
        picture.reduce(OVERSAMPLING).save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
        yield azimuth, out.getvalue()


def shown_colours(points: Points) -> Points:
    """Colours (N, 3) from 0 to 255, from columns in [0, 1] or [0, 255]; from the height if the cloud has none."""
    rgb = np.clip(np.nan_to_num(points[:, 3:6].astype(np.float64)), 0, None)
    if rgb.max(initial=0) == 0:
        height = points[:, 2] - points[:, 2].min()
        share = (height / max(float(height.max()), 1e-12))[:, None]
        return LOW * (1 - share) + HIGH * share
    return np.clip(rgb * (255 if rgb.max() <= 1 else 1), 0, 255)


def render(xyz: Points, colours: Points, azimuth: float) -> Picture:
    """A picture (H, W, 3), OVERSAMPLING times as large as it will be shown."""
    side = SIDE_PIXELS * OVERSAMPLING
    right, up, near = _seen(xyz, azimuth)
    radius = max(1, round(side * (COVER / len(xyz)) ** 0.5 / 2))
    column, row = (np.clip((a * 0.45 + 0.5) * side, 0, side - 1).astype(np.int64) for a in (right, -up))
    faded = FOG * (1 - (near + 1) / 2)[:, None]
    shade = colours * (1 - faded) + PAPER * faded
    step = np.arange(-radius, radius + 1)
    dot = np.array([(d, a) for d in step for a in step if d * d + a * a <= radius * radius])
    order = np.argsort(near, kind="stable")  # the nearest is written last
    rows = np.clip(row[order, None] + dot[:, 0], 0, side - 1)
    columns = np.clip(column[order, None] + dot[:, 1], 0, side - 1)
    picture = np.full((side, side, 3), PAPER, np.uint8)
    picture[rows, columns] = shade[order, None].round()
    return picture


def _seen(xyz: Points, azimuth: float) -> tuple[Points, Points, Points]:
    """The coordinates of each point to the right, up and towards the eye, (N,) each, within [-1, 1]."""
    centred = xyz.astype(np.float64) - (xyz.min(0) + xyz.max(0)) / 2
    centred /= max(float(np.linalg.norm(centred, axis=1).max()), 1e-12)
    turn, tilt = np.radians(azimuth), np.radians(ELEVATION)
    x, y, z = centred.T
    towards, right = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    up, near = z * np.cos(tilt) - towards * np.sin(tilt), towards * np.cos(tilt) + z * np.sin(tilt)
    return right, up, near
