"""The page of settings: every key of an experiment file, from the models that check it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from flows.batch import Sweep
from flows.drafting.explanations import explanations
from flows.experiment import Experiment
from flows.graph import EXTRACTORS, METHODS
from pipeline.run.execute import RunOptions
from pipeline.settings import Params, Role
from trainers.stages import EvaluateParams

HEAD = """# Settings

Every key that an experiment file may hold, made from the program when this site is built. `--set table.key=value` sets one
for one command. A key that is unknown is refused with the nearest that is there. The words beside a key are those of its
source; where they give a value of a paper, the method's page names the paper.

*Role* says what a change of the setting makes again:

| role | what a change makes again |
| --- | --- |
| | what the stage made, and all that was made of it |
| packs | the packed inputs of the method, its training and its evaluation |
| speed | nothing: it changes time and memory, and no number |
| digest | what the file or model decides: its content counts, not its name or place |
| path | as above; a relative path begins at the folder of the experiment file |
| unseen | as above; trained weights do not show it, so that a checkpoint is imported with it |
| fills | what the settings decide that it gives |
"""
ROLES = {
    Role.PACKS: "packs", Role.SPEED: "speed", Role.DIGESTED: "digest", Role.UNSEEN: "unseen", Role.PATH: "path",
    Role.FILLS: "fills",
}  # fmt: skip
OF_METHODS = "The defaults are those of its class; a recipe gives those of a published experiment ([methods](methods.md))."
NO_SETTINGS = {"path"}  # the place of the file itself, which no file sets


def tables() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """The name of each table, a sentence about it, and the model that checks it."""
    yield "", "The top of the file, above any table.", Experiment
    yield "run", "Where and how fast; none of them changes a number.", RunOptions
    yield "evaluate", "What is measured.", EvaluateParams
    for key, field in EvaluateParams.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield f"evaluate.{key}", f"Used where `evaluate.post_processing` names `{key}`.", field.annotation
    for kind in EXTRACTORS:
        yield f"extractors.{kind.name}", f"The stage [{kind.name}](../stages.md).", kind.settings
    for name in METHODS.names():
        config = METHODS.find(name).config
        yield f"trainers.{name}", f"The method [{name}](../methods/{name}.md). {OF_METHODS}", config


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD]
    for name, sentence, model in tables():
        parts += [f"## {name or 'Top of the file'}" if not name else f"## [{name}]", sentence, _table(model)]
    parts += [
        "## Sweep files",
        "What `crossreel batch` reads: [experiments](../experiments.md).",
        _table(Sweep),
    ]
    return "\n\n".join(parts) + "\n"


def settings(model: type[BaseModel]) -> list[str]:
    """The names of the keys that a file may set."""
    return [name for name in model.model_fields if name not in NO_SETTINGS]


def _table(model: type[BaseModel]) -> str:
    words = explanations(model)
    rows = ["| key | value | default | role | meaning |", "| --- | --- | --- | --- | --- |"]
    for name in settings(model):
        field = model.model_fields[name]
        cells = [
            f"`{name}`",
            _kind(field.annotation),
            _default(field),
            _role(model, name),
            words.get(name, ""),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(rows)


def _role(model: type[BaseModel], name: str) -> str:
    if not issubclass(model, Params):
        return ""
    return ", ".join(word for role, word in ROLES.items() if name in model.marked(role))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel) or value in ("", (), [], {}, None):
        return ""
    return f"`{value}`" if not isinstance(value, bool) else f"`{str(value).lower()}`"


def _kind(annotation: Any) -> str:
    """A type in words: "integer", "`a` or `b`", "list of text"."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(one) for one in arguments if one is not type(None))
    if origin in (list, tuple):
        return f"list of {_kind(arguments[0])}" if arguments else "list"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return {int: "integer", float: "number", bool: "true, false", str: "text"}.get(annotation, "table")
