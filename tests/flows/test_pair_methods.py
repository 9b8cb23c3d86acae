"""GARE and NeighborRetr through the command line: from clips to the report, and out and in as a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CLIPS = 8  # of the lab's: four to learn from, two of each other split
SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
FROZEN = """
corpus = "corpus.jsonl"
store = "store"
methods = ["neighborretr", "gare"]

[extractors.clip]
model = "small.json"
weights = "seed:0"

[trainers.neighborretr]
mode = "frozen"
max_frames = 3
max_words = 12
temporal_layers = 1
num_neighbors = 2
bank_size = 12
batch_size = 8
epochs = 1

[trainers.gare]
mode = "frozen"
max_frames = 3
num_hidden_layers = 1
batch_size = 4
epochs = 1

[evaluate]
split = "val"
[run]
workers = 1
"""
FINETUNE = """
corpus = "corpus.jsonl"
store = "store"
methods = ["gare"]

[trainers.gare]
base_encoder = "crossreel-demo"
backbone_weights = "seed:0"
max_frames = 2
max_words = 10
num_hidden_layers = 1
batch_size = 4
epochs = 1

[evaluate]
split = "val"
[run]
workers = 1
"""

ZERO_SHOT = """
corpus = "corpus.jsonl"
store = "store"
methods = ["clip4clip"]

[extractors.clip]
model = "small.json"
weights = "seed:0"

[trainers.clip4clip]
mode = "frozen"
epochs = 0

[evaluate]
split = "val"
[run]
workers = 1
"""


@pytest.fixture
def clips(lab) -> Any:
    """The lab with a few of its clips."""
    lab.corpus(sorted(path.name for path in lab.folder.glob("*.mp4"))[:CLIPS])
    return lab


def measured(lab, stage: str) -> list[dict[str, Any]]:
    """What the evaluations of a method found, oldest first."""
    files = sorted((lab.store / "runs" / stage).glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def test_both_methods_learn_from_stored_features_up_to_one_report(clips):
    (clips.folder / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")
    clips.experiment(FROZEN)
    ended = clips.run_without_prefect(clips.toml)
    assert ended.code == 0, ended.err
    for method in ("neighborretr", "gare"):
        (found,) = measured(clips, f"evaluate-{method}")
        assert set(found["metrics"]) == {"t2v", "v2t", "both"} and set(found["hubness"]) == {"t2v", "v2t"}
        assert found["protocol"]["split"] == "val" and found["protocol"]["captions"] == 4
    (page,) = (clips.store / "runs" / "report").glob("*/report.html")
    text = page.read_text(encoding="utf-8")
    assert "Hubness" in text and text.count('<th scope="row">gare</th>') == text.count(
        '<th scope="row">neighborretr</th>'
    )
    again = clips.run_without_prefect(clips.toml)
    assert again.code == 0 and "0 stages ran, 10 were cached" in again.out


def test_gare_is_fine_tuned_from_frames_of_the_network_s_size_and_comes_back_from_a_checkpoint(
    clips, crossreel
):
    clips.experiment(FINETUNE)
    planned = clips.plan()
    assert list(planned) == ["compress", "frames", "pack-gare", "train-gare", "evaluate-gare", "report"]
    assert clips.plan("--set", "extractors.frames.size=64") == planned  # the size it wishes for anyway
    ended = clips.run("stage", "evaluate", clips.toml)
    assert ended.code == 0, ended.err
    exported, imported = clips.folder / "gare.pth", clips.folder / "imported"
    for command in (
        ("export", "checkpoint", exported, clips.toml, "--method", "gare"),
        ("import", "checkpoint", exported, imported, "--method", "gare"),
    ):
        ended = crossreel(*command)
        assert ended.code == 0, ended.err
    assert f'weights = "{imported}"' in ended.out and 'base_encoder = "crossreel-demo"' in ended.out
    back = ("--set", f"trainers.gare.weights={imported}", "--set", "trainers.gare.epochs=0")
    ended = clips.run("stage", "evaluate", clips.toml, *back)
    assert ended.code == 0, ended.err
    first, second = measured(clips, "evaluate-gare")
    assert first == second and "hubness" in first


def test_zero_shot_clip_is_evaluated_up_to_the_report_without_a_training(clips):
    (clips.folder / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")
    clips.experiment(ZERO_SHOT)
    ended = clips.run_without_prefect(clips.toml)
    assert ended.code == 0, ended.err
    (found,) = measured(clips, "evaluate-clip4clip")
    assert set(found["metrics"]) == {"t2v", "v2t", "both"} and found["protocol"]["captions"] == 4
    (trained,) = (clips.store / "runs" / "train-clip4clip").glob("*/config.json")
    summary = json.loads(trained.read_text(encoding="utf-8"))["summary"]
    assert (
        summary["epochs"] == 0 and summary["parameters"] == 1
    )  # the factor of the scores, which ranks nothing
