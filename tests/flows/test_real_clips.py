"""Twenty-one real clips of several containers and sizes, from the table of captions to figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flows.project import open_project
from pipeline.media.video import probe

CLIPS = Path(__file__).parents[3] / "shared/data/clips"
EXPERIMENT = """
corpus = "corpus.jsonl"
methods = ["hlformer"]

[extractors.clip]
model = "crossreel-demo"
weights = "seed:0"

[trainers.hlformer]
hidden_size = 16
heads = 2
lorentz_dim = 11
blocks = 2
epochs = 1

[run]
workers = 2
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CLIPS / "captions.csv").exists(), reason=f"the folder {CLIPS} is not there"),
]


@pytest.fixture
def imported(small):
    """A folder with the manifest that the import wrote, and an experiment over it."""
    ended = small.run(
        "corpus", "import", "csv", CLIPS / "captions.csv", "--out", small.folder / "corpus.jsonl"
    )
    assert ended.code == 0, ended.err
    assert "21 items" in ended.out and "left out" not in ended.out
    small.experiment(EXPERIMENT)
    return small


def test_the_import_is_a_corpus_without_errors(imported):
    found = json.loads(imported.run("corpus", "check", imported.folder / "corpus.jsonl", "--json").out)
    assert [finding for finding in found if finding["level"] == "error"] == []


@pytest.mark.long
def test_real_clips_are_run_end_to_end_and_nothing_is_lost(imported):
    ended = imported.run("stage", "evaluate-hlformer", imported.toml, "--json", seconds=300)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    reports = {report["stage"]: report for report in told["stages"]}
    assert [reports[name]["ran"] for name in ("compress", "clip", "clip_text")] == [21, 21, 21]
    assert all(report["failed"] == 0 for report in reports.values()) and told["unreadable"] == {}
    (figures,) = told["leaderboard"]
    assert figures["split"] == "test" and 0 <= figures["metrics"]["R@1"]["value"] <= 100

    project = open_project(imported.toml)
    states = project.survey()
    compress, clip = states["compress"], states["clip"]
    for key, item in project.contents.items().items():
        file = project.store.item_file("compress", compress.fingerprint.hex, key, ".mp4")
        source, made = probe(project.contents.corpus.media_path(item)), probe(file)
        assert min(made.width, made.height) == min(224, 2 * (min(source.width, source.height) // 2))
        assert made.width / made.height == pytest.approx(source.width / source.height, rel=0.02)
        times = project.store.reader("clip", clip.fingerprint.hex).rows(key, "time")
        assert len(times) == pytest.approx(3 * source.seconds, abs=2)
        np.testing.assert_allclose(times, np.arange(len(times)) / 3, atol=2e-3)
    project.store.index.close()

    again = json.loads(imported.run("stage", "evaluate-hlformer", imported.toml, "--json").out)
    assert again["stages_ran"] == 0 and again["leaderboard"] == told["leaderboard"]
