"""Dependency trees with ClearNLP's labels, which spaCy's English models use, turned into Universal Dependencies (UD).

Independent of spaCy: a sentence is a list of `Word` and the Penn Treebank tag of each. Labels that differ in name alone
stand in RENAMED. The rest differ in the shape of the tree, and are rewritten in this order:

| ClearNLP | UD |
| --- | --- |
| conj hangs on the conjunct before it, cc on that one too | conj on the first conjunct, cc on the conjunct after it |
| verb > prep > pobj | verb > obl > case; below a noun, nmod > case |
| verb > agent > pobj ("by a man") | verb > obl:agent > case |
| verb > dative > pobj ("to a man"); a dative without a preposition | verb > obl > case; iobj |
| prep > prep > pobj ("out of a box"), advmod > prep > pobj ("next to a dog") | obl with two words of case |
| prep > conj > pobj ("at a cat and at a dog") | the second noun is a conjunct of the first, with its own case |
| prep > pcomp, a verb ("by playing") | advcl (below a noun acl) > mark |
| be > attr, be > acomp, be > prep > pobj, be > advmod of a place | what is said is the head, be its cop |
| be > expl and attr ("there is a dog") | the attr is the nsubj |
| another verb > acomp, attr, oprd ("looks happy") | xcomp |
| aux "to" | mark |
| verb > ccomp > nsubj, where the ccomp is not finite ("watches a woman ride") | verb > obj, and the ccomp is an xcomp |

What ClearNLP does not know (fixed, flat, the other subtypes) is not invented: `triple_rules` reads none of it there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from extractors.backbones.triple_rules import LONGEST, NOMINAL, Word

RENAMED = {
    "ROOT": "root",
    "auxpass": "aux:pass",
    "csubjpass": "csubj:pass",
    "dobj": "obj",
    "intj": "discourse",
    "meta": "dep",
    "neg": "advmod",
    "nmod": "compound",  # of ClearNLP: a noun without a preposition before another
    "npadvmod": "obl:unmarked",  # "every day"
    "nsubjpass": "nsubj:pass",
    "poss": "nmod:poss",
    "preconj": "cc:preconj",
    "predet": "det:predet",
    "prt": "compound:prt",
    "quantmod": "advmod",
    "relcl": "acl:relcl",
}
MOVED = (
    "acomp",
    "agent",
    "attr",
    "dative",
    "oprd",
    "pcomp",
    "pobj",
    "prep",
)  # rewritten with their place in the tree
ONLY_CLEAR_NLP = frozenset({*RENAMED, *MOVED} - {"ROOT", "nmod"})
ONLY_UNIVERSAL = frozenset(
    {"obj", "obl", "cop", "nsubj:pass", "aux:pass", "acl:relcl", "nmod:poss", "fixed", "flat"}
)

PREPOSITIONS = ("prep", "agent", "dative")
BE = {"am", "are", "be", "been", "being", "is", "was", "were", "'s", "’s", "'re", "’re", "'m", "’m"}
TWO_WORDS = {  # an adverb and a preposition that are one preposition together
    ("ahead", "of"), ("along", "with"), ("because", "of"), ("close", "to"), ("inside", "of"), ("instead", "of"),
    ("near", "to"), ("next", "to"), ("out", "of"), ("outside", "of"), ("together", "with"),
}  # fmt: skip
PLACES = {"away", "downstairs", "here", "home", "inside", "nearby", "outside", "there", "upstairs"}
NOT_FINITE = ("VB", "VBG")


def is_clear_nlp(labels: Collection[str]) -> bool | None:
    """Whether a parser's labels are ClearNLP's (True) or those of Universal Dependencies (False); None if neither."""
    found = set(labels)
    clear, universal = len(found & ONLY_CLEAR_NLP), len(found & ONLY_UNIVERSAL)
    if clear == universal:
        return None
    return clear > universal


def to_universal(words: Sequence[Word], tags: Sequence[str]) -> list[Word]:
    """The same words with heads and relations of Universal Dependencies. tags: the Penn Treebank tag of each word.

    A text of more than LONGEST words, of which no triples are read, is returned as it is.
    """
    if len(words) > LONGEST:
        return list(words)
    tree = _Tree(words, tags)
    tree.join_conjuncts()
    tree.lift_nouns()
    tree.mark_infinitives()
    tree.lift_predicates()
    tree.raise_objects()
    return [
        replace(word, head=tree.head[word.index], deprel=tree.label[word.index], upos=tree.upos[word.index])
        for word in words
    ]


class _Tree:
    """Head and label of every word by its index, changed in place by one rewriting after the other."""

    def __init__(self, words: Sequence[Word], tags: Sequence[str]) -> None:
        self.order = [word.index for word in words]
        self.lower = {word.index: word.lower for word in words}
        self.upos = {word.index: word.upos for word in words}
        self.tag = {word.index: tag for word, tag in zip(words, tags, strict=True)}
        self.head = {word.index: word.head for word in words}
        self.label = {word.index: RENAMED.get(word.deprel, word.deprel) for word in words}

    def children(self, word: int, *labels: str) -> list[int]:
        """The dependents of a word, with any label if none is given, in the order of the sentence."""
        return [
            one for one in self.order if self.head[one] == word and (not labels or self.label[one] in labels)
        ]

    def put(self, word: int, head: int, label: str) -> None:
        """Hang a word on a head with a label."""
        self.head[word], self.label[word] = head, label

    def join_conjuncts(self) -> None:
        """Hang all conjuncts on the first, and each "and" on the conjunct after it.

        A conjunct with a subject of its own ("he falls, but she gets up and runs") begins a coordination of its own.
        """
        joins = {
            word: next((one for one in self.children(self.head[word], "conj") if one > word), self.head[word])
            for word in self.order
            if self.label[word] == "cc"
        }
        first = {}
        for word in self.order:
            start = word
            while self.label[start] == "conj" and self.head[start] in self.label:
                start = self.head[start]
                if self.children(start, "nsubj", "nsubj:pass"):
                    break
            first[word] = start
        for word in self.order:
            if self.label[word] == "conj":
                self.head[word] = first[word]
        self.head |= joins

    def lift_nouns(self) -> None:
        """Hang the noun after a preposition on the word that the preposition hung on, and the preposition on it."""
        objects: dict[int, int] = {}
        for word in self.order:
            if self.label[word] in ("pobj", "pcomp"):
                objects.setdefault(self.head[word], word)
        first = {one: self.head[one] for one in objects if self.label[one] == "conj"}
        for preposition, noun in objects.items():
            self._lift(preposition, noun, objects, first)
        for word in self.order:
            if self.label[word] in PREPOSITIONS:  # it has no noun of its own, or it is one
                bare = self.label[word] == "dative"
                self.label[word] = "iobj" if bare else "advmod"
            elif self.label[word] in ("pobj", "pcomp"):  # a second one
                self.label[word] = "dep"

    def _lift(self, preposition: int, noun: int, objects: dict[int, int], first: dict[int, int]) -> None:
        """Lift the noun of one preposition. first: of a joined preposition, the one that it is joined to."""
        case, role = [preposition], self.label[preposition]
        above = first.get(preposition, self.head[preposition])
        joined = role == "conj" and above in objects
        while above in self.label and not joined and above not in objects:
            pair = (self.lower[above], self.lower[preposition])
            if self.label[above] in PREPOSITIONS or pair in TWO_WORDS:
                case.append(above)
                role = self.label[above] if self.label[above] == "agent" else role
            elif self.label[above] not in ("advmod", "compound:prt"):
                break
            above = self.head[above]
        verbal = self.label[noun] == "pcomp" and self.upos[noun] in ("VERB", "AUX")
        if joined:
            self.put(noun, objects[above], "conj")
        elif verbal:
            self.put(noun, above, "acl" if self.upos.get(above) in NOMINAL else "advcl")
        elif role == "agent":
            self.put(noun, above, "obl:agent")
        else:
            self.put(noun, above, "nmod" if self.upos.get(above) in NOMINAL else "obl")
        for word in case:
            for child in self.children(word):
                if child != noun and child not in case:
                    self.head[child] = noun
            self.put(word, noun, "mark" if verbal else "case")

    def mark_infinitives(self) -> None:
        """Make "to" before a verb a mark."""
        for word in self.order:
            if self.label[word] == "aux" and self.tag[word] == "TO":
                self.label[word] = "mark"

    def lift_predicates(self) -> None:
        """Make what is said of a subject the head of its clause, and "be" its copula."""
        for verb in self.order:
            is_be = self.lower[verb] in BE and not self.label[verb].startswith("aux")
            if is_be and self.children(verb, "expl"):
                for said in self.children(verb, "attr"):
                    self.label[said] = "nsubj"
            elif is_be and (said_of := self._predicate(verb)):
                self.put(said_of, self.head[verb], self.label[verb])
                for child in self.children(verb):
                    if child != said_of:
                        self.head[child] = said_of
                self.put(verb, said_of, "cop")
                self.upos[verb] = "AUX"
        for word in self.order:
            if self.label[word] in ("acomp", "attr", "oprd"):
                self.label[word] = "xcomp"

    def _predicate(self, verb: int) -> int | None:
        """What a form of "be" says of its subject: a noun or adjective, else a place after it; None if nothing."""
        said = self.children(verb, "attr", "acomp")
        said += [one for one in self.children(verb, "obl") if one > verb and self.children(one, "case")]
        said += [one for one in self.children(verb, "advmod") if one > verb and self.lower[one] in PLACES]
        return said[0] if said else None

    def raise_objects(self) -> None:
        """Make the subject of an infinitive or participle below a verb the object of that verb."""
        for clause in self.order:
            if self.label[clause] != "ccomp" or self.tag[clause] not in NOT_FINITE:
                continue
            subjects = self.children(clause, "nsubj")
            if subjects and not self.children(clause, "aux", "cop") and self.head[clause] < subjects[0]:
                self.put(subjects[0], self.head[clause], "obj")
                self.label[clause] = "xcomp"
