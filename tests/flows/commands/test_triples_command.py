"""The verb `triples`, on the parser that is shipped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flows.commands.triples import triples
from pipeline.errors import UserError

ROOT = Path(__file__).parents[3]
SMALL = ["--package", "crossreel-small"]


def ran(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(triples)
    return CliRunner().invoke(app, list(arguments))


def test_it_prints_the_triples_of_each_sentence() -> None:
    result = ran("a man is folding a paper plane", "hello", *SMALL)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "a man is folding a paper plane",
        "  man | is folding | paper plane",
        "hello",
        "  no triple: the sentence stands as a whole",
    ]


def test_without_the_default_package_the_shipped_parser_answers_and_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("stanza.resources.common.DEFAULT_MODEL_DIR", str(tmp_path))  # as on a new machine
    result = ran("a man is folding a paper plane", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["triples"] == [["man", "is folding", "paper plane"]]
    assert "'default' are not on this machine: parsed by crossreel-small" in result.stderr


def test_it_prints_them_as_json() -> None:
    result = ran("a man is folding a paper plane", "--json", *SMALL)
    assert json.loads(result.output) == [
        {"text": "a man is folding a paper plane", "triples": [["man", "is folding", "paper plane"]]}
    ]


@pytest.mark.slow
def test_it_prints_precision_and_recall_on_golden_sentences_with_the_misses() -> None:
    lines = ran("--golden", *SMALL).output.splitlines()
    assert lines[-2].startswith("exact: precision 0.") and " recall 0." in lines[-2]
    assert lines[-1].startswith("overlapping: precision 0.")
    assert "sentences are as written by hand" in lines[-3]
    checked = json.loads(ran("--golden", "--json", *SMALL).output)
    assert f"F1 {checked['exact']['f1']:.3f}" in lines[-2]
    assert sum(each["wanted"] for each in checked["styles"].values()) == checked["exact"]["wanted"]
    passive = checked["styles"]["passive"]
    assert any(line.split()[:1] == ["passive"] and f"{passive['recall']:.2f}" in line for line in lines)
    page = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
    for style, rate in checked["styles"].items():
        cells = f"{rate['wanted']} | {rate['precision']:.2f} | {rate['recall']:.2f} |"
        assert re.search(rf"^\| {style} \| \d+ \| {re.escape(cells)}$", page, re.MULTILINE), (style, rate)
    missed = sum(len(one["missed"]) for one in checked["sentences"])
    assert missed == checked["exact"]["wanted"] - checked["exact"]["right"]
    assert sum(line.startswith("  missed  ") for line in lines) == missed


@pytest.fixture
def spacy_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where spaCy's distribution is installed; it is not imported."""
    monkeypatch.setattr("extractors.backbones.spacy_models.version", lambda name: "3.8.0")


@pytest.mark.usefixtures("spacy_here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either sentences or --golden"),
        (["a dog", "--golden"], "give either sentences or --golden"),
        ([" "], "a sentence is empty"),
        (["a dog", "--backend", "nltk"], "extractors.triples.backend = 'nltk' is not possible"),
        (["a dog", "--backend", "spacy", "--package", "./nowhere"], "nowhere is no spaCy model"),
        (["a dog", "--package", "./nowhere"], "nowhere is no stanza resources folder"),
        (["a dog", "--backend", "corenlp", "--server", "http://localhost:9"], "no CoreNLP server answers"),
    ],
)
def test_a_mistake_is_reported_in_a_sentence(arguments: list[str], message: str) -> None:
    result = ran(*arguments)
    assert isinstance(result.exception, UserError) and message in str(result.exception)
