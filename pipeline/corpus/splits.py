"""The names of the splits, other names that mean the same, and how items without a split are dealt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from pipeline.errors import UserError, nearest
from pipeline.store.fingerprint import digest_text

SPLITS = ("train", "val", "test")
ALSO_CALLED: Mapping[str, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn"}),
    "val": frozenset({"val", "valid", "validation", "validate", "validating", "dev", "devel", "development"}),
    "test": frozenset({"test", "testing", "tst"}),
}
CANONICAL = {other: name for name, others in ALSO_CALLED.items() for other in others}
TAIL = re.compile(r"[\s_-]*(set|split)$")  # the end of "test set", "dev_split", "trainset"
RATIO = re.compile(r"\d+(?:\.\d+)?")
DIGITS = 16  # digits of an id's hex digest that are read as a number: 64 bits


def split_named(name: str) -> str | None:
    """The split that a name means, whatever its case; None for a name that means none of the three.

    >>> [split_named(name) for name in ("Validation", "dev", "testing", "TEST set", "tset")]
    ['val', 'val', 'test', 'test', None]
    """
    plain = name.strip().casefold()
    return CANONICAL.get(plain) or CANONICAL.get(TAIL.sub("", plain))


def nearest_split(name: str) -> str:
    """The words that end a sentence about a name that means no split."""
    return nearest(name.strip().casefold(), SPLITS)


@dataclass(frozen=True)
class Shares:
    """The shares of train, val and test, which add up to 1."""

    train: float = 0.70
    val: float = 0.15
    test: float = 0.15

    @classmethod
    def parse(cls, ratio: str) -> Self:
        """The shares that a ratio such as "70:15:15" names. Raises UserError."""
        words = re.split(r"[:/,\s]+", ratio.strip())
        parts = [float(word) for word in words if RATIO.fullmatch(word)]
        if len(words) != len(SPLITS) or len(parts) != len(words) or not 0 < parts[0] <= sum(parts) < 1e9:
            raise UserError(
                f"--ratio {ratio}: three numbers for train, val and test are needed, the first above 0, "
                "for instance 70:15:15 or 0.8:0.1:0.1"
            )
        return cls(*(part / sum(parts) for part in parts))

    @property
    def words(self) -> str:
        """The ratio in per cent, for a sentence: "70:15:15"."""
        return ":".join(f"{100 * share:.4g}" for share in (self.train, self.val, self.test))


USUAL = Shares()


def dealt(name: str, shares: Shares = USUAL) -> str:
    """The split of an id that no source gives one: its hash as a number in [0, 1) against fixed thresholds.

    It depends on the id and the shares alone, so that no other item can move it. The test split lies
    lowest and the training split highest: a larger share of val takes items from train and none from test.
    """
    place = int(digest_text(name)[:DIGITS], 16) / 16**DIGITS
    if place < shares.test:
        return "test"
    return "val" if place < shares.test + shares.val else "train"


def empty_splits(dealt_ids: int, filled: Iterable[str], shares: Shares) -> list[str]:
    """A sentence for each split with a share of its own into which no item fell; none where none was dealt."""
    present = set(filled)
    of = {"train": shares.train, "val": shares.val, "test": shares.test}
    return [
        f"no item fell into the split {split}: {dealt_ids} items without a split of their own are dealt by a hash of "
        f"each id, {shares.words}; name splits in a column or in folders train, val and test, or choose another --ratio"
        for split in SPLITS
        if dealt_ids and of[split] and split not in present
    ]
