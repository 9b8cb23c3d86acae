"""Trained runs as objects: what they embed and score is what their evaluation measured; comparing and applying them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import crossreel as library

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked")]
NEW = "a red square that nobody described"


@pytest.fixture(scope="module")
def folder(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    shutil.copytree(made_once, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[library.Run]:
    """The only run of the lab; its process is started once for all tests."""
    with library.open(folder / "experiment.toml", quiet=True) as experiment:
        yield experiment.runs["hlformer"]


def captions(folder: Path) -> list[tuple[str, str]]:
    """The item and the text of each caption of the test split, in order."""
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    return [
        (item["id"], text["text"]) for item in lines if item["split"] == "test" for text in item["captions"]
    ]


def test_metrics_of_its_scores_are_those_of_its_evaluation(run, folder):
    named = captions(folder)
    items = list(dict.fromkeys(item for item, _ in named))
    scores = run.scores([text for _, text in named], items)
    found = library.metrics(scores, [items.index(item) for item, _ in named], directions=["t2v"])
    keys = ("metric", "value", "low", "high", "chance", "queries", "gallery")
    stored = [[row[key] for key in keys] for row in run.metrics()]
    assert [[row[key] for key in keys] for row in found.table] == stored
    assert {row["run"] for row in run.metrics()} == {run.name}


def test_a_new_sentence_and_a_file_are_embedded_in_their_place(run, folder):
    known = captions(folder)[0][1]
    together = run.embed_texts([NEW, known, NEW])["query"]
    alone = run.embed_texts([known])["query"]
    assert together.shape == (3, 16) and np.array_equal(together[1], alone[0])
    assert np.array_equal(together[0], together[2]) and not np.allclose(together[0], together[1])
    shutil.copy(folder / "clip03.mp4", folder / "copy.mp4")
    items = run.embed_items(["clip07", folder / "copy.mp4", folder / "clip00.mp4"])
    again = run.embed_items(["clip03", "clip07"])
    for name, values in again.items():
        assert np.array_equal(items[name][[1, 0]], values)
        assert len(items[name]) == 3 and not np.allclose(items[name][2], items[name][0])


def test_new_items_in_a_list_are_each_encoded_as_alone(run, folder):
    files = [folder / "clip00.mp4", folder / "clip01.mp4"]
    together = run.embed_items(files)
    for place, file in enumerate(files):
        for name, values in run.embed_items([file]).items():
            np.testing.assert_allclose(together[name][place], values[0], atol=1e-5)


def test_a_search_has_the_scores_of_the_pairs(run):
    hits = run.search(NEW, top=3)
    scores = run.scores([NEW], [hit.item for hit in hits])[0]
    np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=1e-6)
    found = run.search_file(run.folder.parents[3] / "clip07.mp4", top=6)
    pairs = run.scores([hit.text for hit in found], ["clip07"])[:, 0]
    np.testing.assert_allclose([hit.score for hit in found], pairs, rtol=1e-6)
    assert len(found) == 6
    explained = run.explain(NEW, [hit.item for hit in hits])["clip_scores"]
    starts = [hit.moment[0] for hit in hits]  # the stretch with the best score begins there
    assert (np.argsort(explained.argmax(1), kind="stable") == np.argsort(starts, kind="stable")).all()


def test_an_experiment_with_one_method_is_searched_with_it(run, folder):
    hits, calibration = run.search(NEW, top=3), run.calibrate()
    with library.open(folder / "experiment.toml", quiet=True) as experiment:
        found = experiment.search(NEW, top=3)
        assert [one.hit.item for one in found] == [hit.item for hit in hits]
        assert [one.place for one in found] == [1, 2, 3]
        assert {(one.method, one.kind) for one in found} == {("hlformer", "video")}
        assert [one.standard for one in found] == pytest.approx([calibration.standard(h.score) for h in hits])
        assert [one.chance for one in found] == [calibration.share_above(one.hit.score) for one in found]
        for call, words in (
            (
                lambda: experiment.search(NEW, methods="hlforner"),
                "no method 'hlforner'; did you mean 'hlformer'",
            ),
            (lambda: experiment.search(NEW, split="tset"), "tset"),
            (lambda: experiment.search(NEW, top=True), "True results are not possible"),
            (lambda: experiment.search(NEW, top=2.5), "2.5 results are not possible"),
            (lambda: experiment.search(None), "the query is None"),
            (
                lambda: experiment.search(NEW, methods=[1]),
                r"a list of texts, or one text with commas, and not \[1\]",
            ),
            (lambda: experiment.search(NEW, methods=None), "and not None"),
        ):
            with pytest.raises(library.Error, match=words):
                call()
    with (
        library.open(folder / "experiment.toml", methods=["hlformer", "gare"], quiet=True) as two,
        pytest.raises(library.Error, match="give methods= one of hlformer and gare, or one for each kind"),
    ):
        two.search(NEW)


def test_what_cannot_be_embedded_is_said_in_a_sentence(run, folder):
    (folder / "broken.mp4").write_bytes(b"no video")
    for call, words in (
        (lambda: run.embed_items(["clip77"]), r"'clip77' is neither an item of the split 'test' nor a file"),
        (lambda: run.embed_items([folder / "nowhere.mp4"]), r"nowhere\.mp4 is not a file"),
        (lambda: run.embed_texts([" "]), "the query is empty"),
        (lambda: run.embed_texts([]), "no texts are given"),
        (lambda: run.explain(NEW, ["clip00"]), "no item of the split 'test' has the id or digest 'clip00'"),
        (lambda: run.embed_items(["clip03", folder / "broken.mp4"]), r"^broken\.mp4: "),
        (lambda: run.search(NEW, split="tset"), "tset"),
    ):
        with pytest.raises(library.Error, match=words):
            call()
    assert run.scores([], ["clip03"]).shape == (0, 1)


def test_a_run_with_other_settings_is_compared_as_on_the_command_line(folder, crossreel):
    with library.open(folder / "experiment.toml", quiet=True) as experiment:
        first = experiment.runs["hlformer"]
        outcome = experiment.run("evaluate", set={"trainers.hlformer.lr": 1e-2}, quiet=True)
        assert outcome.ran == ["train-hlformer", "evaluate-hlformer"]
        second = outcome.runs["hlformer"]
        found = library.compare(first, second)
        assert [run.name for run in experiment.runs] == [second.name, first.name]
        assert experiment.runs[second.name].folder == second.folder != first.folder
        ended = crossreel("compare", "runs", first.name, second.name, "-e", experiment.path, "--json")
        printed = json.loads(ended.out)["pairs"]
        assert found.meaning == [pair["meaning"] for pair in printed]
        row = found.table.where(metric="R@5")[0]
        assert (
            row["difference"] == printed[0]["differences"]["R@5"]["value"] == row["value_a"] - row["value_b"]
        )
        by_folder = library.compare(first.evaluation(), second.evaluation())
        assert list(by_folder.table.column("difference")) == list(found.table.column("difference"))
        assert library.compare(first, first).table.column("b")[0] == f"{first.name} (2)"


def test_what_was_applied_by_a_closed_experiment_starts_nothing(folder):
    with library.open(folder / "experiment.toml", quiet=True) as experiment:
        applied = experiment.runs["hlformer"].apply(folder / "corpus.jsonl", split="test", quiet=True)
    for call in (lambda: applied.search(NEW), applied.calibrate):
        with pytest.raises(library.Error, match="is closed; open it again"):
            call()


def test_a_run_on_another_corpus_is_measured_and_searched(run, folder):
    applied = run.apply(folder / "corpus.jsonl", split="test", quiet=True)
    assert applied.metrics.column("value") == run.metrics().column("value")
    assert [hit.item for hit in applied.search(NEW, top=3)] == [hit.item for hit in run.search(NEW, top=3)]
    assert applied.failed == {}
    with pytest.raises(library.Error, match="applied to 'test', not to the split 'val'"):
        applied.search(NEW, split="val")
