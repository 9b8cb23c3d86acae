"""Makes a corpus of point clouds out of a folder with points.npz and meta.json.

    python examples/shapes.py path/to/shapes corpus/
    crossreel run examples/shapes.toml

points.npz holds `xyz` (N, P, 3), each shape scaled to fit a sphere, y up, and `rgb` (N, P, 3) uint8; meta.json a list
of N objects with `id`, `name`, `category` and `dims_cm`, the width, depth and height.

Written are clouds/*.ply in metres, z up, at their real size, and corpus.jsonl. The captions are templates filled with
name, category and size: nobody looked at the shapes. A caption describes every shape of its name, so `also` lists the
others. Shapes of one name, and shapes of one size to the last digit (the same mesh in another colour, mostly), come
into the same split: no shape of val or test was seen in training under another id, and its name was not either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.importers.demo.clouds import ply
from pipeline.corpus.manifest import Caption, Item, Protocol, write_manifest

SHARE = 0.15  # share of the shapes for each of test and val
SIZES = ((15, "tiny"), (50, "small"), (120, "medium-sized"), (250, "large"))  # by the longest side, in cm
LARGEST = "huge"
PLACES = {
    "Bathroom": "in a bathroom", "Bedroom": "in a bedroom", "Kitchen": "in a kitchen", "Office": "in an office",
    "Living room": "in a living room", "Exterior": "outdoors", "Vehicles": "on the road", "Lights": "giving light",
    "Doors and windows": "in a wall", "Characters": "as a figure", "Staircases": "between two floors",
}  # fmt: skip
VOWELS = ("a", "e", "i", "o", "um", "up")  # a urinal, but an umbrella
PROTOCOL = Protocol(
    "shapes",
    "Template captions of name, category and size. Shapes of one name or of one size are in one split, "
    "and a caption is right for all shapes of its name.",
)


@dataclass(frozen=True)
class Shape:
    """A shape and its metadata; its size is (width, depth, height) in cm."""

    id: str
    name: str
    category: str
    size: tuple[float, float, float]

    @property
    def words(self) -> str:
        """The name as it stands in a sentence: small unless it holds more capitals (TV stand)."""
        return self.name.lower() if self.name[1:] == self.name[1:].lower() else self.name


def main() -> None:
    """Read the command line, and write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="the folder with points.npz and meta.json")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--shapes", type=int, default=0, help="about so many, whole groups; 0: all")
    asked = parser.parse_args()
    shapes = read(asked.source / "meta.json")
    points = np.load(asked.source / "points.npz")
    if len(points["xyz"]) != len(shapes):
        parser.error(f"{len(points['xyz'])} clouds, but {len(shapes)} entries of meta.json")
    splits = split(shapes, asked.shapes or len(shapes))
    (asked.out / "clouds").mkdir(parents=True, exist_ok=True)
    for place in splits:
        file = asked.out / media(shapes[place])
        file.write_bytes(ply(at_size(points["xyz"][place], shapes[place]), points["rgb"][place]))
    items = list(described(shapes, splits))
    write_manifest(asked.out / "corpus.jsonl", items, PROTOCOL)
    count = sum(len(item.captions) for item in items)
    sys.stdout.write(f"{len(items)} shapes, {count} captions: {asked.out / 'corpus.jsonl'}\n")


def read(path: Path) -> list[Shape]:
    """The shapes of a meta.json, in its order."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for row in rows:
        width, depth, height = map(float, row["dims_cm"])
        found.append(Shape(row["id"], row["name"], row["category"], (width, depth, height)))
    return found


def at_size(xyz: NDArray[np.floating], shape: Shape) -> NDArray[np.float32]:
    """Points (P, 3) with z up, in metres; the proportions stay, the longest side gets its real length."""
    x, y, z = np.asarray(xyz, np.float64).T
    turned = np.stack([x, -z, y], axis=1)  # a quarter turn about x, no mirror image
    return (turned * max(shape.size) / 100 / np.ptp(turned, axis=0).max()).astype(np.float32)


def split(shapes: Sequence[Shape], count: int) -> dict[int, str]:
    """The split of each place among the shapes, for `count` shapes or the few more that complete a group.

    Groups come in the order of a digest of their first name, and fill test, then val, then train.
    """
    groups = sorted(grouped(shapes), key=lambda g: hashlib.sha256(shapes[g[0]].name.encode()).digest())
    found: dict[int, str] = {}
    for group in groups:
        if len(found) >= count:
            break
        share = len(found) / count
        name = "test" if share < SHARE else "val" if share < 2 * SHARE else "train"
        found |= dict.fromkeys(group, name)
    return dict(sorted(found.items()))


def grouped(shapes: Sequence[Shape]) -> list[list[int]]:
    """Places of shapes that are linked by equal names or equal sizes, directly or through others."""
    group = list(range(len(shapes)))
    first: dict[object, int] = {}
    for place, shape in enumerate(shapes):
        for key in (shape.name.lower(), shape.size):
            old, new = group[place], group[first.setdefault(key, place)]
            group = [new if g == old else g for g in group]
    members = defaultdict(list)
    for place, g in enumerate(group):
        members[g].append(place)
    return list(members.values())


def described(shapes: Sequence[Shape], splits: dict[int, str]) -> Iterator[Item]:
    """The lines of the manifest."""
    named = defaultdict(list)
    for place in splits:
        named[shapes[place].name.lower()].append(shapes[place].id)
    for place, name in splits.items():
        shape = shapes[place]
        others = tuple(other for other in named[shape.name.lower()] if other != shape.id)
        said = [Caption(f"{shape.id}#{n}", text, also=others) for n, text in enumerate(captions(shape))]
        yield Item(shape.id, name, tuple(said), media(shape), "pointcloud", {"name": shape.name})


def media(shape: Shape) -> str:
    """The file of a shape, relative to the manifest."""
    return f"clouds/{shape.id.replace('/', '-')}.ply"


def captions(shape: Shape) -> list[str]:
    """Five sentences about a shape."""
    width, depth, height = map(centimetres, shape.size)
    size, form, place = large(shape.size), proportions(shape.size), PLACES.get(shape.category, "")
    return [
        article(shape.words),
        f"{article(size)} {shape.words} {place}".strip(),
        f"{article(shape.words)}, {width} cm wide, {depth} cm deep and {height} cm high",
        f"{article(form)}, {size} {shape.words}",
        f"{shape.category}: {shape.words}, {form}, {height} cm high",
    ]


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words.lower().startswith(VOWELS) else 'a'} {words}"


def centimetres(length: float) -> str:
    """A length in whole centimetres, with one decimal below ten."""
    return f"{length:.1f}" if length < 10 else f"{length:.0f}"


def large(size: Sequence[float]) -> str:
    """A word for a size."""
    return next((word for limit, word in SIZES if max(size) < limit), LARGEST)


def proportions(size: tuple[float, float, float]) -> str:
    """The form of the box around a shape, in a few words."""
    width, depth, height = size
    across = max(width, depth)
    if height > 2 * across:
        return "tall and narrow"
    if height < 0.15 * across:
        return "flat"
    if min(size) < 0.25 * max(size):
        return "thin"
    if across > 2.5 * min(width, depth):
        return "long"
    return "low and wide" if height < 0.6 * across else "compact"


if __name__ == "__main__":
    main()
