"""Figures of the report as SVG, drawn by matplotlib: curves with bands, histograms, lines by epoch. Reads no file.

One set of rules: axes have titles and units, panels that are compared share a scale, methods differ in colour and in
dashes, and text is about 11 pixels high on a phone too. Colours are CSS variables of the page, so that one picture
serves the light and the dark scheme; the text is text, in the page's font.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

Values = Sequence[float] | NDArray[np.float64]

POINTS = 72  # matplotlib's inch; a unit of the picture is then a pixel where it is shown at its own size
WIDE = (340, 230)  # size of a figure that has a row of its own on a phone
SMALL = (216, 150)  # size of one of several panels
MARGINS = (60, 8, 8, 40)  # left, right, top, bottom, in pixels: room for titles and for six digits
FONT = 11.5
# Colours that stand for variables of the style sheet: matplotlib writes them, `_themed` replaces them.
INK, SOFT, LINE, ACCENT, REACH = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = tuple(f"#0601{n:02x}" for n in range(6))
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", REACH: "reach"} | {
    colour: f"s{n}" for n, colour in enumerate(SERIES)
}
DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2),
    (2, 1.6),
    (7, 2, 1.5, 2),
    (1, 1),
    (4, 1.2, 1, 1.2, 1, 1.2),
)
CHANCE_DASHES = (3, 3)

RULES: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": FONT,
    "axes.labelsize": FONT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Style:
    """Colour and dashes of a method: the same in every figure. number: its place among the methods."""

    number: int

    @property
    def colour(self) -> str:
        """The colour that stands for the variable."""
        return SERIES[self.number % len(SERIES)]

    @property
    def variable(self) -> str:
        """The variable of the style sheet."""
        return VARIABLES[self.colour]

    @property
    def dashes(self) -> tuple[float, ...]:
        """Lengths of dashes and gaps; none for a solid line."""
        return DASHES[self.number % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """A line y over x, with an interval band if `low` and `high` are given. style: None for a random order."""

    x: Values
    y: Values
    style: Style | None
    low: Values = field(default_factory=tuple)
    high: Values = field(default_factory=tuple)


def recall_curves(name: str, curves: Sequence[Curve], ticks: Sequence[int], label: str) -> Markup:
    """Recall in percent by K on a logarithmic scale, with bands; x runs from 1 to the size of the gallery."""
    with _rules(name):
        figure, axes = _figure(WIDE)
        axes.set_xscale("log")
        for curve in curves:
            _draw(axes, curve)
        axes.set_xticks(list(ticks), [f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(1, max(1.1, *(float(curve.x[-1]) for curve in curves)))
        axes.set_ylim(0, 100)
        axes.set_xlabel("K, number of first results")
        axes.set_ylabel("Recall at K (%)")
        axes.grid(axis="y")
        return _svg(figure, name, label)


def _draw(axes: Axes, curve: Curve) -> None:
    colour = curve.style.colour if curve.style else SOFT
    dashes = curve.style.dashes if curve.style else CHANCE_DASHES
    if len(curve.low):
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    (line,) = axes.plot(curve.x, curve.y, color=colour, linewidth=1.8 if curve.style else 1.2)
    if dashes:
        line.set_dashes(dashes)


@dataclass(frozen=True)
class Bars:
    """Bars side by side, with a short line for a random order at each if `chance` is given; `strong` stand out."""

    heights: Values
    labels: Sequence[str]
    chance: Values | None = None
    strong: frozenset[int] = frozenset()


def histogram(name: str, bars: Bars, top: float, titles: tuple[str, str], whole: bool, label: str) -> Markup:
    """A panel of bars under a common scale that ends at `top`. titles: of both axes. whole: the heights are counts."""
    with _rules(name):
        figure, axes = _figure(SMALL)
        places = list(range(len(bars.heights)))
        colours = [ACCENT if place in bars.strong else REACH for place in places]
        axes.bar(places, bars.heights, width=0.86, color=colours)
        if bars.chance is not None:
            ends = [place - 0.43 for place in places], [place + 0.43 for place in places]
            axes.hlines(bars.chance, *ends, color=INK, linewidth=1.4, linestyle=(0, (3, 1.5)))
        shown = [place for place in places if bars.labels[place]]
        axes.set_xticks(shown, [bars.labels[place] for place in shown])
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=whole))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
        axes.grid(axis="y")
        axes.set_xlabel(titles[0])
        axes.set_ylabel(titles[1])
        return _svg(figure, name, label)


def by_epoch(
    name: str, lines: Sequence[tuple[str, Sequence[int], Values]], best_epoch: int, title: str, label: str,
    from_zero: bool = False,
) -> Markup:  # fmt: skip
    """Quantities by epoch, each line with its name if there are several; a dashed line marks the best epoch."""
    with _rules(name):
        figure, axes = _figure(SMALL)
        for number, (legend, epochs, values) in enumerate(lines):
            style = Style(number)
            colour = ACCENT if len(lines) == 1 else style.colour
            (line,) = axes.plot(
                epochs, values, color=colour, label=legend,
                marker="o" if len(epochs) == 1 else None, markersize=4,
            )  # fmt: skip
            if style.dashes:
                line.set_dashes(style.dashes)
            _mark_best(axes, best_epoch, epochs, values, colour)
        if best_epoch:
            axes.axvline(best_epoch, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
        epochs_of = [epoch for _, epochs, _ in lines for epoch in epochs]
        least, last = min(epochs_of), max(epochs_of)
        axes.set_xlim(least - 0.5 * (least == last), last + 0.5 * (least == last))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if from_zero:
            axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value)))
        axes.grid(axis="y")
        axes.set_xlabel("Epoch")
        axes.set_ylabel(title)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=FONT, handlelength=1.6, borderaxespad=0, loc="best")
        return _svg(figure, name, label)


def _mark_best(axes: Axes, best: int, epochs: Sequence[int], values: Values, colour: str) -> None:
    """A dot on the line at the best epoch, if the line has a point there."""
    if best in epochs:
        axes.plot([best], [values[list(epochs).index(best)]], "o", color=colour, markersize=4.5)


def tick_label(value: float) -> str:
    """A number beside an axis in few characters: "0", "0.002", "5e-05", "12,000"; never "-0"."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def room_above(values: Sequence[float]) -> float:
    """The end of a scale that starts at 0 and holds all values with some room above them."""
    greatest = max((value for value in values if math.isfinite(value)), default=0.0)
    return 1.06 * greatest or 1.0


