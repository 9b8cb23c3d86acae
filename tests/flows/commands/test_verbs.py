"""The table of verbs: its lines are those of the verbs themselves, and listing it imports none of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import VERBS, app

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", VERBS)
def test_the_line_of_a_verb_is_the_first_paragraph_of_its_own_help(name: str) -> None:
    verb = typer.main.get_command(app).load(name)  # type: ignore[attr-defined]
    first = inspect.cleandoc(verb.help).split("\n\n")[0]
    assert " ".join(first.split()) == VERBS[name].line
    assert verb.name == name


@pytest.fixture
def modules_after(run_python: Callable[..., Any]) -> Callable[..., set[str]]:
    """`modules_after(*words)`: the modules of `flows` that a command line imports, seen from a process of its own."""
    code = (
        "import sys\nfrom flows.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('MODULES', *sys.modules)"
    )

    def call(*words: str) -> set[str]:
        ended = run_python(code, *words, cwd=ROOT)
        assert ended.code == 0, ended.err
        return {name for name in ended.out.rpartition("MODULES")[2].split() if name.startswith("flows.")}

    return call


def test_the_list_of_verbs_imports_no_verb(modules_after: Callable[..., set[str]]) -> None:
    found = modules_after("--help")
    assert "flows.cli" in found
    assert not found & {verb.where.partition(":")[0] for verb in VERBS.values()}
    assert not found & {
        "flows.graph",
        "flows.project",
        "flows.run",
    }  # what verbs share costs most of their import


def test_help_of_a_verb_imports_that_verb_and_not_the_others(modules_after: Callable[..., set[str]]) -> None:
    found = modules_after("triples", "--help")
    assert "flows.commands.triples" in found
    assert not found & {"flows.commands.search", "flows.commands.serve", "flows.commands.exchange"}


def test_help_of_a_verb_and_of_one_inside_a_noun_is_its_own() -> None:
    for words, option in ((["run", "--help"], "--retry-failed"), (["compare", "runs", "-h"], "--common")):
        ended = CliRunner().invoke(app, words, terminal_width=120)
        assert ended.exit_code == 0, ended.output
        assert option in ended.output


def test_a_verb_that_does_not_exist_is_answered_with_the_nearest() -> None:
    ended = CliRunner().invoke(app, ["statsu"])
    assert ended.exit_code == 2
    assert "No such command 'statsu'" in ended.output and "status" in ended.output
