"""The frames of a demo scene: where every shape is at a time, and its pixels.

Places are in half heights of the frame, (0, 0) its centre, x to the right, y down: whatever moves
stays in the middle square, which is all that a network sees after its centre crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pipeline.corpus.importers.demo.scenes import Actor, Moment, Scene

WIDTH_PIXELS, HEIGHT_PIXELS, FPS = 192, 144, 12
OVERSAMPLING = 2  # drawn this much larger, then averaged: smooth edges
RADIUS = {True: 0.44, False: 0.3}
RGB = {
    "red": (225, 30, 40),
    "green": (40, 190, 60),
    "blue": (50, 90, 255),
    "yellow": (250, 225, 40),
    "orange": (255, 140, 20),
    "purple": (150, 50, 210),
    "white": (250, 250, 250),
    "black": (16, 16, 18),
    "grey": (92, 92, 96),
    "navy": (16, 26, 82),
    "brown": (84, 52, 30),
}


@dataclass(frozen=True)
class Pose:
    """Where and how an actor is drawn; its radius is that of its size times `scale`."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    turns: float = 0.0
    visible: bool = True


def frames(scene: Scene) -> Iterator[bytes]:
    """The frames of a scene, each HEIGHT_PIXELS x WIDTH_PIXELS x 3 bytes of RGB."""
    background = _background(scene)
    moments = iter(scene.moments)
    moment = next(moments)
    for index in range(round(scene.seconds * FPS)):
        seconds = index / FPS
        if seconds >= moment.end:
            moment = next(moments)
        image = background.copy()
        _draw_moment(
            ImageDraw.Draw(image),
            moment,
            (seconds - moment.start) / (moment.end - moment.start),
        )
        yield image.reduce(OVERSAMPLING).tobytes()


def _draw_moment(canvas: ImageDraw.ImageDraw, moment: Moment, t: float) -> None:
    """Draw everyone at the share t of the moment, in [0, 1), from back to front."""
    if moment.bystander:
        _draw_actor(canvas, moment.bystander, Pose(0.75, -0.75, 0.8), (0.0, 0.0))
    if moment.other is None:
        _draw_actor(canvas, moment.actor, SOLO[moment.action](t), moment.shift)
        return
    actor, other = PAIR[moment.action](t)
    cast = [(moment.actor, actor), (moment.other, other)]
    for who, pose in cast if moment.action == "behind" else reversed(cast):
        _draw_actor(canvas, who, pose, moment.shift)


def _draw_actor(canvas: ImageDraw.ImageDraw, actor: Actor, pose: Pose, shift: tuple[float, float]) -> None:
    if not pose.visible:
        return
    unit = HEIGHT_PIXELS * OVERSAMPLING / 2
    x = WIDTH_PIXELS * OVERSAMPLING / 2 + unit * (pose.x + shift[0])
    y = unit * (1 + pose.y + shift[1])
    radius = unit * RADIUS[actor.large] * pose.scale
    if actor.shape in ("circle", "ring"):
        fill = RGB[actor.colour] if actor.shape == "circle" else None
        box = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(
            box,
            fill=fill,
            outline=RGB[actor.colour],
            width=max(1, round(radius * 0.35)),
        )
        return
    cos, sin = math.cos(math.tau * pose.turns), math.sin(math.tau * pose.turns)
    corners = [
        (x + radius * (cos * u - sin * v), y + radius * (sin * u + cos * v)) for u, v in OUTLINES[actor.shape]
    ]
    canvas.polygon(corners, fill=RGB[actor.colour])


