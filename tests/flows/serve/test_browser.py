"""The web application and the report in a real browser: search, play, turn, switch, go back; by keys; three widths."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.corpus.manifest import Caption, Item, write_manifest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there"),
]
SERVE = "import typer; from flows.commands.serve import serve; typer.run(serve)"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WIDTHS = (380, 800, 1600)
GARE = """
[trainers.gare]
mode = "frozen"
max_frames = 3
num_hidden_layers = 1
batch_size = 4
epochs = 1
"""
CLOUDS = Path(__file__).parents[2] / "fixtures/experiments/clouds.toml"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """A page of a width; whatever it complains of, or asks of another place, fails the test."""
    complaints: list[str] = []
    contexts = []

    def make(width: int = 1200, expect_errors: bool = False, **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **more)
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if not expect_errors:
            page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: complaints.append(asked.url) if foreign(asked.url) else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


def foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "file:///", "data:", "blob:"))


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE, "experiment.toml", "--port", "0", "--split", "val"], cwd=folder,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http"):
            pytest.fail(line + process.communicate()[1])
        yield line.split(" ")[0].rstrip("/")
    finally:
        process.terminate()
        process.communicate(timeout=60)


def crossreel(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-P", "-m", "flows.cli", *arguments]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def trained(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips, with HLFormer and GARE trained on them, and a report."""
    folder = tmp_path_factory.mktemp("shop") / "lab"
    subprocess.run(["cp", "-r", str(made_once), str(folder)], check=True)
    toml = folder / "experiment.toml"
    toml.write_text(toml.read_text().replace('["hlformer"]', '["hlformer", "gare"]') + GARE)
    crossreel(folder, "stage", "report", "experiment.toml")
    return folder


@pytest.fixture(scope="module")
def videos(trained: Path) -> Iterator[str]:
    with serving(trained) as url:
        yield url


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import numpy as np

    folder = tmp_path_factory.mktemp("clouds")
    items = []
    for number in range(8):
        drawn = np.random.default_rng(number)
        rows = np.hstack([drawn.normal(size=(150, 3)) * (1, 1, 3), drawn.integers(0, 256, (150, 3))])
        np.savetxt(folder / f"cloud{number}.txt", rows)
        split = ("train", "train", "val", "test")[number % 4]
        caption = Caption(f"cloud{number}#0", f"a cloud of number {number}")
        items.append(Item(f"cloud{number}", split, (caption,), f"cloud{number}.txt", kind="pointcloud"))
    write_manifest(folder / "corpus.jsonl", items)
    (folder / "experiment.toml").write_text(CLOUDS.read_text().replace("clouds.jsonl", "corpus.jsonl"))
    crossreel(folder, "stage", "train-h2arn", "experiment.toml")
    with serving(folder) as url:
        yield url


def search(page: Any, text: str = "clip 3 seen 0 times") -> None:
    page.fill("#q", text)
    page.press("#q", "Enter")
    page.wait_for_selector("a.card")


