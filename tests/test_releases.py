"""Releases: one command raises the version everywhere, and what runs, reports and bug reports say of the version."""

from __future__ import annotations

import datetime
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from flows import program
from flows.results.report.environment import environment

ROOT = Path(__file__).parents[1]
DAY = datetime.date(2030, 1, 2)
raised = runpy.run_path(str(ROOT / ".ci/release.py"), run_name="imported")["raised"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def stated() -> str:
    return str(tomllib.loads(text("pyproject.toml"))["project"]["version"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name in ("pyproject.toml", "CITATION.cff"):
        (tmp_path / name).write_text(text(name), encoding="utf-8")
    changed = text("CHANGELOG.md").replace("## Unreleased\n", "## Unreleased\n\n- Something new.\n", 1)
    (tmp_path / "CHANGELOG.md").write_text(changed, encoding="utf-8")  # just after a release nothing is new
    (tmp_path / "docs/upgrading.md").write_text(f"## From {stated()} to 9.0.0\n", encoding="utf-8")
    return tmp_path


def test_a_release_raises_the_version_in_every_file_that_states_it(tree):
    made = raised(tree, "9.0.0", DAY)
    assert tomllib.loads(made["pyproject.toml"])["project"]["version"] == "9.0.0"
    cited = yaml.safe_load(made["CITATION.cff"])
    assert cited["version"] == "9.0.0" and cited["date-released"] == "2030-01-02"
    assert "## Unreleased\n\n## 9.0.0 (2030-01-02)\n" in made["CHANGELOG.md"]
    assert text("CHANGELOG.md").count("\n- ") + 1 == made["CHANGELOG.md"].count("\n- ")


@pytest.mark.parametrize(
    ("version", "words"),
    [("0.0.1", "does not follow"), ("9.0", "does not follow"), ("9.0.1", "no section 'From")],
)
def test_a_release_that_goes_down_or_has_no_upgrade_note_is_refused(tree, version, words):
    with pytest.raises(ValueError, match=words):
        raised(tree, version, DAY)


def test_a_release_of_nothing_is_refused(tree):
    (tree / "CHANGELOG.md").write_text(
        "# Changelog\n\n## Unreleased\n\n## 0.1.0 (2026-11-21)\n\n- It is there.\n"
    )
    with pytest.raises(ValueError, match="no line under"):
        raised(tree, "9.0.0", DAY)


def test_every_released_version_has_its_day_and_the_newest_is_the_one_of_the_package_and_of_the_citation():
    found = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)$", text("CHANGELOG.md"), re.MULTILINE)
    assert len(found) == len(re.findall(r"^## (?!Unreleased$)", text("CHANGELOG.md"), re.MULTILINE))
    cited = yaml.safe_load(text("CITATION.cff"))
    assert found[0] == (stated(), str(cited["date-released"])) and cited["version"] == stated()


def test_each_version_has_an_upgrade_note_from_the_one_before():
    found = re.findall(r"^## (\d+\.\d+\.\d+)", text("CHANGELOG.md"), re.MULTILINE)
    notes = re.findall(r"^## From (\S+) to (\S+)$", text("docs/upgrading.md"), re.MULTILINE)
    assert set(zip(found[1:], found[:-1], strict=True)) <= set(notes)
    # the newest note is of the newest version, or of the one to come
    assert notes and notes[0][0] in found[:2]


def test_the_version_names_the_commit_of_a_checkout(crossreel):
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode:
        pytest.skip("this source tree is no checkout")
    ended = crossreel("--version")
    assert ended.code == 0 and re.fullmatch(r"crossreel \S+ \(commit [0-9a-f]{12}\+?\)\n", ended.out)
    assert head.stdout.startswith(program.commit().rstrip("+"))
    assert dict(environment())["crossreel"] == program.release()


def test_outside_of_a_checkout_no_commit_of_another_repository_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "ROOT", tmp_path)
    program.commit.cache_clear()
    try:
        assert program.commit() == "" and program.release() == program.version()
    finally:
        program.commit.cache_clear()


def test_a_bug_report_holds_versions_and_nothing_of_whose_machine_it_is(crossreel):
    ended = crossreel("--version", "--verbose")
    for name in ("crossreel ", "Python: ", "torch: ", "ffmpeg: ", "System: "):
        assert re.search(rf"^{name}", ended.out, re.MULTILINE)
    assert str(Path.home()) not in ended.out
    assert crossreel("--verbose").code == 2


def test_a_run_records_the_program_that_made_it_in_the_store(small, crossreel):
    import json

    assert crossreel("stage", "compress", small.toml).code == 0
    (run,) = json.loads(crossreel("status", small.toml, "--json").out)["runs"]
    assert run["summary"]["crossreel"] == program.release()
    versions = next(
        f
        for f in json.loads(crossreel("doctor", "--store", small.store, "--json").out)
        if f["name"] == "versions"
    )
    assert f"runs by crossreel {program.release()}" in versions["detail"]


def test_the_security_page_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/.]+)`", text("SECURITY.md"))
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_templates_of_issues_are_forms_that_ask_for_the_versions():
    forms = {
        path.name: yaml.safe_load(path.read_text())
        for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")
    }
    assert {"bug.yml", "figure.yml", "wish.yml", "config.yml"} == set(forms)
    for name in ("bug.yml", "figure.yml"):
        labels = [part["attributes"]["label"] for part in forms[name]["body"]]
        assert "crossreel --version --verbose" in labels
