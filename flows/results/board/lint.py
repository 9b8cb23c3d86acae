"""Do published tables contradict themselves? Sums, recalls that fall, percentages out of range, doubles, sources."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flows.results.board.published import Figures, Published, Row
from trainers.measure.metric_table import METRICS, metric

SUMS = {one.name: one.parts for one in METRICS if len(one.parts) > 1}
ARITHMETIC = 1e-9  # what adding binary fractions may cost


@dataclass(frozen=True)
class Linted:
    """The contradictions that are new, those that a file lists with its note, and listed ones that are not there."""

    new: tuple[str, ...]
    known: tuple[tuple[str, str], ...]
    gone: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether the files say all there is to say."""
        return not self.new and not self.gone


def lint(published: Mapping[str, Published]) -> Linted:
    """Check every file, and rows that stand in several."""
    problems = list(dict.fromkeys(problem for one in published.values() for problem in _problems(one)))
    problems += _doubles(published)
    notes = {known.problem: known.note for one in published.values() for known in one.known}
    return Linted(
        tuple(problem for problem in problems if problem not in notes),
        tuple((problem, notes[problem]) for problem in problems if problem in notes),
        tuple(problem for problem in notes if problem not in problems),
    )


def _problems(one: Published) -> Iterator[str]:
    for word in ("paper", "venue", "arxiv"):
        if not getattr(one, word).strip():
            yield f"{one.method}: the source has no {word}"
    for row in one.rows:
        where = name_of(one, row)
        if not row.table.strip():
            yield f"{where}: no table is named as the source"
        if not any(row.figures()):
            yield f"{where}: the row has no figure"
        for direction, figures in row.figures():
            yield from _impossible(f"{where}, {direction}", len(_summed(direction)), figures)
            yield from _falling(f"{where}, {direction}", figures)
        yield from _sums(where, row)


def name_of(one: Published, row: Row) -> str:
    """A row in words, for instance "LEAN, MSVD lists, paper"."""
    variant = f" ({row.variant})" if row.variant else ""
    protocol = one.protocols[row.protocol]
    return f"{row.system}{variant}, {protocol.dataset} {protocol.name}, {row.origin}"


def _impossible(where: str, directions: int, figures: Figures) -> Iterator[str]:
    for name, value in figures.items():
        low, high = metric(name).least, metric(name).most
        if metric(name).unit == "%":
            high *= directions
        if not low <= value <= high:
            yield f"{where}: {name} is {value:g}, possible is {low:g} to {high:g}"


def _falling(where: str, figures: Figures) -> Iterator[str]:
    recalls = sorted(
        (cutoffs[0], value) for name, value in figures.items() if len(cutoffs := metric(name).parts) == 1
    )
    for (k, less), (m, more) in itertools.pairwise(recalls):
        if more < less:
            yield f"{where}: R@{m} is {more:g}, less than R@{k} with {less:g}"


def _sums(where: str, row: Row) -> Iterator[str]:
    """Printed sums against those of the printed columns, where all are printed; each may be rounded by half a step."""
    sides: dict[str, Figures] = dict(row.figures())
    for direction, figures in sides.items():
        for name, cutoffs in SUMS.items():
            if name not in figures:
                continue
            parts = [sides.get(d, {}).get(f"R@{k}") for d in _summed(direction) for k in cutoffs]
            if None in parts:
                continue
            summed = sum(value for value in parts if value is not None)
            rounding = 0.5 * 10**-row.decimals * (len(parts) + 1)
            if abs(summed - figures[name]) > rounding + ARITHMETIC:
                yield (
                    f"{where}, {direction}: {name} is printed as {figures[name]:.{row.decimals}f}, "
                    f"its columns sum to {summed:.{row.decimals}f}"
                )


def _summed(direction: str) -> tuple[str, ...]:
    return ("t2v", "v2t") if direction == "both" else (direction,)


def _doubles(published: Mapping[str, Published]) -> list[str]:
    """Rows of the same thing, in one file or several, that give one figure in two values."""
    seen: dict[tuple[str, ...], float] = {}
    out = []
    for one in published.values():
        for row in one.rows:
            for direction, figures in row.figures():
                for name, value in figures.items():
                    thing = (name_of(one, row), row.backbone, direction, name)
                    if seen.setdefault(thing, value) != value:
                        out.append(
                            f"{thing[0]}, {direction}: {name} is {seen[thing]:g} in one row and {value:g} in another"
                        )
    return out
