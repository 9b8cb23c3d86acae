"""The three kinds of error: the user's, an item's, ours (which are simply raised)."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """The user can mend it: one sentence that names the value and what is possible. Exit status 2."""


class ItemError(Exception):
    """One item cannot be processed. It is recorded with its reason and the run goes on."""

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(f"{item}: {reason}")
        self.item, self.reason = item, reason


class TrainingError(Exception):
    """Training cannot go on, for a reason named by step and loss term."""


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or what a program said of one, means that the disk is full or the quota used up.

    Libraries with writers of their own (SQLite, safetensors, ffmpeg) pass on the words, not the number.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error).lower()
    return any(said in words for said in ("no space left on device", "disk quota exceeded", "disk is full"))


def nearest(value: str, possible: Iterable[str]) -> str:
    """The words to end a sentence with: the nearest of the possible values, or all of them.

    >>> nearest("clpi", ["clip", "compress"])
    "did you mean 'clip'?"
    """
    choices = sorted(possible)
    close = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "possible: " + ", ".join(choices) if choices else "there is none"
