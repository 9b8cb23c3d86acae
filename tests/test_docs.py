"""The documents name what exists: stages, settings, verbs, files. What they promise is looked up in the code."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer.main

from flows.cli import app
from flows.experiment import Experiment, load
from flows.graph import EXTRACTORS, METHODS, build
from pipeline.features.imported import Imported
from pipeline.settings import DIGESTED, SPEED
from pipeline.store.imports import ImportedParams
from trainers.measure.metric_table import METRICS

ROOT = Path(__file__).parents[1]
STAGES = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


BUILT = {  # pages that docs/hooks.py makes when the site is built
    (ROOT / "docs" / name).resolve()
    for name in re.findall(
        r'^    "([\w/-]+\.md)":', (ROOT / "docs/hooks.py").read_text(encoding="utf-8"), re.MULTILINE
    )
}


def row(first: str) -> list[str]:
    """The cells of the table row that begins with a name."""
    found = re.search(rf"^\| `{re.escape(first)}` \|(.*)\|$", STAGES, re.MULTILINE)
    assert found, f"docs/stages.md has no row for {first}"
    return [cell.strip() for cell in found[1].split("|")]


@pytest.mark.parametrize("kind", EXTRACTORS, ids=lambda kind: kind.name)
def test_every_extractor_has_a_row_with_its_settings_and_outputs(kind):
    over, reads, makes, settings, rest = row(kind.name)
    stage = kind(kind.settings())
    assert over == stage.over
    counting = set(kind.settings.model_fields) - kind.settings.marked(SPEED, DIGESTED)
    assert set(re.findall(r"`(\w+)`", settings)) == counting
    assert set(re.findall(r"`(\w+)`", rest)) == kind.settings.marked(SPEED, DIGESTED)
    assert set(stage.fields) <= set(re.findall(r"`(\w+)`", makes))
    for need in stage.needs:
        assert f"`{need}`" in reads


@pytest.mark.parametrize("method", METHODS.names())
def test_every_stage_of_a_method_has_a_row(method):
    experiment = Experiment(corpus="corpus.jsonl", methods=[method])
    names = {name.replace(method, "<method>").replace("-test", "-<split>") for name in build(experiment, {})}
    for name in names - {kind.name for kind in EXTRACTORS}:
        row(name)


def test_the_table_of_metrics_is_that_of_the_program():
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    section = text.split("## Metrics")[1].split("## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line
    ]
    assert rows[2:] == [
        [one.name, one.title, one.unit, "lower" if one.lower_is_better else "higher", str(one.decimals),
         "known" if one.chance else ""]
        for one in METRICS if one.measured
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_has_a_page(method):
    assert (ROOT / f"docs/methods/{method}.md").is_file()


def verbs() -> set[str]:
    """Every verb of the command line, with its noun if it has one."""
    command = typer.main.get_command(app)
    out = set()
    for name in command.commands:
        sub = command.load(name)
        out |= {f"{name} {inner}" for inner in sub.commands} if hasattr(sub, "commands") else {name}
    return out


def test_verbs_in_the_documents_exist():
    known = verbs()
    for path in DOCUMENTS:
        code = "".join(re.findall(r"```.*?```|`[^`\n]+`", path.read_text(encoding="utf-8"), re.DOTALL))
        for words in re.findall(r"(?:^|[`$] ?)crossreel ((?:[a-z]+)(?: [a-z]+)?)", code, re.MULTILINE):
            first = words.split()[0]
            noun = first != "compare" and any(
                verb.startswith(f"{first} ") for verb in known
            )  # `compare A B` has none
            firsts = {verb.split()[0] for verb in known}
            assert words in known or (first in firsts and (not noun or words == first)), (path, words)


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            if re.match(r"https?://", target):
                continue
            made = (path.parent / target).resolve() in BUILT
            assert made or (path.parent / target).exists(), f"{path} links to {target}"


def test_files_of_the_architecture_page_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = text.split("```")[1]
    folder = ""
    for line in tree.splitlines():
        if re.match(r"^\w+/", line):
            folder = line.split("/")[0]
        for name in re.findall(r"\b(\w+\.py)\b", line.split("   ")[0] if folder == "" else line):
            assert list((ROOT / folder).rglob(name)), f"{folder}/{name} is on the page, not in the tree"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_experiments_with_known_settings(path):
    experiment = load(path)
    features = [
        table[key]
        for table in experiment.trainers.values()
        for key in ("video_features", "text_features")
        if key in table
    ]
    imported = {
        name: Imported(
            name, ImportedParams(layout="ms-sl", source="", of="items" if n == 0 else "captions", dims=1)
        )
        for n, name in enumerate(features)
    }
    without_weights = {
        m: {k: v for k, v in t.items() if k != "weights"} for m, t in experiment.trainers.items()
    }
    assert build(experiment.model_copy(update={"trainers": without_weights}), imported)


def test_the_description_of_a_wheel_has_paths_where_the_readme_has_links_into_the_source_tree():
    describe = runpy.run_path(str(ROOT / "setup.py"), run_name="imported")["describe"]
    text = describe((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    assert "`docs/architecture.md`" in text and "crossreel init --list" in text
    kept = "See [ours](#install) and [theirs](https://example.org/page.md)."
    assert describe(kept) == kept
    assert describe("![A picture](docs/a.png)\n\nIn [b](docs/b.md#part).") == "In `docs/b.md#part`."


def typed() -> list[tuple[str, list[str]]]:
    """Every command of crossreel in the documents, blocks and lines alike, as words with the page it stands on."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        code = "\n".join(
            re.findall(r"```(?:sh|toml)?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
        )
        for line in re.findall(r"^(?:# +)?crossreel +(.+)$", code, re.MULTILINE):
            words = re.split(r"\s+#|\||\\|\.\.\.|;", line)[0]
            with contextlib.suppress(ValueError):  # a quote that is left open in a sentence
                found.append((path.name, shlex.split(words)))
    return found


def test_options_of_commands_in_the_documents_are_options_of_these_verbs():
    root = typer.main.get_command(app)
    commands = typed()
    assert len(commands) > 150
    for page, words in commands:
        command, rest = root, list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            name = rest.pop(0)
            command = command.load(name) if hasattr(command, "load") else command.commands[name]
        if hasattr(command, "commands"):
            if command is root:
                continue  # options of the command itself, or a word for any verb
            command = command.commands.get("runs", command)  # `compare A B` is `compare runs A B`
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {
            "--help",
            "-h",
        }
        for word in rest:
            name = word.partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", name):
                assert name in known, f"{page}: crossreel {' '.join(words)}: {name}"
