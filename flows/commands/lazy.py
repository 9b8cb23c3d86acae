"""A group of verbs whose modules are imported when a verb is called, not when the verbs are listed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info, get_group
from typer.models import CommandInfo

from flows.commands.dashed import DashedWords
from flows.commands.usual import UsualCommand


class Verb(NamedTuple):
    """A verb: the function, or the `typer.Typer` of a noun with verbs of its own, and its line in the list."""

    where: str  # module:name
    line: str  # the first paragraph of its help, which a test compares
    dashed: bool = False  # whether its arguments are ids or sentences, which may begin with a dash


class LazyGroup(TyperGroup):
    """Lists verbs from a table, and imports the module of the one that is called.

    Importing the modules of all verbs took half of the 0.75 s of `crossreel --help`.
    """

    verbs: Mapping[str, Verb] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, verb in self.verbs.items():
            self.add_command(TyperCommand(name, help=verb.line))  # stands in the list, and is never called

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name of the verb that is called, the verb itself, and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.load(name) if name else command, rest

    def load(self, name: str) -> Any:
        """Import a verb: a command, or for a noun a group of them."""
        entry = self.verbs[name]
        module, _, attribute = entry.where.partition(":")
        verb = getattr(importlib.import_module(module), attribute)
        if not isinstance(verb, typer.Typer):
            return get_command_from_info(
                CommandInfo(name=name, cls=DashedWords if entry.dashed else UsualCommand, callback=verb),
                pretty_exceptions_short=True,
                rich_markup_mode=self.rich_markup_mode,
            )
        for inner in verb.registered_commands:
            inner.cls = UsualCommand if inner.cls is TyperCommand else inner.cls
        group = get_group(verb)
        group.name = name
        return group
