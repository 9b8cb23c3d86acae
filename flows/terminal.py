"""A terminal that shows ids and captions of others: their control characters are written out, never obeyed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what turns the direction of writing, and halves of a surrogate pair."""

_quiet = [False]  # whether --quiet holds; a command line is one process and one thread


@contextmanager
def quieted(quiet: bool) -> Iterator[None]:
    """Show no progress meanwhile, if `quiet`."""
    before, _quiet[0] = _quiet[0], quiet or _quiet[0]
    try:
        yield
    finally:
        _quiet[0] = before


def is_quiet() -> bool:
    """Whether progress is not to be shown."""
    return _quiet[0]


def escaped(text: str) -> str:
    """The text with control characters as `\\x1b` or `\\u202e`, as Python writes them."""
    return CONTROLS.sub(
        lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text
    )


def in_one_line(text: str) -> str:
    """The escaped text with its line feeds written out too: an id may hold one, and would begin a line of its own."""
    return escaped(text).replace("\n", "\\n")


class Terminal(Console):
    """A console whose `print` escapes the control characters of the texts it is given, line feeds among them."""

    def print(self, *objects: Any, lines: bool = False, **options: Any) -> None:
        """Print as Console does; `lines` lets line feeds of the texts begin lines."""
        safe = escaped if lines else in_one_line
        super().print(*(safe(one) if isinstance(one, str) else one for one in objects), **options)
