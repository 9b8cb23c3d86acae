"""Precision and recall of a parser's triples against golden triples that were written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from extractors.backbones.triple_rules import Spans, Triple

GOLDEN = Path(__file__).parent / "backbones" / "models" / "golden_triples.jsonl"

Said = tuple[str, str, str]  # the words of subject, relation and object; "" for a missing part


@dataclass(frozen=True)
class Sentence:
    """A sentence with its golden triples (`wanted`) and the parser's triples (`found`)."""

    text: str
    wanted: frozenset[Said]
    found: frozenset[Said]

    @property
    def missed(self) -> list[Said]:
        """The golden triples that the parser did not produce."""
        return sorted(self.wanted - self.found)

    @property
    def wrong(self) -> list[Said]:
        """The parser's triples that are not golden."""
        return sorted(self.found - self.wanted)


@dataclass(frozen=True)
class Agreement:
    """Counts over all sentences: golden triples (`wanted`), the parser's (`found`), and correct ones (`right`).

    Each rate is between 0 and 1.
    """

    wanted: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """The share of the parser's triples that are correct."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """The share of the golden triples that the parser produced."""
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.right / (self.wanted + self.found) if self.right else 0.0

    def as_json(self) -> dict[str, float]:
        """Rates and counts as plain data."""
        rates = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return rates | {"wanted": self.wanted, "found": self.found, "right": self.right}


def golden() -> list[tuple[str, frozenset[Said]]]:
    """The shipped sentences, each with its golden triples."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()
    ]
    return [(line["text"], frozenset(normal(tuple(said)) for said in line["triples"])) for line in lines]


def compare(found: Sequence[Sequence[Triple]]) -> list[Sentence]:
    """The golden sentences with a parser's triples of each; `found` has them in the order of `golden`."""
    return [
        Sentence(text, wanted, frozenset(normal(said(text, triple)) for triple in triples))
        for (text, wanted), triples in zip(golden(), found, strict=True)
    ]


def exact(sentences: Sequence[Sentence]) -> Agreement:
    """Counts where a triple is correct if its three parts equal a golden triple's word for word."""
    return _counted(sentences, lambda sentence: len(sentence.wanted & sentence.found))


def overlapping(sentences: Sequence[Sentence]) -> Agreement:
    """Counts where a triple is correct if each part shares a word with a golden triple's, or both lack the part."""
    return _counted(sentences, lambda sentence: most_pairs(sorted(sentence.wanted), sorted(sentence.found)))


def _counted(sentences: Sequence[Sentence], right: Callable[[Sentence], int]) -> Agreement:
    return Agreement(
        sum(len(sentence.wanted) for sentence in sentences),
        sum(len(sentence.found) for sentence in sentences),
        sum(right(sentence) for sentence in sentences),
    )


def most_pairs(wanted: Sequence[Said], found: Sequence[Said]) -> int:
    """Size of the largest one-to-one matching between golden and parsed triples that overlap."""

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
    """A triple in lower case, the form in which triples are compared."""
    subject, relation, obj = (part.lower() for part in said)
    return subject, relation, obj
