import random

import pytest

from extractors.backbones.triple_rules import Span, Triple, Word, triples

# A tree is one word after another: text/part of speech/head/relation. Triples are subject | relation | object.
CASES = {
    "active transitive": (
        "a/DET/2/det man/NOUN/4/nsubj is/AUX/4/aux folding/VERB/0/root a/DET/7/det paper/NOUN/7/compound "
        "plane/NOUN/4/obj",
        ["man | is folding | paper plane"],
    ),
    "intransitive": (
        "a/DET/2/det baby/NOUN/4/nsubj is/AUX/4/aux sleeping/VERB/0/root quietly/ADV/4/advmod",
        ["baby | is sleeping | -"],
    ),
    "passive with agent": (
        "the/DET/2/det ball/NOUN/4/nsubj:pass is/AUX/4/aux:pass thrown/VERB/0/root by/ADP/7/case a/DET/7/det "
        "man/NOUN/4/obl:agent",
        ["ball | is thrown by | man"],
    ),
    "passive without agent": (
        "a/DET/2/det cake/NOUN/5/nsubj:pass is/AUX/5/aux being/AUX/5/aux:pass decorated/VERB/0/root",
        ["cake | is being decorated | -"],
    ),
    "conjoined subjects and objects": (
        "a/DET/2/det boy/NOUN/6/nsubj and/CCONJ/5/cc a/DET/5/det girl/NOUN/2/conj eat/VERB/0/root "
        "apples/NOUN/6/obj and/CCONJ/9/cc pears/NOUN/7/conj",
        ["boy | eat | apples", "boy | eat | pears", "girl | eat | apples", "girl | eat | pears"],
    ),
    "a second verb borrows subject and auxiliary": (
        "a/DET/2/det man/NOUN/4/nsubj is/AUX/4/aux singing/VERB/0/root and/CCONJ/6/cc playing/VERB/4/conj "
        "the/DET/8/det guitar/NOUN/6/obj",
        ["man | is singing | -", "man | is playing | guitar"],
    ),
    "a verb of another form borrows no auxiliary": (
        "she/PRON/3/nsubj is/AUX/3/aux sitting/VERB/0/root and/CCONJ/5/cc waves/VERB/3/conj",
        ["she | is sitting | -", "she | waves | -"],
    ),
    "a second verb with a subject of its own": (
        "he/PRON/3/nsubj is/AUX/3/aux singing/VERB/0/root and/CCONJ/6/cc she/PRON/6/nsubj dancing/VERB/3/conj",
        ["he | is singing | -", "she | dancing | -"],
    ),
    "negation reaches the second verb": (
        "he/PRON/4/nsubj does/AUX/4/aux not/PART/4/advmod eat/VERB/0/root or/CCONJ/6/cc drink/VERB/4/conj",
        ["he | does not eat | -", "he | does not drink | -"],
    ),
    "negation ends at but": (
        "he/PRON/4/nsubj is/AUX/4/aux not/PART/4/advmod singing/VERB/0/root but/CCONJ/6/cc dancing/VERB/4/conj",
        ["he | is not singing | -", "he | is dancing | -"],
    ),
    "verb and preposition": (
        "a/DET/2/det man/NOUN/3/nsubj sits/VERB/0/root on/ADP/6/case a/DET/6/det bench/NOUN/3/obl",
        ["man | sits on | bench"],
    ),
    "a phrase in front": (
        "on/ADP/3/case a/DET/3/det bench/NOUN/6/obl a/DET/5/det man/NOUN/6/nsubj sits/VERB/0/root",
        ["man | sits on | bench"],
    ),
    "object and preposition": (
        "she/PRON/2/nsubj cuts/VERB/0/root bread/NOUN/2/obj with/ADP/6/case a/DET/6/det knife/NOUN/2/obl",
        ["she | cuts | bread", "she | cuts with | knife"],
    ),
    "conjoined places, the second with a preposition of its own": (
        "he/PRON/2/nsubj runs/VERB/0/root over/ADP/4/case sand/NOUN/2/obl and/CCONJ/7/cc through/ADP/7/case "
        "water/NOUN/4/conj",
        ["he | runs over | sand", "he | runs through | water"],
    ),
    "a time without preposition is dropped": (
        "she/PRON/2/nsubj runs/VERB/0/root every/DET/4/det day/NOUN/2/obl:unmarked",
        ["she | runs | -"],
    ),
    "verbless": (
        "a/DET/2/det dog/NOUN/0/root on/ADP/5/case the/DET/5/det grass/NOUN/2/nmod",
        ["dog | on | grass"],
    ),
    "a phrase after conjoined nouns belongs to each": (
        "a/DET/2/det cat/NOUN/0/root and/CCONJ/5/cc a/DET/5/det dog/NOUN/2/conj on/ADP/8/case a/DET/8/det "
        "bed/NOUN/2/nmod",
        ["cat | on | bed", "dog | on | bed"],
    ),
    "preposition of three words": (
        "cars/NOUN/2/nsubj stand/VERB/0/root in/ADP/4/case front/NOUN/2/obl of/ADP/7/case a/DET/7/det "
        "house/NOUN/4/nmod",
        ["cars | stand in front of | house"],
    ),
    "an of-phrase belongs to the noun": (
        "he/PRON/2/nsubj drinks/VERB/0/root a/DET/4/det glass/NOUN/2/obj of/ADP/7/case cold/ADJ/7/amod "
        "water/NOUN/4/nmod",
        ["he | drinks | glass of cold water"],
    ),
    "determiners are dropped, in the middle of a part too": (
        "he/PRON/2/nsubj eats/VERB/0/root part/NOUN/2/obj of/ADP/6/case the/DET/6/det cake/NOUN/3/nmod",
        ["he | eats | part of cake"],
    ),
    "adjectival copula": (
        "the/DET/2/det cat/NOUN/5/nsubj is/AUX/5/cop very/ADV/5/advmod black/ADJ/0/root",
        ["cat | is | black"],
    ),
    "conjoined copula": (
        "it/PRON/3/nsubj is/AUX/3/cop big/ADJ/0/root and/CCONJ/5/cc red/ADJ/3/conj",
        ["it | is | big", "it | is | red"],
    ),
    "nominal copula": (
        "she/PRON/5/nsubj is/AUX/5/cop a/DET/5/det famous/ADJ/5/amod singer/NOUN/0/root",
        ["she | is | famous singer"],
    ),
    "locative copula": (
        "she/PRON/5/nsubj is/AUX/5/cop in/ADP/5/case the/DET/5/det kitchen/NOUN/0/root",
        ["she | is in | kitchen"],
    ),
    "adjective with a preposition": (
        "soup/NOUN/3/nsubj is/AUX/3/cop full/ADJ/0/root of/ADP/5/case beans/NOUN/3/obl",
        ["soup | is | full", "soup | is full of | beans"],
    ),
    "adjective after its noun": (
        "a/DET/2/det street/NOUN/0/root full/ADJ/2/amod of/ADP/5/case people/NOUN/3/obl",
        ["street | full of | people"],
    ),
    "open complement": (
        "he/PRON/2/nsubj tries/VERB/0/root to/PART/4/mark open/VERB/2/xcomp a/DET/6/det door/NOUN/4/obj",
        ["he | tries to open | door"],
    ),
    "open complement of an open complement": (
        "he/PRON/2/nsubj wants/VERB/0/root to/PART/4/mark try/VERB/2/xcomp to/PART/6/mark swim/VERB/4/xcomp",
        ["he | wants to try to swim | -"],
    ),
    "open complement of an adjective": (
        "he/PRON/3/nsubj is/AUX/3/cop ready/ADJ/0/root to/PART/5/mark jump/VERB/3/xcomp",
        ["he | is | ready", "he | is ready to jump | -"],
    ),
    "complement that the object does": (
        "she/PRON/2/nsubj helps/VERB/0/root him/PRON/2/obj to/PART/5/mark tie/VERB/2/xcomp shoes/NOUN/5/obj",
        ["she | helps | him", "him | to tie | shoes"],
    ),
    "adjectival complement": (
        "the/DET/2/det boy/NOUN/3/nsubj looks/VERB/0/root happy/ADJ/3/xcomp",
        ["boy | looks | happy"],
    ),
    "clausal complement": (
        "he/PRON/2/nsubj says/VERB/0/root that/SCONJ/5/mark dogs/NOUN/5/nsubj like/VERB/2/ccomp bones/NOUN/5/obj",
        ["he | says | -", "dogs | like | bones"],
    ),
    "how to": (
        "he/PRON/2/nsubj shows/VERB/0/root how/ADV/5/advmod to/PART/5/mark fix/VERB/2/ccomp a/DET/7/det "
        "bike/NOUN/5/obj",
        ["he | shows how to fix | bike"],
    ),
    "adverbial clauses": (
        "he/PRON/2/nsubj sits/VERB/0/root reading/VERB/2/advcl a/DET/5/det book/NOUN/3/obj while/SCONJ/8/mark "
        "dogs/NOUN/8/nsubj bark/VERB/2/advcl",
        ["he | sits | -", "he | reading | book", "dogs | bark | -"],
    ),
    "purpose": (
        "he/PRON/2/nsubj bends/VERB/0/root to/PART/4/mark lift/VERB/2/advcl it/PRON/4/obj",
        ["he | bends | -", "he | to lift | it"],
    ),
    "relative clause of the subject": (
        "a/DET/2/det man/NOUN/7/nsubj who/PRON/4/nsubj rides/VERB/2/acl:relcl a/DET/6/det horse/NOUN/4/obj "
        "waves/VERB/0/root",
        ["man | rides | horse", "man | waves | -"],
    ),
    "relative clause of the object": (
        "a/DET/2/det horse/NOUN/0/root that/PRON/5/obj she/PRON/5/nsubj rides/VERB/2/acl:relcl",
        ["she | rides | horse"],
    ),
    "relative clause without pronoun": (
        "a/DET/2/det horse/NOUN/0/root she/PRON/4/nsubj rides/VERB/2/acl:relcl",
        ["she | rides | horse"],
    ),
    "conjoined verbs in a relative clause": (
        "a/DET/2/det man/NOUN/0/root who/PRON/4/nsubj sings/VERB/2/acl:relcl and/CCONJ/6/cc dances/VERB/4/conj",
        ["man | sings | -", "man | dances | -"],
    ),
    "place of a relative clause": (
        "a/DET/2/det room/NOUN/0/root where/ADV/5/advmod she/PRON/5/nsubj sings/VERB/2/acl:relcl",
        ["she | sings | -"],
    ),
    "participle clause": (
        "a/DET/2/det man/NOUN/0/root riding/VERB/2/acl a/DET/5/det horse/NOUN/3/obj",
        ["man | riding | horse"],
    ),
    "passive participle clause": (
        "a/DET/2/det lake/NOUN/0/root surrounded/VERB/2/acl by/ADP/5/case hills/NOUN/3/obl",
        ["lake | surrounded by | hills"],
    ),
    "infinitive of a noun has no subject": (
        "a/DET/2/det recipe/NOUN/0/root to/PART/4/mark bake/VERB/2/acl bread/NOUN/4/obj",
        ["- | to bake | bread"],
    ),
    "there is, the place below the verb": (
        "there/PRON/2/expl is/VERB/0/root a/DET/4/det dog/NOUN/2/nsubj on/ADP/7/case the/DET/7/det sofa/NOUN/2/obl",
        ["dog | on | sofa"],
    ),
    "there is, the place below the noun": (
        "there/PRON/2/expl is/VERB/0/root a/DET/4/det dog/NOUN/2/nsubj on/ADP/7/case the/DET/7/det sofa/NOUN/4/nmod",
        ["dog | on | sofa"],
    ),
    "there is, with a clause": (
        "there/PRON/2/expl are/VERB/0/root kids/NOUN/2/nsubj flying/VERB/3/acl a/DET/6/det kite/NOUN/4/obj",
        ["kids | flying | kite"],
    ),
    "there is and nothing more": (
        "there/PRON/2/expl is/VERB/0/root a/DET/4/det dog/NOUN/2/nsubj",
        [],
    ),
    "weather": (
        "it/PRON/3/expl is/AUX/3/aux raining/VERB/0/root in/ADP/5/case town/NOUN/3/obl",
        ["- | is raining in | town"],
    ),
    "names": (
        "John/PROPN/4/nsubj Smith/PROPN/1/flat is/AUX/4/aux interviewed/VERB/0/root by/ADP/7/case New/PROPN/7/compound "
        "Yorkers/PROPN/4/obl:agent",
        ["John Smith | is interviewed by | New Yorkers"],
    ),
    "adjectives, also conjoined, and numbers": (
        "two/NUM/5/nummod black/ADJ/5/amod and/CCONJ/4/cc white/ADJ/2/conj cats/NOUN/6/nsubj sleep/VERB/0/root",
        ["two black and white cats | sleep | -"],
    ),
    "possessives": (
        "the/DET/2/det man/NOUN/4/nmod:poss 's/PART/2/case dog/NOUN/5/nsubj licks/VERB/0/root his/PRON/7/nmod:poss "
        "hand/NOUN/5/obj",
        ["man 's dog | licks | hand"],
    ),
    "no is kept": (
        "no/DET/2/det dog/NOUN/3/nsubj barks/VERB/0/root",
        ["no dog | barks | -"],
    ),
    "particle": (
        "he/PRON/2/nsubj picks/VERB/0/root it/PRON/2/obj up/ADP/2/compound:prt",
        ["he | picks up | it"],
    ),
    "negated auxiliary": (
        "dogs/NOUN/4/nsubj do/AUX/4/aux not/PART/4/advmod eat/VERB/0/root carrots/NOUN/4/obj",
        ["dogs | do not eat | carrots"],
    ),
    "indirect object": (
        "she/PRON/2/nsubj gives/VERB/0/root him/PRON/2/iobj an/DET/5/det apple/NOUN/2/obj",
        ["she | gives | him", "she | gives | apple"],
    ),
    "no subject": (
        "playing/VERB/0/root the/DET/3/det guitar/NOUN/1/obj on/ADP/5/case stage/NOUN/1/obl",
        ["- | playing | guitar", "- | playing on | stage"],
    ),
    "a verb alone": ("run/VERB/0/root", []),
    "a noun alone": ("a/DET/2/det dog/NOUN/0/root", []),
    "an adjective that was a verb is none": (
        "a/DET/3/det sleeping/VERB/3/amod dog/NOUN/0/root",
        [],
    ),
}  # fmt: skip


