"""The spaCy back end of the stage `triples`, on small pipelines of both label schemes that are trained in the test."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from extractors import triple_check
from extractors.backbones import parsers, spacy_models
from extractors.backbones.clear_nlp import to_universal
from extractors.backbones.triple_rules import Word, triples
from extractors.base import Output, Unit, WorkOptions
from extractors.triple_check import in_words, normal
from extractors.triples import Triples, TriplesParams
from pipeline.errors import UserError
from pipeline.store.fingerprint import digest_file

pytestmark = pytest.mark.slow
spacy = pytest.importorskip("spacy", reason="needs crossreel[spacy]")

FIXTURE = Path(__file__).parents[1] / "fixtures/clear_nlp_parses.jsonl"
SENTENCES = (  # constructions that both schemes label differently
    "a man is folding a paper plane",
    "the ball is thrown by a tall man",
    "The cat is black.",
    "a woman is in the kitchen",
    "There is a dog on the sofa.",
    "a cat crawls out of a box",
    "a chef adds salt, pepper and oil",
)
MOST_PASSES = 200  # over the sentences; about 40 are enough


class Known:
    """Digests without a memory."""

    def file(self, path: Path) -> str:
        return digest_file(path)

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        return find()


def examples(nlp: Any, universal: bool) -> list[Any]:
    """The sentences as spaCy is trained on them, with the labels of one scheme."""
    from spacy.tokens import Doc
    from spacy.training import Example

    made = []
    for line in map(json.loads, FIXTURE.read_text(encoding="utf-8").splitlines()):
        if line["text"] not in SENTENCES:
            continue
        doc = nlp.make_doc(line["text"])
        forms, upos, tags, heads, labels = zip(*line["words"], strict=True)
        assert [token.text for token in doc] == list(forms)
        words = [
            Word(n, form, pos, head, label, 0, 0)
            for n, (form, pos, head, label) in enumerate(
                zip(forms, upos, heads, labels, strict=True), start=1
            )
        ]
        if universal:
            words = to_universal(words, tags)
        right = Doc(
            nlp.vocab, words=list(forms), spaces=[bool(token.whitespace_) for token in doc],
            tags=list(tags), pos=[word.upos for word in words],
            heads=[word.head - 1 if word.head else word.index - 1 for word in words],
            deps=[word.deprel.replace("root", "ROOT") for word in words],
        )  # fmt: skip
        made.append(Example(doc, right))
    assert len(made) == len(SENTENCES)
    return made


def trained(folder: Path, universal: bool) -> Path:
    """A tagger, a morphologizer and a parser that know the sentences by heart, as a folder that spaCy wrote."""
    random.seed(0)
    spacy.util.fix_random_seed(0)
    nlp = spacy.blank(
        "en", meta={"name": "tiny_universal" if universal else "tiny_clear", "version": "0.1.0"}
    )
    for component in ("tok2vec", "tagger", "morphologizer"):
        nlp.add_pipe(component)
    nlp.add_pipe("parser", config={"min_action_freq": 1})  # rarer labels are left out of the parser
    right = examples(nlp, universal)
    optimizer = nlp.initialize(lambda: right)
    optimizer.learn_rate = 0.005
    for number in range(MOST_PASSES):
        random.shuffle(right)
        nlp.update(right, sgd=optimizer, drop=0.0)
        if number % 10 == 9 and all(annotated(nlp(one.text)) == annotated(one.reference) for one in right):
            break
    nlp.to_disk(folder)
    return folder


def annotated(doc: Any) -> list[tuple[str, str, int, str]]:
    return [(token.tag_, token.pos_, token.head.i, token.dep_) for token in doc]


@pytest.fixture(scope="module", params=["clear", "universal"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("spacy") / request.param, request.param == "universal")


@pytest.fixture(scope="module")
def stage(model: Path) -> Triples:
    made = Triples(TriplesParams(backend="spacy", package=str(model)))
    made.require()
    made.load(WorkOptions(device="cpu", batch_size=64))
    return made


def test_both_label_schemes_give_the_golden_triples_of_their_sentences(stage: Triples) -> None:
    golden = {one.text: one.triples for one in triple_check.golden()}
    parsed = stage.parser.parse(SENTENCES)
    for text, found in zip(SENTENCES, parsed, strict=True):
        assert {normal(in_words(text, triple)) for triple in found} == golden[text], text


def test_the_scheme_is_read_from_the_models_labels(stage: Triples) -> None:
    assert isinstance(stage.parser, parsers.SpacyParser)
    assert stage.parser.model.clear_nlp == ("clear" in stage.parser.model.name)
    labels = set(stage.parser.pipeline.get_pipe("parser").labels)
    assert ("dobj" in labels) == stage.parser.model.clear_nlp and ("obj" in labels) != ("dobj" in labels)


def test_tokens_of_spaces_are_no_words_and_spans_are_characters_of_the_caption_as_given(
    stage: Triples,
) -> None:
    from spacy.tokens import Doc

    assert isinstance(stage.parser, parsers.SpacyParser)
    forms = ["  ", "dogs", "eat", "  \n ", "bones"]
    spaces = [False, True, True, False, False]
    if stage.parser.model.clear_nlp:
        labels = ["dep", "nsubj", "ROOT", "dep", "dobj"]
    else:
        labels = ["dep", "nsubj", "ROOT", "dep", "obj"]
    pos = ["SPACE", "NOUN", "VERB", "SPACE", "NOUN"]
    vocab = stage.parser.pipeline.vocab
    # "bones" hangs on the spaces, as a parser may have it
    doc = Doc(vocab, words=forms, spaces=spaces, pos=pos, heads=[1, 2, 2, 2, 3], deps=labels)
    assert doc.text == "  dogs eat   \n bones"
    words = [word for sentence in doc.sents for word in stage.parser.words(sentence)]
    assert [(word.index, word.text, word.head, word.deprel) for word in words] == [
        (1, "dogs", 2, "nsubj"), (2, "eat", 0, "root"), (3, "bones", 2, "obj"),
    ]  # fmt: skip
    assert [in_words(doc.text, triple) for triple in triples(words)] == [("dogs", "eat", "bones")]
    assert all(doc.text[word.start : word.end] == word.text for word in words)


def test_a_caption_has_the_same_triples_in_any_company(stage: Triples) -> None:
    alone = [stage.parser.parse([text])[0] for text in SENTENCES]
    assert stage.parser.parse(SENTENCES) == alone


def test_a_caption_without_words_stands_as_a_whole(stage: Triples) -> None:
    ((_, output),) = filter(None, stage.results([Unit("0", "caption", text="!!!")], Path()))
    assert isinstance(output, Output) and output.arrays["sentence"].tolist() == [[1]]


def test_a_model_is_known_by_its_name_version_files_and_spacys_version(model: Path, tmp_path: Path) -> None:
    params = TriplesParams(backend="spacy", package=str(model))
    named = parsers.identity(params, Known())
    assert isinstance(named, dict)
    assert named["spacy"] == version("spacy") and named["version"] == "0.1.0"
    assert named["model"] == f"en_tiny_{model.name}"
    assert {"config.cfg", "parser/model", "tagger/model", "tok2vec/model"} <= set(named["files"])
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    (elsewhere / "README.md").write_text("a remark")
    (elsewhere / "ner").mkdir()
    (elsewhere / "ner/model").write_bytes(b"entities")
    assert parsers.identity(params.model_copy(update={"package": str(elsewhere)}), Known()) == named
    with (elsewhere / "parser/model").open("ab") as file:
        file.write(b"x")
    changed = parsers.identity(params.model_copy(update={"package": str(elsewhere)}), Known())
    assert isinstance(changed, dict)
    assert {key for key in named["files"] if changed["files"][key] != named["files"][key]} == {"parser/model"}


def test_another_version_of_spacy_is_another_parser(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = TriplesParams(backend="spacy", package=str(model))
    before = parsers.identity(params, Known())
    monkeypatch.setattr(spacy_models, "version", lambda name: "99.0")
    after = parsers.identity(params, Known())
    assert isinstance(before, dict) and isinstance(after, dict)
    assert {key for key in before if before[key] != after[key]} == {"spacy"}


def test_an_installed_package_is_found_by_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of a package that `spacy package` makes: the model in a folder with its version, meta.json twice."""
    meta = json.loads((model / "meta.json").read_text())
    name = f"en_{meta['name']}"
    package = tmp_path / name
    shutil.copytree(model, package / f"{name}-{meta['version']}")
    shutil.copy(model / "meta.json", package)
    (package / "__init__.py").write_text("raise RuntimeError('a model is found without importing it')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = spacy_models.require(name)
    assert found.folder == package / f"{name}-0.1.0" and (found.name, found.version) == (name, "0.1.0")
    parser = parsers.build(TriplesParams(backend="spacy", package=name), "cpu")
    assert len(parser.parse([SENTENCES[0]])[0]) == 1


def test_files_that_spacy_cannot_load_are_the_users_to_mend(model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "config.cfg").write_text("[nlp]\nlang = 3\n")
    with pytest.raises(UserError, match=r"the spaCy model en_tiny_\w+ 0\.1\.0 cannot be loaded by spaCy \d"):
        parsers.build(TriplesParams(backend="spacy", package=str(broken)), "cpu")
