"""The flows' parameters: their types, that is what a form offers, and what a server refuses before a run is made.

They describe and do not convert: a value arrives at the flow as it was given, and what is wrong with it
is said there, in a sentence that names the nearest possible value. To a form, a list is a list of choices; a flow also
takes a single word, which our plugin turns into a list where `-p methods=hlformer` is typed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from flows.graph import EVERY_EXTRACTOR, METHODS
from pipeline.errors import UserError
from trainers.recipes import every_recipe

GROUPS = ("pack", "train", "evaluate")  # groups of stages with one stage for each method
MOST_RETRIES = 10

ExperimentFile = Annotated[str, Field(min_length=1, json_schema_extra={"examples": ["experiment.toml"]})]
"""An experiment file, as text: the worker's machine has it, not the one that asks."""

Words = list[str] | str | None
"""One or more words: a list, or words with commas between them."""


def _list_of(items: dict[str, Any]) -> WithJsonSchema:
    """What a form and the server know of a list of words."""
    return WithJsonSchema({"type": "array", "items": {"type": "string", **items}})


Methods = Annotated[Words, _list_of({"enum": METHODS.names()})]
"""Methods of `flows.graph`: a form offers them one by one."""

Recipes = Annotated[
    Words, _list_of({"enum": [f"{row.method}/{row.name}" for row in every_recipe() if row.published]})
]
"""Published settings as METHOD/RECIPE, for instance "gare/msrvtt": a form offers them one by one."""

Settings = Annotated[Words, _list_of({"examples": ["trainers.hlformer.lr=1e-4"]})]
"""Settings, each `name.of.key=value`."""

Stages = Annotated[Words, _list_of({"examples": [*EVERY_EXTRACTOR.names(), *GROUPS]})]
"""Stages, or groups of them; any name is possible, as an imported feature is a stage too."""

Retries = Annotated[int, Field(ge=0, le=MOST_RETRIES)]
"""Number of further attempts of a failed stage."""


@dataclass(frozen=True)
class FlowRequest:
    """The parameters of a flow run: the same for all three flows, which describe them."""

    experiment: str
    methods: Words = None
    set: Words = None
    retry_failed: bool = False
    redo: Words = None
    retries: int = 0
    recipes: Words = None

    @property
    def sets(self) -> list[str]:
        """The settings, those of the recipes first. Raises UserError for a recipe that is not METHOD/RECIPE."""
        return [*map(_recipe_set, one_or_more(self.recipes)), *one_or_more(self.set, split=False)]


def _recipe_set(word: str) -> str:
    method, slash, recipe = word.partition("/")
    if not (method and slash and recipe):
        raise UserError(f"recipes: {word!r} is not METHOD/RECIPE, for instance gare/msrvtt")
    return f"trainers.{method}.recipe={json.dumps(recipe)}"


def one_or_more(words: Words, split: bool = True) -> list[str]:
    """The words as a list; a bare one may hold several, between commas or spaces, where `split` allows it."""
    if not isinstance(words, str):
        return list(words or [])
    if split:
        return words.replace(",", " ").split()
    return [words] if words.strip() else []
