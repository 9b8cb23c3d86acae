"""The point clouds of the demo: two coloured solids that stand in some relation, and what is said of them.

Lengths are in metres, z is up. Knows no store and no network.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.importers.demo.drawing import RGB
from pipeline.corpus.importers.demo.grammar import COLOUR_WORDS, SIZE_SHARE, SIZE_WORDS
from pipeline.corpus.importers.demo.scenes import COLOURS

POINTS = 1024  # of a cloud
NOISE = 0.004  # standard deviation of a coordinate, as a scanner has it
SHADE = 0.12  # how much darker or lighter a point may be than its solid
HALF = {True: 0.5, False: 0.3}  # half the height of a large solid and of a small one
GAP = 0.25  # between solids that do not touch
MOST_OBJECTS = 2000

Points = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Points]


@dataclass(frozen=True)
class Solid:
    """One body of a cloud."""

    colour: str
    shape: str
    large: bool = field(compare=False)  # two objects that differ only in size count as the same one


@dataclass(frozen=True)
class Object:
    """Two solids and how the first stands to the second."""

    first: Solid
    relation: str
    second: Solid
    turn: float = field(compare=False)  # about the vertical, in turns


def draw(count: int, seed: int) -> list[Object]:
    """`count` different objects, the same for the same seed, the first ones the same for every count."""
    used: set[Object] = set()
    out = []
    for index in range(count):
        found = next(o for o in _objects(random.Random(f"object {index} of seed {seed}")) if o not in used)
        used.add(found)
        out.append(found)
    return out


def _objects(rng: random.Random) -> Iterator[Object]:
    """Objects drawn one after the other, without end."""
    while True:
        colours, shapes = rng.sample(COLOURS, 2), rng.sample(list(SURFACES), 2)
        first, second = (Solid(c, s, rng.random() < 0.5) for c, s in zip(colours, shapes, strict=True))
        yield Object(first, rng.choice(list(RELATIONS)), second, rng.random())


def cloud(of: Object, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Coordinates (POINTS, 3) and colours (POINTS, 3) of points spread over both surfaces, in no order."""
    rng = np.random.default_rng(seed)
    halves = HALF[of.first.large], HALF[of.second.large]
    share = halves[0] ** 2 / (halves[0] ** 2 + halves[1] ** 2)
    counts = round(POINTS * share), POINTS - round(POINTS * share)
    places = _places(of.relation, *halves)
    xyz, rgb = [], []
    for solid, half, place, count in zip((of.first, of.second), halves, places, counts, strict=True):
        xyz.append(SURFACES[solid.shape](rng, count) * half + place)
        light = 1 + rng.uniform(-SHADE, SHADE, (count, 1))
        rgb.append(np.clip(np.array(RGB[solid.colour]) * light, 0, 255))
    angle = 2 * np.pi * of.turn
    turned = np.concatenate(xyz) @ np.array(
        [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    order = rng.permutation(POINTS)
    noisy = turned + rng.normal(0, NOISE, turned.shape)
    return noisy[order].astype(np.float32), np.concatenate(rgb)[order].astype(np.uint8)


def _places(relation: str, first: float, second: float) -> tuple[Points, Points]:
    """The centres of both solids, the lower one standing on the ground."""
    ground = np.array([0.0, 0.0, second])
    if relation == "beside":
        return np.array([first + second + GAP / 2, 0.0, first]), ground
    gap = GAP if relation == "above" else 0.0
    return np.array([0.0, 0.0, 2 * second + gap + first]), ground


# Surfaces of half height 1 about the origin, points spread evenly by area -------------------------------------


def _ball(rng: np.random.Generator, count: int) -> Points:
    raw = rng.normal(size=(count, 3))
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def _box(rng: np.random.Generator, count: int) -> Points:
    points = rng.uniform(-1, 1, (count, 3))
    points[np.arange(count), rng.integers(3, size=count)] = rng.choice((-1.0, 1.0), count)
    return points * (0.8, 0.8, 1)


def _disc(rng: np.random.Generator, count: int, z: float) -> Points:
    angle, radius = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(count, z)], axis=1)