def _figure(size: tuple[int, int]) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; margins are fixed, since a layout engine draws everything twice."""
    width, height = size
    figure = Figure(figsize=(width / POINTS, height / POINTS))
    left, right, top, bottom = MARGINS
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure, figure.subplots()


@contextmanager
def _rules(name: str) -> Iterator[None]:
    """Matplotlib under the rules of this page; the salt makes the ids of a figure its own, and always the same."""
    rules: Any = RULES | {"svg.hashsalt": name}  # whose keys matplotlib types one by one
    with matplotlib.rc_context(rules):
        yield


def _svg(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an element of a page, with a sentence that describes it."""
    out = io.StringIO()
    figure.savefig(
        out,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    width, height = (round(side * POINTS) for side in figure.get_size_inches())
    return Markup(_themed(out.getvalue(), width, height, label))


def _themed(text: str, width: int, height: int, label: str) -> str:
    """Matplotlib's file as an element: without its style sheet, fonts and sizes, with the colours of the page."""
    inner = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    inner = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", inner, flags=re.DOTALL)
    inner = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", inner)
    inner = re.sub(r" ?font-family: [^;\"]*;?", "", inner)
    inner = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", inner)
    for colour, variable in VARIABLES.items():
        inner = inner.replace(colour, f"var(--{variable})")
    wanted = set(re.findall(r"#([\w-]+)", inner))
    inner = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in wanted else "", inner)
    inner = re.sub(r"<defs>\s*</defs>|<g>\s*</g>", "", inner)
    inner = (
        re.sub(r"\n\s*", "\n", inner)
        .replace("xlink:href", "href")
        .replace("<text ", '<text aria-hidden="true" ')
    )
    view = f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return f"{view}{inner.strip()}</svg>"
