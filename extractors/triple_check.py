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

TripleWords = tuple[str, str, str]  # the words of subject, relation and object; "" for a missing part


@dataclass(frozen=True)
class Sentence:
    """A sentence with its golden triples and the triples that a parser predicted; style: what it is an example of."""

    text: str
    style: str
    golden: frozenset[TripleWords]
    predicted: frozenset[TripleWords]

    @property
    def missed(self) -> list[TripleWords]:
        """The golden triples that the parser did not produce."""
        return sorted(self.golden - self.predicted)

    @property
    def wrong(self) -> list[TripleWords]:
        """The parser's triples that are not golden."""
        return sorted(self.predicted - self.golden)


@dataclass(frozen=True)
class Agreement:
    """Counts over all sentences: golden triples, predicted ones, and correct ones among the predicted.

    Each rate is between 0 and 1.
    """

    golden: int
    predicted: int
    correct: int

    @property
    def precision(self) -> float:
        """The share of the parser's triples that are correct."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of the golden triples that the parser produced."""
        return self.correct / self.golden if self.golden else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.correct / (self.golden + self.predicted) if self.correct else 0.0

    def as_json(self) -> dict[str, float]:
        """Rates and counts under the keys that `crossreel triples --golden --json` prints."""
        rates = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return rates | {"wanted": self.golden, "found": self.predicted, "right": self.correct}


@dataclass(frozen=True)
class Golden:
    """A shipped sentence with the triples that were written for it by hand; style: what it is an example of."""

    text: str
    style: str
    triples: frozenset[TripleWords]


def golden() -> list[Golden]:
    """The shipped sentences, each with its golden triples."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()
    ]
    return [
        Golden(line["text"], line["style"], frozenset(normal(tuple(words)) for words in line["triples"]))
        for line in lines
    ]


def compare(predicted: Sequence[Sequence[Triple]]) -> list[Sentence]:
    """The golden sentences with the triples that a parser predicted, in the order of `golden`."""
    return [
        Sentence(
            one.text, one.style, one.triples, frozenset(normal(in_words(one.text, each)) for each in triples)
        )
        for one, triples in zip(golden(), predicted, strict=True)
    ]


def by_style(sentences: Sequence[Sentence]) -> dict[str, list[Sentence]]:
    """The sentences of each style, in alphabetical order of the styles."""
    styles = sorted({sentence.style for sentence in sentences})
    return {style: [one for one in sentences if one.style == style] for style in styles}


def exact(sentences: Sequence[Sentence]) -> Agreement:
    """Counts where a triple is correct if its three parts equal a golden triple's word for word."""
    return _counted(sentences, lambda sentence: len(sentence.golden & sentence.predicted))


def overlapping(sentences: Sequence[Sentence]) -> Agreement:
    """Counts where a triple is correct if each part shares a word with a golden triple's, or both lack the part."""
    return _counted(
        sentences, lambda sentence: most_pairs(sorted(sentence.golden), sorted(sentence.predicted))
    )


def _counted(sentences: Sequence[Sentence], correct: Callable[[Sentence], int]) -> Agreement:
    return Agreement(
        sum(len(sentence.golden) for sentence in sentences),
        sum(len(sentence.predicted) for sentence in sentences),
        sum(correct(sentence) for sentence in sentences),
    )


def most_pairs(golden: Sequence[TripleWords], predicted: Sequence[TripleWords]) -> int:
    """Size of the largest one-to-one matching between golden and predicted triples that overlap."""

    @cache
    def most(place: int, free: frozenset[int]) -> int:
        if place == len(golden):
            return 0
        fitting = [n for n in free if _overlap(golden[place], predicted[n])]
        return max([most(place + 1, free), *(1 + most(place + 1, free - {n}) for n in fitting)])

    return most(0, frozenset(range(len(predicted))))


def _overlap(one: TripleWords, other: TripleWords) -> bool:
    return all(
        bool(set(mine.split()) & set(theirs.split())) or mine == theirs
        for mine, theirs in zip(one, other, strict=True)
    )


def in_words(text: str, triple: Triple) -> TripleWords:
    """The words of a triple's parts in its text."""

    def words(spans: Spans) -> str:
        return " ".join(" ".join(text[start:end].split()) for start, end in spans)

    return words(triple.subject), words(triple.relation), words(triple.object)


def normal(triple: TripleWords) -> TripleWords:
    """A triple in lower case, the form in which triples are compared."""
    subject, relation, obj = (part.lower() for part in triple)
    return subject, relation, obj
