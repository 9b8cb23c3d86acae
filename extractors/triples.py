"""Subject-relation-object triples of captions: the text nodes of LEAN's hypergraph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from extractors.backbones import parsers
from extractors.backbones.triple_rules import Triple
from extractors.base import Array, Extractor, Output, Result, TextExtractor, Unit, WorkOptions
from pipeline.errors import ItemError
from pipeline.run.stage import Digests
from pipeline.settings import DIGESTED, PATH, SPEED, Params
from pipeline.store.fields import Field


class TriplesParams(Params):
    """Settings of the parser; the digests of its models enter the fingerprint."""

    backend: Literal["stanza", "spacy", "corenlp"] = (
        "stanza"  # stanza, spacy: a parse with our rules; corenlp: a server with its own
    )
    package: Annotated[str, PATH, DIGESTED] = (
        "default"  # stanza package (a name, a resources folder, or crossreel-small), or spaCy model (a name or folder)
    )
    server: Annotated[str, SPEED] = "http://localhost:9000"  # address of CoreNLP
    timeout_seconds: Annotated[float, SPEED] = 60.0  # time limit of the server for one caption
    download: Annotated[bool, SPEED] = False  # fetch a stanza package that is not on this machine


class Triples(TextExtractor[TriplesParams]):
    """Captions to spans (P, 4) int32, one row for each run of characters in a part of a triple.

    A row is [triple, part, start, end): triples count from 0 through all sentences of the caption, parts are 0 subject,
    1 relation, 2 object, and start and end are positions of characters in the caption as given. A part may have several
    rows ("is ... on"), in reading order, or none ("a baby is sleeping" has no object). `sentence` (1, 1) is 1 if the
    caption has no triple: then the whole caption is the subject of its only one.
    """

    name, version = "triples", 1
    settings = TriplesParams
    fields = {"span": Field("int32", (None, 4)), "sentence": Field("uint8", (None, 1))}

    def identity(self, known: Digests) -> Mapping[str, Any]:
        """The digests of the parser's models, or the settings of the request to the server."""
        return {"parser": parsers.identity(self.params, known)}

    def require(self) -> None:
        """Raise UserError if the parser's models are missing, or the server does not answer."""
        parsers.require(self.params)

    def load(self, options: WorkOptions) -> None:
        """Read the parser's models."""
        super().load(options)
        self.parser = parsers.build(self.params, options.device)

    def encode(self, texts: list[str]) -> list[dict[str, Array]]:
        """The triples of each caption."""
        parsed = self.parser.parse(texts)
        return [rows(triples, len(text)) for triples, text in zip(parsed, texts, strict=True)]

    def extract(self, unit: Unit, work: Path) -> Output:
        """The triples of one caption. Raises ItemError if the server fails on it."""
        return Output(self.encode([unit.text or ""])[0])

    def results(self, units: Iterable[Unit], work: Path) -> Iterator[Result | None]:
        """Captions in batches, or one by one with a server, which may fail on any of them; an empty one is an error."""
        written = []
        for unit in units:
            if (unit.text or "").strip():
                written.append(unit)
            else:
                yield unit, ItemError(unit.name, "the caption is empty")
        one_by_one = self.params.backend == "corenlp"
        yield from Extractor.results(self, written, work) if one_by_one else super().results(written, work)


def rows(triples: Sequence[Triple], length: int) -> dict[str, Array]:
    """Arrays of the stage for the triples of one caption of `length` characters; without any, the whole caption."""
    spans = [
        (number, part, start, end)
        for number, triple in enumerate(triples)
        for part, places in enumerate((triple.subject, triple.relation, triple.object))
        for start, end in places
    ]
    return {
        "span": np.array(spans or [(0, 0, 0, length)], dtype=np.int32),
        "sentence": np.array([[not spans]], dtype=np.uint8),
    }
