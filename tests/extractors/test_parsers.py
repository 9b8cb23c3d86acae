"""The two parsers behind the stage `triples`: where their models are looked for, and what a server answers."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import requests
import stanza
import stanza.resources.common

from extractors.backbones import parsers, spacy_models
from extractors.backbones.triple_rules import Triple
from extractors.triple_check import in_words
from extractors.triples import TriplesParams
from pipeline.errors import ItemError, UserError
from pipeline.store.fingerprint import digest_file


class Known:
    """Digests without a memory."""

    def file(self, path: Path) -> str:
        return digest_file(path)

    def located(self, name: str, find: Callable[[], Path | None]) -> Path | None:
        return find()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which stanza has no models and may not fetch any."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be downloaded")

    folder = tmp_path / "stanza_resources"
    monkeypatch.setattr(stanza.resources.common, "DEFAULT_MODEL_DIR", str(folder))
    monkeypatch.setattr(stanza, "download", refuse)
    monkeypatch.setattr(requests.Session, "request", refuse)
    return folder


def test_a_package_that_is_not_here_is_named_with_what_to_run(bare: Path) -> None:
    with pytest.raises(UserError) as error:
        parsers.require(TriplesParams())
    assert "package 'default' are not on this machine and were not to be downloaded" in str(error.value)
    assert "python -c \"import stanza; stanza.download('en', package='default')\"" in str(error.value)
    assert "extractors.triples.download" in str(error.value) and "crossreel-small" in str(error.value)
    assert parsers.identity(TriplesParams(), Known()) is None


def test_building_a_parser_without_its_models_is_the_same_error(bare: Path) -> None:
    with pytest.raises(UserError, match="package 'default_fast' are not on this machine"):
        parsers.build(TriplesParams(package="default_fast"), "cpu")


def test_a_package_is_fetched_when_that_is_allowed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(language: str, **settings: Any) -> None:
        asked.append((language, settings["package"]))
        shutil.copytree(parsers.SHIPPED_FOLDER, bare)

    monkeypatch.setattr(stanza, "download", download)
    parsers.require(TriplesParams(download=True))
    assert asked == [("en", "default")]
    parsers.require(TriplesParams(download=True))
    assert len(asked) == 1  # they are here now
    assert parsers.identity(TriplesParams(), Known()) is not None


def test_a_fingerprint_asked_for_before_the_work_begins_fetches_too(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stanza, "download", lambda *_, **__: shutil.copytree(parsers.SHIPPED_FOLDER, bare))
    before = parsers.identity(TriplesParams(download=True), Known())
    assert before is not None and before == parsers.identity(TriplesParams(), Known())


def test_a_download_that_fails_is_the_users_to_mend(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no route to host\nand more")

    monkeypatch.setattr(stanza, "download", download)
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\); run"):
        parsers.require(TriplesParams(download=True))


def test_an_unknown_package_is_an_error_with_the_nearest(bare: Path) -> None:
    shutil.copytree(parsers.SHIPPED_FOLDER, bare)
    with pytest.raises(UserError, match="unknown stanza package 'defualt'; did you mean 'default'"):
        parsers.require(TriplesParams(package="defualt"))


def test_a_folder_that_is_no_resources_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no stanza resources folder: it holds no resources\.json"):
        parsers.require(TriplesParams(package=str(tmp_path)))
    (tmp_path / "resources.json").write_text('{"de": {}}')
    with pytest.raises(UserError, match="lists no English models"):
        parsers.require(TriplesParams(package=str(tmp_path)))


def test_a_folder_that_lacks_a_file_is_an_error_and_has_no_identity(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(parsers.SHIPPED_FOLDER, folder)
    (folder / "en" / "pos" / "small.pt").unlink()
    with pytest.raises(UserError, match="are not all there"):
        parsers.require(TriplesParams(package=str(folder)))
    assert parsers.identity(TriplesParams(package=str(folder)), Known()) is None


def test_models_are_known_by_their_bytes_wherever_they_lie(tmp_path: Path) -> None:
    shipped = parsers.identity(TriplesParams(package="crossreel-small"), Known())
    assert isinstance(shipped, dict)
    assert shipped.pop("parser") == "crossreel-small, a small parser shipped for tests and the demo"
    assert set(shipped) == {"depparse/small", "pos/small", "tokenize/small"}
    folder = tmp_path / "own"
    shutil.copytree(parsers.SHIPPED_FOLDER, folder)
    assert parsers.identity(TriplesParams(package=str(folder)), Known()) == shipped
    with (folder / "en" / "pos" / "small.pt").open("ab") as file:
        file.write(b"x")
    changed = parsers.identity(TriplesParams(package=str(folder)), Known())
    assert isinstance(changed, dict)
    assert {name for name in shipped if changed[name] != shipped[name]} == {"pos/small"}


def test_what_a_model_depends_on_belongs_to_the_package(tmp_path: Path) -> None:
    listing = {
        "pos": {"big": {"dependencies": [{"model": "pretrain", "package": "vectors"}]}},
        "packages": {"default": {"tokenize": "big", "pos": "big", "lemma": "identity", "ner": "big"}},
    }
    (tmp_path / "resources.json").write_text(json.dumps({"en": listing}))
    for file in ("tokenize/big.pt", "pos/big.pt", "pretrain/vectors.pt"):
        (tmp_path / "en" / file).parent.mkdir(parents=True)
        (tmp_path / "en" / file).write_text(file)
    named = parsers.identity(TriplesParams(package=str(tmp_path)), Known())
    assert isinstance(named, dict) and set(named) == {"tokenize/big", "pos/big", "pretrain/vectors"}


def test_only_the_beginning_of_a_long_text_is_parsed() -> None:
    assert parsers.bounded("a b") == "a b"
    assert parsers.bounded("word " * 2000) == ("word " * 1000)[:-1]
    assert parsers.bounded("x" * 9000) == "x" * 5000


# ---- spaCy, as far as it is found and checked without being installed (test_spacy_parser.py parses with it)


def lacking(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """A machine where these packages are not installed, and all others are."""

    def version(name: str) -> str:
        if name in packages:
            raise PackageNotFoundError(name)
        return "3.8.0"

    monkeypatch.setattr(spacy_models, "version", version)


def model_folder(folder: Path, **changed: Any) -> TriplesParams:
    meta = {
        "lang": "en", "name": "own", "version": "1.2", "pipeline": ["tagger", "attribute_ruler", "parser"],
        "labels": {"parser": ["ROOT", "dobj", "prep"]}, "requirements": ["spacy>=3.7"],
    }  # fmt: skip
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(meta | changed))
    (folder / "config.cfg").write_text("[nlp]")
    return TriplesParams(backend="spacy", package=str(folder))


def test_without_spacy_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lacking(monkeypatch, "spacy")
    with pytest.raises(UserError) as error:
        parsers.require(TriplesParams(backend="spacy"))
    assert str(error.value) == (
        "extractors.triples.backend = 'spacy' needs spaCy, which is not installed: pip install 'crossreel[spacy]', "
        "then `python -m spacy download en_core_web_sm`"
    )
    params = model_folder(tmp_path / "own")
    with pytest.raises(
        UserError, match=r"pip install 'crossreel\[spacy\]'$"
    ):  # of a folder nothing is to be fetched
        parsers.build(params, "cpu")
    assert parsers.identity(params, Known()) is None


def test_a_spacy_model_that_is_not_here_is_named_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    for package in ("en_no_such_model", "en-no-such", "no.such"):
        params = TriplesParams(backend="spacy", package=package, download=True)
        with pytest.raises(UserError) as error:
            parsers.require(params)
        assert (
            f"the spaCy model '{package}' is not on this machine; run `python -m spacy download {package}`"
            in str(error.value)
        )
        assert "extractors.triples.package" in str(error.value)
        assert parsers.identity(params, Known()) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"pipeline": ["tagger", "ner"]},
            "has no parser of dependencies or no parts of speech; .* and has tagger, ner",
        ),
        (
            {"pipeline": ["tagger", "parser"]},
            "it needs the components parser and attribute_ruler or morphologizer",
        ),
        (
            {"labels": {"parser": ["ROOT", "sb", "oa"]}},
            "neither ClearNLP's nor those of Universal Dependencies",
        ),
        ({"labels": None}, "neither ClearNLP's nor those of Universal Dependencies"),
        (
            {"requirements": ["spacy>=3", "big-network>=2,<3"]},
            r"not installed: pip install 'big-network>=2,<3'$",
        ),
    ],
)
def test_a_spacy_model_whose_parses_cannot_be_used_is_refused_before_work(
    changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lacking(monkeypatch, "big-network")
    with pytest.raises(UserError, match=message):
        parsers.require(model_folder(tmp_path / "own", **changed))


def test_a_folder_that_is_no_spacy_model_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lacking(monkeypatch)
    params = model_folder(tmp_path / "own")
    assert spacy_models.require(params.package).clear_nlp
    (tmp_path / "own/config.cfg").unlink()
    with pytest.raises(UserError, match=r"is no spaCy model: it holds no config\.cfg"):
        parsers.require(params)
    for content in ("[]", "{"):
        (tmp_path / "own/meta.json").write_text(content)
        with pytest.raises(UserError, match=r"is no spaCy model: it holds no meta\.json"):
            parsers.require(params)


# ---- CoreNLP


def token(begin: int, end: int) -> dict[str, int]:
    return {"characterOffsetBegin": begin, "characterOffsetEnd": end}


def openie(subject: list[int], relation: list[int], obj: list[int]) -> dict[str, Any]:
    return {"subjectSpan": subject, "relationSpan": relation, "objectSpan": obj}


ANSWER = {
    "sentences": [
        {
            "tokens": [token(0, 1), token(2, 5), token(6, 10), token(11, 12), token(13, 16), token(17, 18)],
            "openie": [openie([1, 2], [2, 3], [4, 5])],
        },
        {
            "tokens": [token(19, 21), token(22, 24), token(25, 30)],
            "openie": [openie([0, 1], [1, 2], [2, 3]), openie([0, 1], [1, 2], [2, 3])],
        },
    ]
}
TEXT = "A boy sees a dog . It is black"


def words(text: str, triples: list[Triple]) -> list[tuple[str, str, str]]:
    return [in_words(text, triple) for triple in triples]


def test_corenlps_triples_have_its_tokens_characters_each_triple_once() -> None:
    found = parsers.from_corenlp(ANSWER, TEXT)
    assert words(TEXT, found) == [("boy", "sees", "dog"), ("It", "is", "black")]


def test_characters_outside_the_basic_plane_count_once() -> None:
    text = "🎬🎬 boys see 🐕 dogs"  # Java counts each of the three signs twice
    tokens = [token(0, 4), token(5, 9), token(10, 13), token(14, 16), token(17, 21)]
    answer = {"sentences": [{"tokens": tokens, "openie": [openie([1, 2], [2, 3], [3, 5])]}]}
    assert words(text, parsers.from_corenlp(answer, text)) == [("boys", "see", "🐕 dogs")]


def test_a_relation_that_stands_nowhere_in_the_text_has_no_span() -> None:
    answer = {
        "sentences": [{"tokens": [token(0, 6), token(7, 10)], "openie": [openie([1, 2], [-1, 0], [0, 1])]}]
    }
    assert words("singer Ann", parsers.from_corenlp(answer, "singer Ann")) == [("Ann", "", "singer")]


class Server(HTTPServer):
    """Answers as CoreNLP's server does: /ping, and JSON for a text posted with its properties."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.address = f"http://localhost:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer(200, "pong")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        self.server.asked.append((text, json.loads(query["properties"][0].replace("'", '"'))))
        if text == TEXT:
            self.answer(200, json.dumps(ANSWER))
        elif "strange" in text:
            self.answer(200, "no JSON")
        else:
            self.answer(500, "java.lang.IllegalStateException: no\n\tat Main")

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def corenlp(address: str) -> TriplesParams:
    return TriplesParams(backend="corenlp", server=address, timeout_seconds=60)


