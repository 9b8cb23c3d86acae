"""The flows' parameters: their types, that is what a form offers, and what a server refuses before a run is made.

They describe and do not convert: a value arrives at the flow as it was given, and what is wrong with it
is said there, in a sentence that names the nearest possible value. A single word may stand for a list of
one, as `-p methods=hlformer` gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from flows.graph import EVERY_EXTRACTOR, METHODS

GROUPS = ("pack", "train", "evaluate")  # groups of stages with one stage for each method
MOST_RETRIES = 10

ExperimentFile = Annotated[str, Field(min_length=1, json_schema_extra={"examples": ["experiment.toml"]})]
"""An experiment file, as text: the worker's machine has it, not the one that asks."""

Methods = list[Annotated[str, Field(json_schema_extra={"enum": METHODS.names()})]] | str | None
"""Methods of `flows.graph`: a form offers them one by one."""

Settings = (
    list[Annotated[str, Field(json_schema_extra={"examples": ["trainers.hlformer.lr=1e-4"]})]] | str | None
)
"""Settings, each `name.of.key=value`."""

Stages = (
    list[Annotated[str, Field(json_schema_extra={"examples": [*EVERY_EXTRACTOR.names(), *GROUPS]})]]
    | str
    | None
)
"""Stages, or groups of them; any name is possible, as an imported feature is a stage too."""

Retries = Annotated[int, Field(ge=0, le=MOST_RETRIES)]
"""Number of further attempts of a failed stage."""

Words = list[str] | str | None
"""One or more words: the forms of `-p name=word` and of `-p 'name=["a", "b"]'`."""


@dataclass(frozen=True)
class FlowRequest:
    """The parameters of a flow run: the same for all three flows, which describe them."""

    experiment: str
    methods: Words = None
    set: Words = None
    retry_failed: bool = False
    redo: Words = None
    retries: int = 0


def one_or_more(words: Words, split: bool = True) -> list[str]:
    """The words as a list; a bare one may hold several, between commas or spaces, where `split` allows it."""
    if not isinstance(words, str):
        return list(words or [])
    if split:
        return words.replace(",", " ").split()
    return [words] if words.strip() else []
