"""What happens in the demo videos: scenes of a few moments, drawn from a seed. Knows no pixels, no words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SOLO_ACTIONS = (
    *("left", "right", "rise", "fall", "spin", "grow", "shrink"),
    *("blink", "loop", "bounce", "shake", "zigzag", "stay"),
)
PAIR_ACTIONS = ("bump", "behind", "front", "chase", "orbit", "jump", "swap", "land")
TONES = ("black", "grey", "navy", "brown")
PATTERNS = ("plain", "striped", "checked")

MOMENTS_A_SCENE = (4, 5)
MOMENT_SECONDS = (3.0, 3.25, 3.5, 3.75, 4.0)
PAIR_SHARE = 0.45  # of all moments
BYSTANDER_SHARE = 0.15  # of all moments: one more shape that stands in a corner and no caption mentions
MOST_SCENES = 3000  # about half of the moments there are: drawing one not yet used stays quick


@dataclass(frozen=True)
class Actor:
    """A shape that takes part in a moment."""

    colour: str
    shape: str
    large: bool = field(compare=False)  # two moments that differ only in size count as the same one


@dataclass(frozen=True)
class Moment:
    """One action of one actor, or of one actor upon another, from `start` to `end` seconds."""

    action: str
    actor: Actor
    other: Actor | None
    start: float = field(compare=False)
    end: float = field(compare=False)
    shift: tuple[float, float] = field(compare=False)  # of the place of action, in half heights
    bystander: Actor | None = field(compare=False)


@dataclass(frozen=True)
class Scene:
    """The moments of one video, one after the other without a gap, before one background."""

    tone: str
    pattern: str
    moments: tuple[Moment, ...]

    @property
    def seconds(self) -> float:
        """How long the video lasts."""
        return self.moments[-1].end


def draw(count: int, seed: int) -> list[Scene]:
    """`count` scenes, the same for the same seed, the first ones the same for every count.

    No two moments of the corpus are equal, whatever their sizes, places and lengths: who does what to
    whom occurs in one video only. So no two videos, of one split or of two, share as much as one
    moment, and a caption has one right answer up to what its words leave out.
    """
    used: set[Moment] = set()
    return [_scene(random.Random(f"scene {index} of seed {seed}"), used) for index in range(count)]


def _scene(rng: random.Random, used: set[Moment]) -> Scene:
    moments: list[Moment] = []
    start = 0.0
    for _ in range(rng.choice(MOMENTS_A_SCENE)):
        end = start + rng.choice(MOMENT_SECONDS)
        moment = next(m for m in _moments(rng, start, end) if m not in used)
        used.add(moment)
        moments.append(moment)
        start = end
    return Scene(rng.choice(TONES), rng.choice(PATTERNS), tuple(moments))


def _moments(rng: random.Random, start: float, end: float) -> Iterator[Moment]:
    """Moments drawn one after the other, without end."""
    while True:
        actors = _actors(rng)
        paired = rng.random() < PAIR_SHARE
        action = rng.choice(PAIR_ACTIONS if paired else SOLO_ACTIONS)
        actor, other, bystander = next(actors), next(actors), next(actors)
        if action == "spin" and actor.shape in ("circle", "ring"):
            continue  # nobody could see it
        yield Moment(
            action=action,
            actor=actor,
            other=other if paired else None,
            start=start,
            end=end,
            shift=(rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)),
            bystander=bystander if rng.random() < BYSTANDER_SHARE else None,
        )


def _actors(rng: random.Random) -> Iterator[Actor]:
    """Actors no two of which share a colour or a shape, so that a caption can tell them apart."""
    colours, shapes = rng.sample(COLOURS, len(COLOURS)), rng.sample(SHAPES, len(SHAPES))
    return (Actor(colour, shape, rng.random() < 0.5) for colour, shape in zip(colours, shapes, strict=False))
