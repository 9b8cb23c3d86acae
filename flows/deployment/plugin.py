"""Completes our own bare deployment names on the command line of `prefect`.

`prefect deployment run` knows a deployment as FLOW/DEPLOYMENT only; both parts of ours are called the
same, so that `prefect deployment run extract-and-train` can mean nothing else. Prefect calls this hook
as it is imported, before it reads its arguments, where prefect.toml allows the plugin.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect.plugins import HookContext, register_hook

NAMES = frozenset({"extract", "train", "extract-and-train"})
PROGRAMS = frozenset({"prefect", "-m"})  # `python -m prefect` is called "-m" at this moment
FLAGS = frozenset({"--watch", "--no-watch"})  # options of the command that no value follows


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Return no environment variables; the arguments of this process are completed in place."""
    sys.argv[:] = completed(sys.argv)


def completed(argv: list[str]) -> list[str]:
    """The arguments with NAME as NAME/NAME where `prefect deployment run` is given one of ours."""
    if not argv or Path(argv[0]).name not in PROGRAMS or "run" not in argv:
        return argv
    run = argv.index("run")
    if argv[run - 1] != "deployment":
        return argv
    for place in range(run + 1, len(argv)):
        before = argv[place - 1]
        is_value = place > run + 1 and before.startswith("-") and "=" not in before and before not in FLAGS
        if argv[place] in NAMES and not is_value:
            return [*argv[:place], f"{argv[place]}/{argv[place]}", *argv[place + 1 :]]
    return argv
