"""What ids and captions of others can do to a terminal: nothing."""

from __future__ import annotations

import json

import pytest

from flows.commands import terms
from flows.commands.search import _show
from flows.console import StageDisplay
from flows.search.hits import Hit
from flows.terminal import Terminal, escaped

EVIL = "a\x1b[2J\x1b]0;owned\x07b\rc\u202ed\x9b31m"
SHOWN = r"a\x1b[2J\x1b]0;owned\x07b\rc\u202ed\x9b31m"


def test_control_characters_are_written_out_and_all_other_text_stays() -> None:
    assert escaped(EVIL) == SHOWN
    plain = "Zwölf Boxkämpfer\tjagen 雪 🎬 [bold]x[/bold]\nund weiter \\x1b"
    assert escaped(plain) == plain


def test_lines_tables_and_progress_are_all_escaped(capsys) -> None:
    terms.out.print(f"killed: {EVIL}", markup=False)
    terms.print_table(EVIL, ["item"], [[EVIL]])
    StageDisplay().say(EVIL)
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and "\x07" not in captured.out
    assert captured.out.count(SHOWN) == 3 and SHOWN in captured.err
    assert isinstance(terms.out, Terminal)


def test_a_line_feed_of_an_id_begins_no_line_in_any_list_or_table(capsys, crossreel, small) -> None:
    hostile = "a\nerror: all is lost"
    terms.out.print(f"killed: {hostile}", markup=False)
    terms.print_table(f"\n{hostile}", ["item"], [[hostile]])
    _show([Hit(1, hostile, "d", 0.5, (hostile,))])
    StageDisplay().say(hostile)
    captured = capsys.readouterr()
    assert captured.out.count(r"a\nerror: all is lost") >= 4 and captured.out.count("\n\n") == 1
    lines = (small.folder / "corpus.jsonl").read_text().splitlines()
    entry = json.loads(lines[0]) | {"id": hostile, "media": "gone.mp4"}
    (small.folder / "corpus.jsonl").write_text("\n".join([json.dumps(entry), *lines[1:]]) + "\n")
    for verb in (("status", small.toml), ("corpus", "check", small.folder / "corpus.jsonl")):
        told = crossreel(*verb)
        assert told.code == 3 and r"a\nerror: all is lost" in told.out, told.err
        assert not [line for line in (told.out + told.err).splitlines() if line.startswith("error: all")]


def test_an_id_of_a_manifest_reaches_the_terminal_escaped(small, crossreel) -> None:
    lines = (small.folder / "corpus.jsonl").read_text().splitlines()
    entry = json.loads(lines[0]) | {"id": EVIL, "media": "gone.mp4"}
    (small.folder / "corpus.jsonl").write_text("\n".join([json.dumps(entry), *lines[1:]]) + "\n")
    told = crossreel("status", small.toml)
    assert told.code == 3 and f"failed: {SHOWN}" in told.out and "\x1b" not in told.out + told.err
    told = crossreel("why", "compress", EVIL, small.toml)
    assert told.code == 2 and SHOWN in told.err and "\x1b" not in told.out + told.err


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    spans = ["1000.0-2000.0"] * 12
    terms.print_table("", ["t2v", *map(str, range(12))], [["95 %", *spans]])
    head, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["95", "%", *spans] and len(head.split()) == 13
