"""Settings that a program gives, in the form of `--set`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

Settings = Mapping[str, Any] | Sequence[str] | str
"""`{"trainers.gare.lr": 1e-4}`, `{"trainers": {"gare": {"lr": 1e-4}}}`, or texts as `--set` takes them."""


def as_sets(settings: Settings) -> list[str]:
    """The settings as texts `a.b=value`. Raises UserError for a value that a settings file cannot hold."""
    if isinstance(settings, str):
        return [settings]
    if isinstance(settings, Mapping):
        return [f"{name}={_as_toml(name, value)}" for name, value in _leaves(settings, "")]
    return list(settings)


def _leaves(table: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _as_toml(name: str, value: Any) -> str:
    """A value as TOML, which for these types is the text of JSON."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(_as_toml(name, each) for each in value)}]"
    if isinstance(value, Path):
        value = str(value)
    if hasattr(value, "item"):  # a number of NumPy
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return str(value)  # "nan" and "inf" are TOML, and no JSON
    if isinstance(value, bool | int | float | str):
        return json.dumps(value, ensure_ascii=False)
    raise UserError(
        f"{name} = {value!r} is not possible: a setting is a text, a number, true or false, or a list of these"
    )
