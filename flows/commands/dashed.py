"""Ids and sentences that begin with a dash: a verb that takes some does not mistake them for options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from flows.commands.usual import UsualCommand


class DashedWords(UsualCommand):
    """A verb whose arguments may begin with a dash, as one in 32 of YouTube's ids does.

    What is no option of the verb is an argument, wherever it stands: `why clip -4wsuPCjDBc` is asked of that item. A
    word of two dashes that is near an option's name is a mistyped option, and is refused as ever; after a bare `--`
    everything is an argument.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the options first and everything else behind a bare `--`, which click reads as arguments."""
        known: dict[str, int] = {}  # options by name, and how many words are their value
        for option in self.get_params(ctx):
            if option.param_type_name == "option":
                bare = getattr(option, "is_flag", False) or getattr(option, "count", False)
                known |= dict.fromkeys((*option.opts, *option.secondary_opts), 0 if bare else option.nargs)
        options: list[str] = []
        words: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if arg == "--":
                words += rest
                break
            name = arg.partition("=")[0] if arg.startswith("--") else arg
            if name in known:
                count = known[name] if name == arg else 0
                options += [arg, *rest[:count]]
                del rest[:count]
            elif arg.startswith("--") and _near(name, known):
                options.append(arg)
            else:
                words.append(arg)
        return super().parse_args(ctx, [*options, "--", *words] if words else options)


def _near(name: str, known: Iterable[str]) -> bool:
    """Whether a word looks like a mistyped option; the ids of videos are not words, and are not near any."""
    return bool(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7))
