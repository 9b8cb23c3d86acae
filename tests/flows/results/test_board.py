"""Published tables: whether they add up, where their protocols are ours, and ours beside them."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from flows.commands.board import board
from flows.graph import METHODS
from flows.repetition import Difference, Repetition
from flows.results import board as board_package
from flows.results.board.lint import lint
from flows.results.board.published import fitting, read_published, tables
from flows.results.board.side_by_side import Ours, sections
from pipeline.corpus.importers.published import UNITS
from pipeline.corpus.importers.t3dr_hit import SUBSETS
from pipeline.errors import UserError
from trainers.data import SplitIndex
from trainers.measure.evaluated import Metrics, PublishedProtocol, Spread
from trainers.recipes import find

FOLDER = Path(board_package.__path__[0])
CORPORA = ("msrvtt", "msvd", "activitynet", "didemo", "charades", "tvr")
TABLE = """
method = "lean"
paper = "A paper"
venue = "X 2024"
arxiv = "1"
[protocols.full]
dataset = "MSR-VTT"
name = "full"
words = "all of it"
"""

app = typer.Typer()
app.command()(board)


def call(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout


def row(**figures: str) -> str:
    """A row of LEAN's with figures by direction."""
    lines = [
        '[[rows]]\nsystem = "LEAN"\nprotocol = "full"',
        *(f"{name} = {value}" for name, value in figures.items()),
    ]
    given = "\n".join(lines)
    return (
        "\n"
        + given
        + "".join(
            f'\n{name} = "{value}"'
            for name, value in (("origin", "paper"), ("table", "table 1"))
            if f"\n{name} =" not in given
        )
        + "\n"
    )


def problems(folder: Path, text: str) -> list[str]:
    (folder / "lean.toml").write_text(TABLE + text)
    return list(lint(read_published(folder)).new)


def test_every_published_table_adds_up_or_says_that_it_does_not():
    told = lint(read_published())
    assert told.new == () and told.gone == ()
    assert len(told.known) == 4 and all(problem.startswith("LEAN, ") for problem, _ in told.known)


def test_every_method_has_a_table_with_its_sources():
    published = read_published()
    assert set(published) == {name for name in METHODS.names() if METHODS.find(name).table}
    for name, one in published.items():
        assert any(row.system.lower() == name and not row.variant for row in one.rows), name
        assert re.fullmatch(r"\d{4}\.\d{5}", one.arxiv)


