"""Subject, relation and object of the clauses of a sentence, read from its Universal Dependencies tree.

Independent of the parser: a sentence is a list of `Word`. The rules:

- a noun keeps the words that name it (compounds, names, adjectives before it, numbers, a noun's possessive, an
  of-phrase: "glass of cold water") and loses determiners and possessive pronouns;
- a relation is the verb with its auxiliaries, negation and particle, followed by a preposition, wherever that stands in
  the sentence: "on the bench a man is not sitting" gives (man, is not sitting on, bench). A passive stays passive:
  (ball, is thrown by, man). Adverbs are dropped;
- conjoined subjects, verbs and objects give one triple each; a later verb borrows the auxiliary of the first;
- a copula relates a subject to an adjective, a noun or a place: (cat, is, black), (woman, is in, kitchen);
- a clause below a verb continues its relation, (man, tries to open, door), or, below an object, has that object as its
  subject, (son, to tie, shoes); other clauses without a subject inherit the subject above;
- a relative or participle clause has its noun as subject or object: (man, rides, horse);
- a preposition between nouns is a relation of its own, (dog, on, grass); so is the preposition after "there is";
- a verb with only a subject gives a triple without object, (baby, is sleeping, -). CoreNLP gives none, but many
  captions have this form. A verb without a subject ("playing the guitar") gives a triple without subject. Every triple
  has its relation, and at least one of the other two parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

Span = tuple[int, int]  # [start, end) in characters
Spans = tuple[Span, ...]

RELATIVE = {"who", "whom", "which", "that"}
NEGATION = {"not", "n't", "n’t", "never", "no"}
NEGATIVE_DETERMINER = {"no", "neither"}
RELATIONAL = {"front", "top", "back"}  # nouns in prepositions of three words: "in front of", "on top of"
NAMING = ("compound", "flat", "fixed", "goeswith", "nummod", "nmod:desc")
LONGEST = 150  # words; a longer text is no sentence, and its tree may exceed Python's limit on recursion
CLAUSES = ("root", "conj", "acl", "advcl", "xcomp", "ccomp", "parataxis")
NOMINAL = ("NOUN", "PROPN", "PRON", "NUM", "X", "SYM")


@dataclass(frozen=True)
class Word:
    """A word of a parsed sentence: its index from 1, the index of its head (0: none), and its characters."""

    index: int
    text: str
    upos: str
    head: int
    deprel: str
    start: int
    end: int

    @property
    def lower(self) -> str:
        """The word in lower case."""
        return self.text.lower()

    def does(self, *relations: str) -> bool:
        """Whether its relation to its head is one of these, or a subtype of one."""
        return self.deprel in relations or self.deprel.partition(":")[0] in relations


@dataclass(frozen=True, order=True)
class Triple:
    """The characters of a relation, its subject and its object; the spans of each part in reading order.

    A missing part has no spans.
    """

    relation: Spans
    subject: Spans
    object: Spans


def triples(words: Sequence[Word]) -> list[Triple]:
    """Distinct triples of one sentence, ordered by relation; [] for a sentence of more than LONGEST words."""
    if len(words) > LONGEST:
        return []
    tree = Tree(words)
    found: set[Triple] = set()
    for word in words:
        for subject, relation, obj in chain(tree.clause(word), tree.attachments(word)):
            if relation and (subject or obj):
                found.add(Triple(spans(relation), spans(in_order(subject)), spans(in_order(obj))))
    return sorted(found)


Words = list[Word]
Parts = tuple[Words, Words, Words]  # subject, relation, object


def in_order(words: Iterable[Word]) -> Words:
    """The words in the order of the sentence."""
    return sorted(words, key=lambda word: word.index)


def spans(words: Iterable[Word]) -> Spans:
    """The characters of words in the given order; words that follow each other in the sentence share a span."""
    merged: list[tuple[int, int, int]] = []  # start, end, index of the last word
    for word in dict.fromkeys(words):
        if merged and word.index == merged[-1][2] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], word.end), word.index)
        else:
            merged.append((word.start, word.end, word.index))
    return tuple(dict.fromkeys((start, end) for start, end, _ in merged))


class Tree:
    """The words of a sentence and the dependents of each."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.words = {word.index: word for word in words}
        self.below: dict[int, Words] = {}
        for word in words:
            self.below.setdefault(word.head, []).append(word)

    def children(self, word: Word, *relations: str) -> Words:
        """The dependents of a word by any of these relations or their subtypes, in order."""
        return [child for child in self.below.get(word.index, []) if child.does(*relations)]

    def head(self, word: Word) -> Word | None:
        """The head of a word; None for the root."""
        return self.words.get(word.head)

    def clause(self, word: Word) -> list[Parts]:
        """Subject, relation and object of each triple of a predicate; [] for a word that is no predicate."""
        if not self.is_predicate(word):
            return []
        exists = self.children(word, "expl") and self.children(word, "nsubj")
        pairs = self._existence(word) if exists else self._complements(word)
        subjects = [self.phrase(subject) for subject in self.subjects(word)] or [[]]
        return [(subject, relation, obj) for subject in subjects for relation, obj in pairs]

    def attachments(self, noun: Word) -> list[Parts]:
        """Triples from a noun's prepositional phrases, also through an adjective after it: "street full of people"."""
        if noun.upos not in NOMINAL:
            return []
        found = []
        own = ("nmod",) if self.is_predicate(noun) else ("nmod", "obl")
        for phrase in self.children(noun, *own):
            if not self._names(phrase):
                found += [(noun, phrase, *pair) for pair in self.prepositional(phrase)]
        for adjective in self.children(noun, "amod", "acl"):
            if adjective.upos == "ADJ" and not self.is_predicate(adjective):
                found += [
                    (noun, adjective, [*self.predicate_words(adjective), *case], obj)
                    for phrase in self.children(adjective, "obl", "nmod")
                    for case, obj in self.prepositional(phrase)
                ]
        return [
            (self.phrase(owner), relation, obj)
            for start, modifier, relation, obj in found
            for owner in self.owners(start, modifier)
        ]

    # ---- clauses

    def is_predicate(self, word: Word) -> bool:
        """Whether a word heads a clause."""
        if self.children(word, "cop", "nsubj"):
            return True
        if word.upos not in ("VERB", "AUX") or not word.does(*CLAUSES):
            return False
        above = self.head(word)
        return not word.does("conj") or above is None or above.upos in NOMINAL or self.is_predicate(above)

    def subjects(self, word: Word) -> Words:
        """The subjects of a predicate, each conjunct by itself; its own subjects, or those inherited from above."""
        own = self.children(word, "nsubj")
        if own:
            return [one for subject in own for one in self._referents(word, subject)]
        above = self.head(word)
        if above is None:
            return []
        if word.does("acl"):
            infinitive = word.deprel == "acl" and self.children(word, "mark")
            return [] if infinitive else self.owners(above, word)
        if word.does("xcomp", "ccomp") and (objects := self._objects(above, "obj")):
            return objects
        if word.does("xcomp", "ccomp", "conj", "advcl") and self.is_predicate(above):
            return self.subjects(above)
        return []

    def _referents(self, verb: Word, word: Word) -> Words:
        """A word and its conjuncts; in place of a relative pronoun the nouns that it refers to."""
        clause = self._relative_clause(verb)
        if clause and word.lower in RELATIVE and (noun := self.head(clause)):
            return self.owners(noun, clause)
        return [word, *self.children(word, "conj")]

    def _relative_clause(self, verb: Word) -> Word | None:
        """The head of the relative clause that a verb belongs to, perhaps as a conjunct or complement."""
        while not verb.does("acl"):
            above = self.head(verb)
            if above is None or not verb.does("conj", "xcomp", "ccomp"):
                return None
            verb = above
        return verb if verb.deprel == "acl:relcl" else None

    def owners(self, noun: Word, modifier: Word) -> Words:
        """The nouns that a modifier belongs to: `noun`, and those of its conjuncts that stand before the modifier."""
        return [noun, *(one for one in self.children(noun, "conj") if one.index < modifier.index)]

    def _complements(self, word: Word) -> list[tuple[Words, Words]]:
        """Relation and object of each triple of a predicate."""
        relation = self.relation(word)
        if not self._is_verb(word):
            pairs = self._copular(word, relation)
            relation = [*relation, *self.predicate_words(word)]
        else:
            objects = [*self._objects(word, "obj"), *self._objects(word, "iobj"), *self._gap(word)]
            pairs = [(relation, self.phrase(obj)) for obj in objects]
            for state in self.children(word, "xcomp"):
                pairs += self._state(state, relation)
        for phrase in self.children(word, "obl"):
            pairs += [([*relation, *case], obj) for case, obj in self.prepositional(phrase)]
        return pairs or ([] if self._continues(word) else [(relation, [])])

    def _copular(self, word: Word, relation: Words) -> list[tuple[Words, Words]]:
        """Relation and object of a copula: (is, black), (is, famous singer), (is in, kitchen); one per conjunct."""
        alike = [
            one for one in self.children(word, "conj") if not self.is_predicate(one) and one.upos != "VERB"
        ]
        return [([*relation, *self._case(one)], self.phrase(one)) for one in (word, *alike)]

    def _state(self, state: Word, relation: Words) -> list[tuple[Words, Words]]:
        """Relation and object of a complement that describes the subject and is no clause: (looks, happy)."""
        above = self.head(state)
        if self.is_predicate(state) or above is None or self._objects(above, "obj"):
            return []
        return [
            ([*relation, *self._case(one)], self.phrase(one))
            for one in (state, *self.children(state, "conj"))
        ]

    def _existence(self, word: Word) -> list[tuple[Words, Words]]:
        """Relation and object of "there is": the preposition alone is the relation, the place is the object."""
        return [pair for phrase in self.children(word, "obl") for pair in self.prepositional(phrase)]

    def _continues(self, word: Word) -> bool:
        """Whether a clause below continues the relation of this one."""
        return any(
            self.is_predicate(child) and not self.children(child, "nsubj")
            for child in self.children(word, "xcomp", "ccomp")
        )

    def _objects(self, word: Word, kind: str) -> Words:
        """The objects of one kind, each conjunct by itself."""
        return [one for obj in self.children(word, kind) for one in self._referents(word, obj)]

    def _gap(self, word: Word) -> Words:
        """The object of a relative clause's verb: the noun of "the horse (that) a girl rides"."""
        noun = self.head(word)
        if (
            word.deprel != "acl:relcl"
            or noun is None
            or self.children(word, "obj", "nsubj:pass", "xcomp", "ccomp")
        ):
            return []
        subjects = self.children(word, "nsubj")
        placed = self.children(word, "obl") or any(
            adverb.lower in ("where", "when", "why", "how") for adverb in self.children(word, "advmod")
        )
        if placed or not subjects or any(subject.lower in RELATIVE for subject in subjects):
            return []
        return self.owners(noun, word)

    # ---- relations

    def relation(self, word: Word) -> Words:
        """The words of a predicate's relation in order, including those of a clause that it continues."""
        before: Words = []
        above = self.head(word)
        if word.does("xcomp", "ccomp") and above and not self.children(word, "nsubj"):
            marks = self.children(word, "mark")
            marks += [adverb for adverb in self.children(word, "advmod") if adverb.lower == "how"]
            governs = self._objects(above, "obj") or not self.is_predicate(above)
            before = [*marks] if governs else [*self.relation(above), *self.predicate_words(above), *marks]
        elif word.does("advcl", "acl"):
            before = [mark for mark in self.children(word, "mark") if mark.lower == "to"]
        own = [word, *self.children(word, "compound:prt")] if self._is_verb(word) else []
        return in_order([*before, *self._helpers(word), *own])

    def _is_verb(self, word: Word) -> bool:
        return word.upos in ("VERB", "AUX") and not self.children(word, "cop")

    def predicate_words(self, word: Word) -> Words:
        """The words that a predicate which is no verb adds to a relation that continues after it: "is full of"."""
        return [] if self._is_verb(word) else in_order([*self._case(word), *self.phrase(word)])

    def _helpers(self, word: Word) -> Words:
        """Auxiliaries, copula and negation; a conjoined verb without any has those of a first verb of its form."""
        helpers = self.children(word, "aux", "cop")
        negation = [adverb for adverb in self.children(word, "advmod") if adverb.lower in NEGATION]
        first = self.head(word)
        if helpers or first is None or not word.does("conj") or self.children(word, "nsubj"):
            return [*helpers, *negation]
        if not (self._is_verb(word) and self._is_verb(first) and _same_form(word, first)):
            return negation
        if any(link.lower == "but" for link in self.children(word, "cc")):
            return [*self.children(first, "aux"), *negation]
        return [*self._helpers(first), *negation]

    def _case(self, word: Word) -> Words:
        """All words of a word's preposition."""
        return [
            part
            for case in self.children(word, "case")
            if case.lower not in ("'s", "’s", "'", "’")
            for part in (case, *self.children(case, "fixed"))
        ]

    def prepositional(self, phrase: Word) -> list[tuple[Words, Words]]:
        """Preposition and noun of a phrase; [] for a phrase without a preposition ("every day")."""
        case = self._case(phrase)
        if not case:
            return []
        bare = phrase.lower in RELATIONAL and not self.children(phrase, "det", "amod", "nmod:poss")
        inner = [one for one in self.children(phrase, "nmod") if self._names(one)] if bare else []
        if inner:
            case, phrase = [*case, phrase, *self._case(inner[0])], inner[0]
        found = []
        for one in (phrase, *self.children(phrase, "conj")):
            own = self._case(one) if one is not phrase else []
            found.append((own or case, self.phrase(one)))
        return found

    # ---- nouns

    def phrase(self, word: Word) -> Words:
        """A noun (or adjective) with the words that name it, in no particular order."""
        kept = [word]
        for child in self.below.get(word.index, []):
            adjective = child.does("amod") and child.index < word.index
            if adjective or (child.does(*NAMING) and not child.does("compound:prt")):
                kept += self._conjoined(child)
            elif child.does("nmod") and self._names(child):
                kept += [*self.children(child, "case"), *self._conjoined(child)]
            elif (child.does("det") and child.lower in NEGATIVE_DETERMINER) or self._joins(child):
                kept.append(child)
        return kept

    def _conjoined(self, word: Word) -> Words:
        """A modifier with its conjuncts and the words that join them: "black and white"."""
        kept = self.phrase(word)
        for other in self.children(word, "conj"):
            kept += [*self.children(other, "cc"), *self.phrase(other)]
        return kept

    def _joins(self, word: Word) -> bool:
        """Whether a word is the hyphen of "t-shirt", which touches the words on both sides."""
        left, right = self.words.get(word.index - 1), self.words.get(word.index + 1)
        if word.text not in ("-", "/") or left is None or right is None:
            return False
        return left.end == word.start and word.end == right.start

    def _names(self, phrase: Word) -> bool:
        """Whether a phrase below a noun belongs to its name: an of-phrase, or a possessive that is a noun."""
        if phrase.does("nmod:poss"):
            return phrase.upos in ("NOUN", "PROPN")
        return [case.lower for case in self._case(phrase)] == ["of"]


def _same_form(one: Word, other: Word) -> bool:
    return one.lower.endswith("ing") == other.lower.endswith("ing")
