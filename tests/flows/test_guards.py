"""What generic package names cost, and what must stay light: guards that no other test would miss."""

from __future__ import annotations

import functools
import importlib.metadata
import pkgutil
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("pipeline", "extractors", "trainers", "flows", "crossreel")
HEAVY = ("torch", "prefect", "transformers", "open_clip", "av", "decord")


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """The distributions by package; to read their lists of files takes a second."""
    return importlib.metadata.packages_distributions()


@pytest.mark.parametrize("name", FLOORS)
def test_each_package_name_belongs_to_this_distribution_alone(name):
    owners = set(distributions().get(name, ["crossreel"]))  # editable: not listed
    assert owners == {"crossreel"}
    assert (
        Path(sys.modules[name].__file__ if name in sys.modules else ROOT / name / "__init__.py").parent
        == ROOT / name
    )


def test_folders_that_share_a_name_with_a_package_are_no_packages():
    assert not (ROOT / "docker/__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_module_of_flows_hides_another_when_its_folder_heads_the_path():
    installed = {module.name for module in pkgutil.iter_modules() if module.name not in FLOORS}
    taken = installed | set(sys.stdlib_module_names)
    assert not {path.stem for path in (ROOT / "flows").glob("*.py")} & taken - {"__init__"}


IMPORTED = """
import sys
from flows.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("MODULES", *{name.split(".")[0] for name in sys.modules})
"""  # the top-level modules that a verb imports


@pytest.mark.parametrize(
    "verb", [["--help"], ["run", "--help"], ["plan"], ["status"], ["store", "--help"]], ids=" ".join
)
def test_verbs_that_only_look_import_nothing_heavy(verb, small, run_python):
    ended = run_python(IMPORTED, *verb, cwd=small.folder)
    assert ended.code == 0, ended.err
    found = set(ended.out.rpartition("MODULES")[2].split())
    assert "flows" in found and not found & set(HEAVY)


def test_help_costs_a_second_of_cpu_at_most(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "flows.cli", "--help"], check=True, capture_output=True, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 1.5  # 0.4 s on a quiet machine; torch alone would add 2 to 6 s


@pytest.mark.parametrize(
    "module", ["flows.graph", "trainers.hlformer.config", "trainers.stages", "extractors.clip"]
)
def test_declarations_import_no_torch(module, run_python):
    code = f"import sys, {module}; assert not {set(HEAVY)!r} & set(sys.modules), set(sys.modules) & {set(HEAVY)!r}"
    ended = run_python(code)
    assert ended.code == 0, ended.err
