"""`compare`: runs by folder, method and experiment, from the command line; damaged folders are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flows.results.measured import read_measured
from pipeline.errors import UserError
from trainers.data import SplitIndex
from trainers.measure.evaluated import EvaluatedFolder

ITEMS, EACH = 12, 3
CAPTIONS = ITEMS * EACH


@pytest.fixture
def write(evaluated_from: Callable[..., EvaluatedFolder]) -> Callable[..., Path]:
    """`write(folder, seed, ...)` evaluates drawn scores of 12 items with 3 captions each.

    Another `order` is the same corpus, rearranged. also: every fifth caption describes the next item too. captions:
    those that are left of all. split: the name of what was evaluated.
    """

    def write(
        folder: Path, seed: int, order: np.ndarray | None = None, skill: float = 1.0, also: bool = False,
        captions: int = CAPTIONS, split: str = "test", edit: Callable[[SplitIndex], SplitIndex] = lambda index: index,
    ) -> Path:  # fmt: skip
        own = np.repeat(np.arange(ITEMS), EACH)
        scores = np.random.default_rng(seed).normal(size=(CAPTIONS, ITEMS))
        scores[np.arange(CAPTIONS), own] += skill
        kept = (np.arange(CAPTIONS) if order is None else order)[:captions]
        index = SplitIndex(
            items=[f"item{n}" for n in range(ITEMS)], item_rows=list(range(ITEMS)),
            captions=[f"caption{n}" for n in kept], caption_rows=kept.tolist(), caption_item=own[kept].tolist(),
            texts=["said"] * captions,
            caption_also=[[(int(own[c]) + 1) % ITEMS] if c % 5 == 0 else [] for c in kept] if also else [],
        )  # fmt: skip
        return evaluated_from(folder, scores[kept], edit(index), split=split, queries=CAPTIONS).folder

    return write


@pytest.fixture
def pair(tmp_path: Path, write: Callable[..., Path]) -> tuple[Path, Path]:
    return write(tmp_path / "one", 1, skill=4.0), write(tmp_path / "other", 2)


def compare(crossreel: Callable, *words: object) -> dict:
    ended = crossreel("compare", *words, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def refused(crossreel: Callable, *words: object) -> str:
    """The sentence of a refusal, which is all that is said and ends with 2."""
    ended = crossreel("compare", *words)
    assert ended.code == 2 and ended.out == "", ended
    sentence = ended.err.strip().rpartition("\n")[2]
    assert sentence.startswith("crossreel: ")
    return sentence


def test_two_folders_are_compared_in_tables_and_sentences(crossreel, pair):
    ended = crossreel("compare", *pair)
    assert ended.code == 0, ended
    head, *lines = [line for line in ended.out.splitlines() if line.strip()]
    one, other = (f"{folder.parent.name} {folder.name}" for folder in pair)
    assert head == f"A {one}, B {other}, t2v: 36 queries of 12 items"
    assert lines[0].split() == ["A", "B", "A", "-", "B", "95", "%", "ahead", "only", "A:B", "p", "corrected"]
    names = ["R@1", "R@5", "R@10", "R@100", "SumR", "MdR", "MnR", "MRR"]
    assert [line.split()[0] for line in lines if line.split()[0] in names] == names * 2  # both directions
    assert (
        sum(line.startswith("  95 %") for line in lines) == 16
    )  # each run's own intervals under its figures
    assert f"{one} finds" in ended.out and "significant after correction for 6 tests" in ended.out
    assert "95 % interval" in ended.out and "with all their captions, which are not independent" in ended.out


def test_the_verb_may_be_named_and_help_explains_both(crossreel, pair):
    assert crossreel("compare", "runs", *pair) == crossreel("compare", *pair)
    for words in (("compare", "--help"), ("compare", "-h"), ("compare",)):
        told = crossreel(*words)
        assert "runs" in told.out + told.err and "features" in told.out + told.err
    assert "METHOD" in crossreel("compare", "runs", "--help").out
    assert "EXPERIMENT:STAGE" in crossreel("compare", "features", "--help").out


def test_options_may_come_first(crossreel, pair):
    told = json.loads(crossreel("compare", "--json", "--direction", "v2t", *pair).out)
    assert [each["direction"] for each in told["pairs"]] == ["v2t"]


def test_json_holds_every_pair_with_what_it_means(crossreel, pair, write, tmp_path):
    told = compare(crossreel, *pair, write(tmp_path / "third", 3))
    assert len(told["runs"]) == 3 and told["tests"] == 18 and len(told["pairs"]) == 9
    first = told["pairs"][0]
    assert first["tests"]["R@1"]["significant"] is True and first["queries"] == 36 and first["units"] == 12
    assert first["differences"]["R@1"]["value"] > 0 and "points more at R@1" in first["meaning"]
    assert first["tests"]["R@1"]["smallest_shown"] > 0


def test_the_seed_draws_the_intervals(crossreel, pair):
    low = [
        compare(crossreel, *pair, "--seed", seed)["pairs"][0]["differences"]["MRR"]["low"]
        for seed in (0, 0, 1)
    ]
    assert low[0] == low[1] != low[2]


@pytest.mark.parametrize("also", [False, True], ids=["one right item", "several"])
def test_the_order_of_a_corpus_changes_nothing(crossreel, write, tmp_path, also):
    other = write(tmp_path / "other", 2, also=also)
    order = np.random.default_rng(0).permutation(36)
    plain = compare(crossreel, write(tmp_path / "one", 1, also=also), other)
    shuffled = compare(crossreel, write(tmp_path / "two", 1, order, also=also), other)
    for one, two in zip(plain["pairs"], shuffled["pairs"], strict=True):
        assert (one["differences"], one["tests"]) == (two["differences"], two["tests"])


def test_a_run_named_twice_is_distinguished_by_number(crossreel, pair):
    told = compare(crossreel, pair[0], pair[0])
    names = [run["name"] for run in told["runs"]]
    assert names[1] == f"{names[0]} (2)"
    assert "rank the right answer of every query alike" in told["pairs"][0]["meaning"]


def test_different_protocols_are_refused_with_the_difference(crossreel, pair, write, tmp_path):
    other = write(tmp_path / "val", 2, split="val", also=True)
    said = refused(crossreel, pair[0], other)
    assert "different protocols: the split (test / val); the rank of ties (mean rank: " in said


def test_common_queries_are_compared_when_asked_and_the_rest_is_counted(crossreel, pair, write, tmp_path):
    fewer = write(tmp_path / "fewer", 2, captions=CAPTIONS - 2)
    assert "the queries of t2v (2 only in" in refused(crossreel, pair[0], fewer)
    told = compare(crossreel, pair[0], fewer, "--common")
    assert (
        told["pairs"][0]["queries"] == 33
    )  # the last item has other captions in each, so it is another query of v2t
    assert [note.partition(":")[2] for note in told["notes"][1:]] == [
        " 33 of 36 queries compared, 3 left out",
        " 11 of 12 queries compared, 1 left out",
    ]
    assert "has 2 more captions to find an answer among" in told["notes"][0]


def break_json(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"metrics": ')


def break_ranking(folder: Path) -> None:
    (folder / "ranking.safetensors").write_bytes(b"\x00" * 40)


def drop_ranking(folder: Path) -> None:
    (folder / "ranking.safetensors").unlink()


def drop_queries(folder: Path) -> None:
    (folder / "queries.json").unlink()


def cut_ranks(folder: Path) -> None:
    arrays = load_file(folder / "ranking.safetensors")
    save_file(arrays | {"t2v.mean_rank": arrays["t2v.mean_rank"][:5].copy()}, folder / "ranking.safetensors")


def spoil_ranks(folder: Path) -> None:
    arrays = load_file(folder / "ranking.safetensors")
    save_file(arrays | {"v2t.mean_rank": np.full(12, np.nan)}, folder / "ranking.safetensors")


def spoil_items(folder: Path) -> None:
    arrays = load_file(folder / "ranking.safetensors")
    save_file(arrays | {"v2t.item": np.arange(12) + 5}, folder / "ranking.safetensors")


def empty_ranking(folder: Path) -> None:
    save_file({"top.items": np.zeros(1)}, folder / "ranking.safetensors")


def point_beyond(folder: Path) -> None:
    queries = json.loads((folder / "queries.json").read_text())
    (folder / "queries.json").write_text(json.dumps(queries | {"caption_item": [99] * 36}))


def shorten(folder: Path) -> None:
    queries = json.loads((folder / "queries.json").read_text())
    (folder / "queries.json").write_text(json.dumps(queries | {"captions": []}))


def rename(folder: Path) -> None:
    (folder / "queries.json").write_text(json.dumps({"items": ["a"], "captions": "b", "caption_item": []}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (break_json, "metrics.json is damaged or not of an evaluated method: invalid json"),
        (break_ranking, "ranking.safetensors is damaged"),
        (drop_ranking, "there is no"),
        (drop_queries, "is not the folder of an evaluated method"),
        (cut_ranks, "t2v has ranks (5,) for 36 queries"),
        (spoil_ranks, "v2t has ranks that are no numbers from 1 on"),
        (spoil_items, "v2t.item holds other values than positions of the 12 items"),
        (empty_ranking, "holds no ranks"),
        (point_beyond, "a caption names an item beyond the 12 there are"),
        (shorten, "its lists of captions differ in length"),
        (rename, "queries.json is damaged or not of an evaluated method: captions"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_folder_is_one_sentence(crossreel, pair, harm, words):
    harm(pair[1])
    assert words in refused(crossreel, *pair)


def test_what_is_not_there_is_one_sentence(crossreel, pair, tmp_path):
    assert "is one run alone; name two or more" in refused(crossreel, pair[0])
    assert "is not the folder of an evaluated method: there is no metrics.json in it" in refused(
        crossreel, tmp_path, pair[0]
    )
    assert "'lean' is neither an experiment, a run's folder nor a method" in refused(
        crossreel, pair[0], "lean", "--experiment", tmp_path / "no.toml"
    )
    assert "--direction 'up' is not possible; possible: t2v, v2t" in refused(
        crossreel, *pair, "--direction", "up"
    )
    assert "was evaluated on the split 'test', not on 'val'" in refused(crossreel, *pair, "--split", "val")


def test_an_item_that_is_nobodys_own_goes_with_one_that_names_it(write, tmp_path):
    def edit(index: SplitIndex) -> SplitIndex:
        own = [item if item != 11 else 4 for item in index.caption_item]
        also = [[11] if item == 11 else [] for item in index.caption_item]
        return replace(index, caption_item=own, caption_also=also)

    found = read_measured(write(tmp_path / "run", 0, edit=edit), "run")
    assert found.queries["v2t"].units[11] == "item4" and "item11" not in found.queries["t2v"].units


@pytest.mark.slow
def test_methods_are_named_alone_by_experiment_or_together(crossreel, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(experiment.parent)
    told = compare(crossreel, "hlformer", "experiment.toml:hlformer", experiment)
    assert [run["name"] for run in told["runs"]] == ["hlformer", "hlformer (2)", "hlformer (3)"]
    assert all("alike" in pair["meaning"] for pair in told["pairs"] if pair["direction"] != "both")
    again = told["runs"][0]["folder"]
    text = experiment.read_text().replace('"corpus.jsonl"', f'"{experiment.parent}/corpus.jsonl"')
    (tmp_path / "again.toml").write_text(text.replace('"store"', f'"{experiment.parent}/store"'))
    told = compare(crossreel, "hlformer", tmp_path / "again.toml", again, "--split", "test")
    assert len({run["folder"] for run in told["runs"]}) == 1


@pytest.mark.slow
def test_a_method_that_is_unknown_or_was_never_evaluated_on_a_split_is_one_sentence(
    crossreel, experiment, monkeypatch
):
    monkeypatch.chdir(experiment.parent)
    assert "'hlfromer' is not a method of experiment.toml; did you mean 'hlformer'?" in refused(
        crossreel, "hlformer", "hlfromer"
    )
    stale = crossreel("compare", "hlformer", "hlformer", "--set", "trainers.hlformer.seed=7")
    assert stale.code == 0 and "it is stale: train-hlformer.seed was 0 and is 7" in stale.out + stale.err
    said = refused(
        crossreel, "hlformer", "hlformer", "--split", "val", "--set", "evaluate.post_processing=[]"
    )
    assert "was evaluated on the split 'test', not on 'val'" in said


@pytest.mark.slow
def test_an_evaluated_experiment_stands_on_the_board(crossreel, experiment):
    told = crossreel("board", experiment, "--method", "hlformer", "--json")
    *_, section = json.loads(told.out)
    (line,) = section["lines"]
    assert (line["system"], line["origin"], section["protocol"]) == (
        "hlformer",
        "ours",
        "no published protocol",
    )
    assert "no published row applies" in line["apart"][0] and line["figures"]["t2v"]["SumR"] > 0


def test_comparing_imports_nothing_heavy(pair, run_python):
    code = (
        "import sys; from flows.cli import app; app(standalone_mode=False); "
        "assert not {'torch', 'prefect', 'scipy'} & set(sys.modules)"
    )
    ended = run_python(code, "compare", *pair)
    assert ended.code == 0, ended.err


def test_reading_a_folder_raises_the_users_error(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no .*metrics.json; .* is not the folder of an evaluated method"
    ):
        read_measured(tmp_path / "nowhere", "nowhere")