def _background(scene: Scene) -> Image.Image:
    """The empty stage, OVERSAMPLING times as large as a frame."""
    width, height = WIDTH_PIXELS * OVERSAMPLING, HEIGHT_PIXELS * OVERSAMPLING
    base = RGB[scene.tone]
    image = Image.new("RGB", (width, height), base)
    canvas, light, step = (
        ImageDraw.Draw(image),
        tuple(channel + 16 for channel in base),
        height // 8,
    )
    for row in range(0, height, step):
        if scene.pattern == "striped" and (row // step) % 2:
            canvas.rectangle((0, row, width, row + step - 1), fill=light)
        for column in range(0, width, step):
            if scene.pattern == "checked" and (row // step + column // step) % 2:
                canvas.rectangle((column, row, column + step - 1, row + step - 1), fill=light)
    return image


def _star(points: int, inner: float) -> tuple[tuple[float, float], ...]:
    """A star with one point up, of radius 1, its dents on the radius `inner`."""
    radii = (1.0, inner) * points
    angles = [math.pi * i / points for i in range(2 * points)]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


def _cross(half: float) -> tuple[tuple[float, float], ...]:
    """An upright cross of radius 1 whose arms are twice `half` wide."""
    arm = (
        (-half, -half),
        (-half, -1.0),
        (half, -1.0),
    )  # the arm that points up, and the corner before it
    return tuple(
        (x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in arm
    )


OUTLINES = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _star(3, 0.5),
    "star": _star(5, 0.42),
    "cross": _cross(0.33),
}


def _bump(t: float) -> tuple[Pose, Pose]:
    """The actor arrives from the left and stops; from half time on the other is pushed away."""
    return Pose(-0.85 + 1.0 * min(t, 0.5)), Pose(0.1 + 1.2 * max(t - 0.5, 0.0))


def _land(t: float) -> tuple[Pose, Pose]:
    """The actor falls onto the other and stays there."""
    return Pose(0.0, -0.8 + 0.75 * min(2 * t, 1.0) ** 2), Pose(0.0, 0.4)


SOLO: dict[str, Callable[[float], Pose]] = {
    "left": lambda t: Pose(0.7 - 1.4 * t),
    "right": lambda t: Pose(-0.7 + 1.4 * t),
    "rise": lambda t: Pose(0.0, 0.7 - 1.4 * t),
    "fall": lambda t: Pose(0.0, -0.7 + 1.4 * t),
    "spin": lambda t: Pose(turns=1.5 * t),
    "grow": lambda t: Pose(scale=0.4 + 1.8 * t),
    "shrink": lambda t: Pose(scale=2.2 - 1.8 * t),
    "blink": lambda t: Pose(visible=int(8 * t) % 2 == 0),
    "loop": lambda t: Pose(0.5 * math.cos(2 * math.tau * t), 0.5 * math.sin(2 * math.tau * t)),
    "bounce": lambda t: Pose(0.0, 0.5 - 0.9 * abs(math.sin(1.5 * math.tau * t))),
    "shake": lambda t: Pose(0.07 * math.sin(9 * math.tau * t)),
    "zigzag": lambda t: Pose(0.55 * math.sin(2 * math.tau * t), -0.6 + 1.2 * t),
    "stay": lambda t: Pose(),
}
PAIR: dict[str, Callable[[float], tuple[Pose, Pose]]] = {  # the actor, the other
    "bump": _bump,
    "behind": lambda t: (Pose(-0.8 + 1.6 * t), Pose()),
    "front": lambda t: (Pose(-0.8 + 1.6 * t), Pose()),
    "chase": lambda t: (Pose(-0.8 + 1.0 * t), Pose(-0.1 + 1.0 * t)),
    "orbit": lambda t: (
        Pose(0.6 * math.cos(1.5 * math.tau * t), 0.6 * math.sin(1.5 * math.tau * t)),
        Pose(),
    ),
    "jump": lambda t: (Pose(-0.7 + 1.4 * t, 0.35 - 3.8 * t * (1 - t)), Pose(0.0, 0.35)),
    "swap": lambda t: (Pose(-0.55 + 1.1 * t, -0.25), Pose(0.55 - 1.1 * t, 0.25)),
    "land": _land,
}
