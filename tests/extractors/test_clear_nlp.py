"""ClearNLP's trees as Universal Dependencies: each rewriting by hand, and recorded parses of the golden sentences.

tests/fixtures/clear_nlp_parses.jsonl holds what a copy of spaCy's en_core_web_sm 3.8.0 (MIT licence) gave for each
golden sentence, wrong parses included: [text, part of speech, Penn tag, head from 1 or 0, label] of every word.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path

import pytest

from extractors import triple_check
from extractors.backbones.clear_nlp import MOVED, ONLY_CLEAR_NLP, RENAMED, is_clear_nlp, to_universal
from extractors.backbones.triple_rules import LONGEST, Triple, Word, triples
from extractors.triple_check import in_words

ROOT = Path(__file__).parents[2]
Row = tuple[str, str, str, int, str]


def words_of(text: str, rows: list[Row]) -> list[Word]:
    words, end = [], 0
    for index, (form, upos, _, head, label) in enumerate(rows, start=1):
        start = text.index(form, end)
        end = start + len(form)
        words.append(Word(index, form, upos, head, label, start, end))
    return words


def converted(text: str, rows: list[Row]) -> list[Word]:
    return to_universal(words_of(text, rows), [row[2] for row in rows])


@cache
def recorded() -> list[tuple[str, list[Row]]]:
    lines = (ROOT / "tests/fixtures/clear_nlp_parses.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["text"], [tuple(row) for row in line["words"]]) for line in map(json.loads, lines)]


def tree(annotated: str) -> tuple[str, list[Row]]:
    """A sentence from words written form/POS/tag/head/label."""
    rows = [word.rsplit("/", 4) for word in annotated.split()]
    made: list[Row] = [(form, upos, tag, int(head), label) for form, upos, tag, head, label in rows]
    return " ".join(row[0] for row in made), made


CASES = {
    "a noun after a preposition below a verb": (
        "cats/NOUN/NNS/2/nsubj sit/VERB/VBP/0/ROOT on/ADP/IN/2/prep mats/NOUN/NNS/3/pobj",
        "2 nsubj, 0 root, 4 case, 2 obl",
        [("cats", "sit on", "mats")],
    ),
    "a noun after a preposition below a noun": (
        "cats/NOUN/NNS/0/ROOT on/ADP/IN/1/prep mats/NOUN/NNS/2/pobj",
        "0 root, 3 case, 1 nmod",
        [("cats", "on", "mats")],
    ),
    "the agent of a passive": (
        "mats/NOUN/NNS/3/nsubjpass are/AUX/VBP/3/auxpass cut/VERB/VBN/0/ROOT by/ADP/IN/3/agent men/NOUN/NNS/4/pobj",
        "3 nsubj:pass, 3 aux:pass, 0 root, 5 case, 3 obl:agent",
        [("mats", "are cut by", "men")],
    ),
    "a dative with a preposition": (
        "men/NOUN/NNS/2/nsubj give/VERB/VBP/0/ROOT milk/NOUN/NN/2/dobj to/ADP/IN/2/dative cats/NOUN/NNS/4/pobj",
        "2 nsubj, 0 root, 2 obj, 5 case, 2 obl",
        [("men", "give", "milk"), ("men", "give to", "cats")],
    ),
    "a dative without one": (
        "men/NOUN/NNS/2/nsubj give/VERB/VBP/0/ROOT cats/NOUN/NNS/2/dative milk/NOUN/NN/2/dobj",
        "2 nsubj, 0 root, 2 iobj, 2 obj",
        [("men", "give", "cats"), ("men", "give", "milk")],
    ),
    "a preposition of two prepositions": (
        "cats/NOUN/NNS/2/nsubj run/VERB/VBP/0/ROOT out/ADP/IN/2/prep of/ADP/IN/3/prep boxes/NOUN/NNS/4/pobj",
        "2 nsubj, 0 root, 5 case, 5 case, 2 obl",
        [("cats", "run out of", "boxes")],
    ),
    "a preposition of an adverb and a preposition": (
        "cats/NOUN/NNS/2/nsubj lie/VERB/VBP/0/ROOT next/ADV/RB/2/advmod to/ADP/IN/3/prep dogs/NOUN/NNS/4/pobj",
        "2 nsubj, 0 root, 5 case, 5 case, 2 obl",
        [("cats", "lie next to", "dogs")],
    ),
    "a preposition below another adverb": (
        "cats/NOUN/NNS/2/nsubj run/VERB/VBP/0/ROOT back/ADV/RB/2/advmod to/ADP/IN/3/prep dogs/NOUN/NNS/4/pobj",
        "2 nsubj, 0 root, 2 advmod, 5 case, 2 obl",
        [("cats", "run to", "dogs")],
    ),
    "two prepositions that are joined": (
        "we/PRON/PRP/2/nsubj wave/VERB/VBP/0/ROOT at/ADP/IN/2/prep cats/NOUN/NNS/3/pobj and/CCONJ/CC/3/cc "
        "at/ADP/IN/3/conj dogs/NOUN/NNS/6/pobj",
        "2 nsubj, 0 root, 4 case, 2 obl, 7 cc, 7 case, 4 conj",
        [("we", "wave at", "cats"), ("we", "wave at", "dogs")],
    ),
    "a clause after a preposition": (
        "we/PRON/PRP/2/nsubj win/VERB/VBP/0/ROOT by/ADP/IN/2/prep playing/VERB/VBG/3/pcomp chess/NOUN/NN/4/dobj",
        "2 nsubj, 0 root, 4 mark, 2 advcl, 4 obj",
        [("we", "win", ""), ("we", "playing", "chess")],
    ),
    "a preposition without a noun": (
        "cats/NOUN/NNS/2/nsubj walk/VERB/VBP/0/ROOT by/ADP/IN/2/prep",
        "2 nsubj, 0 root, 2 advmod",
        [("cats", "walk", "")],
    ),
    "an adjective that is said of a subject": (
        "cats/NOUN/NNS/2/nsubj are/AUX/VBP/0/ROOT not/PART/RB/2/neg black/ADJ/JJ/2/acomp",
        "4 nsubj, 4 cop, 4 advmod, 0 root",
        [("cats", "are not", "black")],
    ),
    "a noun that is said of a subject, with a clause joined": (
        "she/PRON/PRP/2/nsubj is/AUX/VBZ/0/ROOT queen/NOUN/NN/2/attr and/CCONJ/CC/2/cc sings/VERB/VBZ/2/conj",
        "3 nsubj, 3 cop, 0 root, 5 cc, 3 conj",
        [("she", "is", "queen"), ("she", "sings", "")],
    ),
    "a place that is said of a subject": (
        "she/PRON/PRP/2/nsubj is/AUX/VBZ/0/ROOT in/ADP/IN/2/prep bed/NOUN/NN/3/pobj",
        "4 nsubj, 4 cop, 4 case, 0 root",
        [("she", "is in", "bed")],
    ),
    "an adverb of place that is said of a subject": (
        "she/PRON/PRP/3/nsubj often/ADV/RB/3/advmod is/AUX/VBZ/0/ROOT outside/ADV/RB/3/advmod",
        "4 nsubj, 4 advmod, 4 cop, 0 root",
        [("she", "is", "outside")],
    ),
    "something that exists": (
        "there/PRON/EX/2/expl is/VERB/VBZ/0/ROOT milk/NOUN/NN/2/attr on/ADP/IN/2/prep mats/NOUN/NNS/4/pobj",
        "2 expl, 0 root, 2 nsubj, 5 case, 2 obl",
        [("milk", "on", "mats")],
    ),
    "another verb than be with an adjective": (
        "cats/NOUN/NNS/2/nsubj look/VERB/VBP/0/ROOT happy/ADJ/JJ/2/acomp",
        "2 nsubj, 0 root, 2 xcomp",
        [("cats", "look", "happy")],
    ),
    "an infinitive": (
        "cats/NOUN/NNS/2/nsubj try/VERB/VBP/0/ROOT to/PART/TO/4/aux eat/VERB/VB/2/xcomp",
        "2 nsubj, 0 root, 4 mark, 2 xcomp",
        [("cats", "try to eat", "")],
    ),
    "the subject of a clause that is not finite": (
        "we/PRON/PRP/2/nsubj watch/VERB/VBP/0/ROOT cats/NOUN/NNS/4/nsubj eat/VERB/VB/2/ccomp",
        "2 nsubj, 0 root, 2 obj, 2 xcomp",
        [("we", "watch", "cats"), ("cats", "eat", "")],
    ),
    "the subject of a finite clause": (
        "we/PRON/PRP/2/nsubj see/VERB/VBP/0/ROOT cats/NOUN/NNS/4/nsubj eat/VERB/VBP/2/ccomp",
        "2 nsubj, 0 root, 4 nsubj, 2 ccomp",
        [("we", "see", ""), ("cats", "eat", "")],
    ),
    "a chain of conjuncts": (
        "men/NOUN/NNS/2/nsubj sit/VERB/VBP/0/ROOT ,/PUNCT/,/2/punct eat/VERB/VBP/2/conj and/CCONJ/CC/4/cc "
        "drink/VERB/VBP/4/conj",
        "2 nsubj, 0 root, 2 punct, 2 conj, 6 cc, 2 conj",
        [("men", "sit", ""), ("men", "eat", ""), ("men", "drink", "")],
    ),
    "a conjunct with a subject of its own": (
        "he/PRON/PRP/2/nsubj falls/VERB/VBZ/0/ROOT but/CCONJ/CC/2/cc she/PRON/PRP/5/nsubj rises/VERB/VBZ/2/conj "
        "and/CCONJ/CC/5/cc runs/VERB/VBZ/5/conj",
        "2 nsubj, 0 root, 5 cc, 5 nsubj, 2 conj, 7 cc, 5 conj",
        [("he", "falls", ""), ("she", "rises", ""), ("she", "runs", "")],
    ),
}  # fmt: skip


def said(text: str, found: list[Triple]) -> set[tuple[str, str, str]]:
    return {in_words(text, triple) for triple in found}


@pytest.mark.parametrize(("annotated", "expected", "expected_triples"), CASES.values(), ids=CASES)
def test_each_construction_has_the_tree_and_triples_of_universal_dependencies(
    annotated: str, expected: str, expected_triples: list[tuple[str, str, str]]
) -> None:
    text, rows = tree(annotated)
    made = converted(text, rows)
    assert ", ".join(f"{word.head} {word.deprel}" for word in made) == expected
    assert said(text, triples(made)) == set(expected_triples)


def test_a_tree_stays_a_tree_and_keeps_no_label_of_clear_nlp() -> None:
    for text, rows in [*recorded(), *(tree(annotated) for annotated, _, _ in CASES.values())]:
        made = converted(text, rows)
        heads = {word.index: word.head for word in made}
        assert [word.deprel for word in made if word.head == 0] == ["root"], text
        assert not {word.deprel for word in made} & (ONLY_CLEAR_NLP | {"ROOT", "prep"}), text
        for word in heads:
            above, steps = word, 0
            while above:
                above, steps = heads[above], steps + 1
                assert steps <= len(heads), text
        assert [(w.index, w.text, w.start, w.end) for w in made] == [
            (w.index, w.text, w.start, w.end) for w in words_of(text, rows)
        ]


def test_triples_of_recorded_parses_are_those_written_by_hand_as_often_as_the_page_says() -> None:
    assert [text for text, _ in recorded()] == [one.text for one in triple_check.golden()]
    sentences = triple_check.compare([triples(converted(text, rows)) for text, rows in recorded()])
    page = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
    for style, those in triple_check.by_style(sentences).items():
        rate = triple_check.exact(those)
        row = rf"^\| {style} \| {rate.precision:.2f} \| {rate.recall:.2f} \|$"
        assert re.search(row, page, re.MULTILINE), (style, rate)
    exact, near = triple_check.exact(sentences), triple_check.overlapping(sentences)
    for rate in (exact, near):
        words = f"{rate.precision * 100:.0f} % and (recall )?{rate.recall * 100:.0f} %"
        assert re.search(words, page.partition("### spaCy")[2]), words
    assert sum(not (one.missed or one.wrong) for one in sentences) == 165


def drawn(seed: int) -> tuple[list[Word], list[str]]:
    """A random tree of up to nine words under random labels, as no parser would have it."""
    draw = random.Random(seed)
    order = draw.sample(range(1, 10), draw.randint(1, 9))
    place = {word: number for number, word in enumerate(sorted(order), start=1)}
    labels = [
        *(RENAMED.keys() - {"ROOT"}),
        *MOVED,
        "conj",
        "cc",
        "nsubj",
        "expl",
        "aux",
        "ccomp",
        "advmod",
        "det",
    ]
    words = []
    for number, word in enumerate(order):
        head = place[draw.choice(order[:number])] if number else 0
        text = draw.choice(["is", "out", "of", "next", "to", "cat", "and", "outside", "there", "who"])
        upos = draw.choice(["NOUN", "VERB", "AUX", "ADP", "ADV", "PRON"])
        label = draw.choice(sorted(labels)) if number else "ROOT"
        words.append(Word(place[word], text, upos, head, label, 9 * word, 9 * word + len(text)))
    tags = [draw.choice(["VB", "VBG", "TO", "NN"]) for _ in words]
    return sorted(words, key=lambda word: word.index), tags


def test_whatever_a_parser_gives_becomes_a_tree_that_can_be_read() -> None:
    for seed in range(3000):
        words, tags = drawn(seed)
        made = to_universal(words, tags)
        assert [word.head for word in made].count(0) == 1, seed
        heads = {word.index: word.head for word in made}
        for word in heads:
            above, steps = word, 0
            while above:
                above, steps = heads[above], steps + 1
                assert steps <= len(heads), seed
        triples(made)


def test_a_text_that_is_no_sentence_is_not_rewritten() -> None:
    text, rows = tree(" ".join(f"cats/NOUN/NNS/{n}/conj" for n in range(LONGEST + 1)))
    words = words_of(text, rows)
    assert to_universal(words, ["NNS"] * len(words)) == words
    shorter = to_universal(words[:LONGEST], ["NNS"] * LONGEST)
    assert {word.head for word in shorter[1:]} == {1}


def test_the_labels_of_a_parser_say_which_scheme_it_has() -> None:
    clear = {row[4] for _, rows in recorded() for row in rows}
    universal = {word.deprel for text, rows in recorded() for word in converted(text, rows)}
    assert is_clear_nlp(clear) is True
    assert is_clear_nlp(universal) is False
    assert is_clear_nlp({"ROOT", "nsubj", "dobj", "punct"}) is True
    assert is_clear_nlp({"ROOT", "nsubj", "obj", "punct"}) is False
    assert (
        is_clear_nlp({"ROOT", "sb", "oa", "nk", "mo"}) is None
    )  # the scheme of TIGER, of spaCy's German models
    assert is_clear_nlp(()) is None
