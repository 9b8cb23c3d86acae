"""Parsers that turn captions into triples: stanza or spaCy with our rules, or a CoreNLP server with its own.

A stanza package is a name that stanza publishes ("default", "default_fast", "default_accurate"), the path
of a stanza resources folder, or "crossreel-small", the small parser that is shipped for tests and the
demo. Nothing is fetched unless `download` says so. A spaCy model is an installed package or a folder, and is never
fetched (`spacy_models`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from extractors.backbones import spacy_models
from extractors.backbones.clear_nlp import to_universal
from extractors.backbones.spacy_models import SpacyModel
from extractors.backbones.triple_rules import Span, Spans, Triple, Word, triples
from pipeline.errors import ItemError, UserError, nearest
from pipeline.run.stage import Digests

SHIPPED = "crossreel-small"
SHIPPED_FOLDER = Path(__file__).parent / "models" / "stanza-small"
PROCESSORS = ("tokenize", "mwt", "pos", "lemma", "depparse")
LONGEST = (
    5000  # limit on the characters of a caption that are parsed, so that one text cannot exhaust the memory
)
PROPERTIES = {
    "annotators": "tokenize,ssplit,pos,lemma,depparse,natlog,openie",
    "outputFormat": "json",
    "openie.resolve_coref": "false",
}
START = (
    "start one in CoreNLP's folder with "
    "`java -mx4g -cp '*' edu.stanford.nlp.pipeline.StanfordCoreNLPServer -port 9000`"
)


class ParserSettings(Protocol):
    """The settings that choose a parser."""

    @property
    def backend(self) -> str:
        """The kind of parser: "stanza", "spacy" or "corenlp"."""
        ...

    @property
    def package(self) -> str:
        """The name of a stanza package or spaCy model, or a folder with one."""
        ...

    @property
    def download(self) -> bool:
        """Whether a package's files may be fetched."""
        ...

    @property
    def server(self) -> str:
        """The address of the CoreNLP server."""
        ...

    @property
    def timeout_seconds(self) -> float:
        """The longest time that the server may take for a caption."""
        ...


class TripleParser(Protocol):
    """Captions to triples."""

    def parse(self, texts: Sequence[str]) -> list[list[Triple]]:
        """The triples of each text, in order; spans count its characters. Raises ItemError for a lone text."""
        ...


def identity(settings: ParserSettings, known: Digests) -> str | Mapping[str, Any] | None:
    """The fingerprint's record of a parser, or None if a package's files are not on this machine.

    It names model files by their digests, wherever they lie, and a server by the properties of the requests to it. Of
    spaCy, names and versions count too, because its releases may read the same files otherwise.
    """
    if settings.backend == "corenlp":
        return PROPERTIES
    if settings.backend == "spacy":
        return spacy_models.identity(settings.package, known)
    files = _obtain(settings, known.located(f"stanza {settings.package}", lambda: _listing(settings.package)))
    if not files:
        return None
    named = {str(file.relative_to(file.parents[1]).with_suffix("")): known.file(file) for file in files}
    note = f"{SHIPPED}, a small parser shipped for tests and the demo"
    return {"parser": note, **named} if settings.package == SHIPPED else named


def require(settings: ParserSettings) -> None:
    """Raise UserError unless the models are on this machine (fetched now if allowed), or the server answers."""
    if settings.backend == "corenlp":
        _answers(settings.server)
    elif settings.backend == "spacy":
        spacy_models.require(settings.package)
    else:
        _required(settings)


def is_here(settings: ParserSettings) -> bool:
    """Whether the models of a stanza package are on this machine, fetched now if that is allowed."""
    return bool(_obtain(settings, _listing(settings.package)))


def build(settings: ParserSettings, device: str) -> TripleParser:
    """The parser that the settings choose. Raises UserError if it is not available."""
    if settings.backend == "corenlp":
        return CoreNlpParser(settings.server, settings.timeout_seconds)
    if settings.backend == "spacy":
        return SpacyParser(spacy_models.require(settings.package))
    return StanzaParser(_required(settings), _package(settings.package), device)


class StanzaParser:
    """Sentences parsed by stanza, triples by `triple_rules`."""

    def __init__(self, folder: Path, package: str, device: str) -> None:
        import stanza

        self.pipeline = stanza.Pipeline(
            "en",
            dir=str(folder),
            package=None,
            processors=_processors(folder / "resources.json", package),
            download_method=None,
            logging_level="ERROR",
            device=device,
        )

    def parse(self, texts: Sequence[str]) -> list[list[Triple]]:
        """The triples of each text; all sentences of all texts share stanza's batches."""
        from stanza import Document

        documents = self.pipeline.bulk_process([Document([], text=bounded(text)) for text in texts])
        return [
            [triple for sentence in document.sentences for triple in triples(_words(sentence))]
            for document in documents
        ]