def until(page: Any, expression: str, seconds: float = 120) -> None:
    """Wait for what a script says; Playwright's own waiting is refused by the page's policy."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def overflows(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def test_a_search_finds_plays_at_the_best_moment_and_goes_back(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page()
    page.goto(videos)
    page.wait_for_selector("#examples button")
    assert page.evaluate("document.activeElement.id") == "q"
    search(page)
    assert "hlformer" in page.text_content("#status") and "q=clip+3" in page.url
    until(page, "document.querySelector('a.card').querySelector('.strip img')?.naturalWidth > 0")
    best = page.locator("a.card").first
    moment = re.search(r"best from ([\d.]+) to ([\d.]+) s", best.text_content())
    assert moment and best.locator(".score").text_content()
    best.click()
    until(page, "document.querySelector('#stage video')?.currentTime > 0")
    start, end = (float(second) for second in moment.groups())
    until(page, f"document.querySelector('#stage video').currentTime >= {min(start, 1.5)}")
    assert page.evaluate("document.querySelector('#stage video').currentTime") <= end + 1
    page.wait_for_selector("#explanation svg.chart")
    assert "Score =" in page.text_content("#explanation")
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")
    assert page.locator("a.card").count() > 0 and "item=" not in page.url
    page.go_back()
    page.wait_for_selector("#examples button")
    page.go_forward()
    page.wait_for_selector("a.card")


def test_switching_method_and_split_searches_again_and_two_methods_stand_side_by_side(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page()
    page.goto(f"{videos}/?q=clip+3+seen+0+times")
    page.wait_for_selector("a.card")
    page.get_by_role("checkbox", name="gare", exact=True).check(force=True)
    page.wait_for_selector('.column[data-method="gare"] a.card')
    assert "with=gare" in page.url
    marks = [mark.strip() for mark in page.locator(".difference [aria-hidden]").all_text_contents()]
    columns = [
        page.locator(f'.column[data-method="{method}"] a.card').evaluate_all(
            "cards => cards.map((c) => c.dataset.key)"
        )
        for method in ("hlformer", "gare")
    ]
    expected = []
    for ours, theirs in (columns, columns[::-1]):
        for place, key in enumerate(ours):
            by = theirs.index(key) - place
            expected.append("=" if by == 0 else f"{'▲' if by > 0 else '▼'} {abs(by)}")
    assert marks == expected
    page.get_by_role("checkbox", name="hlformer", exact=True).uncheck(force=True)
    page.wait_for_selector('.column[data-method="hlformer"]', state="detached")
    assert "method=gare" in page.url and "with=" not in page.url
    page.select_option("#split", "val")
    until(page, "document.querySelector('#status').textContent.includes('in val')")
    page.go_back()
    until(page, "document.querySelector('#status').textContent.includes('in test')")


def test_everything_is_done_by_keys_alone(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{videos}/?q=clip+3+seen+0+times&with=gare")
    page.wait_for_selector("a.card")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == "Place 2"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('.column').dataset.method") == "gare"
    key = page.evaluate("document.activeElement.dataset.key")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#stage video')?.readyState > 0")
    page.wait_for_selector("#explanation svg.chart")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#detail-place').textContent.startsWith('Place 3')")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#detail-place').textContent.startsWith('Place 2')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")
    assert page.evaluate("document.activeElement.dataset.key") == key


def test_waiting_is_shown_and_an_error_is_reported_and_can_be_tried_again(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(expect_errors=True)
    page.goto(videos)
    page.wait_for_selector("#examples button")
    held: list[Any] = []
    page.route("**/api/search*", lambda route: held.append(route))  # noqa: PLW0108 - wants a function
    page.fill("#q", "clip 3 seen 0 times")
    page.press("#q", "Enter")
    page.wait_for_selector("[aria-busy=true] .card.waiting")
    until(
        page, "document.querySelector('.loading').textContent.includes('Searching')"
    )  # it is loaded already
    told = '{"error": "too many searches are waiting; try again in a moment"}'
    held[0].fulfill(status=503, content_type="application/json", body=told)
    page.wait_for_selector("#columns [role=alert]")
    assert "Too many searches are waiting; try again in a moment." in page.text_content(
        "#columns [role=alert]"
    )
    page.unroute("**/api/search*")
    page.click("#columns [role=alert] button")
    page.wait_for_selector("a.card")
    page.route("**/api/search*", lambda route: route.abort())
    page.fill("#q", "another")
    page.press("#q", "Enter")
    page.wait_for_selector("#columns [role=alert]")
    assert "is crossreel serve still running?" in page.text_content("#columns [role=alert]")


def test_a_cloud_turns_by_mouse_and_keys_and_three_is_loaded_only_then(
    clouds: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(reduced_motion="reduce")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(clouds)
    page.wait_for_selector("#examples button")
    page.locator("#examples button").first.click()
    page.wait_for_selector("a.card")
    assert not any("three" in url for url in asked)
    page.locator("a.card").first.click()
    until(page, "document.querySelector('#stage p')?.textContent.includes('points')")
    assert any("three" in url for url in asked)
    canvas = page.locator("#stage canvas")
    page.wait_for_timeout(300)
    still = canvas.screenshot()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 220, box["y"] + 120, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    turned = canvas.screenshot()
    assert turned != still
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert canvas.screenshot() != turned
    assert "cone" in page.text_content("#explanation")
    page.keyboard.press("Escape")
    page.wait_for_selector("#detail", state="hidden")


def test_the_right_item_is_told_and_jumped_to_beyond_the_first_places(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page()
    page.goto(f"{videos}/?q=clip+3+seen+0+times&from=2&top=10")
    page.wait_for_selector("a.card")
    told = page.text_content(".right-item")
    place = int(re.search(r"at place (\d+)", told).group(1))
    page.click(".right-item a")
    page.wait_for_selector("a.card.right")
    until(page, "document.activeElement.classList.contains('right')")
    assert page.evaluate("document.activeElement.querySelector('.rank').textContent") == f"Place {place}"
    until(page, "document.querySelector('.verdict').textContent.includes('captions of')")
    page.click("#links a")
    page.wait_for_selector(".window tbody th a")
    assert "item=" in page.url and page.locator(".window tbody tr:not(.spacer)").count() == 2


def test_an_address_that_names_what_is_not_there_says_so(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page(expect_errors=True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for address, said in (
        ("/?q=a&method=nothing", "the method “nothing”, which is not here; there are hlformer and gare"),
        ("/?q=a&with=gare,none", "the method “none”"), ("/?q=a&split=train", "the split “train”"),
        ("/?q=a&from=x", "begins at place “x”"),
        (f"/items?item={'0' * 32}", "No item of the corpus has that key"),
        ("/items?view=none", "the view “none”"), ("/map?method=none", "the method “none”"),
        ("/queries?a=none", "No run 'none' is evaluated"), ("/queries?split=none", "has no split 'none'"),
    ):  # fmt: skip
        page.goto(videos + address)
        page.wait_for_selector("#problems:not([hidden])")
        assert said in page.text_content("#problems"), address
    assert not any("/api/search" in url for url in asked), "nothing else is searched instead"
    page.goto(f"{videos}/?q=clip+3+seen+0+times&item={'0' * 32}")
    page.wait_for_selector("#columns .warn, #problems:not([hidden])")
    assert "No item of the corpus has that key" in page.text_content("main")


def test_a_query_that_is_too_long_is_counted_and_not_sent(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(videos)
    page.wait_for_selector("#examples button")
    page.fill("#q", "é" * 1001)
    page.press("#q", "Enter")
    assert "has 1,001 characters; at most 1,000 are possible. Leave out 1." in page.text_content("#length")
    assert not any("/api/search" in url for url in asked) and "q=" not in page.url
    page.fill("#q", "clip 3 seen 0 times")
    assert page.is_hidden("#length")


def test_queries_are_filtered_sorted_read_by_keys_and_lead_to_their_search_and_back(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page(accept_downloads=True)
    page.goto(f"{videos}/queries")
    page.wait_for_selector(".window tbody th a")
    rows = page.locator(".window tbody tr:not(.spacer)")
    total = rows.count()
    counts = [int(text) for text in page.locator("#crossed button b").all_text_contents()]
    assert counts[0] == total == sum(counts[1:])
    page.click("#crossed button:nth-child(2)")  # only A finds it first
    until(page, f"document.querySelector('#status').textContent.startsWith('{counts[1]} of')")
    assert "found=hlformer" in page.url and "missed=gare" in page.url and "sort=gain" in page.url
    assert page.locator(".window td.number.found").count() == counts[1]
    page.click("#crossed button:nth-child(1)")
    until(page, f"document.querySelector('#status').textContent.startsWith('{total} of')")
    page.select_option("#sort", "worst")
    until(page, "location.search.includes('sort=worst')")
    until(page, f"document.querySelectorAll('.window td.number').length >= {2 * total}")
    shown = (
        "[...document.querySelectorAll('.window tbody tr')].map((row) => "
        "Math.min(...[...row.querySelectorAll('td.number')].slice(0, 2).map((cell) => +cell.textContent)))"
    )
    until(
        page, f"{shown}.every((rank, at, all) => !at || all[at - 1] >= rank)"
    )  # the rows before had as many numbers
    ranks = page.evaluate(shown)
    assert ranks == sorted(ranks, reverse=True)
    with page.expect_download() as download:
        page.click("#links a")
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    first = page.locator(".window tbody th a").first.text_content()
    assert (
        len(lines) == 1 + total
        and first in lines[1]
        and lines[0].startswith("caption,text,item,words,seconds,rank")
    )
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    text = page.evaluate("document.activeElement.textContent")
    assert text == page.locator(".window tbody th a").nth(1).text_content() and "at=1" in page.url
    page.keyboard.press("Enter")
    page.wait_for_selector("a.card")
    assert text in page.text_content("#status") and page.locator(".right-item").count() == 2
    page.go_back()
    until(page, "document.querySelector('.window tr.active') !== null")
    assert "at=1" in page.url and "sort=worst" in page.url


def test_items_are_looked_through_without_a_query(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(f"{videos}/items?split=test")
    page.wait_for_selector(".card .strip img")
    name = page.locator(".card .item").first.text_content()
    page.locator(".cards a").first.click()
    page.wait_for_selector("#content video")
    page.wait_for_selector(".ranked li")
    assert name in page.text_content("#status") and page.locator(".ranked li").count() == 2
    page.wait_for_selector("#content ol.cards .score")
    likeness = [float(text.replace("−", "-")) for text in page.locator("ol.cards .score").all_text_contents()]
    assert likeness == sorted(likeness, reverse=True) and len(likeness) == 2  # of three items
    page.locator("ol.cards a").first.click()
    status = "document.querySelector('#status').textContent"
    until(
        page, f"{status}.endsWith(', in test.') && !{status}.startsWith('{name},')"
    )  # not before it is there
    page.keyboard.press("Escape")
    page.wait_for_selector("#content ul.cards")
    page.click("#views a:nth-child(2)")
    until(page, "document.querySelector('#status').textContent.includes('takes for another')")
    page.click("#views a:nth-child(3)")
    until(page, "/hub/.test(document.querySelector('#status').textContent)")


def test_points_of_the_map_are_chosen_by_mouse_and_keys_and_listed(
    videos: str, new_page: Callable[..., Any]
) -> None:
    page = new_page()
    page.goto(f"{videos}/map?split=test")
    page.wait_for_selector("#legend li")
    box = page.locator("#map canvas").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    until(page, "document.querySelectorAll('#chosen .card').length === 3")
    page.keyboard.press("Escape")
    page.locator("#map canvas").focus()
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelectorAll('#chosen .card').length === 1")
    key = re.search(r"item=([0-9a-f]{32})", page.url)
    assert key
    page.reload()
    until(page, "document.querySelectorAll('#chosen .card').length === 1")
    page.locator("#map canvas").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#content video")
    assert key.group(1) in page.url and "/items" in page.url


def test_a_file_is_sent_and_the_captions_that_fit_it_are_shown(
    videos: str, trained: Path, new_page: Callable[..., Any]
) -> None:
    page = new_page()
    page.goto(videos)
    page.wait_for_selector("#examples button")
    page.set_input_files("#file", trained / "clip03.mp4")
    page.wait_for_selector("#columns .caption.whole")
    assert "clip03.mp4" in page.text_content("#status") and page.locator("#columns a.card").count() > 1


def test_the_report_is_a_click_away(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page()
    page.goto(videos)
    page.wait_for_selector("#report:not([hidden])")
    page.click("#report")
    page.wait_for_selector("table")
    assert page.url.endswith("/report")
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_on_a_phone_a_tab_shows_the_next_method(videos: str, new_page: Callable[..., Any]) -> None:
    page = new_page(390, has_touch=True)
    page.goto(f"{videos}/?q=clip+3+seen+0+times&with=gare")
    page.wait_for_selector('.column[data-method="gare"] a.card')
    inside = "document.querySelector('.column[data-method=gare] a.card').getBoundingClientRect().left < innerWidth / 2"
    assert not page.evaluate(inside)
    page.click("#tabs button:nth-child(2)")
    until(page, inside)
    until(page, "document.querySelector('#tabs button:nth-child(2)').getAttribute('aria-pressed') === 'true'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_fault_that_axe_finds(videos: str, new_page: Callable[..., Any], scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = new_page(color_scheme=scheme, bypass_csp=True)  # the policy would refuse axe's own script
    key = httpx.get(f"{videos}/api/items?count=1").json()["items"][0]["key"]
    for address, there in (
        ("/", "#examples button"), ("/?q=clip+3+seen+0+times&with=gare", "#columns.many .verdict p"),
        (f"/?q=clip+3+seen+0+times&item={key}", "#explanation svg.chart"), ("/?q=a&method=none", "#problems p"),
        ("/queries", ".window tbody th a"), ("/items", ".card .strip img"),
        (f"/items?item={key}", "ol.cards .score"), ("/items?view=confusions", "#content ul"), ("/map", "#legend li"),
    ):  # fmt: skip
        page.goto(videos + address)
        page.wait_for_selector(there, state="attached")
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], address


@pytest.mark.parametrize("width", WIDTHS)
def test_no_other_page_is_wider_than_the_screen(
    videos: str, new_page: Callable[..., Any], width: int
) -> None:
    page = new_page(width)
    for address, there in (
        ("/queries", ".window tbody th a"), ("/items", ".card .strip img"), ("/items?view=confusions", "#content ul"),
        ("/map", "#legend li"),
    ):  # fmt: skip
        page.goto(videos + address)
        page.wait_for_selector(there, state="attached")
        assert not overflows(page), address


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(videos: str, new_page: Callable[..., Any], width: int) -> None:
    page = new_page(width)
    page.goto(f"{videos}/?q=clip+3+seen+0+times&with=gare")
    page.wait_for_selector("a.card")
    assert not overflows(page)
    page.locator("a.card").first.click()
    page.wait_for_selector("#explanation svg.chart")
    assert not overflows(page)
    assert page.evaluate(
        "document.querySelector('#detail').scrollWidth <= document.querySelector('#detail').clientWidth"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_shows_everything_by_itself(
    trained: Path, new_page: Callable[..., Any], width: int
) -> None:
    (report,) = trained.glob("store/runs/report/*/report.html")
    page = new_page(width)
    page.goto(report.as_uri())
    assert page.locator("table").count() > 0 and page.locator(".query").count() > 0
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert not overflows(page)
