"""Subject, relation and object of the clauses of a sentence, read off its Universal Dependencies tree.

Knows nothing of any parser: a sentence is a list of `Word`. What is taken, and in which form:

- a noun keeps what names it (compounds, names, adjectives before it, numbers, a noun's possessive, an
  of-phrase: "glass of cold water") and loses determiners and possessive pronouns;
- a relation is the verb with its auxiliaries, negation and particle, and then a preposition, wherever that
  stands: (man, is not sitting on, bench) is also that of "on the bench a man is not sitting". A passive
  stays passive: (ball, is thrown by, man). Adverbs are dropped;
- conjoined subjects, verbs and objects give a triple each; a later verb borrows the first one's auxiliary;
- a copula relates to an adjective, a noun or a place: (cat, is, black), (woman, is in, kitchen);
- a clause below a verb continues its relation, (man, tries to open, door), or, beneath an object, takes
  that for its subject, (son, to tie, shoes); other clauses without a subject inherit the one above;
- a relative or participle clause has its noun for subject or object: (man, rides, horse);
- a preposition between nouns is a relation of its own, (dog, on, grass); so is that of "there is";
- a verb with nothing but a subject gives a triple without object, (baby, is sleeping, -), which CoreNLP
  would not: much of what captions say is said so. A verb without a subject ("playing the guitar") gives
  one without subject. Two of the three parts are there always, and the relation is one of them.
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
RELATIONAL = {"front", "top", "back"}  # "in front of", "on top of": one preposition of three words
NAMING = ("compound", "flat", "fixed", "goeswith", "nummod", "nmod:desc")
LONGEST = 150  # words; a longer run of them is no sentence, and its tree may be deeper than calls can nest
CLAUSES = ("root", "conj", "acl", "advcl", "xcomp", "ccomp", "parataxis")
NOMINAL = ("NOUN", "PROPN", "PRON", "NUM", "X", "SYM")


@dataclass(frozen=True)
class Word:
    """A word of a parsed sentence: its place from 1, that of its head (0: none), and its characters."""

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
    """The characters of a relation, its subject and its object, each part's spans as they are to be read.

    A part that is not there has no spans.
    """

    relation: Spans
    subject: Spans
    object: Spans


def triples(words: Sequence[Word]) -> list[Triple]:
    """The triples of one sentence in the order of their relations, each once; none of one over LONGEST words."""
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
    """The words as they stand in the sentence."""
    return sorted(words, key=lambda word: word.index)


def spans(words: Iterable[Word]) -> Spans:
    """The characters of some words in the order given, those that follow each other in one span."""
    merged: list[tuple[int, int, int]] = []  # start, end, index of the last word
    for word in dict.fromkeys(words):
        if merged and word.index == merged[-1][2] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], word.end), word.index)
        else:
            merged.append((word.start, word.end, word.index))
    return tuple(dict.fromkeys((start, end) for start, end, _ in merged))


class Tree:
    """A sentence's words and what depends on each."""

    def __init__(self, words: Sequence[Word]) -> None:
        self.words = {word.index: word for word in words}
        self.below: dict[int, Words] = {}
        for word in words:
            self.below.setdefault(word.head, []).append(word)

    def children(self, word: Word, *relations: str) -> Words:
        """The dependents of a word by any of these relations or their subtypes, in order."""
        return [child for child in self.below.get(word.index, []) if child.does(*relations)]

    def head(self, word: Word) -> Word | None:
        """What a word depends on; None for the root."""
        return self.words.get(word.head)

    def clause(self, word: Word) -> list[Parts]:
        """What a predicate says of its subjects; nothing for a word that is none."""
        if not self.is_predicate(word):
            return []
        exists = self.children(word, "expl") and self.children(word, "nsubj")
        says = self._existence(word) if exists else self._complements(word)
        subjects = [self.phrase(subject) for subject in self.subjects(word)] or [[]]
        return [(subject, relation, obj) for subject in subjects for relation, obj in says]

    def attachments(self, noun: Word) -> list[Parts]:
        """Prepositional phrases of a noun, and adjectives after it that have one: "street full of people"."""
        if noun.upos not in NOMINAL:
            return []
        found = []
        own = ("nmod",) if self.is_predicate(noun) else ("nmod", "obl")
        for phrase in self.children(noun, *own):
            if not self._names(phrase):
                found += [(noun, phrase, *said) for said in self.prepositional(phrase)]
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
        """The subjects of a predicate, conjoined ones one by one; its own, or inherited from above."""
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
        """A word with what is conjoined to it; what a relative pronoun stands for in its place."""
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
        """The nouns that a modifier belongs to: also those conjoined to its head, if it follows them."""
        return [noun, *(one for one in self.children(noun, "conj") if one.index < modifier.index)]

    def _complements(self, word: Word) -> list[tuple[Words, Words]]:
        """Relation and object of all that a predicate says of its subjects."""
        relation = self.relation(word)
        if not self._is_verb(word):
            says = self._copular(word, relation)
            relation = [*relation, *self.predicate_words(word)]
        else:
            objects = [*self._objects(word, "obj"), *self._objects(word, "iobj"), *self._gap(word)]
            says = [(relation, self.phrase(obj)) for obj in objects]
            says += [said for state in self.children(word, "xcomp") for said in self._state(state, relation)]
        for phrase in self.children(word, "obl"):
            says += [([*relation, *case], obj) for case, obj in self.prepositional(phrase)]
        return says or ([] if self._continues(word) else [(relation, [])])

    def _copular(self, word: Word, relation: Words) -> list[tuple[Words, Words]]:
        """(is, black), (is, famous singer), (is in, kitchen); one each of conjoined ones."""
        alike = [
            one for one in self.children(word, "conj") if not self.is_predicate(one) and one.upos != "VERB"
        ]
        return [([*relation, *self._case(one)], self.phrase(one)) for one in (word, *alike)]

    def _state(self, state: Word, relation: Words) -> list[tuple[Words, Words]]:
        """(looks, happy): a complement that is no clause of its own, said of the subject."""
        above = self.head(state)
        if self.is_predicate(state) or above is None or self._objects(above, "obj"):
            return []
        return [
            ([*relation, *self._case(one)], self.phrase(one))
            for one in (state, *self.children(state, "conj"))
        ]

    def _existence(self, word: Word) -> list[tuple[Words, Words]]:
        """The places of "there is": said with the preposition alone, whatever the phrase depends on."""
        return [said for phrase in self.children(word, "obl") for said in self.prepositional(phrase)]

    def _continues(self, word: Word) -> bool:
        """Whether a clause below goes on with the relation of this one."""
        return any(
            self.is_predicate(child) and not self.children(child, "nsubj")
            for child in self.children(word, "xcomp", "ccomp")
        )

    def _objects(self, word: Word, kind: str) -> Words:
        """The objects of one kind, conjoined ones one by one."""
        return [one for obj in self.children(word, kind) for one in self._referents(word, obj)]

    def _gap(self, word: Word) -> Words:
        """The noun of "the horse a girl rides" or "the horse that a girl rides", which is the verb's object."""
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
        """The words of a predicate's relation in order, those of the clause that it continues among them."""
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
        """What a predicate that is no verb adds when a relation goes on after it: "is full of"."""
        return [] if self._is_verb(word) else in_order([*self._case(word), *self.phrase(word)])

    def _helpers(self, word: Word) -> Words:
        """Auxiliaries, copula and negation; those of the first verb where a conjoined one of the same form has none."""
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
        """The preposition of a word, all the words of it."""
        return [
            part
            for case in self.children(word, "case")
            if case.lower not in ("'s", "’s", "'", "’")
            for part in (case, *self.children(case, "fixed"))
        ]

    def prepositional(self, phrase: Word) -> list[tuple[Words, Words]]:
        """Preposition and noun of a phrase; nothing for one without a preposition ("every day")."""
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
        """A noun (or adjective) with what names it, in no particular order."""
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
        """A modifier with what is conjoined to it and what joins them: "black and white"."""
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
