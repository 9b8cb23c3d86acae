"""What every verb has in common, by a walk through the command: options, JSON, quiet, colours, log, exit codes."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import EXIT_CODES, app
from flows.commands import usual
from flows.console import StageDisplay

ROOT = Path(__file__).parents[3]
OPENS_AN_EXPERIMENT = "Change a setting of the experiment."


def walk() -> Iterator[tuple[str, Any]]:
    """Every verb, those of nouns too."""
    root: Any = typer.main.get_command(app)
    for name in root.commands:
        command = root.load(name)
        for verb, inner in getattr(command, "commands", {"": command}).items():
            yield f"{name} {verb}".strip(), inner


VERBS = dict(walk())


def options(command: Any) -> dict[str, Any]:
    """The options of a verb by each of their names."""
    return {name: one for one in command.params if one.param_type_name == "option" for name in one.opts}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_json_is_quiet_and_logs(verb: str) -> None:
    assert {"--json", "--quiet", "-q", "--log-file"} <= set(options(VERBS[verb]))


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_words(verb: str) -> None:
    for name, one in options(VERBS[verb]).items():
        assert one.help and one.help.endswith("."), f"{verb} {name}: {one.help!r}"


@pytest.mark.parametrize("verb", VERBS)
def test_methods_are_named_by_the_same_three_spellings(verb: str) -> None:
    spellings = {"--methods", "--method", "-m"} & set(options(VERBS[verb]))
    assert len(spellings) in (0, 3), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_opens_an_experiment_or_a_store_takes_store(verb: str) -> None:
    found = options(VERBS[verb])
    if verb.startswith("store ") or ("--set" in found and found["--set"].help == OPENS_AN_EXPERIMENT):
        assert "--store" in found


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_has_one_meaning_and_one_short_form_everywhere(verb: str) -> None:
    short = {"-m": "--methods", "-o": "--out", "-j": "--jobs", "-e": "--experiment", "-q": "--quiet"}
    found = options(VERBS[verb])
    for letter, name in short.items():
        if letter in found or name in found:
            assert found.get(letter) is found.get(name), f"{verb}: {letter} and {name}"


def test_the_exit_codes_stand_in_the_help_and_are_those_that_the_verbs_use() -> None:
    text = " ".join(CliRunner().invoke(app, ["--help"], terminal_width=200).output.split())
    for code, words in EXIT_CODES.items():
        assert f"{code}: {words}" in text
    used = set()
    for path in (ROOT / "flows").rglob("*.py"):
        used |= set(map(int, re.findall(r"typer\.Exit\((\d+)\)", path.read_text(encoding="utf-8"))))
    assert used <= set(EXIT_CODES)


def test_the_store_option_takes_the_place_of_the_experiments_store(lab, crossreel, tmp_path) -> None:
    elsewhere = tmp_path / "elsewhere"
    ended = crossreel("status", lab.toml, "--store", elsewhere, "--json")
    assert ended.code == 0 and json.loads(ended.out)["stages"]["compress"]["cached"] == 0
    assert (elsewhere / "index.sqlite").is_file() and not lab.store.exists()
    ended = crossreel("store", "du", "--store", elsewhere)
    assert ended.code == 0 and "all" in ended.out
    ended = crossreel("store", "du", elsewhere, "--store", elsewhere)
    assert ended.code == 2 and "name one" in ended.err


@pytest.mark.slow
def test_quiet_leaves_the_results_and_no_progress(small, crossreel) -> None:
    loud = crossreel("stage", "compress", small.toml)
    quiet = crossreel("stage", "compress", small.toml, "--redo", "-q")
    assert loud.code == quiet.code == 0
    assert "compress: 3 made" in loud.err and quiet.err == ""
    assert "1 stages ran" in quiet.out
    with StageDisplay() as display:
        assert not display.console.quiet  # the next command is not quiet any more


def test_a_log_file_gets_lines_with_times_of_what_happened_and_of_how_it_ended(small, crossreel) -> None:
    log = small.folder / "run.log"
    assert crossreel("stage", "compress", small.toml, "--log-file", log).code == 0
    assert crossreel("stage", "compres", small.toml, "--log-file", log).code == 2
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (INFO|ERROR|WARNING) crossreel\.", one) for one in lines
    )
    text = "\n".join(lines)
    assert "crossreel.progress: compress: 3 made" in text
    assert "ERROR crossreel.command: ended after" in text and "unknown stage 'compres'" in text
    open_files = [getattr(one, "baseFilename", "") for one in logging.getLogger().handlers]
    assert str(log) not in open_files


ANSWERS = {  # words of a command in a folder with a made experiment, and a key of its JSON
    "why clip clip03": "stages",
    "report": "report",
    "plan": "clip",
    "status": "stages",
    "runs": None,
    "store ls": None,
    "store du": "clip",
    "store verify": "damaged",
    "store gc experiment.toml --dry-run": "removed",
    "corpus import folder . -o again.jsonl": None,
    "corpus check corpus.jsonl": None,
    "init --corpus corpus.jsonl -m hlformer -o new.toml": "experiment",
    "init --list": None,
    "export features clip exported": "files",
    "export features clip collection --layout ms-sl": "captions",
    "export results results": "files",
    "export card card --method hlformer": "written",
    "export checkpoint best.ckpt --method hlformer": "written",
    "import checkpoint best.ckpt theirs --method hlformer": "settings",
    "import features exported --layout npz --corpus corpus.jsonl --name again": "matched",
    "compare features experiment.toml:clip exported": "summary",
}


@pytest.mark.slow
def test_json_of_the_verbs_is_one_value_and_nothing_else_on_standard_output(
    made, crossreel, monkeypatch
) -> None:
    monkeypatch.chdir(made.folder)
    for name in ("clip00", "clip01"):
        (made.folder / f"{name}.txt").write_text("a clip\n", encoding="utf-8")
    for words, key in ANSWERS.items():
        ended = crossreel(*words.split(), "--json")
        assert ended.code in (0, 3), f"{words}: {ended.err}"
        found = json.loads(ended.out)
        assert key is None or key in found, f"{words}: {found}"


def test_a_log_file_that_cannot_be_written_is_one_sentence(small, crossreel) -> None:
    ended = crossreel("plan", small.toml, "--log-file", small.folder / "no" / "run.log")
    assert ended.code == 2 and "--log-file" in ended.err and "cannot be written" in ended.err


def test_no_color_leaves_no_colour_in_a_terminal() -> None:
    code = "from flows.terminal import Terminal; Terminal(force_terminal=True).print('[red]a[/red]')"
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {
        "TERM": "xterm-256color"
    }
    shown = [
        subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        ).stdout
        for env in (plain, plain | {"NO_COLOR": "1"})
    ]
    assert "\x1b[31m" in shown[0] and "\x1b[31m" not in shown[1]


@pytest.fixture
def completed(run_python: Callable[..., Any]) -> Callable[[str, dict[str, str]], str]:
    """`completed(shell, env)`: what a shell is told when it asks for the end of a word."""

    def call(shell: str, asked: dict[str, str]) -> str:
        env = asked | {"_CROSSREEL_COMPLETE": f"complete_{shell}"}
        ended = run_python("from flows.cli import main; main()", env=env)
        assert ended.code == 0, ended.err
        return str(ended.out)

    return call


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("bash", {"COMP_WORDS": "crossreel pl", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "crossreel pl"}),
        ("fish", {"_TYPER_COMPLETE_ARGS": "crossreel pl", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}),
    ],
)
def test_shells_complete_verbs(shell: str, asked: dict[str, str], completed: Any) -> None:
    assert "plan" in completed(shell, asked)


def test_shells_complete_methods_and_stages(completed: Any) -> None:
    assert "gare" in completed("bash", {"COMP_WORDS": "crossreel run -m ga", "COMP_CWORD": "3"})
    assert "train-gare" in completed("bash", {"COMP_WORDS": "crossreel stage train-g", "COMP_CWORD": "2"})


def test_usual_options_are_not_a_verb_s_own(small, crossreel) -> None:
    names = {one.name for one in usual.usual_options()}
    assert names == {"usual_quiet", "usual_log_file", "usual_store"}
    assert not names & {one.name for one in VERBS["verify"].params if one.opts == ["--quiet", "-q"]}
