"""The pages that say how to add a stage and a method are followed to the letter in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / name for name in ("adding-a-stage.md", "adding-a-method.md")]
EXPERIMENT = (ROOT / "tests/fixtures/experiments/two_towers.toml").read_text()


class Block(NamedTuple):
    """A fenced block of a page whose first line names a file."""

    kind: str
    path: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that are files, or lines to add to files."""
    for found in re.finditer(r"^```(\w+) (\S+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        yield Block(*found.groups())


def follow(block: Block, root: Path) -> None:
    """Write a file, or put lines that begin with + behind the line before them."""
    path = root / block.path
    if block.kind != "diff":
        assert not path.exists(), path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        return
    text, before = path.read_text(encoding="utf-8"), ""
    for line in block.text.splitlines():
        if line.startswith("+"):
            assert text.count(f"\n{before}\n") == 1, (block.path, before)
            text = text.replace(f"\n{before}\n", f"\n{before}\n{line[1:]}\n")
        before = line[1:]
    path.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which both pages were followed."""
    root = tmp_path_factory.mktemp("copy") / "crossreel"
    shutil.copytree(ROOT, root, ignore=_left_out)
    for page in PAGES:
        for block in blocks(page):
            follow(block, root)
    assert call(root, ".ci/versions.py", "--record").returncode == 0
    return root


def _left_out(folder: str, names: list[str]) -> set[str]:
    """What git ignores beside the sources: environments, caches, and at the top what demos and builds left."""
    found = {name for name in names if name == "__pycache__" or name.endswith((".egg-info", "_cache"))}
    if Path(folder) == ROOT:
        found |= {
            name for name in names if name in (".git", "demo", "build", "dist") or name.startswith(".venv")
        }
    return found


def call(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python command in the copy, whose modules win over the installed ones."""
    path = os.pathsep.join(
        [str(root), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]
    )
    return subprocess.run(
        [sys.executable, *words], cwd=root, env=os.environ | {"PYTHONPATH": path}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.long
def test_the_tests_of_the_pages_pass_and_so_do_those_of_the_repository_that_look_at_every_stage(
    added: Path,
) -> None:
    ended = call(
        added, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/extractors/test_colour_histogram.py",
        "tests/trainers/two_towers", "tests/test_docs.py", "tests/flows/results/test_board.py",
        "tests/flows/results/test_report_explained.py", "tests/flows/test_reruns.py", "tests/trainers/test_packing.py",
        "tests/test_versions.py", "-k",
        "two_towers or colour_histogram or docs or packing or every or declares or version or built_in",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    ["mypy", "ruff check .", "ruff format --check .", "importlinter.cli lint-imports"],
    ids=lambda w: w.split()[0],
)
def test_the_checks_of_the_repository_pass(added: Path, words: str) -> None:
    if words.startswith("importlinter"):
        ended = call(
            added, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
        )
    else:
        ended = call(added, "-m", *words.split())
    assert ended.returncode == 0, ended.stdout


@pytest.mark.long
def test_the_added_method_runs_on_the_added_stage_from_videos_to_the_report(added: Path, lab: Any) -> None:
    lab.experiment(EXPERIMENT)
    ended = call(added, "-P", "-m", "flows.cli", "run", str(lab.toml))
    assert ended.returncode == 0, ended.stdout
    (folder,) = (lab.store / "runs/evaluate-two_towers").iterdir()
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (page,) = (lab.store / "runs/report").glob("*/report.html")
    assert "two_towers" in page.read_text(encoding="utf-8")


def test_the_example_package_holds_what_the_pages_show() -> None:
    package = ROOT / "examples/plugin/crossreel_colours"
    shown = {
        Path(block.path).name: block for page in PAGES for block in blocks(page) if block.kind == "python"
    }
    for path in package.glob("*.py"):
        if path.name == "__init__.py":
            continue
        page = shown[path.name].text.replace("trainers.two_towers", "crossreel_colours")
        # imports stand in another order, because the modules have other names
        assert sorted(page.splitlines()) == sorted(path.read_text(encoding="utf-8").splitlines()), path.name
