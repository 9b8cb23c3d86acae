"""README and the tutorials: every command runs as typed, in order, in a fresh folder, and prints what stands there.

The commands of the how-to pages run in a folder with a finished experiment, whose names are put in for those of a page.

A block ```sh holds commands; a block ```python NAME is saved under that name; a block ```text below holds lines that
the commands above it print, of a line that ends in ` ...` the beginning. A command that cannot run here says so at its
end: `# needs the network`. Where one is expected to fail stands `# exit status 2: why`; where it depends on the
machine, `# exit status any: why`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": ROOT / "README.md"} | {
    path.name: path for path in sorted((ROOT / "docs/tutorials").glob("*.md"))
}
HOW_TO = {name: ROOT / "docs" / name for name in ("applying.md", "experiments.md", "search.md", "store.md")}
NAMES = {  # what a how-to page calls it, and what it is in the folder of the test
    "experiment.toml:gare": "experiment.toml:hlformer", "--method gare": "--method hlformer", '"gare"': '"hlformer"',
    "gare,hlformer": "hlformer", "video7#2": "clip03.mp4#1", "/mnt/disk": "disk",
}  # fmt: skip
SKETCHES = {"store.md"}  # pages whose Python names what a reader's own program has
CONTINUES = {"plot.md": "own-videos.md"}  # pages whose commands follow those of another one, in its folder
BLOCK = re.compile(r"^```(sh|python|text)(?: ([\w.]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"# needs (.+)$", re.MULTILINE)
STATUS = re.compile(r"# exit status (any|\d+): ")
LISTED = {  # all that a command may need; another word is a mistake in a page
    "the network", "the data set", "the authors' file", "a GPU", "a cluster", "a Prefect server", "a browser",
    "your shell", "ten minutes", "point clouds",
}  # fmt: skip
SECONDS = 1200


@dataclass
class Block:
    """A fenced block of a page."""

    kind: str
    name: str
    text: str
    line: int


def blocks(page: str, names: Mapping[str, str] = MappingProxyType({})) -> list[Block]:
    text = (PAGES | HOW_TO)[page].read_text(encoding="utf-8")
    for name, other in names.items():
        text = text.replace(name, other)
    return [
        Block(found[1], found[2] or "", found[3], text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def runnable(text: str) -> str:
    """The commands of a block without those that need what is not here."""
    return "".join(line for line in text.splitlines(keepends=True) if not NEEDS.search(line))


def alike(line: str) -> str:
    """A line with everything that differs from run to run replaced: numbers, times, digests, folders, spaces."""
    line = re.sub(r"\S*/store/runs/\S+", "PATH", line)
    line = re.sub(r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", "DIGEST", line)
    line = re.sub(r"~?(\d+ h )?(\d+ min )?[\d.]+ (s|min|h)\b", "?", line)
    line = re.sub(
        r"~?[\d.]+ (B|kB|MB|GB)\b", "?", line
    )  # a plan prints ? too, if no file could be opened in time
    line = re.sub(r"[-+~]?\d[\d.,]*", "N", line)
    return " ".join(re.sub(r"N(-N)+", "N", line).split())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody who installed crossreel and has an empty folder."""
    tools, extra = tmp_path / "bin", tmp_path / "installed"
    tools.mkdir()
    command = tools / "crossreel"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m flows.cli "$@"\n')
    command.chmod(0o755)
    for name, words in (("python", ""), ("pip", "-m pip")):
        (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (tools / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    yield os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": f"{extra}:{ROOT}", "PIP_TARGET": str(extra),
        "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80",
    }  # fmt: skip


def follow(
    page: str, folder: Path, env: dict[str, str], names: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Do what a page says, with `names` for its own, and compare what is printed with what stands there."""
    printed: list[str] = []
    for block in blocks(page, names):
        where = f"{page}, line {block.line}"
        if block.kind == "python" and page not in SKETCHES:
            name = block.name or "block.py"
            (folder / name).write_text(block.text, encoding="utf-8")
            if not block.name:
                run(f"python {name}", folder, env, where)
        elif block.kind == "sh":
            printed = run(runnable(block.text), folder, env, where)
        elif block.kind == "text":
            for line in block.text.splitlines():
                begins, rest, _ = alike(line).partition(" ...")
                found = any(one.startswith(begins) if rest else one == begins for one in printed)
                assert not line.strip() or found, f"{where}: not printed: {line}\n" + "\n".join(printed)


def run(commands: str, folder: Path, env: dict[str, str], where: str) -> list[str]:
    """Run commands as a shell that stops at the first failure does; the lines they print, made alike."""
    if not commands.strip():
        return []
    wanted = STATUS.search(commands)
    ended = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands], cwd=folder, env=env, capture_output=True, text=True,
        timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if wanted is None or wanted[1] != "any":
        assert ended.returncode == (int(wanted[1]) if wanted else 0), f"{where}: {ended.stdout}{ended.stderr}"
    return [alike(line) for line in (ended.stdout + ended.stderr).splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if page not in CONTINUES.values()])
def test_the_commands_of_a_page_run_as_typed_in_a_fresh_folder(page, shell, tmp_path):
    folder = tmp_path / "fresh"
    folder.mkdir()
    if page == "plugin.md":
        (folder / "source").symlink_to(ROOT)
    if page in CONTINUES:
        follow(CONTINUES[page], folder, shell)
    follow(page, folder, shell)
    if page == "plot.md":
        assert (folder / "recall.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.parametrize("page", HOW_TO)
def test_the_commands_of_a_how_to_page_run_beside_a_finished_experiment(page, shell, made_once, tmp_path):
    folder = tmp_path / "finished"
    shutil.copytree(made_once, folder)
    shutil.copy(folder / "corpus.jsonl", folder / "new.jsonl")
    shutil.copy(folder / "clip03.mp4", folder / "clip.mp4")
    (folder / "disk").mkdir()
    (trained,) = (folder / "store/runs/train-hlformer").iterdir()
    follow(page, folder, shell, NAMES | {"gare@1a2b3c4d": f"hlformer@{trained.name[:8]}"})


def test_what_commands_need_is_one_of_a_list_and_each_use_of_the_list_occurs():
    found = {
        need
        for page in PAGES | HOW_TO
        for block in blocks(page)
        if block.kind == "sh"
        for need in NEEDS.findall(block.text)
    }
    assert found == LISTED


def test_a_printed_line_is_found_again_whatever_its_numbers_and_not_with_other_words():
    assert alike("clip: 10 made (61.9 s)") == alike("clip: 12 made (2 min 5 s)")
    assert alike("report: /home/a/store/runs/report/69f5e2aaab64/report.html") == alike(
        "report: /b/store/runs/report/0aa1bb22/report.html"
    )
    assert alike("clip: 10 made (61.9 s)") != alike("clip: 10 failed (61.9 s)")
