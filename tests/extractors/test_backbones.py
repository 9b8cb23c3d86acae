"""The networks stand by themselves: trainers use them too, and must not reach the stages of this floor through them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import extractors.backbones

FOLDER = Path(extractors.backbones.__file__).parent
MODULES = sorted(FOLDER.rglob("*.py"))


def imported(source: str) -> set[str]:
    """Every module that a source names in an import, wherever it stands; of `from a import b` both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + f"{node.module}"} | {
                f"{node.module}.{alias.name}" for alias in node.names
            }
    return found


def climbing(source: str) -> set[str]:
    """The imports of a module of the networks' folder that lead to the rest of its floor, or above."""
    return {
        name
        for name in imported(source)
        if name.startswith((".", "trainers", "flows"))
        or (name.startswith("extractors.") and not f"{name}.".startswith("extractors.backbones."))
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_network_imports_the_rest_of_its_floor(path: Path) -> None:
    assert climbing(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from extractors.base import Extractor",
        "from extractors import clip",
        "def load():\n    import extractors.decoding",
        "from ..base import Extractor",
        "from trainers.layers import temporal",
    ],
)
def test_an_import_that_climbs_is_seen(source: str) -> None:
    assert climbing(source)
    assert not climbing(
        "from extractors.backbones import hub\nfrom extractors.backbones.weights import NetworkSettings"
    )
