"""The lines of an experiment file: settings with a comment each, those that a recipe gives behind a `#`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """A setting, its value and what it means. `given`: something else gives the value, so it stands as a comment."""

    key: str
    value: Any
    words: str = ""
    given: bool = False

    def __str__(self) -> str:
        mark = "# " if self.given else ""
        return f"{mark}{self.key} = {toml(self.value)}" + (f" # {self.words}" if self.words else "")


@dataclass
class Table:
    """A table of an experiment file, "" for its top, with a comment behind its name."""

    name: str = ""
    words: str = ""
    lines: list[Line | str] = field(default_factory=list)  # a text is a comment by itself

    def __str__(self) -> str:
        head = [f"[{self.name}]" + (f" # {self.words}" if self.words else "")] if self.name else []
        body = [f"# {line}" if isinstance(line, str) else str(line) for line in self.lines]
        return "\n".join([*head, *body])


def text(comments: Sequence[str], tables: Sequence[Table]) -> str:
    """An experiment file."""
    head = "\n".join(f"# {line}".rstrip() for line in comments)
    return "\n\n".join([f"{head}\n{tables[0]}", *map(str, tables[1:])]) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it; JSON spells texts, numbers, truth values and lists the same way."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _number(value: float) -> str:
    """A number as people write it: 2.5e-4, 0.05, 100.0."""
    if 0 < abs(value) < 1e-2:
        base, _, power = f"{value:e}".partition("e")
        short = f"{float(base):g}e{int(power)}"
        if float(short) == value:
            return short
    return repr(value)