def test_a_server_is_asked_for_open_information_extraction(server: Server) -> None:
    parsers.require(corenlp(server.address))
    parser = parsers.build(corenlp(server.address), "cpu")
    found = parser.parse([TEXT, TEXT])
    assert [words(TEXT, triples) for triples in found] == [
        [("boy", "sees", "dog"), ("It", "is", "black")]
    ] * 2
    text, properties = server.asked[0]
    assert (
        text == TEXT and properties["annotators"].endswith("openie") and properties["outputFormat"] == "json"
    )


def test_a_text_that_the_server_fails_on_is_that_texts_error(server: Server) -> None:
    parser = parsers.build(corenlp(server.address), "cpu")
    with pytest.raises(ItemError, match=r"CoreNLP: java\.lang\.IllegalStateException: no$"):
        parser.parse(["something else"])
    with pytest.raises(ItemError, match="CoreNLP's answer is not what it should be"):
        parser.parse(["something strange"])


def test_no_server_is_an_error_that_says_how_to_start_one() -> None:
    with HTTPServer(("127.0.0.1", 0), Handler) as free:
        address = f"http://localhost:{free.server_port}"
    with pytest.raises(
        UserError, match=f"no CoreNLP server answers at {address}; start one .*StanfordCoreNLPServer"
    ):
        parsers.require(corenlp(address))
    with pytest.raises(UserError, match="no CoreNLP server answers"):  # gone in the middle of a run
        parsers.build(corenlp(address), "cpu").parse([TEXT])


def test_a_server_is_known_by_what_is_asked_of_it_not_by_its_address() -> None:
    one, other = corenlp("http://localhost:1"), corenlp("http://elsewhere:9000")
    assert parsers.identity(one, Known()) == parsers.identity(other, Known()) == parsers.PROPERTIES
    assert one.decisive() == other.decisive() == {"backend": "corenlp"}
