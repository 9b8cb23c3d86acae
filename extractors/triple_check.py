"""How well a parser finds the triples of sentences whose triples were written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from extractors.backbones.triple_rules import Spans, Triple

GOLDEN = Path(__file__).parent / "backbones" / "models" / "golden_triples.jsonl"

Said = tuple[str, str, str]  # the words of subject, relation and object; "" for a part that is not there


@dataclass(frozen=True)
class Sentence:
    """A sentence with the triples it should have and those that were found."""

    text: str
    wanted: frozenset[Said]
    found: frozenset[Said]

    @property
    def missed(self) -> list[Said]:
        """The triples that should have been found."""
        return sorted(self.wanted - self.found)

    @property
    def wrong(self) -> list[Said]:
        """The triples that should not have been found."""
        return sorted(self.found - self.wanted)


@dataclass(frozen=True)
class Agreement:
    """Counts over all sentences: triples wanted, found, and found rightly; each rate is between 0 and 1."""

    wanted: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """The share of the found ones that are right."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """The share of the wanted ones that were found."""
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of the two."""
        return 2 * self.right / (self.wanted + self.found) if self.right else 0.0

    def as_json(self) -> dict[str, float]:
        """Rates and counts as plain data."""
        rates = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return rates | {"wanted": self.wanted, "found": self.found, "right": self.right}


def golden() -> list[tuple[str, frozenset[Said]]]:
    """The sentences that are shipped, with the triples written by hand."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()
    ]
    return [(line["text"], frozenset(normal(tuple(said)) for said in line["triples"])) for line in lines]


def compare(found: Sequence[Sequence[Triple]]) -> list[Sentence]:
    """The golden sentences beside what a parser found in each, given in their order."""
    return [
        Sentence(text, wanted, frozenset(normal(said(text, triple)) for triple in triples))
        for (text, wanted), triples in zip(golden(), found, strict=True)
    ]


def exact(sentences: Sequence[Sentence]) -> Agreement:
    """A triple is right if its three parts are, word for word."""
    return _counted(sentences, lambda sentence: len(sentence.wanted & sentence.found))


def overlapping(sentences: Sequence[Sentence]) -> Agreement:
    """A triple is right if each part shares a word with that of a wanted one, or both lack it."""
    return _counted(sentences, lambda sentence: most_pairs(sorted(sentence.wanted), sorted(sentence.found)))


def _counted(sentences: Sequence[Sentence], right: Callable[[Sentence], int]) -> Agreement:
    return Agreement(
        sum(len(sentence.wanted) for sentence in sentences),
        sum(len(sentence.found) for sentence in sentences),
        sum(right(sentence) for sentence in sentences),
    )


def most_pairs(wanted: Sequence[Said], found: Sequence[Said]) -> int:
    """The most wanted triples that can be given a found one each which overlaps with it."""

    @cache
    def most(place: int, free: frozenset[int]) -> int:
        if place == len(wanted):
            return 0
        fitting = [n for n in free if _overlap(wanted[place], found[n])]
        return max([most(place + 1, free), *(1 + most(place + 1, free - {n}) for n in fitting)])

    return most(0, frozenset(range(len(found))))


def _overlap(one: Said, other: Said) -> bool:
    return all(
        bool(set(mine.split()) & set(theirs.split())) or mine == theirs
        for mine, theirs in zip(one, other, strict=True)
    )


def said(text: str, triple: Triple) -> Said:
    """The words of a triple's parts in its text."""

    def words(spans: Spans) -> str:
        return " ".join(" ".join(text[start:end].split()) for start, end in spans)

    return words(triple.subject), words(triple.relation), words(triple.object)


def normal(said: Said) -> Said:
    """A triple in lower case, as it is compared."""
    subject, relation, obj = (part.lower() for part in said)
    return subject, relation, obj
