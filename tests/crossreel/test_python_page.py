"""docs/python.md: its code runs as it stands there, block by block, in a folder with an experiment."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.mark.long
def test_the_code_of_the_page_runs_in_order(made_once, tmp_path, monkeypatch, capsys):
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = PAGE.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text[: found.start(1)].count("\n")
        exec(compile("\n" * line + found[1], str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert "no item 'clip99' among the items of" in printed
    assert "['clip00.mp4', 'clip01.mp4'] {'not-there.mp4': " in printed
    assert names["scores"].shape == (2, 2) and names["run"].name != names["other"].name
