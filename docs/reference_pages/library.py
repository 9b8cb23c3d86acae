"""The page of the library's names: every public function and class, with its signature and docstring."""

from __future__ import annotations

import inspect
from typing import Any

import crossreel

HEAD = """# Names of the library

Every public name of `import crossreel`, from its source. [Python](../python.md) shows them in use.
"""


def page() -> str:
    """The page as Markdown."""
    names = [name for name in crossreel.__all__ if not name.startswith("_")]
    functions = [name for name in names if inspect.isfunction(getattr(crossreel, name))]
    parts = [HEAD]
    for name in (*functions, *(name for name in names if name not in functions)):
        found = getattr(crossreel, name)
        parts.append(f"## crossreel.{name}")
        if name in functions:
            parts += [f"```python\ncrossreel.{name}{_signature(found)}\n```", _doc(found)]
        else:
            parts += [_doc(found), _members(found)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _signature(found: Any) -> str:
    """The signature with annotations as they are written, and defaults as Python shows them."""
    written = inspect.signature(found)
    shown, starred = [], False
    for one in written.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        default = "" if one.default is one.empty else f" = {one.default!r}"
        shown.append(f"{star}{one.name}: {one.annotation}{default}")
    return f"({', '.join(shown)}) -> {written.return_annotation}"


def _doc(found: Any) -> str:
    text = inspect.getdoc(found) or ""
    return text.replace("<", "&lt;")


def members(kind: type) -> dict[str, Any]:
    """The public methods and properties that a class of ours declares, by name."""
    return {
        name: member
        for base in reversed(kind.__mro__) if base.__module__.split(".")[0] in ("crossreel", "flows", "pipeline")
        for name, member in vars(base).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }  # fmt: skip


def _members(kind: type) -> str:
    rows = []
    for name, member in members(kind).items():
        function = member.fget if isinstance(member, property) else member
        doc = " ".join((inspect.getdoc(member) or "").split()).replace("|", "\\|")
        signature = "" if isinstance(member, property) else _arguments(function)
        rows.append(f"| `{name}{signature}` | {doc} |")
    return "\n".join(["| name | what it gives |", "| --- | --- |", *rows]) if rows else ""


def _arguments(function: Any) -> str:
    """The names of the arguments, with a default shown as `name=`."""
    found = list(inspect.signature(function).parameters.values())[1:]
    shown = [
        f"*{one.name}" if one.kind is one.VAR_POSITIONAL
        else f"**{one.name}" if one.kind is one.VAR_KEYWORD
        else one.name if one.default is one.empty else f"{one.name}="
        for one in found
    ]  # fmt: skip
    return f"({', '.join(shown)})"
