"""The page of the command line: every verb, argument and option, from the command itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer.main

from flows.cli import EXIT_CODES, app

HEAD = """# Command line

Every verb of `crossreel`, made from the command itself when this site is built. `crossreel VERB --help` prints the same.

## Exit status

| status | meaning |
| --- | --- |
"""


def page() -> str:
    """The page as Markdown."""
    root = typer.main.get_command(app)
    codes = "".join(f"| {code} | {words} |\n" for code, words in EXIT_CODES.items())
    parts = [HEAD + codes, "## Options of the command itself", "They stand before the verb.", _options(root)]
    for name, command in leaves():
        parts += [f"## crossreel {name}", _help(command), f"`{_usage(name, command)}`", _options(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def leaves() -> Iterator[tuple[str, Any]]:
    """Every verb with its command; of a noun the verbs in it, as "store ls"."""
    root: Any = typer.main.get_command(app)
    for name in root.commands:
        command = root.load(name)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {verb}", inner[verb]) for verb in inner)


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "")


def _usage(name: str, command: Any) -> str:
    words = [_metavar(one) for one in command.params if one.param_type_name == "argument"]
    return " ".join(["crossreel", name, *words, "[OPTIONS]"])


def _metavar(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    return shown if argument.required or shown.startswith("[") else f"[{shown}]"


def _options(command: Any) -> str:
    """A table of arguments and options; "" if there is none."""
    rows = [_row(one) for one in command.params if not getattr(one, "hidden", False)]
    return "\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows]) if rows else ""


def _row(one: Any) -> str:
    if one.param_type_name == "argument":
        name = f"`{_metavar(one)}`"
    else:
        flag = getattr(one, "is_flag", False)
        value = "" if flag else f" {one.metavar or one.name.upper()}"
        name = " ".join(f"`{opt}`" for opt in (*one.opts[:-1], one.opts[-1] + value, *one.secondary_opts))
    cells = (name, " ".join((one.help or "").split()), _default(one))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(one: Any) -> str:
    value = one.default
    if one.required or value in (None, False, "", [], ()) or callable(value):
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"`{shown}`"