def test_published_protocols_name_ones_that_importers_write():
    known = {f"T3DR-HIT v2 {subset}" for subset in SUBSETS}
    for module in CORPORA:
        found = importlib.import_module(f"pipeline.corpus.importers.{module}")
        (corpus,) = [
            one for one in vars(found).values() if hasattr(one, "protocols") and hasattr(one, "stems")
        ]
        known |= {f"{corpus.name} {protocol}" for protocol in corpus.protocols}
    for one in read_published().values():
        for protocol in one.protocols.values():
            assert set(protocol.names) <= known and set(protocol.says) <= set(UNITS.values())


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            {"t2v": '{ "R@1" = 10.0, "R@5" = 20.0, "R@10" = 30.0, RSUM = 60.3 }'},
            "RSUM is printed as 60.3, its columns sum to 60.0",
        ),
        (
            {"t2v": '{ "R@1" = 10, "R@5" = 20, "R@10" = 30, "R@100" = 50, SumR = 111 }'},
            "SumR is printed as 111.0, its columns sum to 110.0",
        ),
        (
            {
                "t2v": '{ "R@1" = 1, "R@5" = 2, "R@10" = 3 }', "v2t": '{ "R@1" = 4, "R@5" = 5, "R@10" = 6 }',
                "both": "{ RSUM = 22 }",
            },
            "both: RSUM is printed as 22.0, its columns sum to 21.0",
        ),
        ({"t2v": '{ "R@1" = 10.0, "R@5" = 9.0 }'}, "R@5 is 9, less than R@1 with 10"),
        ({"t2v": '{ "R@100" = 8.0, "R@10" = 9.0 }'}, "R@100 is 8, less than R@10 with 9"),
        ({"t2v": '{ "R@1" = 101.0 }'}, "R@1 is 101, possible is 0 to 100"),
        ({"v2t": "{ RSUM = 301 }"}, "RSUM is 301, possible is 0 to 300"),
        ({"v2t": "{ MdR = 0.5 }"}, "MdR is 0.5, possible is 1 to inf"),
        ({"v2t": "{ MRR = 1.5 }"}, "MRR is 1.5, possible is 0 to 1"),
        ({}, "the row has no figure"),
        ({"table": '" "', "t2v": "{ MnR = 3 }"}, "no table is named as the source"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_row_that_contradicts_itself_is_reported(tmp_path, figures, said):
    (told,) = problems(tmp_path, row(**figures))
    assert told.startswith("LEAN, MSR-VTT full, paper") and told.endswith(said)


@pytest.mark.parametrize(
    "figures",
    [
        {
            "t2v": '{ "R@1" = 10.0, "R@5" = 20.0, "R@10" = 30.0, RSUM = 60.2 }'
        },  # four figures rounded by 0.05 each
        {"t2v": '{ "R@1" = 13, "R@5" = 39, "R@10" = 47, RSUM = 101 }', "decimals": "0"},
        {"t2v": '{ "R@1" = 10.0, RSUM = 207.7 }'},  # not all columns are printed
        {"t2v": '{ "R@1" = 0, "R@5" = 0, "R@10" = 100, MdR = 1, MRR = 1 }'},
    ],
)
def test_rounding_and_missing_columns_are_no_contradiction(tmp_path, figures):
    assert problems(tmp_path, row(**figures)) == []


def test_two_values_of_one_figure_are_reported_also_across_files(tmp_path):
    first = row(t2v='{ "R@1" = 10.0 }')
    assert problems(tmp_path, first + row(t2v='{ "R@1" = 10.0, "R@5" = 20.0 }')) == []
    said = "LEAN, MSR-VTT full, paper, t2v: R@1 is 10 in one row and 11 in another"
    assert problems(tmp_path, first + row(t2v='{ "R@1" = 11.0 }')) == [said]
    other = TABLE.replace('"lean"', '"gare"') + row(t2v='{ "R@1" = 11.0 }')
    (tmp_path / "gare.toml").write_text(other)
    assert problems(tmp_path, first) == [said.replace("10 in one row and 11", "11 in one row and 10")]


def test_a_source_without_a_venue_is_reported(tmp_path):
    (tmp_path / "lean.toml").write_text(TABLE.replace("X 2024", "") + row(t2v="{ MnR = 2 }"))
    assert lint(read_published(tmp_path)).new == ("lean: the source has no venue",)


def test_a_known_contradiction_is_printed_and_a_new_or_a_mended_one_fails(tmp_path):
    wrong = row(t2v='{ "R@1" = 1, "R@5" = 2, "R@10" = 3, RSUM = 9 }')
    problem = "LEAN, MSR-VTT full, paper, t2v: RSUM is printed as 9.0, its columns sum to 6.0"
    known = f'[[known]]\nproblem = "{problem}"\nnote = "as printed"\n'
    (tmp_path / "lean.toml").write_text(TABLE + wrong)
    assert call("--lint", "--tables", tmp_path, code=1) == f"new: {problem}\n"
    (tmp_path / "lean.toml").write_text(TABLE + wrong + known)
    told = call("--lint", "--tables", tmp_path)
    assert told == f"known: {problem} (as printed)\n1 known contradictions, no new one\n"
    (tmp_path / "lean.toml").write_text(TABLE + row(t2v='{ "R@1" = 1 }') + known)
    assert call("--lint", "--tables", tmp_path, code=1) == f"listed, but not there any more: {problem}\n"
    assert json.loads(call("--lint", "--json"))["new"] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TABLE + row(t2v='{ "R@2" = 1 }'), r"lean.toml: .*unknown metric 'R@2'; did you mean"),
        (TABLE + row(origin='"hearsay"', t2v="{ MnR = 1 }"), r"lean.toml: .*'hearsay' is not possible"),
        (TABLE + row(t2v="{ MnR = 1 }").replace('"full"', '"ful"'), r"has the protocol 'ful'; did you mean 'full'"),
        (TABLE + "venus = 1", r"(?s)lean.toml: .*venus"),
        ("method = ", r"lean.toml: .*not valid TOML"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(tmp_path, text, words):
    (tmp_path / "lean.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_published(tmp_path)


def test_an_empty_folder_and_a_method_with_two_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no published table \(.toml\) in"):
        read_published(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(TABLE + row(t2v="{ MnR = 1 }"))
    with pytest.raises(UserError, match=r"two.toml: the method lean has a file already"):
        read_published(tmp_path)


def test_the_board_shows_paper_and_repository_with_source_and_protocol():
    told = call()
    assert "LEAN (paper)" in told and "HLFormer (repository)" in told and "NeighborRetr (second hand)" in told
    assert "WSDM 2024, arXiv 2401.03177" in told and "epoch chosen on the test split" in told
    assert told.count("contradicts itself: LEAN") == 4
    assert "alpha 0.5" not in told and "alpha 0.5" in call("--all", "--method", "gare")
    assert "LEAN" not in call("--method", "gare")
    with pytest.raises(UserError, match="no published table of 'lena'; did you mean 'lean'"):
        call("--method", "lena")


@pytest.fixture(scope="module")
def whole(evaluated_from, tmp_path_factory) -> Metrics:
    """The metrics of an evaluation of 40 items with a caption each, 16 of which are found first."""
    right = np.arange(40)
    scores = np.zeros((40, 40))
    scores[right, np.where(right < 16, right, (right + 1) % 40)] = 1
    scores[right, right] += 0.5
    digests = [f"d{n}" for n in range(40)]
    index = SplitIndex(digests, right.tolist(), digests, right.tolist(), right.tolist(), digests)
    return evaluated_from(tmp_path_factory.mktemp("board"), scores, index).metrics


CORPUS = {"name": "MSR-VTT 1k-A", "sentence": "MSR-VTT 1k-A: trained on the 9k list", "digest": "d"}


def ours(whole: Metrics, corpus: dict | None = None, **protocol) -> Ours:
    """An evaluation of GARE whose protocol differs in some terms."""
    published = PublishedProtocol(**corpus) if corpus else None
    changed = whole.protocol.model_copy(update={"corpus": published, **protocol})
    return Ours("gare", "exp.toml", whole.model_copy(update={"protocol": changed}))


def ours_in(own: Ours):
    """The section and the line that it gets."""
    found = sections(read_published(), [own])
    return [(section, line) for section in found for line in section.lines if line.origin == "ours"]


def test_ours_stands_in_the_table_of_its_protocol(whole):
    ((section, line),) = ours_in(ours(whole, corpus=CORPUS))
    estimate = whole.estimates["t2v"]["R@1"]
    assert (section.dataset, section.protocol) == ("MSR-VTT", "1k-A")
    assert {"GARE", "NeighborRetr"} <= {other.system for other in section.lines}
    assert line.apart == () and line.figures["t2v"]["R@1"] == estimate.value == 40
    assert line.intervals["t2v"]["R@1"] == (estimate.low, estimate.high)
    assert (
        "MSR-VTT 1k-A: trained on the 9k list; split test: 40 items, 40 captions; mean rank" in line.protocol
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"split": "val"}, "measured on the split val"),
        ({"dropped": 3}, "3 captions dropped"),
        ({"rerank": "two stages: 50"}, "two stages: 50"),
        ({"corpus": CORPUS | {"sentence": "MSR-VTT 1k-A; 7 of 10 videos are missing"}}, "7 of 10 videos are missing"),
        ({"corpus": CORPUS | {"name": "MSVD lists"}}, None),
        ({"corpus": CORPUS | {"name": "T3DR-HIT v2 s3dis"}}, "do not say whether"),
        ({"corpus": CORPUS | {"name": "DiDeMo lists"}}, "the sizes of its splits are not recorded"),
    ],
)  # fmt: skip
def test_ours_is_marked_where_something_keeps_it_apart(whole, change, words):
    ((_, line),) = ours_in(ours(whole, **({"corpus": CORPUS} | change)))
    assert line.apart == () if words is None else words in line.apart[0]