class SpacyParser:
    """Sentences parsed by a spaCy model on the CPU, brought to Universal Dependencies, triples by `triple_rules`."""

    def __init__(self, model: SpacyModel) -> None:
        import spacy

        self.model = model
        try:
            self.pipeline = spacy.load(model.folder, exclude=spacy_models.NOT_USED)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"the spaCy model {model.name} {model.version} cannot be loaded by spaCy {spacy.__version__} "
                f"({_first_line(error)}); install the model that belongs to this spaCy"
            ) from error

    def parse(self, texts: Sequence[str]) -> list[list[Triple]]:
        """The triples of each text."""
        return [
            [triple for sentence in document.sents for triple in triples(self.words(sentence))]
            for document in self.pipeline.pipe(bounded(text) for text in texts)
        ]

    def words(self, sentence: Any) -> list[Word]:
        """The words of a spaCy sentence, without the tokens that it makes of further spaces, in UD."""
        tokens = [token for token in sentence if not token.is_space]
        place = {token.i: index for index, token in enumerate(tokens, start=1)}
        words = [
            Word(index, token.text, token.pos_, place.get(_head(token), 0), token.dep_.replace("ROOT", "root"),
                 token.idx, token.idx + len(token))
            for index, token in enumerate(tokens, start=1)
        ]  # fmt: skip
        return to_universal(words, [token.tag_ for token in tokens]) if self.model.clear_nlp else words


def _head(token: Any) -> int:
    """The place of a token's head in the document, above any token of spaces; -1 for a root."""
    above = token.head
    while above.is_space and above.head.i != above.i:
        above = above.head
    return -1 if above.i == token.i else int(above.i)


class CoreNlpParser:
    """The triples of a CoreNLP server's OpenIE annotator, which has its own rules."""

    def __init__(self, server: str, timeout_seconds: float) -> None:
        from stanza.server import CoreNLPClient, StartServer

        self.server = server
        self.client = CoreNLPClient(
            start_server=StartServer.DONT_START,
            endpoint=server,
            timeout=int(timeout_seconds * 500),  # half the time in ms, because the client waits twice as long
            properties=PROPERTIES,
            output_format="json",
        )

    def parse(self, texts: Sequence[str]) -> list[list[Triple]]:
        """The triples of each text. Raises UserError if the server does not answer, ItemError if it fails on a text."""
        return [self._triples(bounded(text)) for text in texts]

    def _triples(self, text: str) -> list[Triple]:
        from stanza.server.client import AnnotationException

        try:
            answer = self.client.annotate(text, properties=PROPERTIES)
        except AnnotationException as error:
            _answers(self.server)  # raises if the server is down; otherwise the text is at fault
            raise ItemError(text, f"CoreNLP: {_first_line(error)}") from error
        except ValueError as error:  # no JSON
            raise ItemError(text, f"CoreNLP's answer is not what it should be ({error})") from error
        return from_corenlp(answer, text)


def from_corenlp(answer: Mapping[str, Any], text: str) -> list[Triple]:
    """The triples in CoreNLP's JSON, by its tokens' offsets, which count UTF-16 units as Java does.

    A relation that OpenIE adds of itself ("is" in "the singer Ann") stands nowhere in the text: the triple
    then has no span for it.
    """
    place = _utf16_places(text)
    unique: dict[Triple, None] = {}
    for sentence in answer["sentences"]:
        tokens = [
            (place[token["characterOffsetBegin"]], place[token["characterOffsetEnd"]])
            for token in sentence["tokens"]
        ]
        for extracted in sentence.get("openie", []):
            parts = [
                _token_span(tokens, extracted[f"{part}Span"]) for part in ("relation", "subject", "object")
            ]
            unique[Triple(*parts)] = None
    return list(unique)


def bounded(text: str) -> str:
    """The text, or the first LONGEST characters of it up to a space."""
    if len(text) <= LONGEST:
        return text
    return text[:LONGEST].rpartition(" ")[0] or text[:LONGEST]


def _token_span(tokens: Sequence[Span], span: Sequence[int]) -> Spans:
    """The characters of tokens [first, last), none for a part that is not in the text."""
    inside = tokens[max(0, span[0]) : max(0, span[1])]
    return ((inside[0][0], inside[-1][1]),) if inside else ()


def _utf16_places(text: str) -> dict[int, int]:
    """The offset in characters by the offset in UTF-16 units."""
    places, units = {0: 0}, 0
    for number, character in enumerate(text, start=1):
        units += 2 if ord(character) > 0xFFFF else 1
        places[units] = number
    return places


