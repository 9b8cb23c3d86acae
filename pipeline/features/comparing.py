"""Are two sets of features the same thing? Rows of one item from two sources, aligned, compared, and named.

Axes: n rows of the longer side, m of the shorter, D numbers a row. Cosines do not see the length of a row,
so that a normalised copy is found too; which side is longer does not matter either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.store.segments import Array

Kind = Literal[
    "equal", "float16", "scaled", "close", "frames", "reordered", "network", "different", "incomparable"
]
Rows = NDArray[np.float32]

SAME = 0.999  # mean cosine: another decoder or precision stays above, the next frame at 3 fps mostly below
NETWORK = 0.5  # share of the way from chance to 1 that other frames of a video reach with the same network
LOOKED_AT = 256  # rows of the shorter side that alignments are tried on
LARGEST_STRIDE = 64  # tried beside the ratio of the lengths
SHIFT = 2  # rows by which the beginnings may be apart
LEAST_OVERLAP = 0.5  # share of the shorter side's rows that must have a partner
FLOAT16_RELATIVE, FLOAT16_ABSOLUTE = 2.0**-10, 2.0**-24  # two roundings of one number; the subnormal step
TIE = 1e-6  # cosines nearer than this are equal, and the simpler alignment is taken


@dataclass(frozen=True)
class Comparison:
    """The relation of one item's rows in two sources, A and B."""

    rows_a: int
    rows_b: int
    dims_a: int
    dims_b: int
    kind: Kind
    verdict: str
    cosine: float | None = None  # mean over aligned rows; None where the widths differ
    stride: float = 1.0  # rows of the longer side to one of the shorter
    offset: int = 0  # row of the longer side that the shorter begins at
    difference: float | None = None  # largest, between aligned rows


