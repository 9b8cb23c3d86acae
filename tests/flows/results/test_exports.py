"""Results, model cards and tables that other programs read, of a small evaluated experiment and of made rankings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from flows.cli import app
from flows.commands.experiments import print_leaderboard
from flows.project import Project, open_project
from flows.results.exports import parquet
from flows.results.exports.results import CUTOFFS, retrieval_scores
from flows.results.method_results import MethodResults, method_results
from pipeline.corpus.manifest import Caption
from pipeline.errors import UserError
from trainers.data import SplitIndex
from trainers.measure.evaluated import EvaluatedFolder

arrow = pytest.importorskip("pyarrow", reason="pyarrow, which writes Parquet, is not installed")
tables = pytest.importorskip("pyarrow.parquet")


def call(*words: object, code: int = 0) -> str:
    """What a verb prints; fails with what it raised."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == code, (words, result.output, result.exception)
    return result.stdout


@pytest.fixture
def folder(experiment: Path) -> Path:
    """The folder of an experiment on imported features, evaluated with every post-processing."""
    return experiment.parent


@pytest.fixture
def project(folder: Path) -> Project:
    return open_project(folder / "experiment.toml")


@pytest.fixture
def one(project: Project) -> MethodResults:
    return method_results(project, "hlformer")


NEWER = ("--set", "trainers.hlformer.seed=7")  # nobody trained this