def tree(notation: str) -> tuple[str, list[Word]]:
    words, start = [], 0
    for index, part in enumerate(notation.split(), start=1):
        text, upos, head, deprel = part.split("/")
        words.append(Word(index, text, upos, int(head), deprel, start, start + len(text)))
        start += len(text) + 1
    return " ".join(word.text for word in words), words


def said(text: str, triple: Triple) -> str:
    def part(spans: tuple[Span, ...]) -> str:
        return " ".join(text[start:end] for start, end in spans) or "-"

    return " | ".join(part(spans) for spans in (triple.subject, triple.relation, triple.object))


@pytest.mark.parametrize("name", CASES)
def test_a_hand_made_tree_gives_the_triples_written_beside_it(name: str) -> None:
    notation, expected = CASES[name]
    text, words = tree(notation)
    assert sorted(said(text, triple) for triple in triples(words)) == sorted(expected)


def test_words_out_of_order_give_the_same_triples() -> None:
    _, words = tree(CASES["a second verb borrows subject and auxiliary"][0])
    assert triples(words[::-1]) == triples(words)


def test_a_part_of_separate_words_has_a_span_for_each_run_of_neighbours() -> None:
    text, words = tree(CASES["determiners are dropped, in the middle of a part too"][0])
    (triple,) = triples(words)
    assert [text[start:end] for start, end in triple.object] == ["part of", "cake"]


