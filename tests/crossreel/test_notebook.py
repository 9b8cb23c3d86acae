"""examples/demo.ipynb: it is the one that docs/notebook.py makes, and its cells run on a store."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/demo.ipynb"


def test_the_notebook_is_the_one_that_is_made_and_holds_no_output():
    made = runpy.run_path(str(ROOT / "docs/notebook.py"), run_name="imported")["notebook"]()
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    assert kept == made
    assert not any(cell.get("outputs") for cell in kept.cells)


@pytest.mark.long
def test_the_cells_run_from_a_store_to_a_plot(made_once, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    shutil.copytree(made_once, tmp_path / "demo")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(part.get("text", "") for cell in book.cells for part in cell.get("outputs", []))
    assert "['hlformer'] " in printed and "frames of 3 videos" in printed
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