@pytest.mark.slow
def test_exports_and_board_answer_from_the_last_run_and_say_that_it_is_stale(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    toml, stale = folder / "experiment.toml", "it is stale: train-hlformer.seed was 0 and is 7"
    for number, (verb, target) in enumerate(
        [
            ("scores", "scores.parquet"),
            ("results", "results"),
            ("card", "card"),
            ("checkpoint", "hlformer.ckpt"),
        ]
    ):
        today, newer = tmp_path / "today" / target, tmp_path / "newer" / target
        today.parent.mkdir(exist_ok=True)
        newer.parent.mkdir(exist_ok=True)
        ends = {path: CliRunner().invoke(app, ["export", verb, str(path), str(toml), *more])
                for path, more in ((today, ()), (newer, NEWER))}  # fmt: skip
        assert [end.exit_code for end in ends.values()] == [0, 0], [end.output for end in ends.values()]
        assert stale in ends[newer].stderr and stale not in ends[today].stderr, number
    read = [tables.read_table(tmp_path / made / "scores.parquet") for made in ("today", "newer")]
    assert read[0].equals(read[1]) and read[0].num_rows
    card = (tmp_path / "newer" / "card" / "README.md").read_text()
    assert stale in card and stale not in (tmp_path / "today" / "card" / "README.md").read_text()
    assert stale in call("board", toml, *NEWER)


@pytest.mark.slow
def test_every_post_processing_is_measured_by_the_stages_and_printed_beside_the_raw_figures(
    folder: Path, project: Project, one: MethodResults
) -> None:
    assert project.stages["evaluate-hlformer"].needs[-1] == "pack-hlformer"  # the bank
    metrics = one.evaluated.metrics
    blocks = metrics.post_processed
    assert list(blocks) == ["dual_softmax", "qb_norm", "sinkhorn"]
    assert blocks["qb_norm"].params == {"beta": 20.0, "k": 2}
    printed = (folder / "printed.txt").read_text()
    for name, block in blocks.items():
        after, raw = (measures.estimates["t2v"]["R@1"].value for measures in (block, metrics))
        assert f"hlformer t2v {name}: R@1 {after:.1f} ({raw:.1f}), R@5" in printed
    assert "not comparable with figures without it" in printed


@pytest.mark.slow
def test_an_evaluation_without_post_processing_needs_no_bank_and_has_another_fingerprint(
    folder: Path, project: Project
) -> None:
    plain = open_project(folder / "experiment.toml", ["evaluate.post_processing=[]"])
    other = open_project(folder / "experiment.toml", ["evaluate.post_processing=[]", "evaluate.qb_norm.k=7"])
    assert plain.stages["evaluate-hlformer"].needs == ("train-hlformer", "pack-hlformer-test")
    prints = [p.survey()["evaluate-hlformer"].fingerprint.hex for p in (project, plain, other)]
    assert prints[0] != prints[1] == prints[2]


@pytest.mark.slow
def test_results_have_the_fields_of_mteb_and_the_figures_of_the_leaderboard(
    folder: Path, one: MethodResults
) -> None:
    printed = call("export", "results", folder / "mteb", folder / "experiment.toml")
    revision = one.training.fingerprint.hex
    path = folder / "mteb/crossreel__hlformer" / revision / "corpus-T2V.json"
    told = json.loads(path.read_text())
    assert set(told) == {
        "dataset_revision", "task_name", "mteb_version", "scores", "evaluation_time", "kg_co2_emissions", "date",
    }  # fmt: skip
    assert told["mteb_version"] is None and told["task_name"] == "corpus-T2V"
    assert told["dataset_revision"] == one.evaluated.metrics.protocol.split_digest
    ((split, (scores,)),) = told["scores"].items()
    assert (split, scores["hf_subset"], scores["languages"]) == ("test", "default", ["und-Zyyy"])
    estimates = one.evaluated.metrics.estimates["t2v"]
    for k in (1, 5, 10, 100):
        assert 100 * scores[f"recall_at_{k}"] == pytest.approx(estimates[f"R@{k}"].value)
    assert scores["mrr_at_1000"] == pytest.approx(estimates["MRR"].value)
    assert scores["main_score"] == scores["ndcg_at_10"]
    assert "corpus-V2T.json: recall, precision, map and ndcg" in printed
    several = json.loads(path.with_name("corpus-V2T.json").read_text())["scores"]["test"][0]
    assert "ndcg_at_10" not in several and several["main_score"] == several["hit_rate_at_10"]


@pytest.mark.slow
def test_languages_of_results_are_the_users_to_name(folder: Path) -> None:
    call("export", "results", folder / "named", folder / "experiment.toml", "--language", "deu-Latn")
    (path, _) = sorted((folder / "named").rglob("*.json"))
    assert json.loads(path.read_text())["scores"]["test"][0]["languages"] == ["deu-Latn"]


@pytest.mark.slow
def test_card_is_read_by_the_hub_with_every_figure_of_the_evaluation(
    folder: Path, one: MethodResults
) -> None:
    printed = call(
        "export", "card", folder / "card", folder / "experiment.toml", "--method", "hlformer",
        "--license", "cc-by-4.0",
    )  # fmt: skip
    assert "--license" not in printed
    card = ModelCard.load(folder / "card/README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "crossreel"
    metrics = one.evaluated.metrics
    estimates = metrics.estimates
    results = card.data.eval_results
    assert results is not None
    named = {(r.task_type, r.metric_type): r.metric_value for r in results}
    assert named["text-to-video-retrieval", "recall_at_10"] == estimates["t2v"]["R@10"].value
    assert ("video-to-text-retrieval", "sum_of_recalls") in named and (
        "text-to-video-retrieval",
        "mrr",
    ) in named
    assert len(results) == len(estimates["t2v"]) + len(estimates["v2t"])
    assert {r.dataset_revision for r in results} == {metrics.protocol.split_digest}


@pytest.mark.slow
def test_card_tells_data_protocol_intervals_settings_features_and_limits(
    folder: Path, one: MethodResults
) -> None:
    printed = call("export", "card", folder / "card", folder / "experiment.toml")
    assert "the licence is left as unknown" in printed
    text = (folder / "card/README.md").read_text()
    assert ModelCard(text).data.to_dict()["license"] == "unknown"
    assert "| test | 2 | 3 |" in text and "No published protocol is known of it" in text
    recall = one.evaluated.metrics.estimates["t2v"]["R@1"]
    assert f"| R@1 | {recall.value:.1f} | {recall.low:.1f} to {recall.high:.1f} | 50.0 |" in text
    assert "- epochs: 1, of which epoch 1 was the best by the split val" in text
    assert "| hidden_size | 16 | 384 |" in text and "| import-i3d_toy | source: " in text
    assert "### After sinkhorn (beta 100, iterations 10)" in text
    assert "uses the other queries of the test set" in text
    assert one.training.fingerprint.hex in text and "## Limitations" in text
    assert str(folder) not in text and str(Path.home()) not in text.replace("~", "")


@pytest.mark.slow
def test_scores_come_back_as_they_are_stored(folder: Path, one: MethodResults) -> None:
    call("export", "scores", folder / "scores.parquet", folder / "experiment.toml")
    rows = tables.read_table(folder / "scores.parquet").to_pylist()
    queries, stored = one.evaluated.queries, one.evaluated.ranking
    shape = stored.top_items.shape
    assert np.array_equal(np.array([r["score"] for r in rows], np.float32).reshape(shape), stored.top_scores)
    places = {digest: place for place, digest in enumerate(queries.items)}
    found = np.array([places[r["item"]] for r in rows]).reshape(shape)
    assert np.array_equal(found, stored.top_items)
    assert [r["rank"] for r in rows] == [*range(1, shape[1] + 1)] * shape[0]
    assert [r["right"] for r in rows] == (found == np.array(queries.caption_item)[:, None]).ravel().tolist()
    items, captions = one.project.contents.names("items"), one.project.contents.names("captions")
    assert all(items[r["item_id"]] == r["item"] and captions[r["query_id"]] == r["query"] for r in rows)
    about = json.loads(tables.read_schema(folder / "scores.parquet").metadata[b"crossreel"])
    assert about["method"] == "hlformer" and about["protocol"] == one.evaluated.metrics.protocol.as_json()


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2**24])
def test_features_come_back_as_they_are_stored_in_groups_of_any_size(
    folder: Path, project: Project, monkeypatch: pytest.MonkeyPatch, group: int
) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", group)
    printed = call(
        "export",
        "features",
        "import-i3d_toy",
        folder / "t",
        folder / "experiment.toml",
        "--layout",
        "parquet",
    )
    path = folder / "t/import-i3d_toy.parquet"
    assert f"{path}: 7 rows of import-i3d_toy" in printed
    with tables.ParquetFile(path) as file:
        assert file.num_row_groups == (7 if group == 1 else 1)
    state = project.survey()["import-i3d_toy"]
    reader = project.store.reader("import-i3d_toy", state.fingerprint.hex)
    rows = tables.read_table(path).to_pylist()
    assert {r["id"]: r["digest"] for r in rows} == project.contents.names("items")
    for row in rows:
        stored = np.asarray(reader.rows(row["digest"], "row"))
        assert np.array_equal(np.array(row["row"], stored.dtype), stored)


