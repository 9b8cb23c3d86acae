"""Real clips of several sizes and containers, from a table of captions to figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

CLIPS = Path(__file__).parents[3] / "shared/data/clips"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CLIPS / "captions.csv").is_file(), reason="the real clips are not on this machine"
    ),
]


def test_real_clips_go_from_a_table_of_captions_to_figures(small):
    shutil.rmtree(small.store, ignore_errors=True)
    imported = small.run(
        "corpus", "import", "csv", CLIPS / "captions.csv", "--out", small.folder / "corpus.jsonl"
    )
    assert imported.code == 0 and "21 items" in imported.out, imported
    checked = small.run("corpus", "check", small.folder / "corpus.jsonl")
    assert checked.code == 0 and "0 errors" in checked.out, checked
    small.experiment(
        'corpus = "corpus.jsonl"\nmethods = ["hlformer"]\n[extractors.clip]\nmodel = "crossreel-demo"\n'
        'weights = "seed:0"\n[trainers.hlformer]\nhidden_size = 16\nheads = 2\nlorentz_dim = 11\n'
        "blocks = 2\nepochs = 1\n"
    )
    ended = small.run("stage", "report", small.toml, "--json", seconds=400)
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    made = {stage["stage"]: stage["ran"] for stage in told["stages"]}
    assert made["compress"] == made["clip"] == made["clip_text"] == 21
    assert told["leaderboard"][0]["queries"] == 3
    assert Path(told["report"]).stat().st_size > 20_000
