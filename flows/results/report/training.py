"""Training curves: loss, validation and learning rate of each method by epoch, with a table of every quantity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from flows.results.report.plots import by_epoch
from flows.results.wording import counted, duration
from trainers.loop.trained import Epoch, TrainedFolder

MOST_POINTS = 240  # largest number of points of a curve; a panel is about 260 pixels wide
MOST_ROWS = 200  # largest number of rows in the table of numbers
RATE, WAITING, VALIDATION = "learning rate", "waiting", "validation "
WAITED = "waiting for data"

Series = list[tuple[int, float]]
"""(epoch, value) of one quantity; epochs count from 1."""


@dataclass(frozen=True)
class Panel:
    """One figure, with the sentence that describes it."""

    title: str
    picture: Markup
    summary: str


@dataclass(frozen=True)
class Training:
    """The section of the report on the training of one method. more: panels that are not open at first."""

    method: str
    sentence: str
    panels: tuple[Panel, ...]
    more: tuple[Panel, ...]
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
    terms = {name for row in history for name in row.terms}
    figure = next(iter(history[0].validation), "") if history else ""
    recalls = {name: line for name, line in series.items() if _is_recall(name, figure)}
    drawn = {name: panel(method, name, line, best) for name, line in series.items() if name not in recalls}
    besides = terms | {WAITED}
    return Training(
        method,
        _sentence(folder),
        tuple(one for name, one in drawn.items() if name not in besides),
        (
            *_recall_panels(method, recalls, best),
            *(one for name, one in drawn.items() if name in terms and len(terms) > 1),
            *(one for name, one in drawn.items() if name == WAITED),
        ),
        columns,
        tuple(rows),
        best,
    )


def _is_recall(name: str, figure: str) -> bool:
    """Whether a series is a recall of the validation split that does not choose the epoch."""
    return name.startswith((f"{VALIDATION}R@", f"{VALIDATION}v2t R@")) and name != f"{VALIDATION}{figure}"


def _recall_panels(method: str, recalls: Mapping[str, Series], best: int) -> Iterator[Panel]:
    """One panel a direction, with a line for each recall."""
    for prefix, title in (
        (f"{VALIDATION}R@", "R@K of validation (%)"),
        (f"{VALIDATION}v2t R@", "v2t R@K of validation (%)"),
    ):
        some = {name: line for name, line in recalls.items() if name.startswith(prefix)}
        if some:
            lines = []
            for name, line in some.items():
                kept = set(_thinned([epoch for epoch, _ in line], MOST_POINTS, best))
                points = [(epoch, value) for epoch, value in line if epoch in kept]
                lines.append((name.rpartition(" ")[2], [e for e, _ in points], [v for _, v in points]))
            words = [_in_words(name, dict(line), best) for name, line in some.items()]
            summary = f"{method}, {'; '.join(words)}"
            yield Panel(
                title, by_epoch(f"training {method} {title}", lines, best, title, summary, True), summary
            )


def _series(history: Sequence[Epoch]) -> dict[str, Series]:
    """The series of every quantity; a loss term may be missing in some epochs.

    `waiting`, the share of the time that the network waited for data, is there in histories that recorded it.
    """
    out: dict[str, Series] = {}
    for row in history:
        named = {f"validation {name}": value for name, value in row.validation.items()}
        named |= {"loss": row.loss} | row.terms | {RATE: row.lr}
        waiting = getattr(row, WAITING, None)
        named |= {WAITED: 100 * waiting} if waiting is not None else {}
        for name, value in named.items():
            out.setdefault(name, []).append((row.epoch, value))
    first = [name for name in out if name.startswith("validation ")]
    last = [name for name in (RATE, WAITED) if name in out]
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


def panel(method: str, title: str, series: Series, best_epoch: int) -> Panel:
    """The picture of one quantity by epoch; a value that is not finite has no point."""
    values = {epoch: value for epoch, value in series if math.isfinite(value)}
    kept = _thinned(list(values), MOST_POINTS, best_epoch)
    summary = f"{method}, {_in_words(title, values, best_epoch)}"
    axis = {"loss": "Loss", RATE: "Learning rate", WAITED: "Waiting for data (%)"}.get(title, title)
    if title.startswith("validation "):
        axis = f"{title.removeprefix('validation ')} of validation"
    if not kept:
        return Panel(title, Markup(""), summary)
    lines = [(title, kept, [values[epoch] for epoch in kept])]
    from_zero = title in (RATE, WAITED) and min(values.values()) >= 0
    best = best_epoch if best_epoch in values else 0
    return Panel(
        title, by_epoch(f"training {method} {title}", lines, best, axis, summary, from_zero), summary
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