def test_a_hyphen_between_words_is_kept_and_a_dash_after_one_is_not() -> None:
    def found(text: str, places: list[tuple[int, int]]) -> list[str]:
        kinds = [("NOUN", 3, "compound"), ("PUNCT", 3, "punct"), ("NOUN", 4, "nsubj"), ("VERB", 0, "root")]
        words = [
            Word(n, text[s:e], *kind, s, e)
            for n, ((s, e), kind) in enumerate(zip(places, kinds, strict=True), 1)
        ]
        return [said(text, triple) for triple in triples(words)]

    assert found("t-shirts hang", [(0, 1), (1, 2), (2, 8), (9, 13)]) == ["t-shirts | hang | -"]
    assert found("red - shirts hang", [(0, 3), (4, 5), (6, 12), (13, 17)]) == ["red shirts | hang | -"]


def test_words_that_share_their_characters_give_one_span() -> None:
    _, words = tree("he/PRON/4/nsubj does/AUX/4/aux n't/PART/4/advmod eat/VERB/0/root")
    whole = [Word(w.index, w.text, w.upos, w.head, w.deprel, *((3, 10) if w.index in (2, 3) else (w.start, w.end)))
             for w in words]  # fmt: skip
    assert triples(whole)[0].relation == ((3, whole[3].end),)


