"""The documentation site: it builds, no link is dead, nothing is loaded from elsewhere, and nothing is undocumented."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer.main
from pydantic import BaseModel

import crossreel
from flows.advice import ADVICE
from flows.cli import EXIT_CODES, app
from flows.drafting.explanations import explanations
from flows.experiment import Experiment
from flows.graph import EXTRACTORS, METHODS
from flows.results.board.published import read_published
from pipeline.run.execute import RunOptions
from trainers.measure.metric_table import METRICS
from trainers.recipes import every_recipe
from trainers.stages import EvaluateParams

ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")


@cache
def made() -> dict[str, str]:
    """The pages that docs/hooks.py makes, imported as mkdocs does it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        pages: dict[str, str] = importlib.import_module("hooks").generated()
    return pages


def section(page: str, heading: str) -> str:
    """The part of a page below a heading, up to the next one of its kind."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", made()[page], re.MULTILINE | re.DOTALL)
    assert found, f"{page} has no heading {heading!r}"
    return found[1]


def leaves() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    for name in root.commands:
        command = root.load(name)
        inner = getattr(command, "commands", None)
        yield from [(name, command)] if inner is None else ((f"{name} {k}", v) for k, v in inner.items())


@pytest.mark.parametrize(("verb", "command"), leaves(), ids=[name for name, _ in leaves()])
def test_every_verb_stands_in_the_reference_with_all_its_options(verb, command):
    text = section("reference/command-line.md", f"crossreel {verb}")
    assert " ".join(command.help.split())[:60] in " ".join(text.split())
    for one in command.params:
        names = (
            one.opts if one.param_type_name == "option" else [(one.metavar or one.name.upper()).strip("[]")]
        )
        for name in names:
            assert re.search(rf"`\[?{re.escape(name)}[ `\]]", text), f"{verb}: {name}"


def test_every_row_of_a_table_in_the_reference_has_as_many_cells_as_its_head():
    for page, text in made().items():
        width = 0
        for line in text.splitlines():
            if not line.startswith("|"):
                width = 0
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (0, cells), f"{page}: {line}"
            width = cells


def test_every_exit_status_stands_in_the_reference():
    for code, words in EXIT_CODES.items():
        assert f"| {code} | {words} |" in made()["reference/command-line.md"]


def models() -> dict[str, type[BaseModel]]:
    """Every table of settings by its heading."""
    tables: dict[str, type[BaseModel]] = {
        "Top of the file": Experiment, "[run]": RunOptions, "[evaluate]": EvaluateParams,
    }  # fmt: skip
    for key in ("dual_softmax", "qb_norm", "sinkhorn"):
        tables[f"[evaluate.{key}]"] = EvaluateParams.model_fields[key].annotation
    tables |= {f"[extractors.{kind.name}]": kind.settings for kind in EXTRACTORS}
    return tables | {f"[trainers.{name}]": METHODS.find(name).config for name in METHODS.names()}


@pytest.mark.parametrize("heading", models())
def test_every_setting_stands_in_the_reference_with_words(heading):
    model, text = models()[heading], section("reference/settings.md", heading)
    for name in set(model.model_fields) - {"path"}:
        found = re.search(rf"^\| `{name}` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
        assert found and found[1].strip(), f"{heading} {name} has no words"
        assert found[1].strip() == explanations(model)[name].replace("|", "\\|")


def test_every_method_recipe_and_stage_stands_in_the_reference():
    text = made()["reference/methods.md"]
    for name in METHODS.names():
        assert f"## {name}\n" in text
    for kind in EXTRACTORS:
        assert f"| `{kind.name}` | {kind.version} |" in text
    for row in every_recipe():
        assert (
            f"| `{row.method}/{row.name}` |" in text
            and f"| `{row.method}/{row.name}` |" in made()["hardware.md"]
        )


def test_every_measured_metric_has_a_formula():
    for one in METRICS:
        assert (
            re.search(rf"^\| {one.name} \|.*`[^`]+`", made()["reference/metrics.md"], re.MULTILINE) is None
        ) == (not one.measured)


def test_every_public_name_of_the_library_stands_in_the_reference_with_its_methods():
    text = made()["reference/library.md"]
    for name in crossreel.__all__:
        if name.startswith("_"):
            continue
        body = section("reference/library.md", f"crossreel.{name}")
        assert body.strip(), name
        for member, value in (
            vars(getattr(crossreel, name)).items() if isinstance(getattr(crossreel, name), type) else ()
        ):
            if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                assert f"`{member}" in body, f"{name}.{member}"
    assert "## crossreel.open" in text


def test_every_network_with_advice_stands_on_the_page_of_weights():
    for one in ADVICE.values():
        for words in (one.what, one.size, one.licence, one.place, one.online, one.offline):
            assert words in made()["weights.md"]


def addresses() -> Any:
    """The module that lists the addresses outside of the site."""
    made()
    return importlib.import_module("reference_pages.addresses")


def may_be_linked(link: str) -> bool:
    return bool(re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link)) or link in addresses().known()


def test_papers_code_and_data_are_linked_by_the_addresses_that_are_listed_and_no_others():
    numbers = {one.arxiv for one in read_published().values()}
    links = set(re.findall(r"\]\((https?://[^)]+)\)", made()["papers.md"]))
    assert {addresses().paper(number) for number in numbers} <= links
    assert addresses().known() <= links
    assert all(may_be_linked(link) for link in links)
    for one in addresses().DATA:
        assert re.search(
            rf"^\| {re.escape(one.name)} \| {re.escape(one.title)} \|", made()["papers.md"], re.MULTILINE
        )


def test_the_page_of_each_method_links_its_paper_and_its_code():
    for name, one in read_published().items():
        page = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")
        assert f"(https://arxiv.org/abs/{one.arxiv})" in page, name
        assert " ".join(page.split()).lower().count(one.paper.lower()) == 1, name
        stated = [
            address.url
            for listed in (addresses().CODE, addresses().DOI)
            for k, address in listed.items()
            if k == name
        ]
        assert stated and all(f"({url})" in page for url in stated), name


def test_each_published_experiment_links_the_source_that_it_names():
    text = section("reference/methods.md", "gare")
    assert "| `gare/msvd` |" in text and "[2505.12499](https://arxiv.org/abs/2505.12499)" in text
    for row in every_recipe():
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", row.source):
            line = next(
                line for line in made()["reference/methods.md"].splitlines()
                if line.startswith(f"| `{row.method}/{row.name}` |")
            )  # fmt: skip
            assert f"arXiv [{number}](https://arxiv.org/abs/{number})" in line
            if "its release" in row.source:
                assert f"({addresses().CODE[row.method].url})" in line


def test_data_sets_stand_on_the_page_of_corpora_with_their_addresses():
    page = (ROOT / "docs/corpora.md").read_text(encoding="utf-8")
    for one in addresses().DATA:
        (line,) = [line for line in page.splitlines() if f"| {one.name} | {one.title}" in line]
        assert (not one.arxiv or addresses().paper(one.arxiv) in line) and (
            not one.page or one.page.url in line
        )


@cache
def strings() -> list[str]:
    """Every text in the source, the changing parts of it replaced by a mark."""
    found = []
    for package in ("pipeline", "extractors", "trainers", "flows", "crossreel"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [one.value if isinstance(one, ast.Constant) else "\0" for one in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def sentences() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").partition("## Python")[0]
    return re.findall(r"^### `(.*)`$", text, re.MULTILINE)


@pytest.mark.parametrize("sentence", sentences())
def test_every_sentence_of_troubleshooting_is_one_of_the_programs(sentence):
    parts = [re.escape(part.strip()) for part in re.split(r"\.\.\.", sentence) if part.strip(" ,;:")]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(pattern.search(text) for text in strings()), sentence


class Page(HTMLParser):
    """The anchors, the links and the loaded resources of a page of the site."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = {""}, list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] or "" for key in ("id", "name") if key in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loaded.append(given["src"] or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href") or "")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs-site` builds it."""
    folder = tmp_path_factory.mktemp("built") / "site"
    ended = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


@pytest.mark.slow
def test_no_link_of_the_site_is_dead_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 40
    for path, page in pages.items():
        for target in page.loaded:
            assert not urlsplit(target).netloc, f"{path.relative_to(site)} loads {target}"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert may_be_linked(link), f"{path.relative_to(site)} links to {link}"
                continue
            if path.name == "404.html":
                continue  # it is shown for any address, so its links begin at the root
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: dead link {link}"
            if target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (
                    f"{path.relative_to(site)}: dead anchor {link}"
                )
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.long
def test_a_search_in_the_folder_finds_a_setting_without_a_server_or_a_network(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("no browser on this machine")
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.locator("input.md-search__input").click()
        page.keyboard.type("coef_lr")
        page.wait_for_selector("a.md-search-result__link", timeout=60_000)
        found = [one.get_attribute("href") or "" for one in page.locator("a.md-search-result__link").all()]
        browser.close()
    assert any("reference/settings.html" in link for link in found)
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
