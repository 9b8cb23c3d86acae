"""Makes the pictures of docs/images: `python docs/screenshots.py demo/experiment.toml demo-clouds/experiment.toml`.

Needs trained demos, playwright, and Debian's chromium. Each picture is the page itself, in fewer colours.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
IMAGES = Path(__file__).parent / "images"
COLOURS = 128
MOST_BYTES = 200_000
SETTLE_MS = 2500  # of videos that play and clouds that turn
QUERIES = "queries?a=hlformer&b=gare&found=hlformer&missed=gare&sort=gain"
NEW_VIDEO, NEW_CLOUD = "a star goes around a ring", "a red ball on top of a pyramid"


def main(videos: str, clouds: str) -> None:
    """All pictures, of both demos."""
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        take_report(browser, videos)
        with served(videos) as url:
            asked = f"{url}?q={NEW_VIDEO.replace(' ', '+')}&method=hlformer"
            take(browser, f"{asked}&with=neighborretr", "serve-compare", 1200, 820)
            take(browser, asked, "serve-moment", 1200, 720, open_first=True)
            take(browser, asked, "serve-phone", 380, 760, scheme="dark")
            take(browser, f"{url}{QUERIES}", "serve-queries", 1200, 760, there=".window tbody th a")
            take(browser, f"{url}map?method=hlformer", "serve-map", 1200, 760, there="#legend li")
        with served(clouds) as url:
            asked = f"{url}?q={NEW_CLOUD.replace(' ', '+')}"
            take(browser, asked, "serve-cloud", 1200, 720, open_first=True)
        browser.close()


def take_report(browser: Any, experiment: str) -> None:
    """The head of an experiment's report: its leaderboard with intervals and chance."""
    command = [sys.executable, "-m", "flows.cli", "report", experiment, "--json", "--quiet"]
    drawn = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["report"]
    page = browser.new_page(viewport={"width": 1200, "height": 860}, color_scheme="light")
    page.goto(Path(drawn).absolute().as_uri())
    page.wait_for_timeout(SETTLE_MS)
    save(page, "report")


@contextmanager
def served(experiment: str) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    command = [sys.executable, "-m", "flows.cli", "serve", experiment, "--port", "0"]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("http"):
                sys.exit(f"the server of {experiment} did not start")
            yield line.split(" ")[0]
        finally:
            process.terminate()


def take(
    browser: Any,
    url: str,
    name: str,
    width: int,
    height: int,
    scheme: str = "light",
    open_first: bool = False,
    there: str = "a.card",
) -> None:
    """One picture, once everything in it is there; `there` is a selector of something that comes last."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(180_000)  # the first search loads networks
    page.goto(url)
    page.wait_for_selector(there)
    if open_first:
        page.locator("a.card").first.click()
        page.wait_for_selector("#explanation h3")
    page.wait_for_timeout(SETTLE_MS)
    save(page, name)


def save(page: Any, name: str) -> None:
    """Write what a page shows as a picture in few colours, and close the page."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    path = IMAGES / f"{name}.png"
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} has {path.stat().st_size} bytes; at most {MOST_BYTES} are wanted")
    page.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