def test_ours_carries_every_reason_why_it_is_not_the_published_run_or_is_marked_as_a_repetition(
    whole, monkeypatch
):
    own, row = ours(whole, corpus=CORPUS), find("gare", "msrvtt")
    other = (Difference("lr", 5e-5, 1e-4),)
    differs = Repetition("gare", "MSR-VTT 1k-A", row, other, ("500 training videos are held out",))
    ((_, line),) = ours_in(replace(own, repetition=differs))
    assert line.apart == ("500 training videos are held out", "lr is 5e-05 (published: 0.0001)")
    assert not line.repetition
    repeated = replace(own, repetition=replace(differs, settings=(), reasons=()))
    ((_, line),) = ours_in(repeated)
    assert line.repetition and line.apart == () and "is a repetition of the published" in line.note
    ((_, line),) = ours_in(replace(own, repetition=replace(differs, row=None, settings=())))
    assert line.apart == ("gare: nobody published its settings for MSR-VTT 1k-A",) and not line.repetition
    monkeypatch.setattr("flows.commands.board._our_figures", lambda *given: ([repeated], None))
    assert any(text.startswith("gare (ours) =") for text in call("exp.toml").splitlines())


def test_ours_on_a_corpus_of_its_own_has_no_published_row_beside_it(whole):
    for corpus in (None, CORPUS | {"name": "MSR-VTT 7k"}):
        ((section, line),) = ours_in(ours(whole, corpus=corpus))
        assert section.lines == (line,) and section.dataset == "exp.toml"
        assert "no published row applies" in line.apart[0]


