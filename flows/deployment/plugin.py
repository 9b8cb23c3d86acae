"""Completes our own deployment names and lists on the command line of `prefect`.

`prefect deployment run` knows a deployment as FLOW/DEPLOYMENT only; both parts of ours are called the
same, so that `prefect deployment run extract-and-train` can mean nothing else. The server takes lists as JSON
alone, since forms offer choices for a list and none for "a list or a word". Prefect calls this hook as it is imported,
before it reads its arguments, where prefect.toml allows the plugin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prefect.plugins import HookContext, register_hook

NAMES = frozenset({"extract", "train", "extract-and-train"})
PROGRAMS = frozenset({"prefect", "-m"})  # `python -m prefect` is called "-m" at this moment
PARAMETER = frozenset({"-p", "--param"})
SETTINGS = "set"
LISTS = frozenset({"methods", SETTINGS, "redo", "recipes"})  # parameters that are lists
FLAGS = frozenset({"--watch", "--no-watch"})  # options of the command that no value follows


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Return no environment variables; the arguments of this process are completed in place."""
    sys.argv[:] = completed(sys.argv)


def completed(argv: list[str]) -> list[str]:
    """The arguments with NAME as NAME/NAME, and lists as JSON, where `prefect deployment run` is given one of ours."""
    if not argv or Path(argv[0]).name not in PROGRAMS or "run" not in argv:
        return argv
    run = argv.index("run")
    if argv[run - 1] != "deployment":
        return argv
    for place in range(run + 1, len(argv)):
        before = argv[place - 1]
        is_value = place > run + 1 and before.startswith("-") and "=" not in before and before not in FLAGS
        if argv[place].partition("/")[0] in NAMES and not is_value:
            name = f"{argv[place]}/{argv[place]}" if argv[place] in NAMES else argv[place]
            rest = _with_lists(argv[place + 1 :], argv[place])
            return [*_with_lists(argv[:place], ""), name, *rest]
    return argv


def _with_lists(arguments: list[str], before: str) -> list[str]:
    """Arguments in which `-p methods=a,b` is `-p methods=["a", "b"]`; before: the argument that precedes them."""
    out = []
    for argument in arguments:
        out.append(_as_list(argument) if before in PARAMETER else argument)
        before = argument
    return out


def _as_list(parameter: str) -> str:
    """A parameter whose value is a list in JSON, if it is one of ours; a setting may hold commas, and is one word."""
    name, equals, value = parameter.partition("=")
    if not equals or name not in LISTS or value.startswith("[") or value == "null":
        return parameter
    words = [value] if name == SETTINGS else value.replace(",", " ").split()
    return f"{name}={json.dumps(words)}"
