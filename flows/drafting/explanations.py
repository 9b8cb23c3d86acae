"""What each setting is, in the words that stand beside it in the source of its class.

A line `lr: float = Field(1e-4, gt=0)  # of the new parameters` explains `lr`; a class that declares a setting again
without a comment keeps the words of its base. So there is one place to write them, and files that are written for users
quote it.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Mapping
from functools import cache

from pydantic import BaseModel

from pipeline.settings import Options, Params

BASES = (BaseModel, Params, Options)  # classes without settings of their own
FOR_MYPY = re.compile(r"# type: ignore\[[^]]*\]\s*")


def explanations(model: type[BaseModel]) -> Mapping[str, str]:
    """The comment of every setting of a class that has one, by name."""
    out: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if issubclass(kind, BaseModel) and kind not in BASES:
            out |= _own(kind)
    return out


@cache
def _own(model: type[BaseModel]) -> dict[str, str]:
    """The comments of the settings that a class declares itself; several lines are joined."""
    source = textwrap.dedent(inspect.getsource(model))
    comments = {
        token.start[0]: FOR_MYPY.sub("", token.string).lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    out = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            words = "; ".join(comments[line] for line in lines if comments.get(line))
            if words:
                out[node.target.id] = words
    return out