def test_moments_are_not_paragraphs():
    sentence = f"ActivityNet Captions val_1: trained on train; {UNITS['moments']}"
    found = [
        p.name
        for p in fitting(read_published(), {"name": "ActivityNet Captions val_1", "sentence": sentence})
    ]
    assert found == ["prvr"]
    sentence = sentence.replace(UNITS["moments"], UNITS["paragraph"])
    found = [
        p.name
        for p in fitting(read_published(), {"name": "ActivityNet Captions val_1", "sentence": sentence})
    ]
    assert set(found) == {"paragraphs"}


def test_ours_is_printed_with_its_interval_and_as_json(whole, monkeypatch):
    own = [ours(whole, corpus=CORPUS, dropped=2)]
    monkeypatch.setattr("flows.commands.board._our_figures", lambda *given: (own, None))
    lines = call("exp.toml", "--method", "gare").splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("gare (ours) ≠"))
    estimate = whole.estimates["t2v"]["R@1"]
    assert lines[place].split()[3] == "40.0"
    assert lines[place + 1].split()[:3] == ["95", "%", f"{estimate.low:.0f}-{estimate.high:.0f}"]
    assert "  gare (ours) ≠: 2 captions dropped, because items or captions failed" in lines
    told = json.loads(call("exp.toml", "--json"))
    assert {section["dataset"] for section in told} >= {"MSR-VTT", "MSVD", "TVR", "T3DR-HIT"}
    assert [line["origin"] for line in told[0]["lines"]].count("ours") == 1


def test_ours_says_how_items_with_several_captions_rank_and_which_run_it_is(whole):
    several = Spread(min=1, max=3, mean=2.0)
    for convention in ("the best rank among the item's captions", "rank of the item's group"):
        own = ours(whole, corpus=CORPUS, captions_per_item=several, v2t_rank=convention)
        ((_, line),) = ours_in(replace(own, stale="gare is gare@12345678 of Monday; it is stale: lr was 1"))
        assert f"; v2t: {convention}; " in line.protocol
        assert line.note == "gare is gare@12345678 of Monday; it is stale: lr was 1"
    ((_, line),) = ours_in(ours(whole, corpus=CORPUS))
    assert "v2t:" not in line.protocol and line.note == ""


def test_an_experiment_that_is_not_evaluated_is_one_sentence(small):
    with pytest.raises(UserError, match=r"no method of .* is evaluated yet; run `crossreel run .*` first"):
        call(small.toml)


def test_no_table_is_left_that_no_method_declares():
    assert sorted(tables()) == sorted(FOLDER.glob("*.toml"))
