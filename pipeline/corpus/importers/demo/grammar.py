"""What is said about a moment of a demo video: one sentence, out of some hundreds that would fit it."""

from __future__ import annotations

import random

from pipeline.corpus.importers.demo.scenes import Actor, Moment, Scene

COLOUR_WORDS = {
    "red": ("red", "red", "crimson"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "white": ("white",),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
}
SIZE_WORDS = {True: ("large", "big"), False: ("small", "little")}
VERBS = {  # action: pairs of the present and the gerund, {other} standing for the second actor
    "left": (
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
    ),
    "right": (
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
    ),
    "rise": (
        ("rises", "rising"),
        ("moves up", "moving up"),
        ("floats upwards", "floating upwards"),
    ),
    "fall": (
        ("falls", "falling"),
        ("moves down", "moving down"),
        ("drops downwards", "dropping downwards"),
    ),
    "spin": (
        ("spins", "spinning"),
        ("turns on the spot", "turning on the spot"),
        ("rotates", "rotating"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("swells", "swelling"),
    ),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "blink": (("blinks", "blinking"), ("flashes on and off", "flashing on and off")),
    "loop": (
        ("moves in a circle", "moving in a circle"),
        ("goes round and round", "going round and round"),
    ),
    "bounce": (("bounces", "bouncing"), ("hops up and down", "hopping up and down")),
    "shake": (
        ("shakes", "shaking"),
        ("trembles", "trembling"),
        ("wobbles", "wobbling"),
    ),
    "zigzag": (
        ("zigzags down", "zigzagging down"),
        ("swings from side to side", "swinging from side to side"),
    ),
    "stay": (
        ("stays still", "staying still"),
        ("does not move", "resting"),
        ("stands still", "standing still"),
    ),
    "bump": (
        ("bumps into {other}", "bumping into {other}"),
        ("hits {other}", "hitting {other}"),
    ),
    "behind": (("passes behind {other}", "passing behind {other}"),),
    "front": (("passes in front of {other}", "passing in front of {other}"),),
    "chase": (
        ("chases {other}", "chasing {other}"),
        ("follows {other}", "following {other}"),
    ),
    "orbit": (
        ("circles around {other}", "circling around {other}"),
        ("orbits {other}", "orbiting {other}"),
    ),
    "jump": (
        ("jumps over {other}", "jumping over {other}"),
        ("leaps over {other}", "leaping over {other}"),
    ),
    "swap": (("swaps places with {other}", "swapping places with {other}"),),
    "land": (
        ("lands on {other}", "landing on {other}"),
        ("falls onto {other}", "falling onto {other}"),
    ),
}
FORMS = (
    "{actor} {present}",
    "{actor} is {gerund}",
    "there is {actor} {gerund}",
    "{actor} {present} {place}",
    "{actor} is {gerund} {place}",
    "{place}, {actor} {present}",
    "{place}, we see {actor} {gerund}",
)
SIZE_SHARE = 0.4  # of all actors: how often their size is said


def caption(moment: Moment, scene: Scene, rng: random.Random) -> str:
    """One sentence about the moment: a form, synonyms, and what else it mentions, drawn from `rng`."""
    present, gerund = rng.choice(VERBS[moment.action])
    other = _actor(moment.other, rng) if moment.other else ""
    return rng.choice(FORMS).format(
        actor=_actor(moment.actor, rng),
        present=present.format(other=other),
        gerund=gerund.format(other=other),
        place=_place(scene, rng),
    )


def _actor(actor: Actor, rng: random.Random) -> str:
    words = [
        rng.choice(COLOUR_WORDS[actor.colour]),
        rng.choice(SHAPE_WORDS[actor.shape]),
    ]
    if rng.random() < SIZE_SHARE:
        words.insert(0, rng.choice(SIZE_WORDS[actor.large]))
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _place(scene: Scene, rng: random.Random) -> str:
    words = (
        [scene.tone]
        if scene.pattern == "plain"
        else rng.choice(([scene.pattern], [scene.pattern, scene.tone]))
    )
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([rng.choice(("on", "before", "against")), article, *words, "background"])
