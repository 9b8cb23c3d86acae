"""One sentence for videos and point clouds: two trained methods, one list, ordered by what a score is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import crossreel
from flows.cli import app
from flows.project import Project, open_project
from flows.search.calibration import Calibration
from flows.search.hits import Hit
from flows.search.joint import COMPARABLE, join, joint_methods
from flows.search.searcher import Searcher
from flows.serve.lifecycle import _contents, _pictures, _shown, prepare
from pipeline.corpus.importers.demo.clouds import scan
from pipeline.corpus.importers.demo.corpus import render
from pipeline.corpus.manifest import Caption, Corpus, Item, write_manifest
from pipeline.errors import UserError
from trainers.registry import METHODS
from trainers.stages import Train

NETWORKS = (Path(__file__).parents[2] / "fixtures/experiments/demo_networks.toml").read_text()
BOTH = f"""
corpus = "both.jsonl"
methods = ["neighborretr", "h2arn"]
{NETWORKS}
[extractors.points]
sample = 128
[extractors.dgcnn]
weights = "seed:0"
[trainers.neighborretr]
mode = "frozen"
max_frames = 4
max_words = 16
temporal_layers = 1
num_neighbors = 2
bank_size = 6
batch_size = 6
lr = 3e-3
epochs = 60
[trainers.h2arn]
d_model = 32
nhead = 4
num_layers = 1
lr = 1e-2
epochs = 40
[run]
workers = 1
"""
METHODS_OF = {"neighborretr": "video", "h2arn": "pointcloud"}
SPLITS = ("train", "val", "test")
PAIRS = 6


def hit(place: int, item: str, score: float) -> Hit:
    return Hit(place, item, f"key of {item}", score, ())


def calibration(*best: float) -> Calibration:
    return Calibration("train", np.zeros((len(best), 1), np.float32), np.sort(np.array(best, np.float32)))


def stages(*methods: str) -> dict[str, Train]:
    declared = [METHODS.find(method) for method in methods]
    return {f"train-{one.name}": Train(one, one.config()) for one in declared}


def test_a_standard_score_does_not_change_with_the_unit_of_the_scores():
    near, far = calibration(1, 2, 3), calibration(-70, -60, -50)
    for score in (0.0, 2.0, 4.5):
        assert far.standard(-80 + 10 * score) == pytest.approx(near.standard(score), abs=1e-5)
    assert near.standard(2.0) == 0.0 and near.standard(3.0) == pytest.approx(1 / np.std([1, 2, 3]))
    assert calibration(5.0).standard(9.0) == 0.0 and calibration().standard(9.0) == 0.0


def test_results_are_ordered_by_standard_score_and_keep_the_order_of_their_method():
    found = {
        "a": ([hit(1, "v1", 0.9), hit(2, "v2", 0.5)], calibration(0.4, 0.6)),
        "b": ([hit(1, "c1", -1.0), hit(2, "c2", -9.0)], calibration(-3.0, -5.0)),
    }
    kinds = {"a": "video", "b": "pointcloud"}
    joint = join(found, kinds, top=3)
    assert [(one.place, one.method, one.kind, one.hit.item, one.hit.place) for one in joint] == [
        (1, "a", "video", "v1", 1), (2, "b", "pointcloud", "c1", 1), (3, "a", "video", "v2", 2),
    ]  # fmt: skip
    assert [one.standard for one in joint] == pytest.approx([4.0, 3.0, 0.0], abs=1e-5)
    assert [one.chance for one in joint] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    row = joint[2].as_json()
    assert (row["place"], row["own_place"], row["item"], row["method"]) == (3, 2, "v2", "a")


def test_one_method_of_each_kind_answers_together_and_two_of_one_kind_never_do():
    assert joint_methods(stages("gare", "h2arn"), ()) == {"gare": "video", "h2arn": "pointcloud"}
    every = stages("gare", "lean", "h2arn")
    assert joint_methods(every, ()) == {} and joint_methods(stages("gare"), ()) == {}
    assert joint_methods(every, ["h2arn", "lean"]) == {"h2arn": "pointcloud", "lean": "video"}
    assert joint_methods(every, ["lean"]) == {}
    with pytest.raises(UserError, match="gare and lean rank videos both; name one method for each kind"):
        joint_methods(every, ["gare", "lean"])
    assert joint_methods(every, ["h2arn", "h2arn"]) == {}
    corpus = Corpus(Path("corpus.jsonl"), (
        Item("v", "test"), Item("c", "test", kind="pointcloud"), Item("w", "odd"),
    ))  # fmt: skip
    two = stages("gare", "h2arn")
    assert joint_methods(two, (), corpus, "odd") == {"gare": "video"}
    for split in ("test", "nowhere", ""):
        assert joint_methods(two, (), corpus, split) == {"gare": "video", "h2arn": "pointcloud"}
    assert joint_methods(two, ["gare", "h2arn"], corpus, "odd") == {"gare": "video", "h2arn": "pointcloud"}
    with pytest.raises(UserError, match="no method 'gara'"):
        joint_methods(every, ["gara", "h2arn"])


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, fork_children: Callable[[], AbstractContextManager[None]]
) -> Path:
    """An experiment on six videos and six clouds, both of whose methods learned them by heart.

    The n-th sentence describes the n-th video and the n-th cloud, in every split.
    """
    folder = tmp_path_factory.mktemp("both")
    videos, clouds = (Corpus.read(make(folder, 9)).items[:PAIRS] for make in (render, scan))
    texts = [video.captions[0].text for video in videos]
    write_manifest(folder / "both.jsonl", [
        replace(item, split="train", captions=tuple(Caption(f"{item.id}#{s}", text, split=s) for s in SPLITS))
        for items in (videos, clouds) for item, text in zip(items, texts, strict=True)
    ])  # fmt: skip
    (folder / "both.toml").write_text(BOTH)
    with fork_children():
        ended = CliRunner().invoke(app, ["stage", "report", str(folder / "both.toml")])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return folder / "both.toml"


def sentences(project: Project) -> list[str]:
    return [item.captions[0].text for item in project.contents.corpus.items[:PAIRS]]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("forked")
def test_a_sentence_finds_the_video_and_the_cloud_that_it_describes(both):
    project = open_project(both)
    videos, clouds = (project.contents.of_kind(kind).corpus.items for kind in ("video", "pointcloud"))
    texts = sentences(project)
    rankings: dict[str, list[list[Hit]]] = {}
    scales: dict[str, Calibration] = {}
    for method in METHODS_OF:
        with Searcher(project, method) as searcher:
            rankings[method] = [searcher.search(text, PAIRS) for text in texts]
            scales[method] = searcher.calibrate()
    for n in range(PAIRS):
        found = {method: (rankings[method][n], scales[method]) for method in METHODS_OF}
        first = join(found, METHODS_OF, 4)
        best = {one.kind: one.hit.item for one in reversed(first)}
        assert best == {"video": videos[n].id, "pointcloud": clouds[n].id}
    ended = CliRunner().invoke(app, ["search", texts[0], str(both), "--top", str(2 * PAIRS), "--json"])
    assert ended.exit_code == 0, ended.output
    said = json.loads(ended.stdout)
    assert said["comparable"] == COMPARABLE
    assert {one["method"]: one["kind"] for one in said["methods"]} == METHODS_OF
    hits = said["hits"]
    assert [one["standard"] for one in hits] == sorted((one["standard"] for one in hits), reverse=True)
    with crossreel.open(both, quiet=True) as experiment:
        found = experiment.search(texts[0], top=2 * PAIRS)
        assert [(one.kind, one.hit.item) for one in found] == [(one["kind"], one["item"]) for one in hits]
        assert [one.standard for one in found] == pytest.approx([one["standard"] for one in hits], abs=1e-4)
    for method in METHODS_OF:
        assert [(one["own_place"], one["item"]) for one in hits if one["method"] == method] == [
            (one.place, one.item) for one in rankings[method][0]
        ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("forked")
def test_the_table_names_the_method_of_each_result_and_says_what_compares_them(both):
    text = sentences(open_project(both))[0]
    ended = CliRunner().invoke(
        app, ["search", text, str(both), "--method", "h2arn,neighborretr", "--top", "2"]
    )
    assert ended.exit_code == 0, ended.output
    lines = ended.stdout.splitlines()
    assert lines[0].split()[:4] == ["place", "standard", "method", "score"]
    assert {line.split()[2] for line in lines[1:3]} == set(METHODS_OF)
    assert "scores of different methods cannot be compared" in " ".join(lines[3:])
    refused = CliRunner().invoke(
        app, ["search", "--caption", "x", str(both), "--method", "h2arn,neighborretr"]
    )
    assert "search with one method; --method names h2arn and neighborretr" in str(refused.exception)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("forked")
def test_the_pages_know_the_items_of_both_kinds(both):
    project = open_project(both)
    prepared = prepare(project, (), lambda sentence: None)
    assert {one.name: one.kind for one in prepared.catalogue.methods} == METHODS_OF
    (split,) = prepared.catalogue.splits
    assert (split.name, split.items) == ("test", 2 * PAIRS)
    gallery = _pictures(prepared.searches)
    try:
        assert set(gallery.items) == set(project.contents.items())
        kinds = [gallery.kind(key) for key in gallery.items]
    finally:
        gallery.close()
    assert kinds == ["video"] * PAIRS + ["cloud"] * PAIRS
    assert dict(_contents(_shown(prepared.searches)).digests) == dict(project.contents.digests)


@pytest.mark.slow
@pytest.mark.long
def test_the_report_has_a_table_for_each_kind_and_a_sentence_that_they_are_not_compared(both):
    (page,) = (both.parent / "store/runs/report").glob("*/report.html")
    text = page.read_text(encoding="utf-8")
    assert "Methods that rank items of different kinds are not compared: " in text
    assert "<caption>Text to video</caption>" in text and "<caption>Text to cloud</caption>" in text
    assert "not measured under the same protocol" not in text