def test_any_tree_at_all_gives_parts_of_its_own_words_each_triple_once() -> None:
    draw = random.Random(5)
    parts = ["NOUN", "VERB", "AUX", "ADJ", "ADP", "PRON", "ADV", "DET", "PART"]
    relations = ["nsubj", "obj", "obl", "nmod", "conj", "acl", "acl:relcl", "advcl", "xcomp", "ccomp", "cop", "aux",
                 "case", "amod", "compound", "mark", "expl", "advmod", "cc", "nmod:poss", "fixed",
                 "parataxis"]  # fmt: skip
    texts = ["who", "not", "of", "to", "how", "front", "there", "running", "dog"]
    found = 0
    for _ in range(500):
        size = draw.randint(1, 14)
        order = draw.sample(
            range(1, size + 1), size
        )  # a word hangs on one before it in this order: no cycles
        heads = {index: draw.choice(order[:n]) if n else 0 for n, index in enumerate(order)}
        words = [Word(i, draw.choice(texts), draw.choice(parts), heads[i],
                      draw.choice(relations) if heads[i] else "root", 10 * i, 10 * i + 5)
                 for i in range(1, size + 1)]  # fmt: skip
        starts, ends = {word.start for word in words}, {word.end for word in words}
        said_of = triples(words)
        assert len(set(said_of)) == len(said_of) and said_of == sorted(said_of)
        for triple in said_of:
            assert triple.relation and (triple.subject or triple.object)
            for start, end in (*triple.subject, *triple.relation, *triple.object):
                assert start in starts and end in ends and start < end
        found += len(said_of)
    assert found > 100


def test_a_chain_as_deep_as_the_longest_sentence_is_read_and_a_longer_one_gives_nothing() -> None:
    def chain(size: int, upos: str, deprel: str) -> list[Word]:
        head = [Word(1, "he", "PRON", 2, "nsubj", 0, 2), Word(2, "go", "VERB", 0, "root", 3, 5)]
        return head + [Word(i, "go", upos, i - 1, deprel, 3 * i, 3 * i + 2) for i in range(3, size + 1)]

    for upos, deprel in (("VERB", "xcomp"), ("VERB", "conj"), ("NOUN", "compound"), ("NOUN", "conj")):
        assert triples(chain(150, upos, deprel))
        assert triples(chain(151, upos, deprel)) == []
