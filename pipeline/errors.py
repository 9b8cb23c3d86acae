"""The kinds of error: the user's, an item's, a training's; ours are simply raised."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

STARVED = (
    "cannot allocate memory", "can't allocate memory", "out of memory", "not enough memory", "std::bad_alloc",
    "can't start new thread", "resource temporarily unavailable", "unable to allocate",
)  # fmt: skip
# ffmpeg and the C library; torch on a CPU, on a GPU, and of a tensor; C++; Python's threads; fork; NumPy


class Error(Exception):
    """Base of the errors whose text is a sentence for the user; programs know it as `crossreel.Error`."""


class UserError(Error):
    """The user can mend it: one sentence that names the value and what is possible. Exit status 2."""


class ItemError(Error):
    """One item cannot be processed. It is recorded with its reason and the run goes on."""

    def __init__(self, item: str, reason: str) -> None:
        super().__init__(f"{item}: {reason}")
        self.item, self.reason = item, reason

    def named(self, item: str) -> ItemError:
        """The same error with the item called as the user calls it."""
        return ItemError(item, self.reason)


class ItemKilled(ItemError):
    """The program that worked on an item was killed by a signal or found no memory: the item is not at fault.

    It is tried again alone. `crash` says that it died of a signal that a program gets for its own doing
    (SIGSEGV and the like): if it does so again, alone, the item is at fault after all.
    """

    def __init__(self, item: str, reason: str, crash: bool = False) -> None:
        super().__init__(item, reason)
        self.crash = crash

    def named(self, item: str) -> ItemKilled:
        """The same error with the item called as the user calls it."""
        return ItemKilled(item, self.reason, self.crash)


class TrainingError(Error):
    """Training cannot go on, for a reason named by step and loss term."""


def numbered(heading: str, sentences: Sequence[str]) -> str:
    """The only sentence, or several as a numbered list below "N heading"."""
    if len(sentences) == 1:
        return sentences[0]
    lines = [f"  {number}. {sentence}" for number, sentence in enumerate(sentences, 1)]
    return "\n".join([f"{len(sentences)} {heading}", *lines])


def is_full(error: BaseException | str) -> bool:
    """Whether an error, or a program's message about one, means that the disk is full or the quota used up.

    Libraries that write files themselves (SQLite, safetensors, ffmpeg) give the system's message, not its number.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(error).lower()
    return any(text in words for text in ("no space left on device", "disk quota exceeded", "disk is full"))


def is_starved(error: BaseException | str) -> bool:
    """Whether an error, or a program's message about one, means that memory or threads ran out.

    torch raises a RuntimeError on the CPU and a class of its own on a GPU.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
        return True
    words = str(error).lower()
    return any(text in words for text in STARVED)


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