def _round(rng: np.random.Generator, z: Points, radius: Points) -> Points:
    """Points around the vertical, at these heights and radii (n,)."""
    angle = rng.uniform(0, 2 * np.pi, len(z))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def _cylinder(rng: np.random.Generator, count: int) -> Points:
    """Of radius 0.5: the side has four fifths of the area."""
    ends = count // 5
    side = _round(rng, rng.uniform(-1, 1, count - ends), np.full(count - ends, 0.5))
    caps = _disc(rng, ends, 1.0) * (0.5, 0.5, 1)
    caps[::2, 2] = -1
    return np.concatenate([side, caps])


def _cone(rng: np.random.Generator, count: int) -> Points:
    """Base of radius 0.9 below: the side's area is 2.43 times that of the base."""
    base = round(count / 3.43)
    down = np.sqrt(rng.random(count - base))  # the area grows with the distance from the tip
    side = _round(rng, 1 - 2 * down, 0.9 * down)
    return np.concatenate([side, _disc(rng, base, -1.0) * (0.9, 0.9, 1)])


def _pyramid(rng: np.random.Generator, count: int) -> Points:
    """Three sides and a base, about equal in area."""
    corners = np.array([[1, 0, -1], [-0.5, 0.87, -1], [-0.5, -0.87, -1], [0, 0, 1]], float)
    faces = np.array([[0, 1, 2], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    a, b, c = (corners[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = rng.choice(4, count, p=area / area.sum())
    u, v = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return np.asarray((1 - u) * a[face] + u * (1 - v) * b[face] + u * v * c[face])


def _ring(rng: np.random.Generator, count: int) -> Points:
    """An upright torus of radii 0.7 and 0.3: where it is wider, more points fall."""
    around: list[float] = []
    while len(around) < count:
        angle = rng.uniform(0, 2 * np.pi)
        if rng.random() * (0.7 + 0.3) < 0.7 + 0.3 * np.cos(angle):
            around.append(angle)
    small, large = np.array(around), rng.uniform(0, 2 * np.pi, count)
    radius = 0.7 + 0.3 * np.cos(small)
    return np.stack([radius * np.cos(large), 0.3 * np.sin(small), radius * np.sin(large)], axis=1)


SURFACES: dict[str, Draw] = {
    "ball": _ball, "box": _box, "cylinder": _cylinder, "cone": _cone, "pyramid": _pyramid, "ring": _ring,
}  # fmt: skip
SHAPE_WORDS = {
    "ball": ("ball", "sphere"), "box": ("box", "block"), "cylinder": ("cylinder", "column"),
    "cone": ("cone",), "pyramid": ("pyramid",), "ring": ("ring", "torus"),
}  # fmt: skip
RELATIONS = {  # with {first} and {second}
    "on": ("{first} on top of {second}", "{first} standing on {second}", "{second} carrying {first}"),
    "above": ("{first} hovering above {second}", "{first} floating over {second}", "{second} below {first}"),
    "beside": ("{first} next to {second}", "{first} beside {second}", "{second} at the side of {first}"),
}
FORMS = ("{said}", "there is {said}", "a scan of {said}")


def caption(of: Object, rng: random.Random) -> str:
    """One sentence about an object, with synonyms, and sizes now and then."""
    said = rng.choice(RELATIONS[of.relation]).format(
        first=_words(of.first, rng), second=_words(of.second, rng)
    )
    return rng.choice(FORMS).format(said=said)


def _words(solid: Solid, rng: random.Random) -> str:
    words = [rng.choice(COLOUR_WORDS[solid.colour]), rng.choice(SHAPE_WORDS[solid.shape])]
    if rng.random() < SIZE_SHARE:
        words.insert(0, rng.choice(SIZE_WORDS[solid.large]))
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
