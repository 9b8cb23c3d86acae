"""The stage `triples`: spans of parts in the caption as given, whichever captions share its batch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from extractors import triple_check
from extractors.backbones.parsers import StanzaParser
from extractors.backbones.triple_rules import Triple
from extractors.base import Array, Output, Unit, WorkOptions
from extractors.triple_check import Agreement, Sentence, most_pairs
from extractors.triples import Triples, TriplesParams, rows
from pipeline.errors import ItemError

TEXTS = [
    "a man is folding a paper plane",
    "A  woman   slices\tan onion.\n\nThe  cat is black.",
    "a boy kicks 🎈 a ball 🎈 “into” the net – twice",
    "ein Mädchen spielt Fußball\u2028und lacht",
    "  a dog on the grass  ",
    "a man doesn't eat the café's cake; he can't.",
    "hello",
    "!!!",
    "a\u0301 zebra\u200b runs\x97 fast",
    "x" * 300,
    "the dog runs. " * 40,
]


@pytest.fixture(scope="module")
def stage() -> Triples:
    made = Triples(TriplesParams(package="crossreel-small"))
    made.load(WorkOptions(device="cpu", batch_size=64))
    return made


@pytest.fixture(scope="module")
def parser(stage: Triples) -> StanzaParser:
    assert isinstance(stage.parser, StanzaParser)
    return stage.parser


def made_of(stage: Triples, texts: list[str]) -> dict[str, dict[str, Array]]:
    found = {}
    units = [Unit(str(n), f"caption {n}", text=text) for n, text in enumerate(texts)]
    for unit, output in filter(None, stage.results(units, Path())):
        assert isinstance(output, Output) and unit.text is not None
        assert all(field.fits(output.arrays[key].shape) for key, field in stage.fields.items())
        found[unit.text] = dict(output.arrays)
    assert set(found) == set(texts)
    return found


def said(text: str, arrays: dict[str, Array]) -> list[tuple[str, str, str]]:
    triples: dict[int, list[str]] = {}
    for number, part, start, end in arrays["span"]:
        words = triples.setdefault(int(number), ["", "", ""])
        words[part] = f"{words[part]} {text[start:end]}".strip()
    return [(one[0], one[1], one[2]) for one in triples.values()]


def test_a_plain_caption_gives_its_triple(stage: Triples) -> None:
    text = TEXTS[0]
    arrays = made_of(stage, [text])[text]
    assert said(text, arrays) == [("man", "is folding", "paper plane")]
    assert arrays["sentence"].tolist() == [[0]]
    assert arrays["span"].dtype == np.int32 and arrays["sentence"].dtype == np.uint8


def test_each_word_has_its_own_characters_in_the_text_as_given(parser: StanzaParser) -> None:
    for text in TEXTS:
        from stanza import Document

        (document,) = parser.pipeline.bulk_process([Document([], text=text)])
        for sentence in document.sentences:
            for word in sentence.words:
                characters = text[word.start_char : word.end_char]
                assert (
                    word.text == "<UNK>" if len(characters) > 100 else characters.split() == word.text.split()
                )


def test_spans_lie_in_the_text_and_begin_and_end_with_a_word(stage: Triples) -> None:
    for text, arrays in made_of(stage, TEXTS).items():
        for number, part, start, end in arrays["span"]:
            assert 0 <= start < end <= len(text) and part in (0, 1, 2) and number >= 0
            if not arrays["sentence"][0, 0]:
                assert text[start:end] == text[start:end].strip()
        numbers = arrays["span"][:, 0]
        assert sorted(set(numbers.tolist())) == list(range(numbers.max() + 1))
        assert (np.diff(numbers) >= 0).all()


def test_a_caption_has_the_same_triples_in_any_company(stage: Triples) -> None:
    alone = {text: made_of(stage, [text])[text] for text in TEXTS}
    shuffled = TEXTS[:]
    random.Random(3).shuffle(shuffled)
    for company in (shuffled, shuffled[:4]):
        for text, arrays in made_of(stage, company).items():
            for name in arrays:
                np.testing.assert_array_equal(arrays[name], alone[text][name])


def test_triples_are_numbered_through_all_sentences(stage: Triples) -> None:
    text = "A man is folding a plane. A woman is riding a horse."
    assert said(text, made_of(stage, [text])[text]) == [
        ("man", "is folding", "plane"),
        ("woman", "is riding", "horse"),
    ]


def test_a_caption_without_a_triple_stands_as_a_whole_and_says_so(stage: Triples) -> None:
    for text in ("hello", "!!!", "\x97 \x97"):
        arrays = made_of(stage, [text])[text]
        assert arrays["span"].tolist() == [[0, 0, 0, len(text)]] and arrays["sentence"].tolist() == [[1]]


def test_an_empty_caption_is_reported_by_name(stage: Triples) -> None:
    units = [Unit("0", "the first", text=" \n"), Unit("1", "the second", text="a dog on the grass")]
    (_, first), (_, second) = filter(None, stage.results(units, Path()))
    assert isinstance(first, ItemError) and str(first) == "the first: the caption is empty"
    assert isinstance(second, Output)


def test_a_very_long_caption_is_read_up_to_a_bound(stage: Triples) -> None:
    text = "A man is folding a plane. " * 1000
    arrays = made_of(stage, [text])[text]
    assert 100 < arrays["span"][:, 0].max() < 200 and arrays["span"].max() <= 5000


def test_the_place_of_the_models_and_the_server_are_no_part_of_the_content() -> None:
    assert TriplesParams(package="crossreel-small", timeout_seconds=1).decisive() == {"backend": "stanza"}


def test_rows_go_by_triple_part_and_place() -> None:
    one = Triple(relation=((5, 7), (9, 11)), subject=((0, 4),), object=())
    other = Triple(relation=((12, 14),), subject=(), object=((15, 20),))
    arrays = rows([one, other], 20)
    assert arrays["span"].tolist() == [
        [0, 0, 0, 4], [0, 1, 5, 7], [0, 1, 9, 11], [1, 1, 12, 14], [1, 2, 15, 20],
    ]  # fmt: skip
    assert arrays["sentence"].tolist() == [[0]]


# ---- the check against triples written by hand


def test_agreement_counts_correct_predicted_and_golden_triples() -> None:
    dog, cat, cats = ("a", "sees", "dog"), ("a", "sees", "cat"), ("the a", "sees", "black cat")
    sentences = [
        Sentence("one", "simple", frozenset({dog, cat}), frozenset({dog, cats})),
        Sentence("two", "simple", frozenset({dog}), frozenset()),
    ]
    assert triple_check.exact(sentences) == Agreement(golden=3, predicted=2, correct=1)
    assert triple_check.overlapping(sentences) == Agreement(golden=3, predicted=2, correct=2)
    exact = triple_check.exact(sentences)
    assert (exact.precision, exact.recall, exact.f1) == (1 / 2, 1 / 3, 2 / 5)
    assert sentences[0].missed == [cat] and sentences[0].wrong == [cats]
    assert Agreement(0, 0, 0).f1 == Agreement(0, 0, 0).precision == Agreement(0, 0, 0).recall == 0


def test_each_found_triple_counts_once_and_the_best_pairing_is_taken() -> None:
    both, left = ("a b", "r", "o"), ("a", "r", "o")
    assert most_pairs([("a", "r", "o"), ("b", "r", "o")], [both]) == 1
    assert most_pairs([("a", "r", "o"), ("b", "r", "o")], [both, left]) == 2  # whichever comes first
    assert most_pairs([("a", "r", "")], [("a", "r", "o")]) == 0


def test_golden_sentences_are_distinct_and_their_triples_are_of_their_words() -> None:
    golden = triple_check.golden()
    assert len({one.text for one in golden}) == len(golden) == 200
    styles = [one.style for one in golden]
    assert all(styles.count(style) >= 8 for style in set(styles)) and len(set(styles)) == 10
    for one in golden:
        assert one.triples
        for triple in one.triples:
            assert triple[1] and (triple[0] or triple[2])
            for word in " ".join(triple).split():
                assert word in one.text.lower()


def test_the_rules_and_the_shipped_parser_find_most_of_the_golden_triples(parser: StanzaParser) -> None:
    sentences = triple_check.compare(parser.parse([one.text for one in triple_check.golden()]))
    assert triple_check.exact(sentences).f1 > 0.5
    assert triple_check.overlapping(sentences).f1 > 0.7
