"""Extractors and methods by name: built in, or offered by an installed package through an entry point.

Names are read from the metadata of installed packages, without importing any of them. A package is imported when one
of its names is looked up, so that a broken one stops those experiments alone that use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pipeline.errors import UserError, nearest

EXTRACTORS, METHODS = "crossreel.extractors", "crossreel.methods"  # groups of entry points
RESERVED = frozenset({"report", "pack", "train", "evaluate"})  # names of stages and of their groups

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """The origin of a name: `entry` is `module:object`; `package` is empty for a built-in name."""

    name: str
    entry: str
    package: str = ""

    def __str__(self) -> str:
        return f"the package {self.package} ({self.entry})" if self.package else "crossreel itself"


class Catalogue(Generic[T]):
    """The extractors or methods that an experiment can name: `noun` is their word in sentences.

    `group` names their entry points; `built_in` holds objects, or the `module:object` that declares one. `problem`
    returns the fault of an object that a package offers under a name, as the end of a sentence, or "".
    """

    def __init__(
        self, noun: str, group: str, built_in: Mapping[str, T | str], problem: Callable[[Any, str], str]
    ) -> None:
        self._noun, self._group, self._built_in, self._problem = noun, group, built_in, problem

    def origins(self) -> Iterator[Origin]:
        """Every name with its origin, those built in first. A name that two packages offer comes twice."""
        for name, found in self._built_in.items():
            yield Origin(name, found if isinstance(found, str) else f"{_module(found)}:{_name(found)}")
        for point in _offered(self._group):
            yield Origin(point.name, point.value, _package(point))

    def names(self) -> list[str]:
        """Every name once, those built in first; nothing is imported."""
        return list(dict.fromkeys([*self._built_in, *(point.name for point in _offered(self._group))]))

    def find(self, name: str) -> T:
        """The object of a name.

        Raises UserError for an unknown name, for one that is offered twice, and for a package that cannot be imported
        or offers something else under the name.
        """
        origins = [origin for origin in self.origins() if origin.name == name]
        if not origins:
            raise UserError(f"there is no {self._noun} {name!r} here; {nearest(name, self.names())}")
        if len(origins) > 1:
            both = " and ".join(map(str, origins))
            raise UserError(
                f"{len(origins)} {self._noun}s are called {name!r}, of {both}; uninstall all packages but one"
            )
        if name in self._built_in:
            found = self._built_in[name]
            return self._loaded(found) if isinstance(found, str) else found
        return self._load(origins[0])

    def _loaded(self, entry: str) -> T:
        """The object that `module:object` names."""
        found: T = EntryPoint("", entry, self._group).load()
        return found

    def _load(self, origin: Origin) -> T:
        """Import the object that a package offers. Raises UserError if that fails or the object is unfit."""
        where = f"the {self._noun} {origin.name!r} of {origin} cannot be used"
        try:
            found = self._loaded(origin.entry)
        except (
            Exception
        ) as error:  # a foreign module may raise anything; the user is to know which package it was
            message = " ".join(str(error).split())
            raise UserError(
                f"{where}: its import ends with {type(error).__name__}: {message}; mend or uninstall the package"
            ) from error
        problem = self._problem(found, origin.name) or _unfit(origin.name)
        if problem:
            raise UserError(f"{where}: {problem}")
        return found


def wrong_name(found: Any, name: str) -> str:
    """The fault of an object whose name differs from its entry point's; "" if they agree."""
    own = getattr(found, "name", None)
    return "" if own == name else f"it calls itself {own!r}, and both names must be the same"


def wrong_version(found: Any) -> str:
    """The fault of an object whose version is not an integer of 1 or more; "" if it is."""
    own = getattr(found, "version", None)
    whole = isinstance(own, int) and not isinstance(own, bool) and own >= 1
    return "" if whole else f"its version is {own!r}, not a whole number of 1 or more"


def _unfit(name: str) -> str:
    """The reason why a name cannot be a stage's; "" if it can."""
    if name in RESERVED:
        return f"{name!r} is the name of stages of crossreel"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "a name consists of lower-case letters, digits and underscores, and begins with a letter"
    return ""


@cache
def _offered(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of installed packages in the order of their names; read once per process."""
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, _package(point))))


def _package(point: EntryPoint) -> str:
    """The distribution of an entry point with its version, for instance "crossreel-colours 0.1"."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"


def _module(found: Any) -> str:
    return found.__module__ if isinstance(found, type) else type(found).__module__


def _name(found: Any) -> str:
    return found.__qualname__ if isinstance(found, type) else type(found).__qualname__
