"""triples: the triples that a parser reads in sentences, and its precision and recall on sentences done by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from extractors import triple_check
from extractors.backbones import parsers
from extractors.triple_check import Agreement, Sentence, TripleWords, by_style
from extractors.triples import TriplesParams
from flows.commands.terms import AsJson, out, print_json, print_table
from pipeline.errors import ItemError, UserError
from pipeline.settings import fill


def triples(
    sentences: Annotated[
        list[str], typer.Argument(metavar="[SENTENCE]...", help="Captions, one argument each.")
    ] = [],  # noqa: B006
    package: Annotated[
        str,
        typer.Option(
            "--package",
            help="A stanza package, a resources folder, or crossreel-small; with --backend spacy a spaCy model or its "
            "folder. Left out: stanza's default package if it is on this machine, else crossreel-small, which is "
            "shipped; of spaCy en_core_web_sm.",
        ),
    ] = "",
    backend: Annotated[str, typer.Option("--backend", help="stanza, spacy or corenlp.")] = "stanza",
    server: Annotated[str, typer.Option("--server", help="The address of the CoreNLP server.")] = "",
    golden: Annotated[
        bool, typer.Option("--golden", help="Measure precision and recall on the shipped sentences.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the triples of sentences, or with --golden the precision and recall of a parser on known sentences."""
    if bool(sentences) == golden:
        raise UserError("give either sentences or --golden")
    if any(not sentence.strip() for sentence in sentences):
        raise UserError("a sentence is empty")
    settings = {"backend": backend} | {
        name: value for name, value in (("package", package), ("server", server)) if value
    }
    params = fill(TriplesParams, settings, "extractors.triples")
    if params.backend == "stanza" and not package and not parsers.is_here(params):
        typer.echo(
            f"the models of the stanza package {params.package!r} are not on this machine: parsed by "
            f"{parsers.SHIPPED}, the small parser that is shipped",
            err=True,
        )
        params = params.model_copy(update={"package": parsers.SHIPPED})
    parser = parsers.build(params, "cpu")
    texts = [one.text for one in triple_check.golden()] if golden else sentences
    try:
        parsed = parser.parse(texts)
    except ItemError as error:
        raise UserError(str(error)) from error
    if golden:
        _print_check(triple_check.compare(parsed), as_json)
    else:
        readable = [
            [triple_check.in_words(text, one) for one in each]
            for text, each in zip(texts, parsed, strict=True)
        ]
        _print_triples(texts, readable, as_json)


def _print_triples(texts: list[str], readable: list[list[TripleWords]], as_json: bool) -> None:
    if as_json:
        print_json(
            [{"text": text, "triples": triples_of} for text, triples_of in zip(texts, readable, strict=True)]
        )
        return
    for text, triples_of in zip(texts, readable, strict=True):
        out.print(text, markup=False)
        for line in [_line(one) for one in triples_of] or ["no triple: the sentence stands as a whole"]:
            out.print(f"  {line}", markup=False)


def _print_check(sentences: list[Sentence], as_json: bool) -> None:
    rates = {"exact": triple_check.exact(sentences), "overlapping": triple_check.overlapping(sentences)}
    failed = [sentence for sentence in sentences if sentence.missed or sentence.wrong]
    if as_json:
        misses = [{"text": one.text, "missed": one.missed, "wrong": one.wrong} for one in failed]
        styles = {style: triple_check.exact(those).as_json() for style, those in by_style(sentences).items()}
        everything = {name: rate.as_json() for name, rate in rates.items()}
        print_json(everything | {"styles": styles, "sentences": misses})
        return
    for sentence in failed:
        out.print(sentence.text, markup=False)
        for word, triple in [("missed", one) for one in sentence.missed] + [
            ("wrong ", one) for one in sentence.wrong
        ]:
            out.print(f"  {word}  {_line(triple)}", markup=False)
    print_table("", ["style", "sentences", "golden", "precision", "recall"], [
        [style, str(len(those)), str(rate.golden), f"{rate.precision:.2f}", f"{rate.recall:.2f}"]
        for style, those in by_style(sentences).items() for rate in [triple_check.exact(those)]
    ])  # fmt: skip
    out.print(f"{len(sentences) - len(failed)} of {len(sentences)} sentences are as written by hand")
    for name, rate in rates.items():
        out.print(f"{name}: {_rates(rate)}", markup=False)


def _rates(rate: Agreement) -> str:
    counts = f"{rate.correct} correct of {rate.predicted} predicted, {rate.golden} golden"
    return f"precision {rate.precision:.3f}, recall {rate.recall:.3f}, F1 {rate.f1:.3f} ({counts})"


def _line(triple: TripleWords) -> str:
    return " | ".join(part or "-" for part in triple)
