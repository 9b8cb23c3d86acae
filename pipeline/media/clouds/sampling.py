"""Farthest-point sampling of a cloud, and the nine columns that the encoders read.

N points. The order of the samples matters: encoders pool over it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
FARTHEST = 1e10  # squared distance that every point starts with (H2ARN): larger ones count as equal
# Points from which pruning pays. 10,000 samples of 25,000 points take 0.27 s of CPU pruned and 0.24 s plain, of
# 100,000 points 0.37 s and 0.89 s.
PRUNED_ABOVE = 40_000
LEAF_POINTS = 512
SMALLEST_RANGE = 1e-8  # divisor instead of a range of zero (H2ARN)


def farthest_points(xyz: NDArray[np.floating], count: int, start: int | None = None) -> Indices:
    """Row numbers (count,) of xyz (N, 3) by farthest-point sampling, in the order of their selection.

    The first is `start`, or the point farthest from the barycentre; each next one is the point with the largest
    squared distance to its nearest selected point, and the lowest row wins a tie. Distances are float32, in which
    H2ARN samples: float64 has other ties. Once every distinct point is selected, or if N < count, row 0 repeats.
    Raises ValueError if N is 0.
    """
    if len(xyz) == 0:
        raise ValueError("there is no point to start from")
    axes = [np.ascontiguousarray(xyz[:, axis], dtype=np.float32) for axis in range(3)]
    with np.errstate(over="ignore"):  # squares may overflow to infinity, which is still the largest distance
        if start is None:
            start = _farthest_from_centre(axes)
        sampled = _pruned if len(xyz) > PRUNED_ABOVE else _plain
        return sampled(axes, count, start)


def _farthest_from_centre(axes: list[Floats]) -> int:
    centre = [axis.sum(dtype=np.float32) / np.float32(len(axis)) for axis in axes]
    return int(_squared(axes, centre).argmax())


def _squared(axes: list[Floats], centre: list[np.float32]) -> Floats:
    """Squared distances as dx^2 + dy^2 + dz^2, added in this order."""
    dx, dy, dz = (axis - c for axis, c in zip(axes, centre, strict=True))
    return dx * dx + dy * dy + dz * dz


def _plain(axes: list[Floats], count: int, index: int) -> Indices:
    """Compares every point at every step, in place: no array is allocated inside the loop."""
    nearest = np.full(len(axes[0]), FARTHEST, np.float32)
    total, part = np.empty_like(nearest), np.empty_like(nearest)
    x, y, z = axes
    taken = np.empty(count, np.int64)
    for step in range(count):
        taken[step] = index
        np.subtract(x, x[index], out=total)
        np.multiply(total, total, out=total)
        for axis in (y, z):
            np.subtract(axis, axis[index], out=part)
            np.multiply(part, part, out=part)
            np.add(total, part, out=total)
        np.minimum(nearest, total, out=nearest)
        index = int(nearest.argmax())
    return taken


def _pruned(axes: list[Floats], count: int, index: int) -> Indices:
    """The rows of `_plain`, without visiting leaves that the new point cannot change.

    A leaf is visited only if its bounding box is nearer to the new point than the leaf's farthest point is to its
    nearest selected one. Rounding makes no difference: the distance to a box is computed by the same operations as
    the distances to its points, and each operation is monotone, so it never exceeds the distance to a point inside.
    """
    points = np.stack(axes, axis=1)
    rows = _leaves(points)  # (leaves, points of a leaf), ascending within a leaf; padded with -1
    leaves = np.ascontiguousarray(points[rows].transpose(2, 0, 1))  # (3, leaves, points of a leaf)
    low, high = leaves.min(axis=2), leaves.max(axis=2)
    nearest = np.where(rows < 0, np.float32(-1), np.float32(FARTHEST))  # padding is never the farthest
    most, first = nearest.max(axis=1), rows[np.arange(len(rows)), nearest.argmax(axis=1)]
    taken = np.empty(count, np.int64)
    for step in range(count):
        taken[step] = index
        centre = points[index][:, None]
        gap = np.maximum(np.maximum(low - centre, centre - high), np.float32(0))
        gap *= gap
        near = np.flatnonzero(gap[0] + gap[1] + gap[2] < most)
        inside = leaves[:, near]
        inside -= centre[:, None]
        inside *= inside
        distance = inside[0]
        distance += inside[1]
        distance += inside[2]
        distance = np.minimum(distance, nearest[near], out=distance)
        nearest[near] = distance
        best = distance.argmax(axis=1)
        most[near] = distance[np.arange(len(near)), best]
        first[near] = rows[near, best]
        index = int(first[most == most.max()].min())
    return taken


def _leaves(points: Floats) -> Indices:
    """Row numbers (leaves, points of a leaf) of the points, from halving boxes along their longest side."""
    halvings = max(0, int(np.ceil(np.log2(len(points) / LEAF_POINTS))))
    size = -(-len(points) // 2**halvings)
    rows = np.full(size * 2**halvings, -1, np.int64)
    rows[: len(points)] = np.arange(len(points))
    rows = rows[None]
    for _ in range(halvings):
        inside = points[rows]  # (boxes, points of a box, 3)
        longest = (inside.max(axis=1) - inside.min(axis=1)).argmax(axis=1)
        along = np.take_along_axis(inside, longest[:, None, None], axis=2)[..., 0]
        order = np.argpartition(along, rows.shape[1] // 2, axis=1)
        rows = np.take_along_axis(rows, order, axis=1).reshape(2 * len(rows), -1)
    rows.sort(axis=1)
    return rows


def nine_columns(rows: NDArray[np.floating]) -> Floats:
    """The first six columns of rows (N, 6 or more), then x, y, z scaled to 0 to 1 over these rows: (N, 9) float32.

    Computed in float64. A range of zero is replaced by 1e-8 (H2ARN), so that its column is 0, not NaN.
    """
    first = np.asarray(rows, np.float64)[:, :6]
    xyz = first[:, :3]
    low = xyz.min(axis=0)
    extent = xyz.max(axis=0) - low
    extent[extent == 0] = SMALLEST_RANGE
    return np.concatenate([first, (xyz - low) / extent], axis=1).astype(np.float32)