@pytest.mark.slow
def test_what_is_not_there_is_named(folder: Path) -> None:
    experiment = folder / "experiment.toml"
    for words, sentence in (
        (("card", folder / "x", experiment, "--method", "hlforme"), "did you mean 'hlformer'"),
        (("scores", folder / "x.csv", experiment), r"x\.csv is no name of a table: it ends in \.parquet"),
        (("results", folder / "x", experiment, "--layout", "trec"), "mteb"),
        (("features", "import-i3d", folder / "x", experiment, "--layout", "parquet"), "did you mean"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            call("export", *words)


def test_results_of_one_right_answer_are_those_of_a_literal_count() -> None:
    random = np.random.default_rng(0)
    rank = random.integers(1, 1500, 100)
    scores = retrieval_scores(rank.astype(float), True)
    for k in CUTOFFS:
        relevant = [[place == r for place in range(1, k + 1)] for r in rank.tolist()]
        ideal = 1 / np.log2(2)
        dcg = [sum(hit / np.log2(1 + place) for place, hit in enumerate(row, 1)) / ideal for row in relevant]
        precision = [
            sum(sum(row[:place]) / place for place, hit in enumerate(row, 1) if hit) for row in relevant
        ]
        assert scores[f"ndcg_at_{k}"] == pytest.approx(np.mean(dcg))
        assert scores[f"map_at_{k}"] == scores[f"mrr_at_{k}"] == pytest.approx(np.mean(precision))
        assert (
            scores[f"recall_at_{k}"] == scores[f"hit_rate_at_{k}"] == np.mean([any(row) for row in relevant])
        )
        assert scores[f"precision_at_{k}"] == pytest.approx(np.mean([sum(row) / k for row in relevant]))
    assert scores["accuracy"] == scores["recall_at_1"]


def test_results_of_several_right_answers_have_what_the_best_rank_gives_alone() -> None:
    some, whole = (retrieval_scores(np.array([1.0, 2.5, 30.0]), one) for one in (False, True))
    assert set(some) == {f"{name}_at_{k}" for name in ("hit_rate", "mrr") for k in CUTOFFS}
    assert some == {name: whole[name] for name in some}


@pytest.fixture
def made(evaluated_from: Callable[..., EvaluatedFolder], tmp_path: Path) -> Callable[..., MethodResults]:
    """`made(captions, caption_item, also)` evaluates items A, B, C whose captions have ids q0, q1 ... in the corpus."""

    def make(captions: list[str], caption_item: list[int], also: list[list[int]]) -> MethodResults:
        items = {digest: SimpleNamespace(id=f"id-{digest}") for digest in "ABC"}
        asked = [
            ("ABC"[item], None, Caption(f"q{number}", "text", digest=digest))
            for number, (digest, item) in enumerate(zip(captions, caption_item, strict=True))
        ]
        contents = SimpleNamespace(items=lambda: items, queries=lambda split: iter(asked))
        rows = list(range(len(captions)))
        index = SplitIndex(["A", "B", "C"], [0, 1, 2], captions, rows, caption_item, captions, also)
        scores = np.array([[1, 2, 3], [3, 2, 1], [1, 2, 3], [1, 2, 3]])[: len(captions)]
        one = MethodResults(cast(Any, SimpleNamespace(contents=contents)), "made", {})
        vars(one)["evaluated"] = evaluated_from(tmp_path, scores, index)
        return one

    return make


def test_a_text_that_stands_several_times_keeps_the_ids_it_has_in_the_corpus(
    made: Callable[..., MethodResults],
) -> None:
    one = made(["x", "y", "x", "x"], [0, 0, 0, 2], [])
    assert one.caption_ids == ["q0", "q1", "q2", "q3"] and one.item_ids == ["id-A", "id-B", "id-C"]
    queries = one.evaluated.queries
    assert not queries.several and queries.positive_counts("v2t").tolist() == [3, 1]


def test_other_right_items_count_as_right_in_a_table_of_scores(made: Callable[..., MethodResults]) -> None:
    one = made(["x", "y"], [0, 1], [[2], []])
    assert one.evaluated.ranking.top_items.tolist() == [[2, 1, 0], [0, 1, 2]]
    (columns,) = parquet._score_groups(one)
    assert columns["right"] == [True, False, True, False, True, False]
    queries = one.evaluated.queries
    assert queries.several and queries.positive_counts("v2t").tolist() == [1, 1, 1]
    assert queries.positive_counts("t2v").tolist() == [2, 1]


@pytest.mark.parametrize(("dtype", "tail"), [("float16", (5,)), ("float32", ()), ("uint8", (2, 3, 4))])
def test_arrays_of_any_width_become_lists_of_fixed_length(
    tmp_path: Path, dtype: str, tail: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 9, (rows, *tail)).astype(dtype) for rows in (3, 0, 2)]
    column = parquet._nested(arrays)
    assert str(column.type.value_type).count("fixed_size_list") == len(tail)
    tables.write_table(arrow.table({"x": column}), tmp_path / "x.parquet")
    for row, array in zip(tables.read_table(tmp_path / "x.parquet")["x"].to_pylist(), arrays, strict=True):
        assert np.array_equal(np.array(row, dtype).reshape(array.shape), array)


def test_a_killed_export_leaves_no_half_table(tmp_path: Path) -> None:
    def groups() -> Any:
        yield {"x": [1, 2]}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parquet._write(tmp_path / "x.parquet", groups(), {})
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_a_table_says_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'crossreel\[parquet\]'"):
        parquet._write(tmp_path / "x.parquet", iter(()), {})


def test_the_command_imports_neither_pyarrow_nor_torch_nor_the_hub(run_python: Callable[..., Any]) -> None:
    code = (
        "import sys, flows.commands.exchange; "
        "sys.exit(len({'pyarrow', 'torch', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert run_python(code).code == 0


def test_a_leaderboard_without_post_processing_does_not_speak_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figure = {"value": 10.0, "low": 5.0, "high": 15.0}
    row = {"method": "m", "split": "test", "kind": "pointcloud", "direction": "t2v", "queries": 4, "gallery": 3,
           "chance": {}, "metrics": {"R@1": figure, "MRR": figure}}  # fmt: skip
    print_leaderboard([row])
    assert "post-processed" not in capsys.readouterr().out
    block = {"metrics": {"R@1": figure | {"value": 30.0}, "MRR": figure}, "note": "uses much; not comparable"}
    print_leaderboard([row | {"post_processed": {"sinkhorn": block}}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "post-processed (raw), not comparable with figures without it:",
        "m t2c sinkhorn: R@1 30.0 (10.0)",
        "  sinkhorn uses much",
    ]