def _words(sentence: Any) -> list[Word]:
    """The words of a stanza sentence; a word without offsets takes those of its token."""
    words = []
    for token in sentence.tokens:
        for word in token.words:
            own = word.start_char is not None and word.end_char is not None
            start, end = (word.start_char, word.end_char) if own else (token.start_char, token.end_char)
            words.append(Word(word.id, word.text, word.upos, word.head, word.deprel, start, end))
    return words


def _is_published(package: str) -> bool:
    """Whether stanza publishes a package of this name: it is neither the shipped one nor a folder."""
    return package != SHIPPED and "/" not in package and not Path(package).is_dir()


def _package(package: str) -> str:
    """The name of the package inside its resources folder."""
    return package if _is_published(package) else "default"


def _listing(package: str) -> Path | None:
    """The resources.json that lists a package's files; None if stanza has none on this machine.

    Raises UserError for a folder without one. Only stanza's module knows its models' folder, and its import takes
    seconds.
    """
    if package == SHIPPED:
        return SHIPPED_FOLDER / "resources.json"
    if not _is_published(package):
        listing = Path(package) / "resources.json"
        if not listing.is_file():
            raise UserError(f"{package} is no stanza resources folder: it holds no resources.json")
        return listing
    from stanza.resources.common import DEFAULT_MODEL_DIR

    listing = Path(DEFAULT_MODEL_DIR) / "resources.json"
    return listing if listing.is_file() else None


def _english(listing: Path) -> Mapping[str, Any]:
    try:
        english: Mapping[str, Any] = json.loads(listing.read_text(encoding="utf-8"))["en"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{listing} lists no English models ({error})") from None
    return english


def _processors(listing: Path, package: str) -> dict[str, str]:
    """The model that a package uses for each step from text to tree."""
    packages = _english(listing).get("packages", {})
    if package not in packages:
        raise UserError(f"unknown stanza package {package!r}; {nearest(package, [*packages, SHIPPED])}")
    return {step: packages[package][step] for step in PROCESSORS if step in packages[package]}


def _files(listing: Path, package: str) -> list[Path]:
    """The files of a package, those that its models depend on included."""
    english = _english(listing)
    models = set(_processors(listing, package).items()) - {("lemma", "identity")}
    for step, name in list(models):
        for needed in english.get(step, {}).get(name, {}).get("dependencies", []):
            models.add((needed["model"], needed["package"]))
    return [listing.parent / "en" / step / f"{name}.pt" for step, name in sorted(models)]


def _required(settings: ParserSettings) -> Path:
    """The resources folder that holds the package. Raises UserError if it is not on this machine."""
    files = _obtain(settings, _listing(settings.package))
    if not files:
        raise UserError(_not_here(settings.package, "were not to be downloaded"))
    return files[0].parents[2]


def _obtain(settings: ParserSettings, listing: Path | None) -> list[Path]:
    """The files of the package, downloaded if necessary and allowed; none if one of them is missing."""
    package = settings.package
    files = _files(listing, _package(package)) if listing else []
    if files and all(file.is_file() for file in files):
        return files
    if not (settings.download and _is_published(package)):
        return []
    return _files(_fetch(package), package)


def _fetch(package: str) -> Path:
    """Let stanza download a package; the path of the resources.json that lists its files."""
    import requests
    import stanza
    from stanza.resources.common import DEFAULT_MODEL_DIR

    try:
        stanza.download("en", package=package, processors=",".join(PROCESSORS), logging_level="ERROR")
    except (OSError, ValueError, requests.RequestException) as error:
        raise UserError(_not_here(package, f"could not be downloaded ({_first_line(error)})")) from error
    return Path(DEFAULT_MODEL_DIR) / "resources.json"


def _not_here(package: str, why: str) -> str:
    if not _is_published(package):
        return f"the models of the stanza package {package!r} are not all there: copy the whole folder again"
    command = f"import stanza; stanza.download('en', package='{package}')"
    return (
        f"the models of the stanza package {package!r} are not on this machine and {why}; run "
        f'`python -c "{command}"`, or set extractors.triples.download to true where there is a network, or '
        f'extractors.triples.package to "{SHIPPED}", the small parser that is shipped'
    )


def _answers(server: str) -> None:
    """Raise UserError unless a CoreNLP server answers at the address."""
    import requests

    try:
        alive = requests.get(server.rstrip("/") + "/ping", timeout=10).ok
    except requests.RequestException:
        alive = False
    if not alive:
        raise UserError(f"no CoreNLP server answers at {server}; {START}, or set extractors.triples.server")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
