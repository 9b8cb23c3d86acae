"""Training curves as small pictures, one for each quantity, so that any number of loss terms stays readable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.results.report.wording import counted, duration
from trainers.loop.trained import Epoch, TrainedFolder

WIDTH, HEIGHT = 280, 132  # size of a panel, in units of its picture
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 10, 22  # margins for the labels
MOST_POINTS = 240  # largest number of points of a curve; a panel is narrower than 240 pixels
MOST_ROWS = 200  # largest number of rows in the table of numbers

Series = list[tuple[int, float]]
"""(epoch, value) of one quantity; epochs count from 1."""


@dataclass(frozen=True)
class Label:
    """A text beside an axis, and its position along the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One curve in units of its picture: polyline, labels, the point of the best epoch, and a summary sentence."""

    title: str
    points: str
    x_labels: tuple[Label, ...]
    y_labels: tuple[Label, ...]
    best: tuple[float, float] | None  # point of the curve at the best epoch
    summary: str


@dataclass(frozen=True)
class Training:
    """The section of the report on the training of one method."""

    method: str
    sentence: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]  # headers of the table of numbers, epoch first
    rows: tuple[tuple[str, ...], ...]
    best_epoch: int


def read_training(method: str, folder: TrainedFolder) -> Training:
    """The curves from the folder of a training, validation first; no curves if it had no epochs."""
    history, best = folder.history, folder.summary.best_epoch
    series = _series(history)
    columns = ("epoch", *series)
    values = [dict(line) for line in series.values()]
    rows = [
        (str(epoch), *(_number(line[epoch]) if epoch in line else "–" for line in values))
        for epoch in _thinned([row.epoch for row in history], MOST_ROWS, best)
    ]
    panels = tuple(panel(title, line, best) for title, line in series.items())
    return Training(method, _sentence(folder), panels, columns, tuple(rows), best)


def _series(history: Sequence[Epoch]) -> dict[str, Series]:
    """The series of every quantity; a loss term may be missing in some epochs."""
    out: dict[str, Series] = {}
    for row in history:
        named = {f"validation {name}": value for name, value in row.validation.items()}
        named |= {"loss": row.loss} | row.terms | {"learning rate": row.lr}
        for name, value in named.items():
            out.setdefault(name, []).append((row.epoch, value))
    first = [name for name in out if name.startswith("validation ")]
    last = [name for name in out if name == "learning rate"]
    return {name: out[name] for name in [*first, *(n for n in out if n not in first + last), *last]}


def _sentence(folder: TrainedFolder) -> str:
    summary, seconds = folder.summary, folder.seconds
    if summary.epochs == 0:
        parts = ["It was not trained here: what was measured are the weights it started from"]
    else:
        parts = [f"{counted(summary.epochs, 'epoch')}, the best one is {summary.best_epoch}"]
        parts += ["stopped early by validation"] if summary.stopped_early else []
    parts += [counted(summary.parameters, "parameter")] if summary.parameters else []
    parts += [duration(seconds)] if seconds and summary.epochs else []
    return "; ".join(parts)


def panel(title: str, series: Series, best_epoch: int) -> Panel:
    """The picture of one quantity by epoch; a value that is not finite has no point."""
    values = {epoch: value for epoch, value in series if math.isfinite(value)}
    epochs = [epoch for epoch, _ in series]
    low, high = (min(values.values()), max(values.values())) if values else (0.0, 1.0)
    pad = (high - low) / 20 or abs(high) / 20 or 1.0

    def x(epoch: int) -> float:
        share = (epoch - epochs[0]) / max(epochs[-1] - epochs[0], 1)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (value - low + pad) / (high - low + 2 * pad)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    kept = _thinned(list(values), MOST_POINTS, best_epoch)
    best = (x(best_epoch), y(values[best_epoch])) if best_epoch in values else None
    return Panel(
        title,
        points=" ".join(f"{x(epoch)},{y(values[epoch])}" for epoch in kept),
        x_labels=tuple(Label(x(epoch), str(epoch)) for epoch in sorted({epochs[0], epochs[-1]})),
        y_labels=tuple(Label(y(value), _number(value)) for value in sorted({low, high})),
        best=best,
        summary=_in_words(title, values, best_epoch),
    )


def _in_words(title: str, values: Mapping[int, float], best_epoch: int) -> str:
    if not values:
        return f"{title}: no finite value"
    first, last = min(values), max(values)
    parts = [f"{_number(values[first])} in epoch {first}", f"{_number(values[last])} in epoch {last}"]
    if best_epoch in values:
        parts.append(f"{_number(values[best_epoch])} in the best epoch {best_epoch}")
    return f"{title}: {', '.join(parts)}"


def _thinned(epochs: Sequence[int], most: int, keep: int) -> list[int]:
    """Evenly spaced epochs, about `most` of them, including the first, the last and `keep`."""
    step = max(1, -(-len(epochs) // most))
    return [e for n, e in enumerate(epochs) if n % step == 0 or n == len(epochs) - 1 or e == keep]


def _number(value: float) -> str:
    """A value with two to four digits, short enough for a label."""
    if value and (abs(value) < 1e-2 or abs(value) >= 1e5):
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
