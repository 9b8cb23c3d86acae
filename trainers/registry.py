"""The retrieval methods by name: those of this table, and those of installed packages. Imports no torch."""

from __future__ import annotations

from typing import Any

from pipeline import plugins
from trainers.config import MethodConfig
from trainers.contract import RetrievalMethod

Declared = RetrievalMethod[Any]

BUILT_IN = {  # name -> dotted path of the declaration, which is imported when the method is looked up
    "clip4clip": "trainers.clip4clip.declaration:CLIP4CLIP",
    "hlformer": "trainers.hlformer.declaration:HLFORMER",
    "neighborretr": "trainers.neighborretr.declaration:NEIGHBORRETR",
    "gare": "trainers.gare.declaration:GARE",
    "lean": "trainers.lean.declaration:LEAN",
    "h2arn": "trainers.h2arn.declaration:H2ARN",
}


def _problem(found: Any, name: str) -> str:
    """The fault of a method that a package offers under a name; "" if there is none."""
    if not isinstance(found, RetrievalMethod):
        what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        return f"it is {what}, not an instance of trainers.contract.RetrievalMethod"
    if not (isinstance(getattr(found, "config", None), type) and issubclass(found.config, MethodConfig)):
        return "its config is not a subclass of trainers.config.MethodConfig"
    return plugins.wrong_name(found, name) or plugins.wrong_version(found)


METHODS: plugins.Catalogue[Declared] = plugins.Catalogue("method", plugins.METHODS, BUILT_IN, _problem)
"""Every method that an experiment can name."""