@dataclass(frozen=True)
class Alignment:
    """Row i of the shorter side is row floor(offset + i * stride) of the longer."""

    stride: float
    offset: int

    def pairs(self, places: NDArray[np.int64], longer: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those of the given rows of the shorter side that have a partner, and their partners."""
        partners = np.floor(self.offset + places * self.stride + 1e-9).astype(np.int64)
        there = (partners >= 0) & (partners < longer)
        return places[there], partners[there]


def compare(a: Array, b: Array) -> Comparison:
    """Compare rows (n_A, D_A) and (n_B, D_B) of one item, both finite and not empty."""
    shape = {"rows_a": len(a), "rows_b": len(b), "dims_a": a.shape[1], "dims_b": b.shape[1]}
    if a.shape[1] != b.shape[1]:
        words = f"not comparable: rows of {a.shape[1]} and of {b.shape[1]} numbers"
        return Comparison(**shape, kind="incomparable", verdict=words)
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    long_unit, short_unit = unit(longer), unit(shorter)
    looked = np.unique(np.linspace(0, len(shorter) - 1, min(LOOKED_AT, len(shorter))).astype(np.int64))
    cosines = long_unit @ short_unit[looked].T  # (n, m')
    best = align(cosines, looked, len(shorter))
    rows, partners = best.pairs(np.arange(len(shorter)), len(longer))
    cosine = float(np.einsum("ij,ij->i", long_unit[partners], short_unit[rows], dtype=np.float64).mean())
    x, y = longer[partners].astype(np.float64), shorter[rows].astype(np.float64)
    gap = np.abs(x - y)
    nearest = float(cosines.max(axis=0).mean())  # wherever the partner stands
    whole = len(a) == len(b) == len(rows) and best == Alignment(1.0, 0)
    kind: Kind
    if cosine >= SAME:
        kind = _degree(x, y, gap) if whole else "frames"
    elif nearest >= SAME:
        kind = "reordered"
    else:
        kind = "network" if _above_chance(nearest, long_unit, short_unit[looked]) >= NETWORK else "different"
    verdict = _sentence(kind, cosine, best, _scale(x, y), len(a) - len(b))
    return Comparison(
        **shape, kind=kind, verdict=verdict, cosine=min(cosine, 1.0), stride=best.stride, offset=best.offset,
        difference=float(gap.max()),
    )  # fmt: skip


def unit(rows: Array) -> Rows:
    """Rows (n, D) of length 1. A row of zeros gets a direction, so that it is like another row of zeros."""
    values = rows.astype(np.float64)
    largest = np.abs(values).max(axis=1, keepdims=True)
    values = np.where(largest > 0, values, 1.0) / np.where(largest > 0, largest, 1.0)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def align(cosines: Rows, looked: NDArray[np.int64], shorter: int) -> Alignment:
    """The stride and offset of the best mean cosine; of equally good ones the first, which is the simplest.

    cosines: (n, m') of the longer side with the rows `looked` of the shorter, which has `shorter` rows.
    """
    best, best_cosine = Alignment(1.0, 0), -np.inf
    columns = np.arange(len(looked))
    for candidate in _candidates(len(cosines), shorter):
        rows, partners = candidate.pairs(looked, len(cosines))
        if len(rows) < LEAST_OVERLAP * len(looked):
            continue
        cosine = float(cosines[partners, columns[np.searchsorted(looked, rows)]].mean())
        if cosine > best_cosine + TIE:
            best, best_cosine = candidate, cosine
    return best


def _candidates(longer: int, shorter: int) -> Iterator[Alignment]:
    """Strides that the lengths suggest, then all others, each from its plainest offset on."""
    ratio = longer / shorter
    strides = [float(round(ratio)), ratio]
    if shorter > 1:
        strides.append((longer - 1) / (shorter - 1))  # both ends taken, the rest spread between
    strides += [float(stride) for stride in range(1, min(int(ratio) + 1, LARGEST_STRIDE) + 1)]
    for stride in dict.fromkeys(strides):
        end = max(int(np.ceil(stride)), SHIFT + 1)
        for offset in (*range(end), *range(-1, -SHIFT - 1, -1)):
            yield Alignment(stride, offset)


def _degree(x: NDArray[np.float64], y: NDArray[np.float64], gap: NDArray[np.float64]) -> Kind:
    """The verdict on rows with the same directions: how equal they are."""
    if not gap.any():
        return "equal"
    if (gap <= FLOAT16_RELATIVE * np.maximum(np.abs(x), np.abs(y)) + FLOAT16_ABSOLUTE).all():
        return "float16"
    return "close" if abs(_scale(x, y) - 1) < 0.01 else "scaled"


def _scale(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Ratio of the rows' lengths on the two sides, at least 1."""
    lengths = np.linalg.norm(x, axis=1).mean(), np.linalg.norm(y, axis=1).mean()
    return float(max(lengths) / min(lengths)) if min(lengths) > 0 else 1.0


def _above_chance(cosine: float, long_unit: Rows, short_unit: Rows) -> float:
    """Position of a cosine between chance (0) and 1.

    Chance is the cosine after the numbers of one side have changed places, which keeps their distribution but not their
    meaning. It is above 0 for features after a ReLU, which are all positive.
    """
    width = long_unit.shape[1]
    elsewhere = np.roll(short_unit, width // 2, axis=1)
    chance = float((long_unit @ elsewhere.T).max(axis=0).mean()) if width > 1 else 0.0
    return (cosine - chance) / (1 - chance) if chance < 1 else 0.0


def _sentence(kind: Kind, cosine: float, best: Alignment, scale: float, more_in_a: int) -> str:
    fixed = {
        "equal": "the same features, number for number",
        "float16": "the same features (float16 rounding)",
        "scaled": f"the same features, one {scale:.4g} times as long (one of them normalised?)",
        "close": f"the same features but for small differences (cosine {cosine:.5f})",
        "reordered": "the same frames in another order",
        "network": f"the same network, other frames? (cosine {cosine:.2f})",
        "different": f"not the same thing (cosine {cosine:.2f})",
    }
    if kind in fixed:
        return fixed[kind]
    start = "" if best.offset == 0 else f", from row {best.offset}"
    if best.stride == 1:
        shorter = "B" if more_in_a > 0 else "A"
        cut = f", {shorter} is {abs(more_in_a)} rows shorter" if more_in_a else ""
        return f"the same frames{start}{cut}"
    return f"the same frames at a stride of {best.stride:.4g}{start}"
